"""The folders of a project and of a run: the only database there is."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorakit.errors import UserError
from lorakit.files import DISK_FULL

NAME = r"\w[\w.-]{0,63}"  # of a run


class ProjectError(UserError):
    """A project or run folder is not what was expected."""


class DiskFull(UserError):
    """The disk on which a run is trained has no room left."""


class Run:
    """The files of one run, below `<project>/runs/<name>/`, or below `folder` for a trial that is not to stay."""

    def __init__(self, project: Project, name: str, folder: Path | None = None):
        if not re.fullmatch(NAME, name):
            raise ProjectError(
                f"{name!r} cannot be a run's name: use up to 64 letters, digits, '-', '_' and '.', the first of them "
                "a letter, a digit or '_'."
            )
        self.project = project
        self.name = name
        self.folder = folder or project.folder / "runs" / name
        self.config_file = self.folder / "config.yaml"
        self.record_file = self.folder / "fingerprint.json"
        self.log = self.folder / "events.jsonl"
        self.states = self.folder / "states"
        self.loras = self.folder / "lora"
        self.samples = self.folder / "samples"
        self.grids = self.folder / "grids"
        self.lock = self.folder / "trainer.lock"  # held (flock) by the run's trainer while it lives

    def exists(self) -> bool:
        """True once the run's config has been written."""
        return self.config_file.exists()

    def lora_file(self, step: int) -> Path:
        """The exported LoRA after `step`."""
        return self.loras / f"{self.name}-{step:06d}.safetensors"

    def lora_steps(self) -> list[int]:
        """Steps for which an exported LoRA is there, in order."""
        found = (re.fullmatch(rf"{re.escape(self.name)}-(\d{{6,}})", p.stem) for p in self.loras.glob("*.safetensors"))
        return sorted(int(match[1]) for match in found if match)


class Project:
    """One folder with everything of one training project: dataset, caches, runs."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser().absolute()
        self.dataset = self.folder / "dataset"
        self.cache = self.folder / "cache"
        self.remote_file = self.folder / "home.json"
        self.sync = self.folder / ".sync"  # what syncing with the remote copy remembers; itself never copied

    @property
    def remote(self) -> Path | None:
        """Folder of the project's remote copy on a slow disk (e.g. Google Drive); None for a project without one.

        Raises ProjectError for a damaged home.json.
        """
        try:
            return Path(json.loads(self.remote_file.read_text(encoding="utf-8"))["home"])
        except FileNotFoundError:
            return None
        except (ValueError, LookupError, TypeError) as error:
            raise ProjectError(
                f"{self.remote_file} is damaged: it should name the folder of the remote copy, such as "
                '{"home": "/content/drive/MyDrive/lorakit/mine"}. Write that, or open it by its remote copy again.'
            ) from error

    def run(self, name: str) -> Run:
        """The run of that name, which need not exist yet."""
        return Run(self, name)

    def runs(self) -> list[Run]:
        """All runs of the project, by name; folders that cannot be runs ("run1 (copy)") are passed over."""
        names = (p.parent.name for p in sorted((self.folder / "runs").glob("*/config.yaml")))
        return [Run(self, name) for name in names if re.fullmatch(NAME, name)]

    def newest_run(self) -> Run:
        """Of the runs that have exported a LoRA file, the one in which something happened last.

        Raises ProjectError while there is none.
        """
        if not (runs := self.runs()):
            raise ProjectError(f"There are no runs in {self.folder} yet: train one first (notebook 4_train).")
        if not (found := [run for run in runs if run.lora_steps()]):
            names = ", ".join(run.name for run in runs)
            raise ProjectError(
                f"No run has exported a LoRA file yet ({names}): train one up to its first (notebook 4_train)."
            )
        return max(found, key=lambda run: (run.log if run.log.exists() else run.config_file).stat().st_mtime)


@contextmanager
def disk_full_errors(run: Run) -> Iterator[None]:
    """Turn a full disk, in whatever words a library tells of it, into DiskFull; files that were begun go first, so that
    there is room to log it."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_full(error):
            raise
        for part in (*run.states.glob(".*.part"), *run.loras.glob("*.part"), *run.samples.glob("*.part")):
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
        raise DiskFull(
            f"The disk that {run.folder} is on is full: {shutil.disk_usage(run.folder).free / 1e6:.1f} MB are free. "
            "What was saved before is kept. Free some space there, such as caches and runs that are no longer needed."
        ) from error


def _is_full(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, is the kernel's that a disk is full; Rust's libraries have only its text."""
    while error is not None:
        if getattr(error, "errno", None) in DISK_FULL or any(os.strerror(number) in str(error) for number in DISK_FULL):
            return True
        error = error.__cause__ or error.__context__
    return False
