"""Crop boxes of images, stored in one file; an image can have several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from lorakit.config import load_yaml
from lorakit.errors import UserError
from lorakit.files import write_atomic
from lorakit.files.disk import read_file
from lorakit.project import Project

# px; a smaller box is a slip of the mouse.
MIN_SIDE = 8
# The boxes, and those before the last change (for undo).
FILE, BEFORE = "boxes.yaml", "boxes.before.yaml"
HEAD = (
    "# Boxes by which images are cropped when they are prepared. Image -> boxes in px of the upright image:\n"
    "# - {left: 10, top: 20, width: 300, height: 400, name: face}    (name may be missing)\n"
)


class BoxError(UserError):
    """A box cannot be used, or the list of boxes is damaged."""


@dataclass(frozen=True)
class Box:
    """A part of an upright image, in px; `name` distinguishes several boxes of one image."""

    left: int
    top: int
    width: int
    height: int
    name: str = ""

    def within(self, width: int, height: int) -> Box:
        """The part of it inside an image of that size. Raises BoxError if a side is shorter than MIN_SIDE px."""
        left, top = max(0, self.left), max(0, self.top)
        right, bottom = min(width, self.left + self.width), min(height, self.top + self.height)
        if right - left < MIN_SIDE or bottom - top < MIN_SIDE:
            raise BoxError(
                f"the box of {self.width} x {self.height} px at {self.left}, {self.top} has less than {MIN_SIDE} px a "
                f"side inside the image, which is {width} x {height} px: draw it again"
            )
        return Box(left, top, right - left, bottom - top, self.name)

    @property
    def edges(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom), as Pillow crops."""
        return self.left, self.top, self.left + self.width, self.top + self.height


class Boxes:
    """The boxes of a project by image name; every change is on disk before the method returns.

    Raises BoxError for a list that somebody wrote by hand and that cannot be understood, and for a disk that cannot be
    written.
    """

    def __init__(self, project: Project):
        self.file, self._before = project.folder / FILE, project.folder / BEFORE
        self._boxes: dict[str, tuple[Box, ...]] = {}
        # (bytes, mtime in ns) of the file when it was last read or written
        self._seen: tuple[int, int] | None = None
        # A person may have edited the file in between; those edits are kept.
        self.refresh()

    def refresh(self) -> None:
        """Read the list again if it was changed elsewhere since."""
        if (stamp := self._stamp()) != self._seen:
            self._boxes, self._seen = _read(self.file), stamp

    def of(self, name: str) -> tuple[Box, ...]:
        """The boxes of an image in the order they were drawn; () for an image used as a whole."""
        return self._boxes.get(name, ())

    def names(self) -> list[str]:
        """The images that have boxes."""
        return sorted(self._boxes)

    def update(self, changes: Mapping[str, tuple[Box, ...]]) -> None:
        """Give each of some images these boxes and no others, in one change."""
        self.refresh()
        self._write({name: tuple(own) for name, own in {**self._boxes, **changes}.items() if own})

    def set(self, name: str, boxes: tuple[Box, ...]) -> None:
        """Give an image these boxes and no others."""
        self.update({name: boxes})

    def add(self, name: str, box: Box) -> None:
        """Give an image one box more."""
        self.set(name, (*self.of(name), box))

    def remove(self, name: str, index: int) -> None:
        """Take one box from an image, counted from 0."""
        self.set(name, self.of(name)[:index] + self.of(name)[index + 1 :])

    def undo(self) -> list[str]:
        """Undo the last change (a second call redoes it); returns the images whose boxes changed."""
        self.refresh()
        # The boxes before become the current ones and the other way round, so undoing twice redoes.
        before, now = _read(self._before), self._boxes
        self._write(before)
        return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))

    def _write(self, boxes: dict[str, tuple[Box, ...]]) -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            # First the copy for undo: when the second write fails, the boxes are still unchanged.
            write_atomic(self._before, read_file(self.file) if self.file.exists() else HEAD)
            write_atomic(self.file, _text(boxes))
        except OSError as error:
            raise BoxError(f"The box was not saved: {self.file} cannot be written ({error}).") from error
        self._boxes, self._seen = boxes, self._stamp()

    def _stamp(self) -> tuple[int, int] | None:
        if not self.file.exists():
            return None
        status = self.file.stat()
        # Coarse clocks of some disks give two fast writes one mtime, so the size is compared as well.
        return status.st_size, status.st_mtime_ns


def _text(boxes: dict[str, tuple[Box, ...]]) -> str:
    rows = {
        name: [{key: value for key, value in asdict(box).items() if value != ""} for box in own]
        for name, own in sorted(boxes.items())
    }
    # The C dumper is much faster, but not part of every build of PyYAML.
    quick = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return HEAD + yaml.dump(rows, Dumper=quick, allow_unicode=True, default_flow_style=None, sort_keys=False, width=200)


def _read(file: Path) -> dict[str, tuple[Box, ...]]:
    try:
        content = load_yaml(read_file(file).decode("utf-8"), str(file))
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError as error:
        raise BoxError(f"{file} is not a YAML file: {error}; save it as UTF-8.") from None
    content = {} if content is None else content
    if not isinstance(content, dict) or not all(isinstance(own, list) for own in content.values()):
        raise BoxError(f"{file} is not a list of boxes: write `a.png: [{{left: 0, top: 0, width: 9, height: 9}}]`.")
    return {str(name): tuple(_box(row, f"{file}, {name}") for row in own) for name, own in content.items()}


def _box(row: object, where: str) -> Box:
    numbers = ("left", "top", "width", "height")
    # type() and not isinstance: True is an int as well.
    if isinstance(row, dict) and {*row} - {"name"} == {*numbers} and all(type(row[key]) is int for key in numbers):
        return Box(*(row[key] for key in numbers), str(row.get("name", "")))
    raise BoxError(
        f"{where}: {row!r} is no box; write {{left: 10, top: 20, width: 300, height: 400}}, whole px of the upright "
        "image, with a name if you like."
    )
