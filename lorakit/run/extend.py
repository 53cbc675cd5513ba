"""More epochs and further stages for a run, even a finished one; steps that were trained stay bit for bit the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Any

from lorakit.config import ConfigError, current_names, to_dict
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
from lorakit.run.stages import LENGTH, STAGE_PARTS, lr_curve, stage_config, stage_steps, stages

WAYS = ("stretch", "hold")


class NothingToDo(UserError):
    """The run has trained or planned that many epochs already."""


def extend_run(run: Run, epochs: int, way: str = "hold") -> RunConfig:
    """Give a run more epochs; train it again to continue. Returns its new config.

    epochs      total number of epochs of its last stage, counted from the start of that stage
    way         what happens to the learning rate, see `more_epochs`

    Raises NothingToDo when it has that many already, ConfigError for another way, RunBusy while the run trains.

    >>> extend_run(open_run("my-project"), 3).loop.epochs
    3
    """
    return amend(run, more_epochs(run, epochs, way))


def add_stage(run: Run, overrides: Mapping[str, Any]) -> RunConfig:
    """Give a run one more stage after all others; train it again to continue. Returns its new config.

    overrides   settings that differ from the first stage, with its length: {"loop": {"epochs": 2}, …}

    Raises ConfigError for settings that a stage cannot have, and what `amend` raises.
    """
    return amend(run, with_stage(run, overrides))


def more_epochs(run: Run, epochs: int, way: str) -> RunConfig:
    """The run's config with `epochs` epochs in all in its last stage; nothing is written.

    stretch     the learning rate curve is planned over all of them; steps already trained keep the rate they had
    hold        the curve stays as planned, and its last value is held after its end

    Raises NothingToDo when they are trained or planned already, ConfigError for another way.
    """
    if way not in WAYS:
        raise ConfigError(f"way is {way!r}; allowed are {', '.join(WAYS)}.")
    config = read_config(run)
    per_epoch = steps_per_epoch(run, config)
    # Only the last stage grows; earlier ones are complete by then.
    *before, planned = stage_steps(config, per_epoch)
    # Steps of the last stage: done so far, and asked for.
    done, total = max(0, saved_step(run) - sum(before)), epochs * per_epoch[-1]
    stage = f"Stage {len(config.stage_configs)} of run {run.name!r}" if config.stages else f"Run {run.name!r}"
    if total <= done:
        raise NothingToDo(
            f"{stage} has already trained {done / per_epoch[-1]:g} epochs ({done} steps), and {epochs} in all were "
            "requested; nothing was changed. Enter a larger number."
        )
    if total == planned:
        raise NothingToDo(f"{stage} has {epochs} epochs already; nothing was changed. Train it.")
    schedule = config.stage_configs[-1].schedule
    curve = schedule.steps or planned
    changed: dict[str, Any] = {"steps": curve}
    if way == "stretch":
        # Up to step `done` the rates came from a curve over `curve` steps; a resume computes the same ones again.
        past = [*schedule.past, *([{"until": done, "steps": curve}] if done else [])]
        changed = {"steps": 0, "past": past}
    return _with_length(config, {"loop": {"epochs": epochs, "steps": 0}, "schedule": changed})


def with_stage(run: Run, overrides: Mapping[str, Any]) -> RunConfig:
    """The run's config with one more stage after all others (see `RunConfig.stages`); nothing is written."""
    config = read_config(run)
    settings, overrides = to_dict(config), current_names(dict(overrides))
    # Values typed as text are stored as the settings that they stand for.
    stage = to_dict(stage_config(replace(config, stages=()), overrides, f"stages.{len(config.stages) + 2}."))
    stored = {
        owner: {name: stage[owner][name] for name in values} if isinstance(values, dict) else values
        for owner, values in overrides.items()
    }
    return configure({**settings, "stages": [*settings["stages"], stored]})


