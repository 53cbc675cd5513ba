"""A run's LoRA files as ComfyUI, A1111/Forge and diffusers read them: written with metadata, read back, proved."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from lorakit import __version__, lora_file
from lorakit.config import to_dict
from lorakit.lora_file import LoraFileError
from lorakit.stages import STAGE_PARTS

if TYPE_CHECKING:
    import torch

    from lorakit.adapters import Adapter
    from lorakit.lora_kinds import Change
    from lorakit.run import RunConfig
    from lorakit.stages import Stage

DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


def write(file: Path, adapter: Adapter, model: Any, metadata: dict[str, str], dtype: str, form: str) -> str:
    """Write the adapter in a form of LoRA files (see `lora_file.pack`) and prove the file.

    Returns "matched/all" modules, e.g. "192/192". Raises LoraFileError, and leaves no file, when a number is not finite
    or the file does not hold what was trained.
    """
    import torch
    from safetensors.torch import save

    tensors: dict[str, torch.Tensor] = {}
    for key, (down, up) in adapter.pairs():
        name = model.names(*key)[form]
        tensors |= lora_file.pack(form, name, down, up, adapter.config.scale, getattr(torch, DTYPES[dtype]))
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise LoraFileError(
            f"{file.name} was not written: {len(broken)} tensors are not finite in {dtype}, the first is {broken[0]}."
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    part_file = file.with_suffix(".part")
    with open(part_file, "wb") as written:  # not by save_file, whose files nobody else may read, such as a webui's user
        written.write(save(tensors, metadata))
        written.flush()
        os.fsync(written.fileno())
    try:
        matched = prove(part_file, adapter, model, dtype)
    except LoraFileError:
        part_file.unlink()
        raise
    os.replace(part_file, file)
    return matched


def prove(file: Path, adapter: Adapter, model: Any, dtype: str) -> str:
    """Read a file back and compare each module's change with the trained one; returns "matched/all".

    Compared are the factors of alpha / rank * B A, number by number: A, and alpha / rank * B, wherever the file has the
    scale. A number x may be off by r |x| for the rounding, or by the dtype's smallest number (times the scale, if that
    is above 1): r = 2^-21 for float32's rounding of the scale, and for fp16 2^-11, for bf16 2^-8 more. Each number of
    the change, a sum of `rank` products, is then off by about 2 r times the sum of their sizes at most. Raises
    LoraFileError when a module is missing, left over, of another rank, or off by more.
    """
    import torch

    changes = _read(file, adapter, model)
    kind, scale = torch.finfo(getattr(torch, DTYPES[dtype])), adapter.config.scale
    relative, absolute = kind.eps / 2 + 2**-21, kind.smallest_normal * kind.eps
    for key, (down, up) in adapter.pairs():
        stored = {role: tensor.float() for role, tensor in changes[key].tensors.items()}
        sides = (
            (stored["down"], down, absolute),
            (changes[key].scale * stored["up"], scale * up, absolute * max(1, scale)),
        )
        for found, trained, least in sides:
            found, trained = found.flatten(1), trained.flatten(1)
            # NaN is never close
            if found.shape != trained.shape or not torch.allclose(found, trained, rtol=relative, atol=least):
                raise LoraFileError(f"{file.name}: the change of {key[1]} is not the trained one.")
    return f"{len(changes)}/{len(adapter.layers)}"


def weights(file: Path, adapter: Adapter, model: Any) -> dict[str, torch.Tensor]:
    """A file's tensors under the adapter's own names, float32, for `Adapter.load`.

    A file without alpha has the scale in lora_B; there it is taken out again, so that the change stays as it is. Raises
    LoraFileError when the file was made for another base, with other modules, another rank or another alpha / rank.
    """
    found = {}
    rank, scale = adapter.config.rank, adapter.config.scale
    for (part, module), change in _read(file, adapter, model).items():
        if change.rank != rank:
            raise LoraFileError(f"{file.name}: the rank is {change.rank}, the run's is {rank}.")
        if change.alpha is not None and not math.isclose(change.scale, scale, rel_tol=1e-6):  # alpha is float32 there
            raise LoraFileError(f"{file.name}: alpha / rank is {change.alpha:g} / {rank}, the run's is {scale:g}.")
        up = change.tensors["up"].float()
        found[f"{part}.{module}.lora_A.weight"] = change.tensors["down"].float()
        found[f"{part}.{module}.lora_B.weight"] = up / scale if change.alpha is None else up
    return found


def _read(file: Path, adapter: Adapter, model: Any) -> dict[tuple[str, str], Change]:
    """The changes of exactly the adapter's modules, plain LoRA all."""
    changes = lora_file.read(file, model, adapter.layers)
    if len(changes) < len(adapter.layers):
        raise LoraFileError(f"{file.name} holds {len(changes)} of {len(adapter.layers)} modules.")
    for (_, module), change in changes.items():
        if change.tensors.keys() != {"down", "up"}:
            raise LoraFileError(
                f"{file.name}: {module} has {', '.join(sorted(change.tensors))}; down and up are wanted."
            )
    return changes


