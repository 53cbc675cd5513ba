"""The files of a data folder by concept, and a note on everything that is not a plain file."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorakit.data import DataConfig
from lorakit.data.images import EXTENSIONS, FIRST_EXTENSIONS
from lorakit.data.masks import is_mask_folder, masks_among
from lorakit.files.disk import raise_if_failing

CAPTION_EXTENSIONS = (".txt", ".caption")
# Folders of regularization images, of kohya's scripts and of those that follow them.
REG_FOLDERS = ("reg", "reg_data", "reg_img", "reg_images", "regs", "regularization", "regularisation")
# Folders of kohya's projects that hold no data.
PROJECT_FOLDERS = ("log", "logs", "model", "models", "output", "outputs", "sample", "samples")
# Per epoch. A larger number in front of a folder's name is a date, not repeats.
MAX_REPEATS = 10_000
# In the order in which they are shown: skipped files come first.
NOTE_KINDS = (
    "overlooked folder",  # files beside kohya's folders, counted
    "deep folder",  # <repeats>_<name>/ folders where they are not understood
    "unread format",  # an image in a format that is not read: left out
    "unread captions",  # a JSON, JSON lines or CSV file of captions that is not understood
    "unreadable",  # an image or folder that cannot be read: left out
    "foreign",  # no image: left out
    "not a file",  # a pipe, a socket, a device: never opened
    "link",  # to nothing, to itself, or to a folder: not followed
    "hidden",  # names that begin with a dot, counted
    "wrong ending",  # an image of another format than its name says: used
    "mask",  # of an image: left out, or why it cannot be used
    "colour profile",  # it is broken, and the colours are taken as they are
    "animated",  # its first frame is used
    "shared caption",  # two images of one stem
    "no caption",
    "empty caption",  # there is a caption file, with nothing in it
    "caption encoding",  # a caption file that cannot be read for certain: its image is left out
    "caption choice",  # several say something of one image
    "caption without image",
    "caption json",  # a JSON file that is broken, or entries of it that match no image, counted
    "chinese commas",
    "project folder",  # of kohya's, without images
    "memory",  # what was measured cannot be remembered
)


# Those by which an image is missing that should be there.
LEFT_OUT = ("unreadable", "caption encoding")


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
    """One folder of images, and its files in order; the data folder itself when there are no kohya folders.

    images   files that are images by their names
    masks    image -> its mask, also one in a folder of masks
    """

    folder: Path
    repeats: int
    name: str
    is_reg: bool
    files: tuple[Path, ...] = ()
    images: tuple[Path, ...] = ()
    masks: dict[Path, Path] = field(default_factory=dict)


class Listing:
    """Every file below a data folder: in `concepts`, in `others` or in `notes`. Nothing is opened, no link to a folder
    followed but that of a concept.

    reading   `DataConfig.reading`; 1 knows neither masks, nor concept folders one level down
    """

    def __init__(self, root: Path, repeats: int, reading: int = 2):
        self.root, self._reading = root, reading
        self.notes: list[Note] = []
        self._hidden: list[str] = []
        # links to folders
        self._links: list[Path] = []
        self._by_folder = self._walked(root, deep=True)
        self.concepts = tuple(self._filled(concept) for concept in _concepts(root, repeats, reading))
        used = {path for concept in self.concepts for path in (*concept.files, *concept.masks.values())}
        self.others = sorted(path for own in self._by_folder.values() for path in own if path not in used)
        self._note_links({concept.folder for concept in self.concepts})
        if reading > 1:
            self._note_folders()
        self.notes.sort(key=lambda note: (note.name, note.kind))
        if self._hidden:
            names = ", ".join(self._hidden[:3]) + ", …" * (len(self._hidden) > 3)
            text = f"{len(self._hidden)} hidden files and folders are skipped ({names})."
            self.notes.append(Note("hidden", self.name(root), text))

    def _filled(self, concept: Concept) -> Concept:
        """A concept with its files, its images and their masks."""
        if concept.folder == self.root:
            reg = [self.root / name for name in (REG_FOLDERS if self._reading > 1 else ("reg",))]
            files = [path for own in self._by_folder.values() for path in own if not {*reg} & {*path.parents}]
        elif concept.folder in self._by_folder:
            files = self._by_folder[concept.folder]
        else:
            files = self._walked(concept.folder, deep=False)[concept.folder]
        endings = EXTENSIONS if self._reading > 1 else FIRST_EXTENSIONS
        images, masks = sorted(path for path in files if path.suffix.lower() in endings), {}
        if self._reading > 1:
            masks, left = self._masks(images, files, concept.folder)
            images = [path for path in images if path not in {*masks.values(), *left}]
            for path in left:
                self.notes.append(Note("mask", self.name(path), "left out, a mask of no image here."))
        return replace(concept, files=tuple(sorted(files)), images=tuple(images), masks=masks)

    def _masks(self, images: list[Path], files: list[Path], folder: Path) -> tuple[dict[Path, Path], list[Path]]:
        """Image -> its mask, and what is neither an image nor a mask that can be used."""
        aside = [path for inside, own in self._by_folder.items() for path in own if inside.parent == folder]
        aside = [path for path in aside if is_mask_folder(path.parent) and path.suffix.lower() in EXTENSIONS]
        captioned = {path.with_suffix("") for path in files if path.suffix.lower() in CAPTION_EXTENSIONS}
        return masks_among(dict.fromkeys([*images, *sorted(aside)]), captioned)

    def _note_folders(self) -> None:
        """Notes on folders whose names say something that is not understood where they are."""
        used = {concept.folder for concept in self.concepts}
        for folder in sorted(self._by_folder):
            inside = folder.relative_to(self.root)
            has_images = any(path.suffix.lower() in EXTENSIONS for path in self._by_folder[folder])
            if repeats_of(folder.name) and has_images and folder not in used:
                text = "its repeats and its name are not read here; move it into the data folder, or set that to where "
                self.notes.append(Note("deep folder", self.name(folder), text + "it is."))
            elif inside.parts and inside.parts[0].lower() in PROJECT_FOLDERS and len(used - {self.root}):
                files = [path for path in self.others if folder in path.parents]
                if len(inside.parts) == 1 and files and not any(_is_data(path) for path in files):
                    self.notes.append(Note("project folder", self.name(folder), f"{len(files)} files left out."))
                    self.others = [path for path in self.others if path not in files]

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
                raise_if_failing(error, folder)
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
            raise_if_failing(error, path)
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


def _is_data(path: Path) -> bool:
    return path.suffix.lower() in (*EXTENSIONS, *CAPTION_EXTENSIONS)


def _concepts(root: Path, repeats: int, reading: int) -> list[Concept]:
    """kohya's concept folders and those of reg/, their files not listed yet; without any, the root and reg's.

    In a whole project of kohya's they lie one level down, in img/ or train_data/, and in reg/ or reg_data/.
    """
    inside = [path for path in _folders(root) if reading > 1 and not is_mask_folder(path)]
    reg = [path for path in inside if path.name.lower() in REG_FOLDERS] if reading > 1 else [root / "reg"]
    of_reg = [concept for folder in reg for concept in _in(folder, is_reg=True)]
    own = _in(root, is_reg=False)
    if not own:
        below = [path for path in inside if path not in reg and path.name.lower() not in PROJECT_FOLDERS]
        own = [concept for folder in below for concept in _in(folder, is_reg=False)]
    return [*own, *of_reg] if own else [Concept(root, repeats, "", False), *of_reg]


def _in(parent: Path, is_reg: bool) -> list[Concept]:
    """The concept folders of a folder."""
    concepts = []
    for folder in _folders(parent):
        if repeats := repeats_of(folder.name):
            name = os.fsencode(folder.name.partition("_")[2]).decode("utf-8", "backslashreplace")
            concepts.append(Concept(folder, repeats, name, is_reg))
    return concepts


def _folders(parent: Path) -> list[Path]:
    """The folders in a folder, in order, links to folders among them; none where it cannot be read."""
    try:
        with os.scandir(parent) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:  # noted where its files are listed
        return []
    return [parent / name for name in names]
