"""The stages of a run: what is other in each of them, what each trains on, its steps and learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.config import ConfigError, from_dict, to_dict
from lorakit.data import buckets
from lorakit.data.plan import Plan
from lorakit.data.scan import SCAN_SETTINGS, Scan, scan
from lorakit.randomness import seed_of
from lorakit.schedules import factor

RunConfig = Any  # of `lorakit.run.config`, which imports this file
STAGE_PARTS = ("data", "optimizer", "schedule", "loss", "loop")  # may be other ones in each stage
LENGTH = {"loop": ("epochs", "steps"), "schedule": ("steps", "past")}  # each stage has its own
WHOLE_RUN = "it holds for the whole run."
NOT_IN_STAGES = {
    "model": "a run has one base model.",
    "adapter": "a run has one adapter, which goes through all stages.",
    "memory": WHOLE_RUN,
    "save": WHOLE_RUN,
    "sample": WHOLE_RUN,
    "stages": "a stage has no stages of its own.",
    "loop.precision": WHOLE_RUN,
    "loop.seed": WHOLE_RUN,
}


def stage_config(main: RunConfig, overrides: dict[str, Any], path: str) -> RunConfig:
    """The main settings with a stage's own over them. Raises ConfigError naming each problem below `path`."""
    tables = {owner: values for owner, values in overrides.items() if isinstance(values, dict)}
    given = {*overrides, *(f"{owner}.{name}" for owner, values in tables.items() for name in values)}
    problems = [f"{path}{name} cannot be set: {why}" for name, why in NOT_IN_STAGES.items() if name in given]
    if "loop" not in {*overrides} - {*tables} and not given & {"loop.epochs", "loop.steps"}:
        problems.append(f"{path}loop.epochs is missing: how long the stage is; set it, or {path}loop.steps.")
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
    """One stage of a run: its number (from 1), its config as a whole, its dataset and its steps."""

    number: int
    config: RunConfig
    scan: Scan
    plan: Plan

    def due(self, step: int, when: Any) -> bool:
        """True when `when` (every_steps, every_epochs) falls on this step; the last step of a stage always counts."""
        plan = self.plan
        return bool(
            step == plan.last
            or (when.every_steps and step % when.every_steps == 0)
            or (when.every_epochs and plan.ends_epoch(step) and plan.epoch_of(step) % when.every_epochs == 0)
        )


def stages(config: RunConfig, project: Path) -> tuple[Stage, ...]:
    """All stages of a run, their datasets read (each once). Raises DataError when there is nothing to train on."""
    scans: dict[tuple, Scan] = {}
    found: list[Stage] = []
    for number, own in enumerate(config.stage_configs, 1):
        key = tuple(getattr(own.data, name) for name in SCAN_SETTINGS)
        if key not in scans:
            scans[key] = scan(own.data, project)
        plan = make_plan(own, scans[key], found[-1].plan if found else None)
        found.append(Stage(number, own, scans[key], plan))
    return tuple(found)


def make_plan(config: RunConfig, found: Scan, before: Plan | None = None) -> Plan:
    """All steps of a run, or of a stage of it that comes after the plan `before`, over its samples."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, sample in enumerate(found.samples):
        size = buckets.fit(sample.width, sample.height, config.data).size
        by_size.setdefault(size, []).extend([index] * sample.repeats)
    loop = config.loop
    return Plan(
        tuple(tuple(by_size[size]) for size in sorted(by_size)),
        loop.batch_size,
        loop.gradient_accumulation_steps,
        loop.epochs,
        loop.steps,
        seed_of(loop.seed, "plan"),
        steps_before=before.last if before else 0,
        epochs_before=before.epoch_of(before.last) if before else 0,
    )


def cut_captions(found: Sequence[Stage], model: Any) -> list[str]:
    """A note on every image whose caption has more tokens than the model is told."""
    limit = model.config.max_token_length
    captions = dict.fromkeys((sample.name, sample.caption) for stage in found for sample in stage.scan.samples)
    counted = ((name, model.token_count(caption)) for name, caption in captions)
    return [
        f"{name}: its caption has {tokens} tokens; what comes after {limit} is cut (model.max_token_length)."
        for name, tokens in counted
        if tokens > limit
    ]


def stage_steps(config: RunConfig, steps_per_epoch: Sequence[int]) -> tuple[int, ...]:
    """How many steps each stage has, from how many it has in an epoch."""
    loops = [stage.loop for stage in config.stage_configs]
    return tuple(loop.steps or loop.epochs * steps for loop, steps in zip(loops, steps_per_epoch, strict=True))


def lr_curve(config: RunConfig, steps_per_epoch: Sequence[int]) -> list[float]:
    """The learning rate of the denoiser at each step of all stages; of a text part where that alone is trained."""
    rates: list[float] = []
    for stage, steps in zip(config.stage_configs, stage_steps(config, steps_per_epoch), strict=True):
        rate = next(iter(stage.rates.values()))
        rates += [rate * factor(stage.schedule, step, steps) for step in range(1, steps + 1)]
    return rates