def amend(run: Run, config: RunConfig) -> RunConfig:
    """Replace the run's config by one that leaves all trained steps as they are; `history` remembers the change.

    Allowed are free parts (`memory`, `save`, `sample`), stages that have not begun, and the length of the current or
    last trained stage. Raises RunChanged with the differences for everything else, RunBusy while the run trains.
    """
    old = recorded_config(run)
    if old is None:
        return save_config(run, config)
    if is_alive(run):
        raise RunBusy(
            f"Run {run.name!r} is training with its present settings: stop it first (lorakit stop "
            f"{run.project.folder} --run {run.name}), then change them."
        )
    # A resume starts from the last saved step, so only steps up to it are fixed.
    step = saved_step(run)
    old_epochs, new_epochs = steps_per_epoch(run, old), steps_per_epoch(run, config)
    # A stage has begun when the one before it ended before the last saved step.
    begun = 1 + sum(end < step for end in accumulate(stage_steps(old, old_epochs)[:-1]))
    refuse_changes(run, _fixed_settings(old, begun), _fixed_settings(config, begun))
    # The adapter is made for all stages at once, so its state on disk has exactly these parts.
    if old.trained != config.trained:
        raise RunChanged(
            f"Run {run.name!r} was started with an adapter on {', '.join(old.trained)}; now it would be on "
            f"{', '.join(config.trained)}. Train the same parts in all stages together, or start a new run from its "
            "weights (--from-weights)."
        )
    # Rates are compared exactly: the same curve is computed by the same formula, bit for bit.
    has_fewer_steps = sum(stage_steps(config, new_epochs)[:begun]) < step
    if has_fewer_steps or lr_curve(config, new_epochs)[:step] != lr_curve(old, old_epochs)[:step]:
        raise RunChanged(
            f"Run {run.name!r} has trained {step} steps, and with these settings they would have had other learning "
            f"rates or would not exist; give it more epochs with lorakit extend --way {' or '.join(WAYS)}."
        )
    record_change(run, config, step, new_epochs)
    return config


def history(run: Run) -> list[dict[str, Any]]:
    """How a run was changed since it was started: {"step": steps trained, "changes": ["loop.epochs: 3 -> 6"]}."""
    return load_record(run).get("history", [])


def steps_per_epoch(run: Run, config: RunConfig) -> tuple[int, ...]:
    """Steps in one epoch of each stage of `config`.

    Taken from the run's record for stages with the same data and batches as a recorded one; otherwise the datasets
    are read.
    """
    record = load_record(run)
    # strict=False: records of older versions have no steps, so nothing is paired and the datasets are read.
    recorded = zip(recorded_config(run).stage_configs, record["steps_per_epoch"], strict=False) if record else ()
    steps = {repr(_epoch_settings(stage)): number for stage, number in recorded}
    keys = [repr(_epoch_settings(stage)) for stage in config.stage_configs]
    if all(key in steps for key in keys):
        return tuple(steps[key] for key in keys)
    return tuple(stage.plan.steps_per_epoch for stage in stages(config, run.project.folder))


def _epoch_settings(stage: RunConfig) -> tuple:
    """What the number of steps in an epoch depends on."""
    return stage.data, stage.loop.batch_size, stage.loop.gradient_accumulation_steps


def _with_length(config: RunConfig, changes: dict[str, dict[str, Any]]) -> RunConfig:
    """The config with another length (see LENGTH) of its last stage."""
    settings = to_dict(config)
    last = settings["stages"][-1] if config.stages else settings
    for part, values in changes.items():
        last[part] = {**last.get(part, {}), **values}
    return configure(settings)


def _fixed_settings(config: RunConfig, begun: int) -> dict[str, Any]:
    """Settings that may not change once `begun` stages have begun: all of these stages but the last one's length."""
    settings = training_settings(config.stage_configs[0])
    further = {
        f"stages.{number}": {part: to_dict(getattr(stage, part)) for part in STAGE_PARTS}
        for number, stage in enumerate(config.stage_configs[1:begun], 2)
    }
    last = further.get(f"stages.{begun}", settings)
    for part, names in LENGTH.items():
        last[part] = {name: value for name, value in last[part].items() if name not in names}
    return {**settings, **further}
