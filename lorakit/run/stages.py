"""The stages of a run: their settings, datasets, steps and learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from lorakit import models
from lorakit.config import ConfigError, from_dict, to_dict
from lorakit.data import buckets
from lorakit.data.captions import too_long_captions
from lorakit.data.plan import Plan
from lorakit.data.scan import SCAN_SETTINGS, Scan, scan
from lorakit.randomness import seed_of
from lorakit.schedules import factor

# For reading only: `lorakit.run.config` imports this file, so its class cannot be imported here.
RunConfig = Any
# Parts that a stage may override.
STAGE_PARTS = ("data", "optimizer", "schedule", "loss", "loop")
# Settings that a stage does not inherit from the main settings: each stage has a length of its own.
LENGTH = {"loop": ("epochs", "steps"), "schedule": ("steps", "past")}
WHOLE_RUN = "it applies to the whole run."
NOT_IN_STAGES = {
    "model": "a run has one base model.",
    "adapter": "a run has one adapter, which all stages train.",
    "memory": WHOLE_RUN,
    "save": WHOLE_RUN,
    "sample": WHOLE_RUN,
    "stages": "a stage has no stages of its own.",
    "loop.precision": WHOLE_RUN,
    "loop.seed": WHOLE_RUN,
}


def stage_config(main: RunConfig, overrides: dict[str, Any], path: str) -> RunConfig:
    """The main settings, overridden by a stage's own. Raises ConfigError with each problem, its name below `path`."""
    tables = {owner: values for owner, values in overrides.items() if isinstance(values, dict)}
    given = {*overrides, *(f"{owner}.{name}" for owner, values in tables.items() for name in values)}
    problems = [f"{path}{name} cannot be set: {why}" for name, why in NOT_IN_STAGES.items() if name in given]
    if "loop" not in {*overrides} - {*tables} and not given & {"loop.epochs", "loop.steps"}:
        problems.append(f"{path}loop.epochs is missing: it sets the length of the stage; set it, or {path}loop.steps.")
    if problems:
        raise ConfigError("\n".join(problems))
    settings = to_dict(main)
    for owner, names in LENGTH.items():
        settings[owner] = {name: value for name, value in settings[owner].items() if name not in names}
    for owner, values in overrides.items():
        settings[owner] = {**settings.get(owner, {}), **values} if owner in tables else values
    return from_dict(type(main), {name: values for name, values in settings.items() if name != "stages"}, path)


@dataclass(frozen=True)
class Stage:
    """One stage of a run: its number (from 1), complete config, dataset and steps."""

    number: int
    config: RunConfig
    scan: Scan
    plan: Plan

    def due(self, step: int, when: Any) -> bool:
        """True when `when` (every_steps, every_epochs) falls on this step, or this is the last step of the stage."""
        plan = self.plan
        return bool(
            step == plan.last
            or (when.every_steps and step % when.every_steps == 0)
            or (when.every_epochs and plan.ends_epoch(step) and plan.epoch_of(step) % when.every_epochs == 0)
        )


def stages(config: RunConfig, project: Path) -> tuple[Stage, ...]:
    """All stages of a run; each dataset is read once. Raises DataError when there is nothing to train on."""
    scans: dict[tuple[str, ...], Scan] = {}
    complete: list[Stage] = []
    for number, own in enumerate(config.stage_configs, 1):
        # Stages whose data settings differ only in augmentation share a scan.
        key = tuple(repr(getattr(own.data, name)) for name in SCAN_SETTINGS)
        if key not in scans:
            scans[key] = scan(own.data, project)
        # Steps and epochs are counted through all stages.
        plan = make_plan(own, scans[key], complete[-1].plan if complete else None)
        complete.append(Stage(number, own, scans[key], plan))
    return tuple(complete)


def make_plan(config: RunConfig, dataset: Scan, before: Plan | None = None) -> Plan:
    """All steps over a dataset, of a run or of a stage that follows the plan `before`."""
    # Bucket size -> indexes of its samples, each as often as its repeats.
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, sample in enumerate(dataset.samples):
        size = buckets.fit(sample.width, sample.height, config.data).size
        by_size.setdefault(size, []).extend([index] * sample.repeats)
    loop = config.loop
    return Plan(
        # Sorted: the plan draws its batches in this order, and a resumed run must find the same.
        tuple(tuple(by_size[size]) for size in sorted(by_size)),
        loop.batch_size,
        loop.gradient_accumulation_steps,
        loop.epochs,
        loop.steps,
        seed_of(loop.seed, "plan"),
        steps_before=before.last if before else 0,
        epochs_before=before.epoch_of(before.last) if before else 0,
    )


def cut_captions(stages: Sequence[Stage], model: Any) -> list[str]:
    """A sentence for every image whose caption is longer than `model.max_token_length`."""
    limit, excess = model.config.max_token_length, models.family(model.config.family).excess(model.config)
    # an image that several stages share with the same caption is reported once
    captions = dict.fromkeys((sample.name, sample.caption) for stage in stages for sample in stage.scan.samples)
    return [
        f"{name}: the end of its caption is cut, after {limit} tokens (model.max_token_length): “{shorten(end, 80)}”."
        for name, end in too_long_captions(captions, excess)
    ]


def stage_steps(config: RunConfig, steps_per_epoch: Sequence[int]) -> tuple[int, ...]:
    """Number of steps of each stage, from its steps per epoch."""
    loops = [stage.loop for stage in config.stage_configs]
    return tuple(loop.steps or loop.epochs * steps for loop, steps in zip(loops, steps_per_epoch, strict=True))


def lr_curve(config: RunConfig, steps_per_epoch: Sequence[int]) -> list[float]:
    """The learning rate at each step of all stages: of the UNet / DiT, or of a text part where only that is trained."""
    rates: list[float] = []
    for stage, steps in zip(config.stage_configs, stage_steps(config, steps_per_epoch), strict=True):
        # A family's `rates` begin with the denoiser.
        rate = next(iter(stage.rates.values()))
        rates += [rate * factor(stage.schedule, step, steps) for step in range(1, steps + 1)]
    return rates
