"""Trainable low-rank weights on a frozen model, over peft: a row for each kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorakit.config import Config, Field, Slider, setting
from lorakit.randomness import seed_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Kind:
    """One row: a line of help and the peft config for (rank, alpha, dropout, target module names)."""

    help: str
    build: Callable[[AdapterConfig, list[str]], Any]


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(Config):
    """What is trained: its kind and size."""

    type: str = setting(
        "lora", help="adapter type", choices=lambda: KINDS, ui=Field(label="adapter type (network module)")
    )
    rank: int = setting(
        16,
        help="how much can be learned, and the file's size (network dim)",
        range=(1, 768),
        ui=Slider(4, 128, 4, basic=True),
    )
    alpha: float = setting(
        16.0,
        help="the change is scaled by alpha / rank; 0 means alpha = rank (network alpha)",
        range=(0, 1536),
        ui=Slider(0, 128, 1),
    )
    dropout: float = setting(
        0.0, help="share of inputs hidden from the adapter at random", range=(0, 0.9), ui=Slider(0, 0.5, 0.01)
    )
    network_weights: str = setting(
        "",
        help="a LoRA file to start from: a path, a file on the hub or an URL; its rank must fit; empty: from nothing",
    )

    @property
    def scale(self) -> float:
        """alpha / rank, with alpha 0 read as alpha = rank."""
        return (self.alpha or self.rank) / self.rank


def _lora(config: AdapterConfig, targets: list[str]) -> Any:
    """Hu et al. 2021, arXiv:2106.09685: W + alpha / rank * B A, with A random and B zero at the start."""
    from peft import LoraConfig

    from lorakit.layers.lora_linear import LAYERS

    made = LoraConfig(
        r=config.rank, lora_alpha=config.scale * config.rank, lora_dropout=config.dropout, target_modules=targets
    )
    made._register_custom_module(LAYERS)
    return made


KINDS = {"lora": Kind("the plain choice: loads everywhere", _lora)}


class Adapter:
    """The adapter on the given parts of a model; its weights are float32 whatever the model computes in.

    It starts as the identity: a model with a new adapter paints what it painted before.
    """

    def __init__(self, config: AdapterConfig, model: Any, parts: list[str], seed: int):
        import torch
        from peft import inject_adapter_in_model

        from lorakit.layers.lora_linear import NAME

        self.config = config
        self._name = NAME
        self.layers: dict[tuple[str, str], Any] = {}  # (part, module name) -> peft layer
        for part in parts:
            root, targets = model.load(part), model.targets(part)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_of(seed, "adapter", part))
                inject_adapter_in_model(KINDS[config.type].build(config, targets), root, NAME)
            self.layers |= {(part, name): root.get_submodule(name) for name in targets}
        for _, parameter in self.named():
            # beside a weight that stays in host memory peft makes them there
            parameter.data = parameter.data.to(model.device, torch.float32)

    def pairs(self) -> Iterator[tuple[tuple[str, str], tuple[torch.Tensor, torch.Tensor]]]:
        """((part, module), (A, B)) of every module, float32 on the CPU; A is [rank, in, ...], B is [out, rank, ...]."""
        for key, layer in self.layers.items():
            yield key, tuple(side[self._name].weight.detach().cpu() for side in (layer.lora_A, layer.lora_B))

    def named(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """(name, weight) of every trained tensor; names are `<part>.<module>.lora_A.weight` and `...lora_B.weight`."""
        for (part, name), layer in self.layers.items():
            yield f"{part}.{name}.lora_A.weight", layer.lora_A[self._name].weight
            yield f"{part}.{name}.lora_B.weight", layer.lora_B[self._name].weight

    def parameters(self, part: str) -> list[torch.nn.Parameter]:
        """The trained tensors of one part, always in the same order."""
        return [weight for name, weight in self.named() if name.startswith(part + ".")]

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of all trained tensors, float32 on the CPU."""
        return {name: weight.detach().cpu().clone() for name, weight in self.named()}

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        """Copy tensors into the adapter in place, so that an optimizer over it stays right.

        Raises ValueError when names or shapes do not match one to one.
        """
        mine = dict(self.named())
        if mine.keys() != weights.keys():
            odd = sorted(mine.keys() ^ weights.keys())
            raise ValueError(f"The weights do not fit this adapter: {len(odd)} names differ, the first is {odd[0]}.")
        for name, weight in weights.items():
            if mine[name].shape != weight.shape:
                raise ValueError(
                    f"{name} is {tuple(weight.shape)}, this adapter has {tuple(mine[name].shape)} (another rank?)."
                )
        for name, weight in weights.items():
            mine[name].data.copy_(weight)

    def set_strength(self, strength: float) -> None:
        """Multiply the adapter's effect: 0 is the base model, 1 is as trained."""
        for layer in self.layers.values():
            layer.scaling[self._name] = self.config.scale * strength

    def delta(self, part: str, module: str) -> torch.Tensor:
        """The change of one module's weight at strength 1, float32 on the CPU, shaped like the weight."""
        layer = self.layers[part, module]
        down, up = layer.lora_A[self._name].weight.detach().cpu(), layer.lora_B[self._name].weight.detach().cpu()
        change = self.config.scale * (up.flatten(1) @ down.flatten(1))
        return change.reshape(up.shape[0], *down.shape[1:])
