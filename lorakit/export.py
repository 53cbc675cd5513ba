"""LoRA files in the form that ComfyUI, A1111/Forge and diffusers read: written, read back, proved."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from lorakit import __version__
from lorakit.errors import UserError

if TYPE_CHECKING:
    import torch

    from lorakit.adapters import Adapter
    from lorakit.data.plan import Plan
    from lorakit.data.scan import Scan
    from lorakit.run import RunConfig

DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
EPSILON = {
    "fp16": 2**-10,
    "bf16": 2**-7,
    "fp32": 2**-20,
}  # relative error of a product of two rounded factors, with room


class LoraFileError(UserError):
    """A LoRA file does not hold what was meant, or does not fit the model."""


def write(file: Path, adapter: Adapter, model: Any, metadata: dict[str, str], dtype: str, form: str) -> str:
    """Write the adapter in kohya's form and prove the file; returns "matched/all" modules, e.g. "192/192".

    Each module has `<name>.lora_down.weight` [rank, in, ...], `<name>.lora_up.weight` [out, rank, ...] and
    `<name>.alpha`; a host adds alpha / rank * up @ down to the weight. Raises LoraFileError, and writes nothing, when a
    number is not finite.
    """
    import torch
    from safetensors.torch import save_file

    kind = getattr(torch, DTYPES[dtype])
    tensors = {}
    for (part, module), (down, up) in adapter.pairs():
        name = model.names(part, module)["kohya"]
        tensors[f"{name}.lora_down.weight"] = down.to(kind)
        tensors[f"{name}.lora_up.weight"] = up.to(kind)
        tensors[f"{name}.alpha"] = torch.tensor(adapter.config.scale * adapter.config.rank)
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise LoraFileError(
            f"{file.name} was not written: {len(broken)} tensors are not finite in {dtype}, the first is {broken[0]}."
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    part_file = file.with_suffix(".part")
    save_file(tensors, part_file, metadata)
    matched = prove(part_file, adapter, model, dtype)
    with open(part_file, "rb") as written:
        os.fsync(written.fileno())
    os.replace(part_file, file)
    return matched


def prove(file: Path, adapter: Adapter, model: Any, dtype: str) -> str:
    """Read a file back and compare each module's weight change with the trained one; returns "matched/all".

    Raises LoraFileError when a module is missing, left over, or differs by more than the file's rounding.
    """
    names = {model.names(part, module)["kohya"]: (part, module) for part, module in adapter.layers}
    pairs = read(file, names)
    if pairs.keys() != set(names.values()):
        raise LoraFileError(f"{file.name} holds {len(pairs)} of {len(names)} modules.")
    for (part, module), (down, up, alpha) in pairs.items():
        trained, stored = adapter.delta(part, module), delta(down, up, alpha)
        bound = EPSILON[dtype] * (abs(alpha) / down.shape[0] * up.flatten(1).abs() @ down.flatten(1).abs()).max() + 1e-6
        # not written as "> bound", which would let NaN pass
        if trained.shape != stored.shape or not (trained - stored).abs().max() <= bound:
            raise LoraFileError(f"{file.name}: the change of {module} is not the trained one.")
    return f"{len(pairs)}/{len(names)}"


def delta(down: torch.Tensor, up: torch.Tensor, alpha: float) -> torch.Tensor:
    """The change that a file's module makes to a weight: alpha / rank * up @ down, shaped like the weight."""
    return (alpha / down.shape[0] * (up.flatten(1) @ down.flatten(1))).reshape(up.shape[0], *down.shape[1:])


