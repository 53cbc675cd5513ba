"""Folders of many small files (datasets, caches) are stored on the remote as a few archives."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lorakit.files import write_atomic
from lorakit.files.archive import tar_bytes
from lorakit.files.copying import sha256_of, wipe, write_verified
from lorakit.files.disk import read_json
from lorakit.project import Project

# folder on the remote
ARCHIVES = "archives"
# Folders with many small files, or files that change often.
MANY = re.compile(r"dataset[\w.-]*|prepared|set-aside|tags|cache")
# Files never move between these folders and others; between the rest they do (exclude, restore).
ALONE = ("cache", "tags")
# Captions and metadata have an archive of their own: editing a caption uploads no image again.
TEXTS = (".txt", ".caption", ".json", ".jsonl", ".csv", ".yaml", ".toml")
# Archives above LARGE bytes of which less than this share changed are uploaded less often.
LARGE, TRICKLE = 32_000_000, 0.2
# name inside the folder -> (bytes, mtime in ns)
Stamps = dict[str, tuple[int, int]]


class DataChanged(OSError):
    """Another machine has changed a dataset on the remote since it was downloaded."""


def folders(project: Project) -> list[str]:
    """Folders stored as archives: `dataset` and others with that prefix, what is derived from them (prepared images,
    excluded images, tag history and scores), and `cache`.
    """
    return sorted(p.name for p in project.folder.glob("*") if is_packed(p.name) and p.is_dir())


def is_packed(name: str) -> bool:
    """Whether a folder of this name is stored as archives."""
    return MANY.fullmatch(name) is not None


def exchange(one: str, other: str) -> bool:
    """Whether files move between two folders, as images do when they are excluded and restored."""
    return one == other or (one not in ALONE and other not in ALONE)


def loses(project: Project, folder: str) -> bool:
    """Whether the remote has files of a folder that were removed here.

    They may have moved to another folder, which must be uploaded first.
    """
    return bool(record(project, folder)["files"].keys() - stamps(project.folder / folder).keys())


def group(folder: str, name: str) -> str:
    """Name of the archive that a file belongs to."""
    if folder == "cache":
        return "all"
    # These names are part of stored file names.
    return "texts" if name.lower().endswith(TEXTS) else "pictures"


def stamps(folder: Path) -> Stamps:
    """Every file below a folder but hidden and unfinished ones, and locks, which hold on this machine alone."""
    result: Stamps = {}
    for parent, inside, files in os.walk(folder):
        inside[:] = [name for name in inside if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and not name.endswith((".part", ".lock")):
                # A file may vanish during the walk, or be a dangling link.
                with suppress(OSError):
                    status = os.stat(os.path.join(parent, name))
                    # Only plain files: opening a pipe would block.
                    if stat.S_ISREG(status.st_mode):
                        path = os.path.relpath(os.path.join(parent, name), folder)
                        result[path] = (status.st_size, status.st_mtime_ns)
    return result


def new_record() -> dict[str, Any]:
    """A record for a folder that was never on the remote.

    files     name -> id of the content that the remote and this machine last agreed on
    packs     group -> its archive on the remote
    seen      archives that the remote's list named when last read, including damaged ones
    home      name -> [bytes, mtime in ns, id] of the user's own remote files when they were read (a stored key)
    archives  name of the user's own archive -> its stamp and files
    stamps    name -> [bytes, mtime in ns, id] of local files, so that only changed ones are read again
    """
    return {"files": {}, "packs": {}, "seen": {}, "home": {}, "archives": {}, "stamps": {}}


def record(project: Project, folder: str) -> dict[str, Any]:
    """What this machine knows about a folder's archives."""
    try:
        return read_json(project.sync / f"{folder}.json")
    except (FileNotFoundError, ValueError):
        return new_record()


def remember(project: Project, folder: str, entry: dict[str, Any]) -> None:
    """Write the record of a folder."""
    project.sync.mkdir(exist_ok=True)
    write_atomic(project.sync / f"{folder}.json", json.dumps(entry))


def forget(project: Project) -> None:
    """Forget the archives of an earlier remote."""
    for folder in folders(project):
        (project.sync / f"{folder}.json").unlink(missing_ok=True)


def manifest(remote: Path, folder: str) -> Path:
    """The list of a folder's archives and their files. An archive counts only once this list names it."""
    return remote / ARCHIVES / f"{folder}.json"


def ids(project: Project, folder: str, now: Stamps, entry: dict[str, Any]) -> dict[str, str]:
    """The content of each file here by its SHA-256; by its size in the cache, where names are hashes already."""
    if folder == "cache":
        # Cache files are named by a hash of their inputs, so name and size identify them.
        return {name: str(size) for name, (size, _) in now.items()}
    before = entry["stamps"]
    return {
        # Hashing reads the whole file, so it is skipped while size and mtime are the same.
        name: before[name][2] if before.get(name, [])[:2] == [*stamp] else sha256_of(project.folder / folder / name)
        for name, stamp in now.items()
    }


