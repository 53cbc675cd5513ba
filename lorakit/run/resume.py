"""What a run is made of, recorded before its first step and compared before every session."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from lorakit.config import differences, to_dict, to_yaml
from lorakit.data.scan import Scan
from lorakit.files import write_atomic, write_json
from lorakit.project import ProjectError, Run
from lorakit.run.config import RunConfig, configure

NOT_INPUTS = ("steps_per_epoch", "history")  # what a fingerprint holds that is no input


class RunChanged(ProjectError):
    """A run was asked to go on with another config, dataset or base than it began with."""


def training_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that decide the result, as they are when read back from JSON (lists for tuples); of further stages,
    by number, those that each has of its own.
    """
    parts = [f.name for f in fields(config) if "free" in f.metadata and not f.metadata["free"]]
    settings: dict[str, Any] = {name: to_dict(getattr(config, name)) for name in parts}
    if config.stages:
        settings["stages"] = {
            str(number): _own(stage, overrides)
            for number, (stage, overrides) in enumerate(zip(config.stage_configs[1:], config.stages, strict=True), 2)
        }
    return json.loads(json.dumps(settings))


def _own(stage: RunConfig, overrides: dict[str, Any]) -> dict[str, Any]:
    """A stage's own settings, as they were understood."""
    return {owner: {name: to_dict(getattr(stage, owner))[name] for name in given} for owner, given in overrides.items()}


def load_record(run: Run) -> dict[str, Any]:
    """What a run has begun with, empty while it has not: `config`, `precision`, `base`, `data` and more inputs,
    `steps_per_epoch` of each stage, and `history`, its amendments as {step, changes}.
    """
    if not run.record_file.exists():
        return {}
    known = json.loads(run.record_file.read_text(encoding="utf-8"))
    return {"steps_per_epoch": [], "history": [], **known}


def recorded_config(run: Run) -> RunConfig | None:
    """The config that a run has begun with, None while it has not; config.yaml may have been edited by hand.

    Settings that there were not yet have their defaults, and those that decide nothing, too.
    """
    if not (known := load_record(run)):
        return None
    config = known["config"]
    return configure({**config, "stages": list(config["stages"].values())} if "stages" in config else config)


def current_inputs(config: RunConfig, scans: Sequence[Scan], base: dict[str, str], precision: str) -> dict[str, Any]:
    """Which settings, data (a scan for each stage), base files and precision a run is made of."""
    data = [
        {s.name: f"sha256 {s.digest[:16]}, {s.repeats}x, caption {s.caption!r}" for s in found.samples}
        for found in scans
    ]
    others = {f"data of stage {number}": found for number, found in enumerate(data, 1) if found != data[0]}
    return {"config": training_settings(config), "precision": precision, "base": base, "data": data[0], **others}


def check_unchanged(run: Run, inputs: dict[str, Any], stages_begun: int) -> None:
    """Refuse (RunChanged) other inputs than those that a run has begun with; anything goes while it has not, and other
    data for stages that have not.
    """
    if not (known := load_record(run)):
        return
    old = {**known, "config": training_settings(recorded_config(run))}
    told = {name for name in {*old, *inputs} if not name.startswith("data of stage ")}
    told |= {f"data of stage {number}" for number in range(2, stages_begun + 1)}
    old, new = ({k: v for k, v in side.items() if k in told - {*NOT_INPUTS}} for side in (old, inputs))
    refuse_changes(run, old, new)


def save_record(run: Run, inputs: dict[str, Any], steps_per_epoch: Sequence[int]) -> None:
    """Remember what a run is made of, once all of it could be loaded: from here on it has begun."""
    known = load_record(run)
    made = {**inputs, "steps_per_epoch": list(steps_per_epoch), "history": known["history"] if known else []}
    if made != known:
        write_json(run.record_file, made)


def record_change(run: Run, config: RunConfig, step: int, steps_per_epoch: Sequence[int]) -> None:
    """Give a run that has begun another config from `step` on, and remember when and what; config.yaml last, so that a
    run which was cut off in between is amended again. What may change, `lorakit.run.extend` knows.
    """
    known = load_record(run)
    if changes := differences(training_settings(recorded_config(run)), training_settings(config)):
        history = [*known["history"], {"step": step, "changes": changes}]
        made = {"config": training_settings(config), "history": history, "steps_per_epoch": list(steps_per_epoch)}
        write_json(run.record_file, {**known, **made})
    write_atomic(run.config_file, to_yaml(config))


def refuse_changes(run: Run, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise RunChanged naming every difference and the two ways on; return when there is none."""
    found = differences(old, new)
    if found:
        shown = "\n".join(f"  {line}" for line in found[:20]) + (
            f"\n  and {len(found) - 20} more" if len(found) > 20 else ""
        )
        raise RunChanged(
            f"Run {run.name!r} cannot go on: it was started with something else (old -> new).\n{shown}\n"
            "There are two ways on. Resume this run: put back what it was, and train again. Or start a new run, under "
            "another name; from these weights: in a notebook continue_run(run), in a terminal "
            f"lorakit train {run.project.folder} --run NAME --from-weights {_newest(run)}.\n"
            "For more epochs or another stage there are more_epochs(run, 20) and lorakit extend."
        )


def _newest(run: Run) -> str:
    """The newest LoRA file of a run, as a person would type it."""
    return str(run.lora_file(run.lora_steps()[-1])) if run.lora_steps() else "FILE"
