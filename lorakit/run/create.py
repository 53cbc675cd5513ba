"""Making a run: its config on disk, from settings or from the weights of a LoRA file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorakit.config import to_dict, to_yaml
from lorakit.files import write_atomic
from lorakit.hub import fetch
from lorakit.lora.warm_start import rank_and_alpha
from lorakit.project import ProjectError, Run
from lorakit.run.config import RunConfig, configure
from lorakit.run.resume import load_record, recorded_config, refuse_changes, training_settings


def save_config(run: Run, config: RunConfig) -> RunConfig:
    """Freeze `config` as the run's, or check it against the one the run began with.

    Parts marked free take their new values; so do all while the run has not begun, e.g. when its base was misspelt.
    What another run's schedule was before it got more epochs is left out.
    Raises RunChanged with the list of differences.
    """
    if (begun := recorded_config(run)) is not None:
        refuse_changes(run, training_settings(begun), training_settings(config))
    else:
        config = _without_past(config)
    run.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(run.config_file, to_yaml(config))
    return config


def _without_past(config: RunConfig) -> RunConfig:
    settings = to_dict(config)
    for stage in (settings, *settings["stages"]):
        if "schedule" in stage:
            stage["schedule"] = {name: value for name, value in stage["schedule"].items() if name != "past"}
    return configure(settings)


def from_weights(run: Run, source: str, settings: dict[str, Any], gpu_preset: str = "") -> RunConfig:
    """Make a new run that starts from a LoRA file: a path, a file on the hub, or an URL.

    The file's rank and alpha take the place of those in `settings`, and `gpu_preset` goes to `configure`. Nothing of
    the optimizer, schedule or steps of the file's own run goes on: that is to resume it. Raises ProjectError when the
    run has begun, LoraFileError for files that an adapter cannot hold, and what `configure` and `fetch` raise.
    """
    if load_record(run):
        raise ProjectError(
            f"Run {run.name!r} has begun, so it cannot start from {source}. Give the new run another name; to resume "
            f"{run.name!r}, train it without new weights."
        )
    file = fetch(source)
    rank, alpha = rank_and_alpha(file)
    # a trainer may look from another folder than we do
    named = str(file.absolute()) if Path(source).expanduser().exists() else source
    adapter = {**settings.get("adapter", {}), "rank": rank, "alpha": alpha, "network_weights": named}
    return save_config(run, configure({**settings, "adapter": adapter}, gpu_preset))
