"""Detects the platform (Colab, Kaggle, AutoDL): where projects are on it, which disk is fast, what is kept."""

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

# Projects are folders in this one, on every machine.
FOLDER = "lora-projects"
# Beside them: the name of the project opened last.
LAST = "last-project.txt"
COLAB_DRIVE = Path("/content/drive")
# AutoDL's script that sets a proxy for sites that are blocked in China.
SWITCH = Path("/etc/network_turbo")
# File systems behind a network or a program: slow, and they report writes before these are done.
SLOW = re.compile(r"fuse(\..*)?|nfs\d?|cifs|smb\w*|9p|drvfs|vboxsf|afs|ceph|lustre|davfs|virtiofs")


@dataclass(frozen=True)
class Machine:
    """One row of MACHINES.

    signs       environment variables, and paths (they start with "/"); any one of them identifies the machine
    folders     folders that projects may be in, best first
    """

    name: str
    signs: tuple[str, ...]
    folders: tuple[str, ...]
    # Folders on its own disk, best first.
    fast: tuple[str, ...]
    # How long the best folder lasts, as a sentence.
    keeps: str


# Kaggle comes first: its image is built from Colab's and has the same signs.
MACHINES = (
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

    name      of the platform, "" for the user's own machine
    folders   folders that contain projects; new projects are created in the first
    fast      folder on the machine's own disk for projects whose remote copy is on a slow disk
    keeps     how long the first folder is kept, in a sentence; "" on the user's own machine
    """

    name: str
    folders: tuple[Path, ...]
    fast: Path
    keeps: str

    @property
    def is_lost(self) -> bool:
        """True where nothing is kept after the session."""
        return self.keeps == LOST

    def is_copied(self, remote: Path) -> bool:
        """Whether a project with this remote copy is worked on in `fast`; not where all disks are slow."""
        return is_slow(remote) and not is_slow(self.fast)

    def find(self, name: str) -> Path:
        """The folder of the project of that name, which need not exist yet."""
        return next((folder / name for folder in self.folders if is_there(folder / name)), self.folders[0] / name)

    def projects(self) -> list[str]:
        """Names of all projects here, in order."""
        names = {
            entry.name
            for folder in self.folders
            if is_there(folder)
            # scandir knows which entries are folders; asking for each one takes long on Google Drive.
            for entry in os.scandir(folder)
            if entry.is_dir() and not entry.name.startswith(".") and not self._is_copy(Path(entry.path))
        }
        return sorted(names)

    def _is_copy(self, folder: Path) -> bool:
        """Whether a folder is only the local copy of a project in the first folder."""
        remote = Project(folder).remote if folder.parent != self.folders[0] else None
        return remote is not None and remote.parent == self.folders[0]

    def last(self) -> str:
        """Name of the project opened last, else of the one changed last; "" without projects."""
        # Each folder may have a note, from sessions with and without Drive; the newest one counts.
        notes = [folder / LAST for folder in self.folders if is_there(folder / LAST)]
        names = [note.read_text("utf-8").strip() for note in sorted(notes, key=os.path.getmtime, reverse=True)]
        there = self.projects()
        noted = next((name for name in names if name in there), "")
        return noted or max(there, key=lambda name: self.find(name).stat().st_mtime, default="")

    def remember(self, name: str) -> None:
        """Note which project was opened last."""
        # A disk that cannot be written is reported when the project is opened.
        with suppress(OSError):
            self.folders[0].mkdir(parents=True, exist_ok=True)
            (self.folders[0] / LAST).write_text(name, "utf-8")


def find(environment: Mapping[str, str], root: Path = Path("/")) -> Place:
    """Where projects are on this machine, by the first row of MACHINES that matches; else the current folder.

    environment   such as os.environ
    root          of the file system in which paths are looked up
    """
    for machine in MACHINES:
        if any(is_there(_below(root, sign)) if sign.startswith("/") else sign in environment for sign in machine.signs):
            there = [folder for folder in machine.folders if is_there(_below(root, folder))]
            fast = next((folder for folder in machine.fast if is_there(_below(root, folder))), tempfile.gettempdir())
            # Where the best folder is missing, such as a Drive that is not mounted, nothing is kept.
            keeps = machine.keeps if machine.folders[0] in there else LOST
            folders = tuple(_below(root, folder) / FOLDER for folder in there or [fast])
            return Place(machine.name, folders, _below(root, fast) / FOLDER, keeps)
    cache = Path(environment.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    # Home folders of clusters are often on NFS.
    fast = Path(tempfile.gettempdir()) if is_slow(cache) else cache
    return Place("", (Path.cwd() / FOLDER,), fast / FOLDER, "")


def _below(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def is_there(path: Path) -> bool:
    """Whether a path can be reached; False for a mount that was lost (errno 107)."""
    try:
        return path.exists()
    except OSError:
        return False


def is_slow(path: Path, mounts: Path = Path("/proc/mounts")) -> bool:
    """Whether a path is on a network or FUSE file system, such as Google Drive; False without a list of mounts.

    mounts   the kernel's list, a line each: device, folder, type, options
    """
    if not mounts.exists():
        return False
    path = Path(os.path.realpath(path))
    types = {}
    for line in mounts.read_text("utf-8", errors="replace").splitlines():
        where, kind = line.split(" ")[1:3]
        # Spaces are written as \040. A later mount on the same folder hides the earlier one.
        types[Path(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), where))] = kind
    # The nearest mount above the path decides.
    above = [folder for folder in (path, *path.parents) if folder in types]
    return bool(above and SLOW.fullmatch(types[above[0]]))


def network_switch(script: Path = SWITCH) -> dict[str, str]:
    """Proxy variables that AutoDL's network switch sets in a shell; {} where there is no switch."""
    if not script.exists():
        return {}
    done = subprocess.run(
        ["bash", "-c", 'source "$1" >/dev/null 2>&1; env', "bash", str(script)],
        capture_output=True,
        text=True,
        timeout=5,
        # Its exit status means nothing, only the variables count.
        check=False,
        # An almost empty environment, so that only what the script sets comes back.
        env={"PATH": os.defpath},
    )
    pairs = [line.partition("=")[::2] for line in done.stdout.splitlines()]
    return {name: value for name, value in pairs if name.lower().endswith("_proxy")}
