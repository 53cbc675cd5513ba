"""The metadata of a LoRA file: kohya's ss_* keys and modelspec."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from lorakit import __version__, events
from lorakit.config import to_dict
from lorakit.data.buckets import group_by_bucket
from lorakit.data.scan import Scan
from lorakit.hub.fingerprint import file_digest
from lorakit.lora.variants import variant
from lorakit.run.stages import STAGE_PARTS
from lorakit.schedules import warmup_steps
from lorakit.training.card import card, newest_sample

if TYPE_CHECKING:
    from lorakit.data.scan import Sample
    from lorakit.project import Run
    from lorakit.run.checkpoint import SaveConfig
    from lorakit.run.config import RunConfig
    from lorakit.run.stages import Stage

# What kohya's tools call the precision of a base in this type; "no" is float32.
MIXED = {"torch.float16": "fp16", "torch.bfloat16": "bf16"}
# Entries about single images and captions; left out where nobody shall read them.
DETAILS = ("ss_tag_frequency", "ss_dataset_dirs", "ss_reg_dataset_dirs")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What stands in a LoRA file about its run beside the settings.

    title               what the file calls itself
    started, finished   when the run began, and when the file's last step was done, in s since 1970; by the run's log
    base                hashes of the base model's files, by kohya's names
    thumbnail           an image file, None for none
    """

    title: str
    started: float = 0.0
    finished: float = 0.0
    base: Mapping[str, str] = field(default_factory=dict)
    thumbnail: Path | None = None


class Origins:
    """The origin of each LoRA file of a run that trains; times are those of its log, which is read on as it grows."""

    def __init__(self, run: Run, model: Any, save: SaveConfig):
        self.run, self.model, self.save = run, model, save
        self._log = events.Tail(run.log)
        self._started = 0.0
        self._stepped: dict[int, float] = {}

    def of(self, step: int) -> Origin:
        """That of the file of a step."""
        for time, event in self._log.new():
            self._started = self._started or time
            if isinstance(event, events.Stepped):
                self._stepped[event.step] = time
        return Origin(
            title=self.run.title,
            started=self._started,
            finished=self._stepped.get(step, self._started),
            base=base_hashes(self.model),
            thumbnail=newest_sample(self.run, step) if self.save.thumbnail else None,
        )


def base_name(source: str) -> str:
    """What to call a base in files that go to others: no folder, and of an address no query, which may hold a token."""
    return PurePosixPath(source.partition("?")[0].replace("\\", "/")).name