def base_name(source: str) -> str:
    """What to call a base in files that go to others: no folder, and of an address no query, which may hold a token."""
    return PurePosixPath(source.partition("?")[0].replace("\\", "/")).name


def metadata(stages: Sequence[Stage], model: Any, step: int, name: str) -> dict[str, str]:
    """What a LoRA file tells about itself: kohya's `ss_*` keys and modelspec 1.0.0; no local path.

    Settings are those of the stage that the step belongs to; `lorakit.stages` tells what was other in each before it.
    """
    stage = next(stage for stage in stages if step <= stage.plan.last)
    config, found, plan, end = stage.config, stage.scan, stage.plan, stages[-1].plan
    images = sum(sample.repeats for sample in found.samples if not sample.is_reg)
    rates = {part: getattr(config.optimizer, setting) for part, setting in config.model.rates.items()}
    denoiser = rates.pop(model.denoiser)
    # of several text encoders kohya's tools write a list
    text_rates = list(rates.values()) if len(rates) > 1 else next(iter(rates.values()), None)
    told = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": config.adapter.rank,
        "ss_network_alpha": config.adapter.scale * config.adapter.rank,
        "ss_network_dropout": config.adapter.dropout,
        "ss_output_name": name,
        "ss_sd_model_name": base_name(config.model.source),
        "ss_seed": config.loop.seed,
        "ss_unet_lr": denoiser,
        "ss_text_encoder_lr": text_rates,
        "ss_optimizer": config.optimizer.name,
        "ss_lr_scheduler": config.schedule.name,
        "ss_steps": step,
        "ss_max_train_steps": end.last,
        "ss_epoch": plan.epoch_of(step),
        "ss_num_epochs": end.epoch_of(end.last),
        "ss_batch_size_per_device": config.loop.batch_size,
        "ss_gradient_accumulation_steps": config.loop.gradient_accumulation_steps,
        "ss_num_train_images": images,
        "ss_num_reg_images": sum(sample.repeats for sample in found.samples if sample.is_reg),
        "ss_resolution": f"({config.data.resolution}, {config.data.resolution})",
        "ss_keep_tokens": config.data.keep_tokens,
        "ss_shuffle_caption": config.data.shuffle_caption,
        "ss_noise_offset": config.loss.noise_offset,
        "ss_min_snr_gamma": config.loss.min_snr_gamma if config.loss.weighting == "min_snr" else None,
        **_time_sampling(config),
        **_stages(stages[: stage.number]),
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


def _stages(stages: Sequence[Stage]) -> dict[str, str]:
    """What a run of several stages, or one that started from a file, was made by so far; nothing for others."""
    first, told = stages[0].config, {}
    if first.adapter.network_weights:
        told["lorakit.network_weights"] = base_name(first.adapter.network_weights)
    if len(stages) > 1:
        made: list[dict[str, Any]] = []
        for stage in stages:
            made.append({"last_step": stage.plan.last})
            for part in STAGE_PARTS:
                main, own = to_dict(getattr(first, part)), to_dict(getattr(stage.config, part))
                made[-1] |= {f"{part}.{name}": value for name, value in own.items() if value != main[name]}
            made[-1].pop("data.folder", None)
        told["lorakit.stages"] = json.dumps(made, ensure_ascii=False)
    return told


def _time_sampling(config: RunConfig) -> dict[str, Any]:
    """How a flow family drew its times, under kohya's names, and the settings of that way; nothing for others."""
    if "loss.timestep_sampling" in config.model.refused:
        return {}
    loss = config.loss
    told: dict[str, Any] = {"ss_timestep_sampling": loss.timestep_sampling}
    if loss.timestep_sampling in ("sigmoid", "shift"):
        told["ss_sigmoid_scale"] = loss.sigmoid_scale
    if loss.timestep_sampling == "logit_normal":
        told |= {"ss_logit_mean": loss.logit_mean, "ss_logit_std": loss.logit_std}
    if loss.timestep_sampling == "shift":
        told["ss_discrete_flow_shift"] = loss.shift
    return told
