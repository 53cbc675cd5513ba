"""From a folder of pictures to samples and a report of everything that is not used."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lorakit.data import DataConfig
from lorakit.data.captions import tags_of, with_trigger
from lorakit.data.images import EXTENSIONS, ImageError, open_rgb
from lorakit.errors import UserError

READ = ("folder", "repeats", "trigger", "caption_extension")  # the settings that a scan depends on


class DataError(UserError):
    """The data set cannot be trained on; the message says what was found, where and what to do."""


KINDS = (
    "unreadable",  # a picture or folder that cannot be read: left out
    "foreign",  # no picture: left out
    "not a file",  # a pipe, a socket, a device: never opened
    "link",  # to nothing, to itself, or to a folder: not followed
    "hidden",  # names that begin with a dot, counted
    "overlooked folder",  # files beside kohya's folders, counted
    "wrong ending",  # a picture of another format than its name says: used
    "animated",  # its first frame is used
    "shared caption",  # two pictures of one stem
    "no caption",
    "empty caption",  # there is a caption file, with nothing in it
    "caption encoding",  # a caption file that cannot be read for certain: its picture is left out
    "caption choice",  # several say something of one picture
    "caption without picture",
    "caption json",  # a JSON file that is broken, or entries of it that match no picture, counted
    "chinese commas",
    "memory",  # what was measured cannot be remembered
)


@dataclass(frozen=True)
class Note:
    """A sentence on a file that is left out or treated specially; `name` as `Sample.name`, or of a folder."""

    kind: str  # one of KINDS
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


@dataclass(frozen=True)
class Sample:
    """One usable picture. `name` is its path inside the data set, `digest` the SHA-256 of its bytes; `is_captioned`
    when its caption was written for it, in a caption file or a JSON file: `written` is what that says.
    """

    name: str
    path: Path
    digest: str
    width: int
    height: int
    caption: str
    repeats: int
    is_reg: bool = False
    is_captioned: bool = True
    written: str = ""
    caption_file: Path = Path()  # where its caption is written: beside it, with the chosen ending


@dataclass(frozen=True)
class Scan:
    """All usable pictures in a fixed order, and a sentence for each file that is left out or treated specially."""

    samples: tuple[Sample, ...]
    notes: tuple[Note, ...]

    def tag_frequency(self) -> dict[str, int]:
        """How many pictures have each tag, most frequent first."""
        counts = Counter(tag for sample in self.samples if not sample.is_reg for tag in tags_of(sample.caption))
        return dict(counts.most_common())


def scan(config: DataConfig, project: Path) -> Scan:
    """Read a data set. Raises DataError when the folder is missing or holds no usable picture.

    Layouts: `<repeats>_<name>/` folders and `reg/<repeats>_<name>/` as in kohya's scripts; otherwise every picture
    below the folder, with the config's repeats. A picture without caption is called by its concept folder's name.
    Hidden files and folders are passed over.
    """
    root = Path(project, Path(config.folder).expanduser())
    if not root.is_dir():
        raise DataError(f"The data folder {root} does not exist: put the pictures there or set data.folder.")
    samples: list[Sample] = []
    notes: list[str] = []
    found: set[Path] = set()
    for folder, repeats, concept, is_reg in _concepts(root, config.repeats):
        seen: dict[str, str] = {}
        files = _files(folder, root)
        found.update(files)
        for path in files:
            name = _name(path, root)
            if path.suffix.lower() not in EXTENSIONS:
                if path.suffix.lower() not in (".txt", ".caption", ".json"):
                    notes.append(f"{name}: left out, not a picture ({', '.join(EXTENSIONS)} are).")
                continue
            stem = str(path.with_suffix(""))
            if stem in seen:
                notes.append(f"{name}: shares its caption file with {seen[stem]}; rename one of them.")
            seen[stem] = name
            try:
                samples.append(_sample(path, name, repeats, concept, is_reg, config, notes))
            except (ImageError, DataError) as error:
                notes.append(f"{name}: left out, {error}.")
            except OSError as error:
                notes.append(f"{name}: left out, it cannot be read ({error.strerror}).")
    notes += _overlooked(root, found)
    if not any(not sample.is_reg for sample in samples):
        raise DataError(
            f"No usable picture in {root}: {', '.join(EXTENSIONS)} files are wanted, directly inside or in "
            "<repeats>_<name>/ folders." + ("\n" + "\n".join(notes[:10]) if notes else "")
        )
    return Scan(tuple(samples), tuple(notes))


def count(config: DataConfig, project: Path) -> tuple[int, int]:
    """How many pictures a folder seems to hold, and how many an epoch sees of them (repeats), regularization left out.

    By their names alone, in milliseconds; (0, 0) without a folder.
    """
    root = Path(project, Path(config.folder).expanduser())
    found = [
        (repeats, sum(path.suffix.lower() in EXTENSIONS for path in _files(folder, root)))
        for folder, repeats, _, is_reg in (_concepts(root, config.repeats) if root.is_dir() else ())
        if not is_reg
    ]
    return sum(images for _, images in found), sum(repeats * images for repeats, images in found)


def _concepts(root: Path, repeats: int) -> list[tuple[Path, int, str, bool]]:
    """(folder, repeats, name, is regularization) for each concept folder, or the root itself for a plain folder."""
    found = []
    for parent, is_reg in ((root, False), (root / "reg", True)):
        for folder in sorted(parent.iterdir()) if parent.is_dir() else []:
            match = re.fullmatch(r"(\d+)_(.+)", folder.name)
            if match and folder.is_dir() and int(match[1]) > 0:
                found.append((folder, int(match[1]), _name(folder, parent).partition("_")[2], is_reg))
    return found if any(not is_reg for *_, is_reg in found) else [(root, repeats, "", False), *found]


def _files(folder: Path, root: Path) -> list[Path]:
    """The files of a concept folder, or, for the root, all files below it but those of reg/."""
    if folder != root:
        return _visible(folder.glob("*"), root)
    return [path for path in _visible(root.rglob("*"), root) if root / "reg" not in path.parents]


def _visible(paths: Iterable[Path], root: Path) -> list[Path]:
    def hidden(path: Path) -> bool:
        return any(part.startswith(".") for part in path.relative_to(root).parts)

    return sorted(path for path in paths if not hidden(path) and not path.is_dir())


def _overlooked(root: Path, found: set[Path]) -> list[str]:
    """A note for each folder with pictures that belong to no concept, e.g. beside kohya's folders."""
    others = [p for p in _visible(root.rglob("*"), root) if p not in found and p.suffix.lower() in EXTENSIONS]
    return [
        f"{'the data folder' if folder == root else _name(folder, root) + '/'}: {count} pictures left out; "
        "beside <repeats>_<name>/ folders, only pictures directly in these are used."
        for folder, count in Counter(p.parent for p in others).items()
    ]


