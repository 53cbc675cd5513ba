"""Which of the machines that people train on this is: where projects live on it, which disk is fast, what is kept."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lorakit.project import Project

FOLDER = "lora-projects"  # in it a folder for each project, on every machine
LAST = "last-project.txt"  # beside them: the name of the one that was opened last
COLAB_DRIVE = Path("/content/drive")
SWITCH = Path("/etc/network_turbo")  # AutoDL's script that leads through its proxy to sites that are blocked
# File systems behind a network or a program: slow, and done writing long after they say so.
SLOW = re.compile(r"fuse(\..*)?|nfs\d?|cifs|smb\w*|9p|drvfs|vboxsf|afs|ceph|lustre|davfs|virtiofs")


@dataclass(frozen=True)
class Machine:
    """One row: the signs that a machine has (environment variables; paths begin with "/"), any of which is enough, and
    the folders in which projects may be, best first."""

    name: str
    signs: tuple[str, ...]
    folders: tuple[str, ...]
    fast: tuple[str, ...]  # folders on its own disk, best first
    keeps: str  # how long the best folder lasts


MACHINES = (  # Kaggle's image is made from Colab's and has its signs, too
    Machine(
        "Kaggle",
        ("KAGGLE_KERNEL_RUN_TYPE", "/kaggle/working"),
        ("/kaggle/working",),
        ("/kaggle/temp", "/tmp"),
        "Kaggle keeps this folder when you save a version, or with Settings > Persistence > Files only.",
    ),
    Machine(
        "Colab",
        ("COLAB_RELEASE_TAG", "COLAB_GPU"),
        (f"{COLAB_DRIVE}/MyDrive", "/content"),
        ("/content",),
        "Google Drive keeps this folder.",
    ),
    Machine(
        "AutoDL",
        ("AutoDLContainerUUID", "/root/autodl-tmp"),
        ("/root/autodl-tmp", "/root/autodl-fs"),
        ("/root/autodl-tmp",),
        "The data disk keeps this folder as long as the instance exists (15 days when it is off).",
    ),
)
LOST = "This folder is on the machine's own disk: all of it is lost when the session ends."


@dataclass(frozen=True)
class Place:
    """Where projects are on this machine.

    name      of the machine, "" for one of the user's own
    folders   folders that hold projects, each project a folder in one of them; new ones are made in the first
    fast      folder on the machine's own disk for projects whose remote copy is on a slow disk
    keeps     how long the first folder lasts, in a sentence; "" where it goes without saying
    """

    name: str
    folders: tuple[Path, ...]
    fast: Path
    keeps: str

    @property
    def is_lost(self) -> bool:
        """True where nothing outlives the session."""
        return self.keeps == LOST

    def is_copied(self, remote: Path) -> bool:
        """Whether a project whose remote copy is `remote` is worked on in `fast`; not where all disks are slow."""
        return is_slow(remote) and not is_slow(self.fast)

    def find(self, name: str) -> Path:
        """The folder of the project of that name, which need not exist yet."""
        return next((folder / name for folder in self.folders if is_there(folder / name)), self.folders[0] / name)

    def projects(self) -> list[str]:
        """Names of all projects here, in order."""
        found = {
            entry.name
            for folder in self.folders
            if is_there(folder)
            for entry in os.scandir(folder)
            if entry.is_dir() and not entry.name.startswith(".") and not self._is_copy(Path(entry.path))
        }
        return sorted(found)

    def _is_copy(self, folder: Path) -> bool:
        """Whether a project lives in the first folder, and this is where it is worked on."""
        remote = Project(folder).remote if folder.parent != self.folders[0] else None
        return remote is not None and remote.parent == self.folders[0]

    def last(self) -> str:
        """The name of the project that was opened last; where no note tells, of the one that changed last; or ""."""
        notes = [folder / LAST for folder in self.folders if is_there(folder / LAST)]
        names = [note.read_text("utf-8").strip() for note in sorted(notes, key=os.path.getmtime, reverse=True)]
        there = self.projects()
        noted = next((name for name in names if name in there), "")
        return noted or max(there, key=lambda name: self.find(name).stat().st_mtime, default="")

    def remember(self, name: str) -> None:
        """Note which project was opened last; a disk that takes no note now is told of elsewhere."""
        with suppress(OSError):
            self.folders[0].mkdir(parents=True, exist_ok=True)
            (self.folders[0] / LAST).write_text(name, "utf-8")


def find(environment: Mapping[str, str], root: Path = Path("/")) -> Place:
    """The place that this machine is: known by the variables and paths in the row of MACHINES, else the current folder.

    environment   such as os.environ
    root          of the file system that paths are looked for in
    """
    for machine in MACHINES:
        if any(is_there(_below(root, sign)) if sign.startswith("/") else sign in environment for sign in machine.signs):
            there = [folder for folder in machine.folders if is_there(_below(root, folder))]
            fast = next((folder for folder in machine.fast if is_there(_below(root, folder))), tempfile.gettempdir())
            keeps = machine.keeps if machine.folders[0] in there else LOST
            folders = tuple(_below(root, folder) / FOLDER for folder in there or [fast])
            return Place(machine.name, folders, _below(root, fast) / FOLDER, keeps)
    cache = Path(environment.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    fast = Path(tempfile.gettempdir()) if is_slow(cache) else cache
    return Place("", (Path.cwd() / FOLDER,), fast / FOLDER, "")


def _below(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def is_there(path: Path) -> bool:
    """Whether a path can be reached; a disk that was lost (errno 107) is not there."""
    try:
        return path.exists()
    except OSError:
        return False


def is_slow(path: Path, mounts: Path = Path("/proc/mounts")) -> bool:
    """Whether a path lies on a network or FUSE file system, such as Drive; False where the machine does not tell.

    mounts   the kernel's list: device, where, type, options of each
    """
    if not mounts.exists():
        return False
    path = Path(os.path.realpath(path))
    kinds = {}
    for line in mounts.read_text("utf-8", errors="replace").splitlines():
        where, kind = line.split(" ")[1:3]
        kinds[Path(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), where))] = kind  # a later one hides it
    above = [folder for folder in (path, *path.parents) if folder in kinds]
    return bool(above and SLOW.fullmatch(kinds[above[0]]))


def network_switch(script: Path = SWITCH) -> dict[str, str]:
    """The proxy variables that AutoDL's network switch would set in a shell; none where there is no switch."""
    if not script.exists():
        return {}
    done = subprocess.run(
        ["bash", "-c", 'source "$1" >/dev/null 2>&1; env', "bash", str(script)],
        capture_output=True,
        text=True,
        timeout=5,
        check=False,  # what it says for itself does not matter, what it set does
        env={"PATH": os.defpath},
    )
    pairs = [line.partition("=")[::2] for line in done.stdout.splitlines()]
    return {name: value for name, value in pairs if name.lower().endswith("_proxy")}
