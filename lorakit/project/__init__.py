"""The folders of a project and of a run; their files are the only database."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lorakit.errors import UserError
from lorakit.files import remove_leftovers
from lorakit.files.disk import DamagedFile, DiskError, disk_errors, is_full, read_json

# Also valid as a folder name on Windows and Google Drive.
RUN_NAME = r"\w[\w.-]{0,63}"


class ProjectError(UserError):
    """A project or run folder is not what was expected."""


class Run:
    """The files of one run in `<project>/runs/<name>/`, or in `folder` for a trial that is deleted afterwards.

    Raises ProjectError for a name that cannot be a folder's.
    """

    def __init__(self, project: Project, name: str, folder: Path | None = None):
        if not re.fullmatch(RUN_NAME, name):
            raise ProjectError(
                f"{name!r} cannot be a run's name: use up to 64 letters, digits, '-', '_' and '.', the first of them "
                "a letter, a digit or '_'."
            )
        self.project = project
        self.name = name
        self.folder = folder or project.folder / "runs" / name
        self.config_file = self.folder / "config.yaml"
        # What the run is made of, see `lorakit.run.resume`.
        self.record_file = self.folder / "fingerprint.json"
        self.log = self.folder / "events.jsonl"
        self.states = self.folder / "states"
        self.loras = self.folder / "lora"
        self.samples = self.folder / "samples"
        self.grids = self.folder / "grids"
        # Held (flock) by the trainer as long as it lives.
        self.lock = self.folder / "trainer.lock"

    @property
    def title(self) -> str:
        """What its files call themselves outside of the project, where every project may have a `run1`."""
        project = re.sub(r"[^\w.-]+", "-", self.project.folder.name).strip("-.") or "lora"
        return project if project == self.name else f"{project}-{self.name}"

    def exists(self) -> bool:
        """True once the run's config has been written."""
        return self.config_file.exists()

    def remove_leftovers(self) -> None:
        """Remove what killed writers left unfinished, here and in the project. Only the run's trainer may call it."""
        for part in (*self.states.glob(".*.part"), *self.loras.glob("*.part"), *self.samples.glob("*.part")):
            with suppress(OSError):
                shutil.rmtree(part) if part.is_dir() else part.unlink()
        project = self.project
        for leftovers in (self.folder.rglob("*.part"), project.folder.glob("*.part"), project.cache.rglob("*.part")):
            remove_leftovers(leftovers)

    def lora_file(self, step: int) -> Path:
        """The LoRA file of a step, whether it exists or not."""
        return self.loras / f"{self.name}-{step:06d}.safetensors"

    def lora_steps(self) -> list[int]:
        """Steps that have a LoRA file, in ascending order."""
        # Six digits or more: foreign files and `.part` files in the folder do not match.
        matches = (
            re.fullmatch(rf"{re.escape(self.name)}-(\d{{6,}})", file.stem)
            for file in self.loras.glob("*.safetensors")
            if file.is_file()
        )
        return sorted(int(match[1]) for match in matches if match)


class Project:
    """One folder that holds everything of a training project: dataset, caches, runs."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser().absolute()
        self.dataset = self.folder / "dataset"
        self.cache = self.folder / "cache"
        # The file's name, and the key `home` in it, are stored in existing projects.
        self.remote_file = self.folder / "home.json"
        # What syncing with the remote copy remembers; itself never copied.
        self.sync = self.folder / ".sync"

    @property
    def remote(self) -> Path | None:
        """Folder of the project's remote copy on a slow disk (e.g. Google Drive); None for a project without one.

        Raises ProjectError for a damaged home.json.
        """
        try:
            return Path(read_json(self.remote_file)["home"])
        except FileNotFoundError:
            return None
        except (DamagedFile, LookupError, TypeError) as error:
            raise ProjectError(
                f"{self.remote_file} is damaged: it should name the folder of the remote copy, such as "
                '{"home": "/content/drive/MyDrive/lorakit/mine"}. Write that, or open it by its remote copy again.'
            ) from error

    def run(self, name: str) -> Run:
        """The run of that name, which need not exist yet."""
        return Run(self, name)

    def runs(self) -> list[Run]:
        """All runs of the project, by name; folders that cannot be runs ("run1 (copy)") are skipped."""
        names = (p.parent.name for p in sorted((self.folder / "runs").glob("*/config.yaml")))
        return [Run(self, name) for name in names if re.fullmatch(RUN_NAME, name)]

    def newest_run(self) -> Run:
        """The run with a LoRA file that was active last.

        Raises ProjectError while there is none.
        """
        if not (runs := self.runs()):
            raise ProjectError(f"There are no runs in {self.folder} yet: train one first (notebook 4_train).")
        if not (with_loras := [run for run in runs if run.lora_steps()]):
            names = ", ".join(run.name for run in runs)
            raise ProjectError(
                f"No run has saved a LoRA file yet ({names}): train one until its first is saved (notebook 4_train)."
            )
        return max(with_loras, key=lambda run: (run.log if run.log.exists() else run.config_file).stat().st_mtime)


@contextmanager
def run_disk_errors(run: Run) -> Iterator[None]:
    """Turn errors of the disk, however a library reports them, into DiskError; a full disk loses incomplete files."""
    try:
        with disk_errors(run.folder):
            yield
    except DiskError as error:
        if is_full(error):
            # This makes the room that is needed to log the failure.
            run.remove_leftovers()
        raise
