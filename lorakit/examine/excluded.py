"""Files excluded from a dataset: moved to `<project>/set-aside/`, a numbered folder each time, and restored."""

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
from lorakit.files.disk import read_file
from lorakit.project import Project

# Names on disk, which projects of earlier versions have, too.
FOLDER, RECORD, FILES = "set-aside", "record.json", "files"


@dataclass(frozen=True)
class Batch:
    """Files that were excluded at one time.

    source       the data folder they are from, and `files` their paths in it; `held` is where they are now
    rewritten    for files that were replaced in the data folder: path -> SHA-256 of the replacement
    """

    folder: Path
    source: str
    files: tuple[str, ...]
    rewritten: dict[str, str]

    @property
    def name(self) -> str:
        """Name to show, such as "001-duplicates"."""
        return self.folder.name

    def held(self, name: str) -> Path:
        """Where one of its files is now."""
        return self.folder / FILES / name


def batches(project: Project) -> list[Batch]:
    """All batches of excluded files, the newest last; folders without a readable record are skipped."""
    return [batch for file in sorted((project.folder / FOLDER).glob(f"*/{RECORD}")) if (batch := _read(file))]


def _read(file: Path) -> Batch | None:
    try:
        record = json.loads(read_file(file).decode("utf-8", "surrogatepass"))
        # a record edited by hand must not move files outside of the two folders
        inside = (name for name in record["files"] if not {"..", "/"} & set(PurePosixPath(name).parts))
        return Batch(file.parent, record["source"], tuple(inside), dict(record["rewritten"]))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def exclude(project: Project, config: DataConfig, kind: str, paths: Iterable[Path]) -> list[Path]:
    """Move images out of the dataset, each with its caption file unless a remaining image shares it.

    Returns where the files are now.
    """
    root = editable_folder(project, config)
    # lexists: a dangling link can be excluded as well.
    images = [path for path in dict.fromkeys(paths) if os.path.lexists(path)]
    moved = [*images, *_captions(images)]
    if not moved:
        return []
    batch = _begin(project, config, kind, [path.relative_to(root).as_posix() for path in moved], {})
    return [_move(path, batch.held(name)) for path, name in zip(moved, batch.files, strict=True)]


def rewrite(project: Project, config: DataConfig, kind: str, texts: dict[Path, str]) -> None:
    """Rewrite text files as UTF-8; the original bytes are kept among the excluded files."""
    root = editable_folder(project, config)
    new = {path: with_bom(text).encode("utf-8") for path, text in texts.items()}
    names = {path: path.relative_to(root).as_posix() for path in new}
    digests = {names[path]: hashlib.sha256(data).hexdigest() for path, data in new.items()}
    batch = _begin(project, config, kind, list(names.values()), digests)
    for path, name in names.items():
        batch.held(name).parent.mkdir(parents=True, exist_ok=True)
        # First the copy of the original bytes, then the new text: interrupted, nothing is lost.
        write_atomic(batch.held(name), path.read_bytes())
        write_atomic(path, new[path])


def restore(project: Project, batch: Batch) -> list[str]:
    """Move a batch back to where it was; returns a sentence for each file that could not be restored.

    A file that has taken its place is never overwritten, except an unchanged replacement by `rewrite`.
    """
    # The folder of that time: the project may train on another one by now.
    root = folder_of(DataConfig(folder=batch.source), project.folder)
    problems = []
    for name in batch.files:
        held, target = batch.held(name), root / name
        if not os.path.lexists(held):
            continue
        # "-" equals no digest: only replacements by `rewrite` are recorded.
        if os.path.lexists(target) and _digest(target) != batch.rewritten.get(name, "-"):
            problems.append(f"{name}: another file has this name now; the excluded one stays in {held.parent}.")
        else:
            _move(held, target)
    if not problems:
        (batch.folder / RECORD).unlink()
        # In reverse order, folders come after what is inside them.
        for folder in sorted([batch.folder, *batch.folder.rglob("*")], reverse=True):
            # Not empty: somebody put a file there, which stays.
            with suppress(OSError):
                folder.rmdir()
    return problems


def editable_folder(project: Project, config: DataConfig) -> Path:
    """The data folder, whose images a fix may change. Raises UserError for the folder of prepared copies."""
    folder = folder_of(config, project.folder)
    # Resolved: data.folder may be a link or an absolute path.
    if folder.resolve() == (project.folder / "prepared").resolve():
        raise UserError(
            "prepared/ holds copies that are rebuilt from the originals. Train on the originals again "
            "(data.folder: dataset), check and fix these, prepare them, then train on the prepared images."
        )
    return folder


def paths(project: Project, config: DataConfig) -> dict[str, Path]:
    """Every file of the dataset by its name (`Sample.name`)."""
    listing = Listing(editable_folder(project, config), config.repeats)
    files = [*listing.others, *(path for concept in listing.concepts for path in concept.files)]
    return {listing.name(path): path for path in files}


def _captions(files: list[Path]) -> list[Path]:
    """Caption files of the images `files` that no other image reads."""
    moved = set(files)
    stems = {image.with_suffix("") for image in files if image.suffix.lower() in EXTENSIONS}
    beside = [path for folder in {stem.parent for stem in stems} for path in folder.iterdir() if path not in moved]
    needed = {path.with_suffix("") for path in beside if path.suffix.lower() in EXTENSIONS}
    captions = sorted(path for path in beside if path.suffix.lower() in CAPTION_EXTENSIONS)
    # Stems of the excluded images, without those that remaining images need.
    return [path for path in captions if path.with_suffix("") in stems - needed]


def _begin(project: Project, config: DataConfig, kind: str, names: list[str], rewritten: dict[str, str]) -> Batch:
    """A new folder with its record, written before any file is moved, so that every move can be undone."""
    parent = project.folder / FOLDER
    # Numbers of deleted batches may be given again, but never one that exists.
    used = [int(match[1]) for path in parent.glob("*") if (match := re.match(r"(\d+)-", path.name))]
    folder = parent / f"{max(used, default=0) + 1:03d}-{kind}"
    folder.mkdir(parents=True)
    write_json(folder / RECORD, {"source": config.folder, "files": names, "rewritten": rewritten})
    return Batch(folder, config.folder, tuple(names), rewritten)


def _move(path: Path, target: Path) -> Path:
    """Move a file, also to another disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.move(path, target))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
