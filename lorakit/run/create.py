"""Create a run: write its config, from settings or from the weights of a LoRA file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorakit.config import current_names, to_dict, to_yaml
from lorakit.files import write_atomic
from lorakit.hub import fetch
from lorakit.lora.warm_start import adapter_settings
from lorakit.project import Project, ProjectError, Run
from lorakit.project.lock import busy, is_alive
from lorakit.run.config import RunConfig, configure
from lorakit.run.resume import load_record, recorded_config, refuse_changes, training_settings


def create_run(
    project: str | Path | Project,
    settings: dict[str, Any],
    name: str = "run1",
    *,
    gpu_preset: str = "",
    from_weights: str = "",
) -> Run:
    """The run of that name in a project, with its config written; nothing is trained yet.

    project         a folder, whose images are in its `dataset/`, or a Project
    settings        nested: {"model": {"family": "sdxl", "source": "…"}, "data": {"trigger": "mofurin"}}; all others
                    come from the GPU preset and the family's defaults
    gpu_preset      settings that fit a GPU, such as "8 GB" (`gpu_presets` of the family)
    from_weights    start from the weights of this LoRA file: a path, a file on Hugging Face, or a URL

    The same call again returns the same run, so a script may be run again to resume. Raises ConfigError for wrong
    settings, RunChanged when the run has trained with other ones, RunBusy while it trains, and what `save_from_weights`
    raises.

    >>> create_run("my-project", {"model": {"family": "sd15", "source": "demo"}}, name="other").name
    'other'
    """
    run = (project if isinstance(project, Project) else Project(project)).run(name)
    if is_alive(run):
        raise busy(run)
    if from_weights:
        save_from_weights(run, from_weights, settings, gpu_preset)
    else:
        save_config(run, configure(settings, gpu_preset))
    return run


def save_config(run: Run, config: RunConfig) -> RunConfig:
    """Write config.yaml; returns what was written.

    If the run has trained, only `memory`, `save` and `sample` may differ: RunChanged lists other differences. Before
    that everything may, e.g. when the base model was misspelt; `schedule.past`, copied from another run, is dropped.
    """
    # Compared with the record, not with config.yaml: that file may have been edited by hand.
    recorded = recorded_config(run)
    if recorded is None:
        config = _without_past(config)
    else:
        refuse_changes(run, training_settings(recorded), training_settings(config))
    run.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(run.config_file, to_yaml(config))
    return config


def _without_past(config: RunConfig) -> RunConfig:
    """The config without the earlier curves of a run that was extended: a new run has no steps that followed them."""
    settings = to_dict(config)
    for stage in (settings, *settings["stages"]):
        if "schedule" in stage:
            stage["schedule"] = {name: value for name, value in stage["schedule"].items() if name != "past"}
    return configure(settings)


def save_from_weights(run: Run, source: str, settings: dict[str, Any], gpu_preset: str = "") -> RunConfig:
    """Write the config of a new run that starts from a LoRA file: a path, a file on Hugging Face, or a URL.

    The file's rank and alpha replace those in `settings`, which `configure` gets with `gpu_preset`. Optimizer state,
    schedule and steps of the run that made the file are not continued: that would be to resume it. Raises ProjectError
    when the run has trained, LoraFileError for files that an adapter cannot hold, and what `configure` and `fetch`
    raise.
    """
    if load_record(run):
        raise ProjectError(
            f"Run {run.name!r} has trained already, so it cannot start from {source}. Give the new run another name; "
            f"to resume {run.name!r}, train it without new weights."
        )
    file = fetch(source)
    # The trainer may run in another working directory.
    stored = str(file.absolute()) if Path(source).expanduser().exists() else source
    adapter = {**current_names(settings).get("adapter", {}), **adapter_settings(file), "network_weights": stored}
    return save_config(run, configure({**settings, "adapter": adapter}, gpu_preset))
