"""The files of a data folder by concept, and a note on everything that is not a plain file."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from lorakit.data import DataConfig
from lorakit.data.images import EXTENSIONS

CAPTION_EXTENSIONS = (".txt", ".caption")
# Per epoch. A larger number in front of a folder's name is a date, not repeats.
MAX_REPEATS = 10_000
# In the order in which they are shown: skipped files come first.
NOTE_KINDS = (
    "overlooked folder",  # files beside kohya's folders, counted
    "unreadable",  # an image or folder that cannot be read: left out
    "foreign",  # no image: left out
    "not a file",  # a pipe, a socket, a device: never opened
    "link",  # to nothing, to itself, or to a folder: not followed
    "hidden",  # names that begin with a dot, counted
    "wrong ending",  # an image of another format than its name says: used
    "animated",  # its first frame is used
    "shared caption",  # two images of one stem
    "no caption",
    "empty caption",  # there is a caption file, with nothing in it
    "caption encoding",  # a caption file that cannot be read for certain: its image is left out
    "caption choice",  # several say something of one image
    "caption without image",
    "caption json",  # a JSON file that is broken, or entries of it that match no image, counted
    "chinese commas",
    "memory",  # what was measured cannot be remembered
)


@dataclass(frozen=True)
class Note:
    """A sentence on a file that is left out or treated specially; `name` as `Sample.name`, or of a folder."""

    # one of NOTE_KINDS
    kind: str
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


@dataclass(frozen=True)
class Concept:
    """One folder of images, and its files in order; the data folder itself when there are no kohya folders."""

    folder: Path
    repeats: int
    name: str
    is_reg: bool
    files: tuple[Path, ...] = ()

    @property
    def images(self) -> list[Path]:
        """Those that are images by their names."""
        return [path for path in self.files if path.suffix.lower() in EXTENSIONS]


class Listing:
    """Every file below a data folder: in `concepts`, in `others` or in `notes`. Nothing is opened, no link to a folder
    followed but that of a concept.
    """

    def __init__(self, root: Path, repeats: int):
        self.root = root
        self.notes: list[Note] = []
        self._hidden: list[str] = []
        # links to folders
        self._links: list[Path] = []
        by_folder = self._walked(root, deep=True)
        concepts, reg = [], root / "reg"
        for concept in _concepts(root, repeats):
            if concept.folder == root:
                # Without kohya folders every image below the root counts, except those of reg/.
                files = [path for own in by_folder.values() for path in own if reg not in path.parents]
            elif concept.folder in by_folder:
                files = by_folder[concept.folder]
            else:
                files = self._walked(concept.folder, deep=False)[concept.folder]
            concepts.append(
                Concept(concept.folder, concept.repeats, concept.name, concept.is_reg, tuple(sorted(files)))
            )
        self.concepts = tuple(concepts)
        used = {path for concept in concepts for path in concept.files}
        self.others = sorted(path for own in by_folder.values() for path in own if path not in used)
        self._note_links({concept.folder for concept in concepts})
        self.notes.sort(key=lambda note: (note.name, note.kind))
        if self._hidden:
            names = ", ".join(self._hidden[:3]) + ", …" * (len(self._hidden) > 3)
            text = f"{len(self._hidden)} hidden files and folders are skipped ({names})."
            self.notes.append(Note("hidden", self.name(root), text))

    def name(self, path: Path) -> str:
        """The path inside the data folder, always valid text: bytes of a name that is not UTF-8 are spelled out."""
        if path == self.root:
            return "the data folder"
        # Names from old archives may not be valid UTF-8, and could not be printed or written to JSON.
        return os.fsencode(path.relative_to(self.root).as_posix()).decode("utf-8", "backslashreplace")

    def _walked(self, top: Path, *, deep: bool) -> dict[Path, list[Path]]:
        """Folder -> its files, for `top` and, if `deep`, all folders below it."""
        files_of: dict[Path, list[Path]] = {}
        folders = [top]
        while folders:
            folder = folders.pop()
            files_of[folder] = []
            try:
                with os.scandir(folder) as entries:
                    # Sorted: the order of samples must not depend on the disk.
                    for entry in sorted(entries, key=lambda entry: entry.name):
                        path = folder / entry.name
                        if entry.name.startswith("."):
                            self._hidden.append(self.name(path))
                        # Links to folders are not followed: they could form a loop.
                        elif entry.is_dir(follow_symlinks=False):
                            folders += [path] * deep
                        elif self._is_file(path, entry):
                            files_of[folder].append(path)
            except OSError as error:
                text = f"left out, the folder cannot be read ({error.strerror})."
                self.notes.append(Note("unreadable", self.name(folder), text))
        return files_of

    def _is_file(self, path: Path, entry: os.DirEntry) -> bool:
        """Whether a name is a plain file, or a link to one; if not, that is noted."""
        if entry.is_file(follow_symlinks=False):
            return True
        try:
            mode = path.stat().st_mode
        except OSError as error:
            text = f"left out, a link that cannot be followed ({error.strerror})."
            self.notes.append(Note("link", self.name(path), text))
            return False
        if stat.S_ISDIR(mode):
            self._links.append(path)
        elif not stat.S_ISREG(mode):
            text = "left out, no file but a pipe, a socket or a device."
            self.notes.append(Note("not a file", self.name(path), text))
        return stat.S_ISREG(mode)

    def _note_links(self, used: set[Path]) -> None:
        for path in self._links:
            if not any(path in (folder, folder.parent) for folder in used):
                text = "left out, a link to a folder; put the images here, or set data.folder to that folder."
                self.notes.append(Note("link", self.name(path), text))


def count_images(config: DataConfig, project: Path) -> tuple[int, int]:
    """How many images a folder seems to hold, and how many an epoch sees of them (repeats), regularization left out.

    By their names alone, in milliseconds; (0, 0) without a folder.
    """
    root = folder_of(config, project)
    concepts = Listing(root, config.repeats).concepts if root.is_dir() else ()
    counts = [(concept.repeats, len(concept.images)) for concept in concepts if not concept.is_reg]
    return sum(images for _, images in counts), sum(repeats * images for repeats, images in counts)


def repeats_of(folder: str) -> int:
    """How often the images of a folder of that name are seen in an epoch; 0 for one that does not say so, such as
    "mofu" and "20240131_beach".
    """
    match = re.fullmatch(r"(\d+)_.+", folder, re.DOTALL)
    return int(match[1]) if match and int(match[1]) <= MAX_REPEATS else 0


def folder_of(config: DataConfig, project: Path) -> Path:
    """The data folder of a project."""
    return Path(project, Path(config.folder).expanduser())


def _concepts(root: Path, repeats: int) -> list[Concept]:
    """kohya's concept folders and those of reg/, their files not listed yet; without any, the root and reg's."""
    concepts = []
    for parent, is_reg in ((root, False), (root / "reg", True)):
        for folder in sorted(parent.iterdir()) if os.access(parent, os.R_OK | os.X_OK) and parent.is_dir() else []:
            if (repeats_here := repeats_of(folder.name)) and folder.is_dir():
                name = os.fsencode(folder.name.partition("_")[2]).decode("utf-8", "backslashreplace")
                concepts.append(Concept(folder, repeats_here, name, is_reg))
    return (
        concepts if any(not concept.is_reg for concept in concepts) else [Concept(root, repeats, "", False), *concepts]
    )
