"""Options that several verbs share, and what their values mean."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lorakit.project import Project, ProjectError, Run

# Of `add_argument("--set", …)`: may be given several times, once for each setting.
SET = {"action": "append", "default": [], "metavar": "KEY=VALUE"}


def default_settings() -> dict[str, Any]:
    """Settings where nobody gave any: only the family, as it decides the defaults of all others."""
    return {"model": {"family": "sd15"}}


def run_options() -> argparse.ArgumentParser:
    """A parent parser with the project and the name of a run."""
    # add_help=False: the verb that takes this as a parent adds --help itself.
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("project", type=Path, help="project folder; its images are in dataset/")
    parser.add_argument("--run", default="run1", metavar="NAME", help="name of the run (default: run1)")
    return parser


def project_at(folder: Path) -> Project:
    """The project in a folder. Raises ProjectError when there is no such folder."""
    project = Project(folder)
    if not project.folder.is_dir():
        raise ProjectError(f"{project.folder} does not exist; name a project's folder, with its images in dataset/.")
    return project


def existing_run(options: argparse.Namespace) -> Run:
    """The run that `run_options` named. Raises ProjectError, with the names there are, when it has no config yet."""
    from lorakit.run.config import read_config

    run = project_at(options.project).run(options.run)
    if not run.exists():
        # Raises, and lists the project's runs.
        read_config(run)
    return run


def refuse_rest(settings: dict[str, Any], allowed: str) -> None:
    """Raise ConfigError for settings that a verb has no use for; `allowed` are those that it has, in words."""
    from lorakit import other_trainers
    from lorakit.config import ConfigError

    if settings:
        names = (f"{name} {other_trainers.answer(name) or 'is no setting here.'}" for name in settings)
        raise ConfigError("\n".join([*names, f"Settings of this command: {allowed}."]))


def with_changes(settings: dict[str, Any], changes: list[str]) -> dict[str, Any]:
    """Write `KEY=VALUE` texts into nested settings, in place; returns them. Raises ConfigError for another form."""
    from lorakit.config import ConfigError, assign

    for change in changes:
        # Only the first "=": values such as prompts may contain more.
        name, equals, value = change.partition("=")
        if not equals:
            raise ConfigError(f"--set {change}: write it as key=value, e.g. adapter.rank=32.")
        assign(settings, name, value)
    return settings
