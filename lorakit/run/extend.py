"""More epochs and further stages for a run, even one that has begun or finished; what was trained stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from lorakit.config import ConfigError, to_dict
from lorakit.errors import UserError
from lorakit.project import Run
from lorakit.project.lock import RunBusy, is_alive
from lorakit.run.checkpoint import saved_step
from lorakit.run.config import RunConfig, configure, read_config
from lorakit.run.create import save_config
from lorakit.run.resume import (
    RunChanged,
    load_record,
    record_change,
    recorded_config,
    refuse_changes,
    training_settings,
)
from lorakit.run.stages import LENGTH, STAGE_PARTS, lr_curve, stage_steps, stages

WAYS = ("stretch", "hold")


class NothingToDo(UserError):
    """A run was asked for epochs that it has trained or planned already."""


def more_epochs(run: Run, epochs: int, way: str) -> RunConfig:
    """The run's config with `epochs` epochs in all in its last stage (counted from that stage's beginning).

    stretch     the learning rate's curve is planned over all of them; steps that are trained keep what they had
    hold        the curve stays as it was planned, and its last value is held from its end on

    Nothing is written. Raises NothingToDo when they are trained or planned already, ConfigError for another way.
    """
    if way not in WAYS:
        raise ConfigError(f"way is {way!r}; allowed are {', '.join(WAYS)}.")
    config = read_config(run)
    per_epoch = steps_per_epoch(run, config)
    *before, planned = stage_steps(config, per_epoch)
    done, wanted = max(0, saved_step(run) - sum(before)), epochs * per_epoch[-1]
    stage = f"stage {len(config.stage_configs)} of run {run.name!r}" if config.stages else f"Run {run.name!r}"
    if wanted <= done:
        raise NothingToDo(
            f"{stage[0].upper()}{stage[1:]} has trained {done / per_epoch[-1]:g} epochs ({done} steps) already, and "
            f"{epochs} were asked for; nothing was changed. Ask for more."
        )
    if wanted == planned:
        raise NothingToDo(f"{stage[0].upper()}{stage[1:]} has {epochs} epochs already; nothing was changed. Train it.")
    schedule = config.stage_configs[-1].schedule
    curve = schedule.steps or planned
    changed: dict[str, Any] = {"steps": curve}
    if way == "stretch":
        past = [*schedule.past, *([{"until": done, "steps": curve}] if done else [])]
        changed = {"steps": 0, "past": past}
    return _with_length(config, {"loop": {"epochs": epochs, "steps": 0}, "schedule": changed})


def with_stage(run: Run, overrides: Mapping[str, Any]) -> RunConfig:
    """The run's config with one more stage after all others (see `RunConfig.stages`). Nothing is written."""
    config = to_dict(read_config(run))
    return configure({**config, "stages": [*config["stages"], dict(overrides)]})


def extend(run: Run, epochs: int, way: str) -> RunConfig:
    """Give a run more epochs, as `more_epochs` says; train it again to go on. Raises what that and `amend` raise."""
    return amend(run, more_epochs(run, epochs, way))


def add_stage(run: Run, overrides: Mapping[str, Any]) -> RunConfig:
    """Give a run one more stage; train it again to go on. Raises ConfigError, and what `amend` raises."""
    return amend(run, with_stage(run, overrides))


def amend(run: Run, config: RunConfig) -> RunConfig:
    """Make `config` the run's from now on, if it differs in nothing that was trained; `history` remembers it.

    Free parts may change, stages that have not begun, and the length of the one that is trained or was trained last.
    Raises RunChanged with the differences for everything else, RunBusy while the run is trained.
    """
    old = recorded_config(run)
    if old is None:
        return save_config(run, config)
    if is_alive(run):
        raise RunBusy(
            f"Run {run.name!r} is being trained, by what it was when that began: stop it first (lorakit stop "
            f"{run.project.folder} --run {run.name}), then change how it goes on."
        )
    step = saved_step(run)
    was, will = steps_per_epoch(run, old), steps_per_epoch(run, config)
    begun = 1 + sum(end < step for end in accumulate(stage_steps(old, was)[:-1]))
    refuse_changes(run, _settled(old, begun), _settled(config, begun))
    if old.trained != config.trained:
        raise RunChanged(
            f"Run {run.name!r} has begun with an adapter on {', '.join(old.trained)}; now it would be on "
            f"{', '.join(config.trained)}. Train the same parts in all stages together, or start a new run from its "
            "weights (--from-weights)."
        )
    if sum(stage_steps(config, will)[:begun]) < step or lr_curve(config, will)[:step] != lr_curve(old, was)[:step]:
        raise RunChanged(
            f"Run {run.name!r} has trained {step} steps, which would get other rates, or be more than there are; "
            f"give it more epochs with lorakit extend --way {' or '.join(WAYS)}."
        )
    record_change(run, config, step, will)
    return config


def history(run: Run) -> list[dict[str, Any]]:
    """How a run was amended since it began: {"step": steps that were trained, "changes": ["loop.epochs: 3 -> 6"]}."""
    return load_record(run)["history"] if load_record(run) else []


def steps_per_epoch(run: Run, config: RunConfig) -> tuple[int, ...]:
    """Steps in one epoch of each stage of `config`, as far as data and batches are alike those that the run has begun
    with; else the datasets are read.
    """
    known = (
        zip(recorded_config(run).stage_configs, load_record(run)["steps_per_epoch"], strict=False)
        if load_record(run)
        else ()
    )
    alike = {repr(_epoch(stage)): steps for stage, steps in known}
    wanted = [repr(_epoch(stage)) for stage in config.stage_configs]
    if all(epoch in alike for epoch in wanted):
        return tuple(alike[epoch] for epoch in wanted)
    return tuple(stage.plan.steps_per_epoch for stage in stages(config, run.project.folder))


def _epoch(stage: RunConfig) -> tuple:
    """What the number of steps in an epoch depends on."""
    return stage.data, stage.loop.batch_size, stage.loop.gradient_accumulation_steps


def _with_length(config: RunConfig, changes: dict[str, dict[str, Any]]) -> RunConfig:
    """The config with other lengths (see LENGTH) in its last stage."""
    settings = to_dict(config)
    last = settings["stages"][-1] if config.stages else settings
    for part, values in changes.items():
        last[part] = {**last.get(part, {}), **values}
    return configure(settings)


def _settled(config: RunConfig, begun: int) -> dict[str, Any]:
    """What may not change in a run of which so many stages have begun."""
    settings = training_settings(config.stage_configs[0])
    further = {
        f"stages.{number}": {part: to_dict(getattr(stage, part)) for part in STAGE_PARTS}
        for number, stage in enumerate(config.stage_configs[1:begun], 2)
    }
    last = further.get(f"stages.{begun}", settings)
    for part, names in LENGTH.items():
        last[part] = {name: value for name, value in last[part].items() if name not in names}
    return {**settings, **further}
