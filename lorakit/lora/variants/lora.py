"""Plain LoRA (Hu et al. 2021, arXiv:2106.09685): W + alpha / rank * B A, with A random and B zero at the start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.lora.variants import AdapterConfig, Variant
from lorakit.lora.variants._tucker import tucker

if TYPE_CHECKING:
    import torch

    from lorakit.lora.variants import Tensors


class Lora(Variant):
    """`down` is A [rank, in, ...], `up` is B [out, rank, ...]; files of convolutions may have a `mid` between them."""

    name = "lora"
    title = "LoRA"
    help = "the plain choice: loads everywhere"
    complete = (frozenset({"down", "up"}), frozenset({"down", "mid", "up"}))
    spellings = {
        "down": r"lora_down|lora_A|lora\.down|lora_linear_layer\.down",
        "up": r"lora_up|lora_B|lora\.up|lora_linear_layer\.up",
        "mid": "lora_mid",
    }
    rank_roles = ("down",)
    network_module = "networks.lora"

    trained = (frozenset({"down", "up"}),)
    stored = {"down": "lora_A.weight", "up": "lora_B.weight"}
    zero_roles = frozenset({"up"})
    scaled_roles = ("up",)
    written = {
        "kohya": {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": "alpha"},
        # diffusers refuses an alpha beside A and B, so the scale goes into B
        "comfy": {"down": "lora_A.weight", "up": "lora_B.weight"},
    }

    @classmethod
    def product(cls, tensors: Tensors) -> torch.Tensor:
        """B A, of kernels flattened: [out, in * ...]; with `mid` three convolutions in a row (LyCORIS' LoCon)."""
        down, up = tensors["down"].flatten(1), tensors["up"].flatten(1)
        return tucker(tensors["mid"], up.t(), down) if "mid" in tensors else up @ down

    @classmethod
    def peft_config(cls, config: AdapterConfig, targets: list[str]) -> Any:
        """peft's LoRA, whose layers compute as `lorakit.layers.lora_linear` says."""
        from peft import LoraConfig

        from lorakit.layers.lora_linear import LAYERS

        # peft divides by the rank again
        alpha = config.scale * config.rank
        peft = LoraConfig(r=config.rank, lora_alpha=alpha, lora_dropout=config.dropout, target_modules=targets)
        # peft's only way to put in other layer classes; it has no public name.
        peft._register_custom_module(LAYERS)
        return peft

    @classmethod
    def parameters(cls, layer: Any) -> dict[str, torch.nn.Parameter]:
        from lorakit.layers.lora_linear import NAME

        return {"down": layer.lora_A[NAME].weight, "up": layer.lora_B[NAME].weight}

    @classmethod
    def fill(cls, own: Tensors, tensors: Tensors, ratio: float) -> None:
        """The adapter's further ranks stay as they begin: A random and B zero, so without effect but free to learn."""
        rank = len(tensors["down"])
        down, up = own["down"][:rank], own["up"][:, :rank]
        down.copy_(tensors["down"].float().reshape(down.shape))
        up.copy_((ratio * tensors["up"].float()).reshape(up.shape))
