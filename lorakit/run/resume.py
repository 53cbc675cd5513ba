"""What a run is made of: recorded before its first step, compared before every session, differences explained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from lorakit.config import differences, to_dict, to_yaml
from lorakit.data.scan import Scan
from lorakit.files import write_atomic, write_json
from lorakit.files.disk import DamagedFile, read_json
from lorakit.project import ProjectError, Run
from lorakit.run import checkpoint
from lorakit.run.config import RunConfig, configure, read_as_begun

# Keys of the record that are not compared.
NOT_INPUTS = ("steps_per_epoch", "history", "threads")
# Differences that a message lists; a new dataset would fill the screen.
SHOWN = 20


class RunChanged(ProjectError):
    """Settings, dataset or base model differ from those that the run was trained with."""


# ---- settings --------------------------------------------------------------------------------------------------------


def training_settings(config: RunConfig) -> dict[str, Any]:
    """Settings that affect the result, nested, as read back from JSON (lists for tuples).

    `stages` holds, by number from 2 on, only the settings that each further stage has of its own.
    """
    # Fields without "free" (`stages`) are no parts; free parts (`memory`, `save`, `sample`) change nothing.
    parts = [f.name for f in fields(config) if "free" in f.metadata and not f.metadata["free"]]
    settings: dict[str, Any] = {name: to_dict(getattr(config, name)) for name in parts}
    if config.stages:
        settings["stages"] = {
            str(number): _own_settings(stage, overrides)
            for number, (stage, overrides) in enumerate(zip(config.stage_configs[1:], config.stages, strict=True), 2)
        }
    return json.loads(json.dumps(settings))


def _own_settings(stage: RunConfig, overrides: dict[str, Any]) -> dict[str, Any]:
    """The values that a stage overrides, after parsing (1e-4 as a number)."""
    return {part: {name: to_dict(getattr(stage, part))[name] for name in values} for part, values in overrides.items()}


# ---- the record (fingerprint.json) -----------------------------------------------------------------------------------


def current_inputs(config: RunConfig, scans: Sequence[Scan], base: dict[str, str], precision: str) -> dict[str, Any]:
    """What a run would be trained with now: settings, precision, base files and data (a scan for each stage)."""
    data = [
        # 16 digits of the SHA-256 still show every change, and keep the messages readable.
        {
            s.name: f"sha256 {s.digest[:16]}, {s.repeats}x, caption {s.caption!r}"
            + (f", mask {s.mask_digest[:16]}" if s.mask else "")
            for s in scan.samples
        }
        for scan in scans
    ]
    # Stages mostly share their data; what is the same is recorded once.
    others = {f"data of stage {number}": samples for number, samples in enumerate(data, 1) if samples != data[0]}
    return {"config": training_settings(config), "precision": precision, "base": base, "data": data[0], **others}


def load_record(run: Run) -> dict[str, Any]:
    """The record of a run that has trained, {} before that.

    Holds the inputs (`config`, `precision`, `base`, `data` and more), `steps_per_epoch` of each stage, and `history`:
    later changes of the config as {"step": …, "changes": […]}. A damaged or missing one is written anew from the newest
    training state. Raises DamagedFile when that has no copy of it (older versions stored none).
    """
    try:
        # Older versions wrote neither.
        record = {"steps_per_epoch": [], "history": [], **read_json(run.record_file)}
        if _is_record(record):
            return record
        problem = f"{run.record_file} is damaged: values of it are missing or of another type."
    except FileNotFoundError:
        problem = ""
    except DamagedFile as error:
        problem = str(error)
    saved = checkpoint.newest(run.states)
    if saved.folder is None and not checkpoint.saved_step(run):
        # Nothing was trained that a change could spoil: the run begins at step 1 and is recorded anew.
        return {}
    if _is_record(saved.record):
        write_json(run.record_file, saved.record)
        return saved.record
    if not problem:
        return {}
    raise DamagedFile(
        f"{problem} A run is compared with it before it resumes, and its training states hold no copy. Copy the file "
        f"back from the remote copy or a backup, or start a new run from these weights: lorakit train "
        f"{run.project.folder} --run NAME --from-weights {_newest_lora(run)}."
    )


def _is_record(record: Any) -> bool:
    """Whether a value has the keys of a record, each of its type."""
    types = {"config": dict, "precision": str, "base": dict, "data": dict, "steps_per_epoch": list, "history": list}
    return isinstance(record, dict) and all(isinstance(record.get(name), kind) for name, kind in types.items())


def recorded_config(run: Run) -> RunConfig | None:
    """The config that a run has trained with, None before that; unlike config.yaml it is never edited by hand.

    Settings added since then, and settings that do not affect the result, have their defaults.
    """
    record = load_record(run)
    if not record:
        return None
    config = read_as_begun(record["config"])
    return configure({**config, "stages": list(config["stages"].values())} if "stages" in config else config)


def save_record(run: Run, inputs: dict[str, Any], steps_per_epoch: Sequence[int]) -> dict[str, Any]:
    """Record what a run is made of; returns the record.

    Called once everything was loaded: a misspelt base model is never recorded.
    """
    old = load_record(run)
    record = {**inputs, "steps_per_epoch": list(steps_per_epoch), "history": old["history"] if old else []}
    if record != old:
        write_json(run.record_file, record)
    return record


def record_change(run: Run, config: RunConfig, step: int, steps_per_epoch: Sequence[int]) -> None:
    """Give a run that has trained another config from `step` on, and add the differences to its history.

    Which settings may change is decided in `lorakit.run.extend`.
    """
    record = load_record(run)
    if changes := differences(training_settings(recorded_config(run)), training_settings(config)):
        changed = {
            "config": training_settings(config),
            "history": [*record["history"], {"step": step, "changes": changes}],
            "steps_per_epoch": list(steps_per_epoch),
        }
        write_json(run.record_file, {**record, **changed})
    # Last: when killed in between, the same command finds the old config.yaml and completes the change.
    write_atomic(run.config_file, to_yaml(config))


# ---- comparison ------------------------------------------------------------------------------------------------------


def check_unchanged(run: Run, inputs: dict[str, Any], stages_begun: int) -> None:
    """Raise RunChanged if settings, data, base files or precision differ from the recorded ones.

    Nothing is checked before the first step, nor the data of stages that have not begun.
    """
    record = load_record(run)
    if not record:
        return
    # Through the config, so that settings added since then do not count as a change.
    old = {**record, "config": training_settings(recorded_config(run))}
    compared = {name for name in {*old, *inputs} if not name.startswith("data of stage ")} - {*NOT_INPUTS}
    compared |= {f"data of stage {number}" for number in range(2, stages_begun + 1)}
    old, new = ({name: value for name, value in side.items() if name in compared} for side in (old, inputs))
    refuse_changes(run, old, new)


def refuse_changes(run: Run, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise RunChanged, naming every difference and what to do, if there is any."""
    lines = differences(old, new)
    if not lines:
        return
    shown = [f"  {line}" for line in lines[:SHOWN]]
    if len(lines) > SHOWN:
        shown.append(f"  and {len(lines) - SHOWN} more")
    raise RunChanged(
        "\n".join(
            [
                f"Run {run.name!r} cannot be resumed: these settings changed since it was started (old -> new).",
                *shown,
                "Resume this run: undo these changes and train again. Or start a new run, under another name, from "
                f"these weights: in a notebook continue_run(run), in a terminal lorakit train {run.project.folder} "
                f"--run NAME --from-weights {_newest_lora(run)}.",
                "For more epochs or another stage use more_epochs(run, 20) in a notebook, or lorakit extend.",
            ]
        )
    )


def _newest_lora(run: Run) -> str:
    """The newest LoRA file of a run, as one would type it."""
    steps = run.lora_steps()
    return str(run.lora_file(steps[-1])) if steps else "FILE"