def read(
    file: Path, names: dict[str, tuple[str, str]]
) -> dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor, float]]:
    """(part, module) -> (down, up, alpha), float32, of a file in kohya's form.

    `names` says which module each name means. Raises LoraFileError for a damaged file, for names that it lacks and for
    incomplete modules.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise LoraFileError(f"{file} is damaged or no .safetensors file ({error}).") from None
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, kind = key.partition(".")
        found.setdefault(name, {})[kind] = tensor.float()
    unknown = sorted(found.keys() - names.keys())
    if unknown:
        raise LoraFileError(
            f"{file.name} does not fit this base: {len(unknown)} of {len(found)} modules are not in it, "
            f"the first is {unknown[0]}."
        )
    pairs = {}
    for name, kinds in found.items():
        if kinds.keys() != {"lora_down.weight", "lora_up.weight", "alpha"}:
            raise LoraFileError(
                f"{file.name}: {name} has {', '.join(sorted(kinds))}; lora_down, lora_up and alpha are wanted."
            )
        down, up = kinds["lora_down.weight"], kinds["lora_up.weight"]
        if down.ndim < 2 or up.ndim < 2 or down.shape[0] != up.shape[1]:
            raise LoraFileError(
                f"{file.name}: {name} has lora_down {tuple(down.shape)} and lora_up {tuple(up.shape)}, "
                "which do not go together."
            )
        pairs[names[name]] = down, up, kinds["alpha"].item()
    return pairs


def weights(file: Path, adapter: Adapter, model: Any) -> dict[str, torch.Tensor]:
    """A file's tensors under the adapter's own names, for `Adapter.load`.

    Raises LoraFileError when the file was made for another base, with other modules, or with another alpha / rank.
    """
    found = {}
    pairs = read(file, {model.names(part, module)["kohya"]: (part, module) for part, module in adapter.layers})
    for (part, module), (down, up, alpha) in pairs.items():
        if alpha / down.shape[0] != adapter.config.scale:
            raise LoraFileError(
                f"{file.name}: alpha / rank is {alpha:g} / {down.shape[0]}, the run's is {adapter.config.scale:g}."
            )
        found[f"{part}.{module}.lora_A.weight"], found[f"{part}.{module}.lora_B.weight"] = down, up
    return found


def base_name(source: str) -> str:
    """What to call a base in files that go to others: no folder, and of an address no query, which may hold a token."""
    return PurePosixPath(source.partition("?")[0].replace("\\", "/")).name


def metadata(config: RunConfig, model: Any, found: Scan, plan: Plan, step: int, name: str) -> dict[str, str]:
    """What a LoRA file tells about itself: kohya's `ss_*` keys and modelspec 1.0.0; no local path."""
    images = sum(sample.repeats for sample in found.samples if not sample.is_reg)
    told = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": config.adapter.rank,
        "ss_network_alpha": config.adapter.scale * config.adapter.rank,
        "ss_network_dropout": config.adapter.dropout,
        "ss_output_name": name,
        "ss_sd_model_name": base_name(config.model.source),
        "ss_seed": config.loop.seed,
        "ss_unet_lr": config.optimizer.learning_rate,
        "ss_text_encoder_lr": config.optimizer.text_encoder_lr,
        "ss_optimizer": config.optimizer.name,
        "ss_lr_scheduler": config.schedule.name,
        "ss_steps": step,
        "ss_max_train_steps": plan.steps,
        "ss_epoch": plan.epoch_of(step),
        "ss_num_epochs": plan.epoch_of(plan.steps),
        "ss_batch_size_per_device": config.loop.batch_size,
        "ss_gradient_accumulation_steps": config.loop.gradient_accumulation_steps,
        "ss_num_train_images": images,
        "ss_num_reg_images": sum(sample.repeats for sample in found.samples if sample.is_reg),
        "ss_resolution": f"({config.data.resolution}, {config.data.resolution})",
        "ss_keep_tokens": config.data.keep_tokens,
        "ss_shuffle_caption": config.data.shuffle_caption,
        "ss_noise_offset": config.loss.noise_offset,
        "ss_min_snr_gamma": config.loss.min_snr_gamma if config.loss.weighting == "min_snr" else None,
        "ss_tag_frequency": json.dumps({name: found.tag_frequency()}, ensure_ascii=False),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": name,
        "modelspec.resolution": f"{config.data.resolution}x{config.data.resolution}",
        "modelspec.date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "modelspec.trigger_phrase": config.data.trigger,
        "modelspec.implementation": "diffusers",
        "lorakit.version": __version__,
        **model.metadata(),
    }
    return {key: str(value) for key, value in told.items()}
