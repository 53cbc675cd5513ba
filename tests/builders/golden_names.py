"""Names by which ComfyUI and kohya's sd-scripts know modules in LoRA files, from the architectures at true size."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import diffusers
import torch
import transformers

from lorakit import models

ATTENTION = [f"attn{i}.{side}" for i in (1, 2) for side in ("to_q", "to_k", "to_v", "to_out.0")]
CLIP = [f"self_attn.{side}_proj" for side in ("q", "k", "v", "out")] + ["mlp.fc1", "mlp.fc2"]


@dataclass
class Golden:
    """All names of a family that each reader knows, without what follows them (.lora_down.weight, .lora_A.weight)."""

    comfy: set[str] = field(default_factory=set)
    kohya: set[str] = field(default_factory=set)


def flat(prefix: str, name: str) -> str:
    return f"{prefix}_{name}".replace(".", "_")


# ---- the original layout of Stable Diffusion's UNet, by its rules ----------------------------------------------------


def original_unet(depths: tuple[int, ...], widths: tuple[int, ...], middle: int, has_labels: bool) -> Iterator[str]:
    """Modules with a matrix or kernel, of a UNet of two residual blocks a level.

    `depths`: transformer blocks after each residual block of a level; `middle`: those in the middle.
    """
    yield from ("time_embed.0", "time_embed.2", "input_blocks.0.0", "out.2")
    yield from ("label_emb.0.0", "label_emb.0.2") if has_labels else ()
    block, width = 0, widths[0]
    for level, (depth, out) in enumerate(zip(depths, widths, strict=True)):
        for _ in range(2):
            block += 1
            yield from _residual(f"input_blocks.{block}.0", width != out)
            yield from _transformer(f"input_blocks.{block}.1", depth)
            width = out
        if level < len(depths) - 1:
            block += 1
            yield f"input_blocks.{block}.0.op"
    yield from _residual("middle_block.0", False)
    yield from _transformer("middle_block.1", middle)
    yield from _residual("middle_block.2", False)
    block = -1
    for level, depth in reversed(list(enumerate(depths))):
        for i in range(3):
            block += 1
            yield from _residual(f"output_blocks.{block}.0", True)  # always: what is skipped over is appended
            yield from _transformer(f"output_blocks.{block}.1", depth)
            if i == 2 and level > 0:
                yield f"output_blocks.{block}.{2 if depth else 1}.conv"


def _residual(name: str, has_skip: bool) -> Iterator[str]:
    yield from (f"{name}.in_layers.2", f"{name}.emb_layers.1", f"{name}.out_layers.3")
    if has_skip:
        yield f"{name}.skip_connection"


def _transformer(name: str, depth: int) -> Iterator[str]:
    if depth:
        yield from (f"{name}.proj_in", f"{name}.proj_out")
    for block in range(depth):
        for module in (*ATTENTION, "ff.net.0.proj", "ff.net.2"):
            yield f"{name}.transformer_blocks.{block}.{module}"


def clip(layers: int) -> list[str]:
    return [f"text_model.encoder.layers.{layer}.{module}" for layer in range(layers) for module in CLIP]


# ---- the original layout of Anima ------------------------------------------------------------------------------------


def original_anima(blocks: int, adapter_blocks: int) -> Iterator[str]:
    """Modules of the DiT and of the LLM adapter in it, as ComfyUI and sd-scripts build both."""
    yield from ("x_embedder.proj.1", "t_embedder.1.linear_1", "t_embedder.1.linear_2")
    yield from ("final_layer.linear", "final_layer.adaln_modulation.1", "final_layer.adaln_modulation.2")
    for block in range(blocks):
        for attention in ("self_attn", "cross_attn"):
            yield from (f"blocks.{block}.{attention}.{side}_proj" for side in ("q", "k", "v", "output"))
        yield from (f"blocks.{block}.mlp.layer1", f"blocks.{block}.mlp.layer2")
        for which in ("self_attn", "cross_attn", "mlp"):
            yield from (f"blocks.{block}.adaln_modulation_{which}.{i}" for i in (1, 2))
    yield from ("llm_adapter.embed", "llm_adapter.out_proj")
    for block in range(adapter_blocks):
        for attention in ("self_attn", "cross_attn"):
            yield from (f"llm_adapter.blocks.{block}.{attention}.{side}_proj" for side in "qkvo")
        yield from (f"llm_adapter.blocks.{block}.mlp.0", f"llm_adapter.blocks.{block}.mlp.2")


# ---- what each reader makes of them ----------------------------------------------------------------------------------


def _comfy(originals: list[str]) -> set[str]:
    """ComfyUI's generic rule: every weight of the diffusion model, flat behind lora_unet and dotted as it is."""
    return {flat("lora_unet", name) for name in originals} | {f"diffusion_model.{name}" for name in originals}


