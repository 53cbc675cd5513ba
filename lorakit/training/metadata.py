"""The metadata of a LoRA file: kohya's ss_* keys and modelspec."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from lorakit import __version__
from lorakit.config import to_dict
from lorakit.lora.variants import variant
from lorakit.run.stages import STAGE_PARTS

if TYPE_CHECKING:
    from lorakit.run.config import RunConfig
    from lorakit.run.stages import Stage


def base_name(source: str) -> str:
    """What to call a base in files that go to others: no folder, and of an address no query, which may hold a token."""
    return PurePosixPath(source.partition("?")[0].replace("\\", "/")).name


def metadata(stages: Sequence[Stage], model: Any, step: int, name: str) -> dict[str, str]:
    """The metadata of a LoRA file of `step`: kohya's `ss_*` keys and modelspec 1.0.0; no local path.

    Settings are those of the stage that the step belongs to; `lorakit.stages` records what differed in each before it.
    """
    stage = next(stage for stage in stages if step <= stage.plan.last)
    config, dataset, plan, end = stage.config, stage.scan, stage.plan, stages[-1].plan
    images = sum(sample.repeats for sample in dataset.samples if not sample.is_reg)
    rates = {part: getattr(config.optimizer, setting) for part, setting in config.model.rates.items()}
    denoiser = rates.pop(model.denoiser)
    # of several text encoders kohya's tools write a list
    text_rates = list(rates.values()) if len(rates) > 1 else next(iter(rates.values()), None)
    entries = {
        "ss_network_module": variant(config.adapter.type).network_module,
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
        "ss_num_reg_images": sum(sample.repeats for sample in dataset.samples if sample.is_reg),
        "ss_resolution": f"({config.data.resolution}, {config.data.resolution})",
        "ss_keep_tokens": config.data.keep_tokens,
        "ss_shuffle_caption": config.data.shuffle_caption,
        "ss_noise_offset": config.loss.noise_offset,
        "ss_min_snr_gamma": config.loss.min_snr_gamma if config.loss.weighting == "min_snr" else None,
        **_time_sampling(config),
        **_stages(stages[: stage.number]),
        "ss_tag_frequency": json.dumps({name: dataset.tag_frequency()}, ensure_ascii=False),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": name,
        "modelspec.resolution": f"{config.data.resolution}x{config.data.resolution}",
        "modelspec.date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "modelspec.trigger_phrase": config.data.trigger,
        "modelspec.implementation": "diffusers",
        "lorakit.version": __version__,
        **model.metadata(),
    }
    # safetensors allows strings only; kohya writes "None" for missing values as well.
    return {key: str(value) for key, value in entries.items()}


def _stages(stages: Sequence[Stage]) -> dict[str, str]:
    """The stages so far and the LoRA file that the run started from; {} for a run of one stage from nothing."""
    first, entries = stages[0].config, {}
    if first.adapter.network_weights:
        entries["lorakit.network_weights"] = base_name(first.adapter.network_weights)
    if len(stages) > 1:
        records: list[dict[str, Any]] = []
        for stage in stages:
            records.append({"last_step": stage.plan.last})
            for part in STAGE_PARTS:
                main, own = to_dict(getattr(first, part)), to_dict(getattr(stage.config, part))
                records[-1] |= {f"{part}.{name}": value for name, value in own.items() if value != main[name]}
            # No local path in a file that is shared.
            records[-1].pop("data.folder", None)
        entries["lorakit.stages"] = json.dumps(records, ensure_ascii=False)
    return entries


def _time_sampling(config: RunConfig) -> dict[str, Any]:
    """How a flow model's timesteps were sampled, under kohya's names; {} for other families."""
    if "loss.timestep_sampling" in config.model.unsupported:
        return {}
    loss = config.loss
    entries: dict[str, Any] = {"ss_timestep_sampling": loss.timestep_sampling}
    if loss.timestep_sampling in ("sigmoid", "shift"):
        entries["ss_sigmoid_scale"] = loss.sigmoid_scale
    if loss.timestep_sampling == "logit_normal":
        entries |= {"ss_logit_mean": loss.logit_mean, "ss_logit_std": loss.logit_std}
    if loss.timestep_sampling == "shift":
        entries["ss_discrete_flow_shift"] = loss.shift
    return entries