def metadata(stages: Sequence[Stage], model: Any, step: int, origin: Origin) -> dict[str, str]:
    """The metadata of a LoRA file of `step`: kohya's `ss_*` keys and modelspec 1.0.1; no local path and no caption.

    Settings are those of the stage that the step belongs to; `lorakit.stages` records what differed in each before it.
    """
    stage = next(stage for stage in stages if step <= stage.plan.last)
    plan, end = stage.plan, stages[-1].plan
    entries = {
        "ss_output_name": origin.title,
        "ss_sd_model_name": base_name(stage.config.model.source),
        **origin.base,
        "ss_training_started_at": origin.started,
        "ss_training_finished_at": origin.finished,
        "ss_steps": step,
        "ss_max_train_steps": end.last,
        "ss_lr_warmup_steps": warmup_steps(stage.config.schedule, end.last),
        "ss_epoch": plan.epoch_of(step),
        "ss_num_epochs": end.epoch_of(end.last),
        **_training(stage.config, model),
        **_dataset(stage),
        **_time_sampling(stage.config),
        **_stages(stages[: stage.number]),
        "modelspec.resolution": f"{stage.config.data.resolution}x{stage.config.data.resolution}",
        "modelspec.date": datetime.fromtimestamp(origin.finished, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "modelspec.trigger_phrase": stage.config.data.trigger,
        "modelspec.implementation": "diffusers",
        "lorakit.version": __version__,
        **model.metadata(),
        **card(stage.config.save, origin.title, origin.thumbnail),
    }
    # safetensors allows strings only; kohya writes "None" for missing values as well.
    return {key: str(value) for key, value in entries.items()}


def _training(config: RunConfig, model: Any) -> dict[str, Any]:
    """How a stage trains, under kohya's names."""
    rates = {part: getattr(config.optimizer, setting) for part, setting in config.model.rates.items()}
    denoiser = rates.pop(model.denoiser)
    # of several text encoders kohya's tools write a list
    text_rates = list(rates.values()) if len(rates) > 1 else next(iter(rates.values()), None)
    return {
        "ss_network_module": variant(config.adapter.type).network_module,
        "ss_network_dim": config.adapter.rank,
        "ss_network_alpha": config.adapter.scale * config.adapter.rank,
        "ss_network_dropout": config.adapter.dropout,
        "ss_seed": config.loop.seed,
        "ss_learning_rate": denoiser,
        "ss_unet_lr": denoiser,
        "ss_text_encoder_lr": text_rates,
        "ss_optimizer": config.optimizer.name,
        "ss_max_grad_norm": config.optimizer.max_grad_norm,
        "ss_lr_scheduler": config.schedule.name,
        "ss_batch_size_per_device": config.loop.batch_size,
        "ss_gradient_accumulation_steps": config.loop.gradient_accumulation_steps,
        "ss_gradient_checkpointing": config.memory.gradient_checkpointing,
        "ss_mixed_precision": MIXED.get(str(model.dtype), "no"),
        "ss_noise_offset": config.loss.noise_offset,
        "ss_min_snr_gamma": config.loss.min_snr_gamma if config.loss.weighting == "min_snr" else None,
        "ss_prior_loss_weight": config.loss.prior_loss_weight,
        "ss_cache_latents": config.data.cache_latents,
    }


def _dataset(stage: Stage) -> dict[str, Any]:
    """What a stage trains on, under kohya's names; folders and tags only where the settings say so."""
    data, scan = stage.config.data, stage.scan
    images, reg = ([sample for sample in scan.samples if sample.is_reg == is_reg] for is_reg in (False, True))
    entries = {
        "ss_num_train_images": sum(sample.repeats for sample in images),
        "ss_num_reg_images": sum(sample.repeats for sample in reg),
        "ss_num_batches_per_epoch": stage.plan.steps_per_epoch,
        "ss_resolution": f"({data.resolution}, {data.resolution})",
        "ss_enable_bucket": data.enable_bucket,
        "ss_bucket_no_upscale": data.bucket_no_upscale,
        "ss_min_bucket_reso": data.min_bucket_reso,
        "ss_max_bucket_reso": data.max_bucket_reso,
        "ss_bucket_info": json.dumps(_buckets(stage)),
        "ss_keep_tokens": data.keep_tokens,
        "ss_shuffle_caption": data.shuffle_caption,
        "ss_caption_dropout_rate": data.caption_dropout_rate,
        "ss_caption_tag_dropout_rate": data.caption_tag_dropout_rate,
        "ss_flip_aug": data.flip_aug,
    }
    if stage.config.save.dataset_details:
        entries |= {name: json.dumps(value, ensure_ascii=False) for name, value in _details(scan, images, reg).items()}
    return entries


def _details(scan: Scan, images: Iterable[Sample], reg: Iterable[Sample]) -> dict[str, Any]:
    """DETAILS: tags by concept folder with their number, and the concept folders with repeats and number of images."""
    folders = _by_folder(images)
    return {
        "ss_tag_frequency": {name: Scan(tuple(samples), ()).tag_frequency() for name, samples in folders.items()},
        "ss_dataset_dirs": _counted(folders),
        "ss_reg_dataset_dirs": _counted(_by_folder(reg)),
    }


def _by_folder(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Concept folder -> its images; those in no folder are of "dataset"."""
    folders: dict[str, list[Sample]] = {}
    for sample in samples:
        folders.setdefault(PurePosixPath(sample.name).parent.name or "dataset", []).append(sample)
    return folders


def _counted(folders: Mapping[str, list[Sample]]) -> dict[str, dict[str, int]]:
    return {name: {"n_repeats": of[0].repeats, "img_count": len(of)} for name, of in folders.items()}


def _buckets(stage: Stage) -> dict[str, Any]:
    """The buckets in kohya's form: resolution and number of images (with repeats) of each, error of shapes."""
    buckets = group_by_bucket(stage.scan.samples, stage.config.data)
    sizes = {str(i): {"resolution": [*b.size], "count": b.images_per_epoch} for i, b in enumerate(buckets)}
    errors = [
        abs(bucket.size[0] / bucket.size[1] - fitted.sample.width / fitted.sample.height)
        for bucket in buckets
        for fitted in bucket.images
    ]
    return {"buckets": sizes, "mean_img_ar_error": sum(errors) / max(1, len(errors))}


def base_hashes(model: Any) -> dict[str, str]:
    """Hashes of the base's file, and of a VAE that replaces its own, by kohya's names; {} for folders.

    `ss_sd_model_hash` is the first 8 digits of SHA-256 of the bytes from 0x100000 to 0x110000, `ss_new_sd_model_hash`
    the whole SHA-256, which Civitai and A1111 know checkpoints by.
    """
    entries: dict[str, str] = {}
    replaced = getattr(model.config, "vae", "")
    for part, kind in ((model.denoiser, "sd_model"), *([("vae", "vae")] if replaced else [])):
        if file := model.single_file(part):
            with open(file, "rb") as opened:
                opened.seek(0x100000)
                short = hashlib.sha256(opened.read(0x10000)).hexdigest()[:8]
            entries |= {f"ss_{kind}_hash": short, f"ss_new_{kind}_hash": file_digest([file])}
    return entries | ({"ss_vae_name": base_name(replaced)} if replaced else {})


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