def sd15() -> Golden:
    original = list(original_unet((1, 1, 1, 0), (320, 640, 1280, 1280), 1, False))
    library = matrices(on_meta("sd15", "unet"))
    assert len(original) == len(library)
    flats = {
        flat("lora_unet", name) for name in library
    }  # kohya's UNet has the library's names; ComfyUI maps these too
    text = {flat("lora_te", name) for name in clip(12)}
    return Golden(
        comfy=_comfy(original) | flats | text | {flat("lora_te1", name) for name in clip(12)},
        kohya={name for name in flats if "_blocks_" in name or "_mid_block_" in name} | text,
    )


def sdxl() -> Golden:
    original = list(original_unet((0, 2, 10), (320, 640, 1280), 10, True))
    library = matrices(on_meta("sdxl", "unet"))
    assert len(original) == len(library)
    text = {flat("lora_te1", name) for name in clip(12)} | {flat("lora_te2", name) for name in clip(32)}
    return Golden(
        comfy=_comfy(original) | {flat("lora_unet", name) for name in library} | text,
        kohya={flat("lora_unet", name) for name in original if "_block" in name and name != "input_blocks.0.0"} | text,
    )


def anima() -> Golden:
    original = list(original_anima(28, 6))
    assert len(original) == len(matrices(on_meta("anima", "transformer"))) + len(
        matrices(on_meta("anima", "text_conditioner"))
    )
    # of the adapter sd-scripts takes the blocks alone
    known = {name for name in original if not name.startswith(("llm_adapter.embed", "llm_adapter.out_proj"))}
    return Golden(comfy=_comfy(original), kohya={flat("lora_unet", name) for name in known})


FAMILIES = {"sd15": sd15, "sdxl": sdxl, "anima": anima}


def golden(family: str) -> Golden:
    """The names of a family. Raises KeyError for a family whose names nobody has looked up yet."""
    return FAMILIES[family]()


# ---- architectures at true size --------------------------------------------------------------------------------------


def configs(family: str) -> Path:
    return Path(models.__file__).parent / f"{family}_config"


def on_meta(family: str, part: str) -> torch.nn.Module:
    """A part of a family at its true size, without memory for its weights."""
    config = json.loads((configs(family) / part / "config.json").read_text("utf-8"))
    name = config.get("_class_name") or config["architectures"][0]
    with torch.device("meta"):
        if hasattr(diffusers, name):
            return getattr(diffusers, name).from_config(config)
        module = getattr(transformers, name)
        return module(module.config_class.from_dict(config))


def matrices(module: torch.nn.Module) -> list[str]:
    """Names of the modules that have a matrix or a kernel."""
    return [name.removesuffix(".weight") for name, weight in module.named_parameters() if weight.ndim > 1]


def true_size(family: str, base: Path, folder: Path):
    """A family's Model whose parts are on the meta device at true size; in `folder`, from its tiny `base`."""
    module = models.family(family)
    shutil.copytree(base, folder, dirs_exist_ok=True)
    shutil.copytree(configs(family), folder, dirs_exist_ok=True)

    class OnMeta(module.Model):
        def load(self, part: str) -> torch.nn.Module:
            if part not in self._parts:
                self._parts[part] = on_meta(family, part)
            return self._parts[part]

    return OnMeta(module.Config(source=str(folder)), torch.device("cpu"), torch.float32)
