"""The config of a run: everything that affects its result, frozen before the first step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from lorakit import models
from lorakit.config import (
    Config,
    ConfigError,
    Field,
    Slider,
    current_names,
    from_dict,
    part,
    read_yaml,
    setting,
    to_dict,
)
from lorakit.data import DataConfig
from lorakit.diffusion.weightings import LossConfig
from lorakit.files.disk import DamagedFile, read_json
from lorakit.lora import variants
from lorakit.lora.variants import AdapterConfig
from lorakit.machine.device import PRECISIONS
from lorakit.optimizers import RATES, OptimizerConfig
from lorakit.project import ProjectError, Run
from lorakit.run.checkpoint import SaveConfig
from lorakit.run.memory import MemoryConfig
from lorakit.run.sampling import SampleConfig, sampling_problems
from lorakit.run.stages import STAGE_PARTS, stage_config
from lorakit.schedules import ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class LoopConfig(Config):
    """Steps and batch size."""

    epochs: int = setting(
        10,
        help="passes through the dataset, repeats included; more epochs learn more and may overfit",
        range=(1, 10_000),
        ui=Slider(1, 100, 1, basic=True),
    )
    steps: int = setting(
        0,
        help="stop after this many steps instead of epochs; 0 = use epochs",
        range=(0, 1_000_000),
        ui=Field(label="max steps"),
    )
    batch_size: int = setting(
        1, help="images per forward pass; more need more VRAM", range=(1, 256), ui=Slider(1, 16, 1, label="batch size")
    )
    gradient_accumulation_steps: int = setting(
        1,
        help="batches per optimizer step: the effect of a larger batch without more VRAM",
        range=(1, 256),
        ui=Slider(1, 16, 1, label="gradient accumulation steps"),
    )
    precision: str = setting(
        "auto",
        help="auto = bf16 on newer GPUs, fp16 on older ones, fp32 on a CPU",
        choices=PRECISIONS,
        ui=Field(label="mixed precision"),
    )
    seed: int = setting(42, help="the same seed and settings give the same LoRA", range=(0, 2**32 - 1))


@dataclass(frozen=True, kw_only=True)
class RunConfig(Config):
    """All settings of a run, by part.

    Parts marked `free` (`memory`, `save`, `sample`) do not affect the result and may change between sessions.
    """

    model: Config = part(tag="family", variants=models.config_class, help="the base model")
    data: DataConfig = part(DataConfig, help="the images and captions")
    adapter: AdapterConfig = part(AdapterConfig, tag="type", variants=variants.config_class, help="the LoRA")
    loss: LossConfig = part(LossConfig, help="loss function and timesteps")
    optimizer: OptimizerConfig = part(OptimizerConfig, help="optimizer and learning rates")
    schedule: ScheduleConfig = part(ScheduleConfig, help="learning rate scheduler")
    loop: LoopConfig = part(LoopConfig, help="steps and batch size")
    memory: MemoryConfig = part(MemoryConfig, help="saving VRAM", free=True)
    save: SaveConfig = part(SaveConfig, help="saving LoRA files and training states", free=True)
    sample: SampleConfig = part(SampleConfig, help="sample images", free=True)
    stages: tuple[dict, ...] = setting(
        (),
        help=f"further stages after the first: their length and what differs in {', '.join(STAGE_PARTS)}, e.g. "
        "{loop: {epochs: 2}, schedule: {name: cosine}}",
    )

    def conflicts(self) -> list[str]:
        family = self.model
        # Names without a dot are settings of the model, which its own Config refuses; those of `sample` are checked
        # below.
        problems = [
            f"{name} cannot be used with {family.family}: {reason}"
            for name, reason in family.unsupported.items()
            if "." in name and not name.startswith("sample.") and _is_changed(self, *name.split("."))
        ]
        # Rates of parts that this family does not have, e.g. a second text encoder.
        for rate in set(RATES) - set(family.rates.values()):
            if getattr(self.optimizer, rate) and f"optimizer.{rate}" not in family.unsupported:
                problems.append(f"optimizer.{rate} cannot be used with {family.family}: it has no such part.")
        # The VAE and the UNet / DiT halve images several times, so sides must be multiples of a family's number.
        sides = {"data.bucket_reso_steps": self.data.bucket_reso_steps} if self.data.enable_bucket else {}
        sides |= {"data.resolution": self.data.resolution}
        problems += [
            f"{name} is {side}; with {family.family} it must be a multiple of {family.resolution_multiple} px."
            for name, side in sides.items()
            if side % family.resolution_multiple
        ]
        if self.save.key_layout not in ("auto", *family.key_layouts):
            problems.append(
                f"save.key_layout is {self.save.key_layout}; {family.family} has {', '.join(family.key_layouts)}."
            )
        problems += [f"sample.{problem}" for problem in sampling_problems(self.sample, family)]
        # Only a first stage without problems is worth combining with others.
        return problems or list(self._stage_problems())

    def _stage_problems(self) -> Iterator[str]:
        for number, overrides in enumerate(self.stages, 2):
            try:
                stage_config(replace(self, stages=()), overrides, f"stages.{number}.")
            except ConfigError as error:
                yield from str(error).splitlines()

    @cached_property
    def stage_configs(self) -> tuple[RunConfig, ...]:
        """A complete config for each stage; the first one holds the main settings."""
        first = replace(self, stages=()) if self.stages else self
        return first, *(stage_config(first, overrides, f"stages.{i}.") for i, overrides in enumerate(self.stages, 2))

    @property
    def trained(self) -> tuple[str, ...]:
        """Parts of the model that any stage trains; the adapter is attached to all of them from the first step on."""
        return tuple(part for part in self.model.rates if any(part in stage.rates for stage in self.stage_configs))

    @property
    def rates(self) -> dict[str, float]:
        """Part of the model -> its learning rate, for all parts that the first stage trains."""
        rates = {part: getattr(self.optimizer, name) for part, name in self.model.rates.items()}
        return {part: rate for part, rate in rates.items() if rate}

    @property
    def key_layout(self) -> str:
        """The key layout of exported LoRA files."""
        return self.model.key_layouts[0] if self.save.key_layout == "auto" else self.save.key_layout


def _is_changed(config: Config, part: str, name: str) -> bool:
    settings = getattr(config, part)
    return getattr(settings, name) != settings.__dataclass_fields__[name].default


def configure(settings: dict[str, Any], gpu_preset: str = "") -> RunConfig:
    """The config of these settings; the rest comes from a GPU preset (a name in the family's `gpu_presets`, or ""),
    then from the family's defaults, then from each setting's own default.

    Raises ConfigError with a sentence for every setting that is wrong or does not go with the family.
    """
    model = settings.get("model", {})
    if not isinstance(model, dict):
        raise ConfigError(f"model is {model!r}, expected a table with model.family and model.source.")
    if "family" not in model:
        raise ConfigError(f"model.family is missing; known families are {', '.join(models.names())}.")
    family = models.config_class(model["family"])
    if gpu_preset and gpu_preset not in family.gpu_presets:
        raise ConfigError(
            f"There is no GPU preset {gpu_preset!r} for {family.family}; choose one of {', '.join(family.gpu_presets)}."
        )
    # Settings may come from an older file, in which some had other names.
    merged = current_names(settings)
    if isinstance(further := merged.get("stages"), (list, tuple)):
        merged["stages"] = [current_names(stage) if isinstance(stage, dict) else stage for stage in further]
    # From the strongest to the weakest: what is already there is never replaced.
    for under in (family.gpu_presets[gpu_preset] if gpu_preset else {}, family.defaults):
        for name, values in under.items():
            given = merged.get(name, {})
            # What should be a table and is none stays as it is, and is refused with its name below.
            merged[name] = {**values, **given} if isinstance(given, dict) else given
    return from_dict(RunConfig, merged)


def read_config(run: Run) -> RunConfig:
    """The config of a run, from its config.yaml. Raises ProjectError, naming the runs there are, if there is none."""
    if not run.exists():
        names = ", ".join(r.name for r in run.project.runs())
        raise ProjectError(
            f"There is no run {run.name!r} in {run.project.folder}"
            + (f"; its runs are {names}." if names else ", which has no runs yet.")
        )
    settings = read_yaml(run.config_file)
    try:
        return configure(read_as_begun(settings, _recorded_reading(run)))
    except ConfigError as error:
        raise ConfigError(f"{run.config_file}: {error}") from None


def read_as_begun(settings: dict[str, Any], reading: int = 1) -> dict[str, Any]:
    """The settings of a run that has trained, with how it has read the dataset where they do not say it.

    Those of version 0.2 and before never do, nor does a config.yaml that a person wrote: nobody sets it.
    """
    data = settings.get("data", {})
    return {**settings, "data": {"reading": reading, **data}} if isinstance(data, dict) else settings


def _recorded_reading(run: Run) -> int:
    """How a run has read the dataset, by its record; as a new run does when it has none."""
    try:
        record: Any = read_json(run.record_file)
    except FileNotFoundError:
        return DataConfig.reading
    except DamagedFile:
        return 1
    for key in ("config", "data", "reading"):
        record = record.get(key) if isinstance(record, dict) else None
    return record if isinstance(record, int) else 1


def settings_of(run: Run, gpu_preset: str = "") -> dict[str, Any]:
    """The settings that a run starts its next session from; change them, then `configure(settings, gpu_preset)`.

    All settings for a run that has trained. Before that only those that were set by hand, as another family or GPU
    preset has defaults of its own.
    """
    config = read_config(run)
    family, gpu_presets = config.model, config.model.gpu_presets
    settings = to_dict(config)
    stages = settings.pop("stages")
    # A run that resumes keeps its own; a new one has today's.
    del settings["data"]["reading"]
    if not run.record_file.exists():
        # Set by hand is what differs from the family's defaults.
        plain = to_dict(configure({"model": {"family": family.family, "source": family.source}}))
        settings = {
            owner: {name: value for name, value in values.items() if value != plain[owner][name]}
            for owner, values in settings.items()
        }
        settings["model"] |= {"family": family.family, "source": family.source}
        # Nothing was trained yet, so a newly chosen preset replaces the values of an earlier one.
        overridden = [values for preset in gpu_presets.values() for values in preset.items()] if gpu_preset else []
    else:
        overridden = list(gpu_presets.get(gpu_preset, {}).items())
    for owner, values in overridden:
        settings[owner] = {name: value for name, value in settings[owner].items() if name not in values}
    return settings | ({"stages": stages} if stages else {})


def with_save(config: RunConfig, changes: dict[str, Any]) -> SaveConfig:
    """A run's `save` settings with nested changes, {"save": {"author": "me"}}. Raises ConfigError for others."""
    if other := [name for name in changes if name != "save"]:
        raise ConfigError(f"{other[0]} cannot be changed in a finished file; only save.* settings can.")
    return from_dict(SaveConfig, to_dict(config.save) | changes.get("save", {}), "save.")
