"""Files that are downloaded later, in the background: LoRA files and older images."""

from __future__ import annotations

import json
from collections.abc import Iterator

from lorakit.files import write_json
from lorakit.files.copying import copy_verified
from lorakit.files.disk import read_file, read_json
from lorakit.hub.header import ModelFileError, verify_safetensors
from lorakit.project import Project

# File in every remote. Without it the disk is not mounted, or the folder is not a remote.
MARK = "lorakit.json"


def enqueue(project: Project, files: dict[str, int]) -> None:
    """Add files (path below the project -> bytes) to the download list, before those already on it."""
    project.sync.mkdir(exist_ok=True)
    # New files first: the order of the list is the order of downloads.
    write_json(project.sync / "wanted.json", {**files, **queued(project)})


def queued(project: Project) -> dict[str, int]:
    """Files still to download, and their bytes."""
    try:
        files = read_json(project.sync / "wanted.json")
    except (FileNotFoundError, ValueError):
        return {}
    done = downloaded(project)
    return {name: size for name, size in files.items() if name not in done}


def downloaded(project: Project) -> dict[str, list[int]]:
    """Downloaded files: name -> [bytes, mtime in ns] of the local copy; [] for one that was skipped."""
    file, entries = project.sync / "brought.jsonl", {}
    for line in read_file(file).splitlines() if file.exists() else []:
        try:
            name, stamp = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            # A line torn by a kill: that file is downloaded again.
            continue
        entries[name] = stamp
    return entries


def _remember(project: Project, name: str, stamp: list[int]) -> None:
    """Record that a local file equals the remote one."""
    project.sync.mkdir(exist_ok=True)
    # Unbuffered append is one write call, so lines of several processes do not mix.
    with open(project.sync / "brought.jsonl", "ab", buffering=0) as file:
        file.write(json.dumps([name, stamp]).encode() + b"\n")


def forget(project: Project) -> None:
    """Clear the download list and the record of downloads, which belong to an earlier remote."""
    for name in ("wanted.json", "brought.jsonl"):
        (project.sync / name).unlink(missing_ok=True)


def downloading(project: Project) -> Iterator[tuple[int, str]]:
    """Download the listed files and verify them.

    Yields (bytes, "") for every block and (0, sentence) for each file that is skipped. Raises OSError when the remote
    fails; the rest is downloaded next time.
    """
    for name in queued(project):
        source, target = project.remote / name, project.folder / name
        try:
            if not target.exists():
                yield from ((count, "") for count in copy_verified(source, target))
            if target.suffix == ".safetensors":
                verify_safetensors(target)
        except FileNotFoundError:
            # Not this file is missing but the whole disk.
            if not (project.remote / MARK).exists():
                raise
            _remember(project, name, [])
            yield 0, f"{name} is left out: it is no longer in the remote copy."
        except ModelFileError as error:
            target.unlink()
            _remember(project, name, [])
            yield 0, f"{name} is left out: {str(error).replace(str(target), str(source))}"
        else:
            _remember(project, name, [target.stat().st_size, target.stat().st_mtime_ns])
