"""Create a run: write its config, from settings or from the weights of a LoRA file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from lorakit.config import ConfigError, check, current_names, to_dict, to_yaml
from lorakit.files import write_atomic
from lorakit.hub import fetch
from lorakit.lora.variants import AdapterConfig
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
    from_weights    start from the weights of this LoRA file: a path, a file on Hugging Face, or a URL; a larger
                    `adapter.rank` than the file's is possible

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
        # A run keeps its way of reading the dataset, which nobody sets.
        config = replace(config, data=replace(config.data, reading=recorded.data.reading))
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

    `settings` are those that `configure` gets, with `gpu_preset`. Without `adapter.rank` and `alpha` the file's are
    taken; a larger rank holds the same change, its further ranks free to learn, and keeps the file's alpha / rank.
    Optimizer state, schedule and steps of the run that made the file are not continued: that would be to resume it.
    Raises ProjectError when the run has trained, LoraFileError for files that an adapter cannot hold, ConfigError for
    a smaller rank or another adapter type than the file's, and what `configure` and `fetch` raise.
    """
    if load_record(run):
        raise ProjectError(
            f"Run {run.name!r} has trained already, so it cannot start from {source}. Give the new run another name; "
            f"to resume {run.name!r}, train it without new weights."
        )
    file = fetch(source)
    # The trainer may run in another working directory.
    stored = str(file.absolute()) if Path(source).expanduser().exists() else source
    settings = current_names(settings)
    given = settings.get("adapter", {})
    adapter = {**given, **_adapter_for(file, given), "network_weights": stored}
    return save_config(run, configure({**settings, "adapter": adapter}, gpu_preset))


def inherited(settings: dict[str, Any]) -> dict[str, Any]:
    """A run's settings as a new run from the weights of a file takes them over.

    Without further stages, which belong to the old run, and without the adapter's type, rank and alpha, which are the
    file's unless they are set anew.
    """
    kept = {part: values for part, values in current_names(settings).items() if part != "stages"}
    adapter = {name: value for name, value in kept.get("adapter", {}).items() if name not in ("type", "rank", "alpha")}
    return {**kept, "adapter": adapter}


def _adapter_for(file: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Type, rank and alpha of an adapter that a file goes onto: those given, else the file's."""
    of_file = adapter_settings(file)
    chosen = {name: check(AdapterConfig, name, given[name]) for name in of_file if name in given}
    if chosen.get("type", of_file["type"]) != of_file["type"]:
        raise ConfigError(
            f"adapter.type is {chosen['type']}, and {file.name} is a {of_file['type']}; leave adapter.type out, or "
            "start from another file."
        )
    if "rank" not in of_file:
        return of_file
    rank = chosen.get("rank", of_file["rank"])
    if rank < of_file["rank"]:
        raise ConfigError(
            f"adapter.rank is {rank}, and {file.name} has rank {of_file['rank']}, which would not fit; set "
            f"adapter.rank to {of_file['rank']} or more, or leave it out."
        )
    # the same alpha / rank, so that the rate at which it learns is that of the file
    alpha = float(f"{of_file['alpha'] * rank / of_file['rank']:.5g}")
    return {**of_file, "rank": rank, "alpha": chosen.get("alpha", alpha)}