def unsent(project: Project, folder: str, now: Stamps) -> tuple[int, int]:
    """Number of a folder's archives that are missing or outdated on the remote, and bytes of the changed files."""
    changed = _changed(project, folder, now)
    return len({group(folder, name) for name in changed}), _bytes(now, changed)


def patience(project: Project, folder: str, now: Stamps) -> int:
    """How many times as long as others a folder is left alone before it is sent: longer the cache, and large archives
    of which little differs, as while images are generated one by one, since all of an archive is sent for each.
    """
    changed = _changed(project, folder, now)
    groups = {group(folder, name) for name in changed}
    whole = _bytes(now, {name for name in now if group(folder, name) in groups})
    # A changed file means uploading its whole archive.
    is_trickle = whole > LARGE and _bytes(now, changed) < TRICKLE * whole
    return 9 if is_trickle else 3 if folder == "cache" else 1


def _changed(project: Project, folder: str, now: Stamps) -> set[str]:
    """Files of a folder that are new, changed or deleted here compared with the remote."""
    entry = record(project, folder)
    here = {name: [*stamp] for name, stamp in now.items()}
    there = {name: stamp[:2] for name, stamp in entry["stamps"].items()}
    changed = {name for name in here.keys() | there.keys() if here.get(name) != there.get(name)}
    # Files whose archive is missing there, and files that differ here from what both sides had last.
    changed |= {name for name in here if group(folder, name) not in entry["packs"]}
    changed |= {n for n in here.keys() & entry["stamps"].keys() if entry["files"].get(n) != entry["stamps"][n][2]}
    return changed | (entry["files"].keys() - here.keys())


def _bytes(now: Stamps, names: set[str]) -> int:
    return sum(now[name][0] for name in names if name in now)


def sending(project: Project, folder: str) -> Iterator[int]:
    """Bring a folder's remote archives up to date: upload new ones, then the list that names them, then delete the old.

    Yields bytes as they are written. Does nothing while the folder is downloaded, or when files change meanwhile:
    they are sent the next time. Raises OSError, DataChanged and ArchiveError.
    """
    with alone(project) as is_alone:
        if is_alone:
            yield from _updated(project, folder)


@contextmanager
def alone(project: Project) -> Iterator[bool]:
    """Whether no other process brings or sends the project's archives, nor will while this context lasts."""
    project.sync.mkdir(parents=True, exist_ok=True)
    # Unlike `try_lock`, a local disk without locks is an error here.
    with open(project.sync / "packs.lock", "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _updated(project: Project, folder: str) -> Iterator[int]:
    remote, entry, now = project.remote, record(project, folder), stamps(project.folder / folder)
    there = listed(remote, folder)
    # No list, or a damaged one: upload all archives again.
    if there is None:
        entry["packs"] = {}
    elif there["packs"] != entry["seen"]:
        raise DataChanged(f"The folder {folder} was changed in the remote copy by another machine")
    yield 0
    content = ids(project, folder, now, entry)
    packs, sent = {}, []
    for name in sorted({group(folder, inside) for inside in content}):
        inside = {file: digest for file, digest in sorted(content.items()) if group(folder, file) == name}
        # The name is a hash of the content: an interrupted upload never overwrites a valid archive.
        title = hashlib.sha256(json.dumps(inside).encode()).hexdigest()[:12]
        target = remote / ARCHIVES / f"{folder}-{name}-{title}.tar"
        packs[name] = entry["packs"].get(name)
        if packs[name] is None or packs[name]["file"] != target.name:
            packs[name] = yield from _sending(project, folder, inside, target)
            sent.append(target)
    # Files changed while they were packed: discard what was uploaded, and try again next time.
    if stamps(project.folder / folder) != now:
        for target in sent:
            wipe(target)
        return
    # Archives first, then the list that names them, then delete the old ones: at every moment the list
    # on the remote names archives that exist.
    kept = {"files": content, "packs": packs, "home": entry["home"], "archives": entry["archives"]}
    if kept != there:
        manifest(remote, folder).parent.mkdir(exist_ok=True)
        yield from write_verified([json.dumps(kept).encode()], manifest(remote, folder))
    for old in {pack["file"] for pack in entry["seen"].values()} - {pack["file"] for pack in packs.values()}:
        wipe(remote / ARCHIVES / old)
    stamped = {name: [*now[name], content[name]] for name in content}
    remember(project, folder, {**entry, **kept, "seen": packs, "stamps": stamped})


def _sending(project: Project, folder: str, inside: dict[str, str], target: Path):
    target.parent.mkdir(exist_ok=True)
    pairs = [(name, project.folder / folder / name) for name in inside]
    digest = yield from write_verified(tar_bytes(pairs), target)
    return {"file": target.name, "bytes": target.stat().st_size, "sha256": digest}


def listed(remote: Path, folder: str) -> dict[str, Any] | None:
    """The remote's list of a folder's archives; None if it is missing or damaged."""
    try:
        content = json.loads(manifest(remote, folder).read_bytes())
        return content if content.keys() == {"files", "packs", "home", "archives"} else None
    except (FileNotFoundError, ValueError, AttributeError):
        return None
