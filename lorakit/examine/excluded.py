"""Files taken out of a dataset into `<project>/set-aside/`, a numbered folder each time, from where they come back."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lorakit.data import DataConfig
from lorakit.data.caption_files import with_bom
from lorakit.data.images import EXTENSIONS
from lorakit.data.listing import CAPTION_EXTENSIONS, Listing, folder_of
from lorakit.errors import UserError
from lorakit.files import write_atomic, write_json
from lorakit.project import Project

FOLDER, RECORD, FILES = "set-aside", "record.json", "files"


@dataclass(frozen=True)
class Batch:
    """What was set aside at one time: `files`, by their paths inside the data folder `source`, lie in `held`.

    rewritten    of files that were written anew in the data folder: SHA-256 of what was written
    """

    folder: Path
    source: str
    files: tuple[str, ...]
    rewritten: dict[str, str]

    @property
    def name(self) -> str:
        """For people, such as "001-duplicates"."""
        return self.folder.name

    def held(self, name: str) -> Path:
        """Where one of its files is."""
        return self.folder / FILES / name


def batches(project: Project) -> list[Batch]:
    """All that is set aside, the newest last; what has no readable record is passed over."""
    return [batch for file in sorted((project.folder / FOLDER).glob(f"*/{RECORD}")) if (batch := _read(file))]


def _read(file: Path) -> Batch | None:
    try:
        told = json.loads(file.read_bytes().decode("utf-8", "surrogatepass"))
        inside = (name for name in told["files"] if not {"..", "/"} & set(PurePosixPath(name).parts))
        return Batch(file.parent, told["source"], tuple(inside), dict(told["rewritten"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def exclude(project: Project, config: DataConfig, kind: str, paths: Iterable[Path]) -> list[Path]:
    """Move images, each with its caption file unless an image that stays shares it; returns where they are now."""
    root = editable_folder(project, config)
    wanted = [path for path in dict.fromkeys(paths) if os.path.lexists(path)]
    moved = [*wanted, *_captions(wanted)]
    if not moved:
        return []
    batch = _begin(project, config, kind, [path.relative_to(root).as_posix() for path in moved], {})
    return [_move(path, batch.held(name)) for path, name in zip(moved, batch.files, strict=True)]


def rewrite(project: Project, config: DataConfig, kind: str, texts: dict[Path, str]) -> None:
    """Write files anew as UTF-8; as they were, they are kept aside."""
    root = editable_folder(project, config)
    new = {path: with_bom(text).encode("utf-8") for path, text in texts.items()}
    names = {path: path.relative_to(root).as_posix() for path in new}
    digests = {names[path]: hashlib.sha256(data).hexdigest() for path, data in new.items()}
    batch = _begin(project, config, kind, list(names.values()), digests)
    for path, name in names.items():
        batch.held(name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(batch.held(name), path.read_bytes())
        write_atomic(path, new[path])


def restore(project: Project, batch: Batch) -> list[str]:
    """Bring everything of a batch back to where it was; returns a sentence for each file that cannot be.

    What lies there now is never overwritten, unless it is what was written in its place and nobody changed since.
    """
    root = folder_of(DataConfig(folder=batch.source), project.folder)
    told = []
    for name in batch.files:
        held, target = batch.held(name), root / name
        if not os.path.lexists(held):
            continue
        if os.path.lexists(target) and _digest(target) != batch.rewritten.get(name, "-"):
            told.append(f"{name}: another file is there now; this one stays in {held.parent}.")
        else:
            _move(held, target)
    if not told:
        (batch.folder / RECORD).unlink()
        for folder in sorted([batch.folder, *batch.folder.rglob("*")], reverse=True):
            with suppress(OSError):  # what somebody else put there stays
                folder.rmdir()
    return told


def editable_folder(project: Project, config: DataConfig) -> Path:
    """Where the images are that can be fixed. Raises UserError for prepared copies."""
    folder = folder_of(config, project.folder)
    if folder.resolve() == (project.folder / "prepared").resolve():
        raise UserError(
            "prepared/ holds copies, which are written anew from the originals: train on the originals again "
            "(data.folder: dataset), examine and mend these, prepare them, and train on the prepared ones."
        )
    return folder


def paths(project: Project, config: DataConfig) -> dict[str, Path]:
    """Every file of the dataset by its name, as `Scan` spells it."""
    listing = Listing(editable_folder(project, config), config.repeats)
    files = [*listing.others, *(path for concept in listing.concepts for path in concept.files)]
    return {listing.name(path): path for path in files}


def _captions(files: list[Path]) -> list[Path]:
    """Caption files of images that go, which no other image needs."""
    going = set(files)
    stems = {image.with_suffix("") for image in files if image.suffix.lower() in EXTENSIONS}
    beside = [path for folder in {stem.parent for stem in stems} for path in folder.iterdir() if path not in going]
    needed = {path.with_suffix("") for path in beside if path.suffix.lower() in EXTENSIONS}
    captions = sorted(path for path in beside if path.suffix.lower() in CAPTION_EXTENSIONS)
    return [path for path in captions if path.with_suffix("") in stems - needed]


def _begin(project: Project, config: DataConfig, kind: str, names: list[str], rewritten: dict[str, str]) -> Batch:
    """A new folder with its record: written first, so that whatever is moved can come back."""
    parent = project.folder / FOLDER
    used = [int(match[1]) for path in parent.glob("*") if (match := re.match(r"(\d+)-", path.name))]
    folder = parent / f"{max(used, default=0) + 1:03d}-{kind}"
    folder.mkdir(parents=True)
    write_json(folder / RECORD, {"source": config.folder, "files": names, "rewritten": rewritten})
    return Batch(folder, config.folder, tuple(names), rewritten)


def _move(path: Path, target: Path) -> Path:
    """Move a file, onto another disk too."""
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.move(path, target))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