def _name(path: Path, root: Path) -> str:
    """The path inside `root`, always valid text: bytes of a name that is not UTF-8 are spelled out."""
    return os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "backslashreplace")


def _read_caption(file: Path) -> str:
    """The text of a caption file on one line, "" when there is none. Raises DataError when it is not UTF-8."""
    if not file.is_file():
        return ""
    try:
        lines = [line.strip().rstrip(",") for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise DataError("its caption file is not UTF-8 text: save it as UTF-8") from None
    return ", ".join(line for line in lines if line)


def _sample(
    path: Path, name: str, repeats: int, concept: str, is_reg: bool, config: DataConfig, notes: list[str]
) -> Sample:
    data = path.read_bytes()
    image = open_rgb(data)
    written = _read_caption(path.with_suffix(config.caption_extension))
    caption = written or concept.replace("_", " ")
    if not is_reg:
        caption = with_trigger(caption, config.trigger)
    if "，" in written or "、" in written:
        notes.append(f"{name}: its caption has Chinese commas (， or 、); only ordinary ones (,) part tags.")
    if not written:
        notes.append(f"{name}: no {config.caption_extension} file with a caption; trained as {caption!r}.")
    return Sample(name, path, hashlib.sha256(data).hexdigest(), *image.size, caption, repeats, is_reg, bool(written))
