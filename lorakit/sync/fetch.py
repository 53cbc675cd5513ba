"""Files of a project that wait at home until somebody has time to bring them: LoRA files and older images."""

from __future__ import annotations

import json
from collections.abc import Iterator

from lorakit.files import write_json
from lorakit.files.copying import copy_verified
from lorakit.hub.files import ModelFileError, verify_safetensors
from lorakit.project import Project

MARK = "lorakit.json"  # in a home; without it the disk is not there, or the folder is another one


def want(project: Project, files: dict[str, int]) -> None:
    """Add files (path below the project -> bytes) to those that are to be brought; the first of them first."""
    project.sync.mkdir(exist_ok=True)
    write_json(project.sync / "wanted.json", {**files, **wanted(project)})


def wanted(project: Project) -> dict[str, int]:
    """The files that are not here yet, and their bytes."""
    try:
        files = json.loads((project.sync / "wanted.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    done = brought(project)
    return {name: size for name, size in files.items() if name not in done}


def brought(project: Project) -> dict[str, list[int]]:
    """The files that were brought: name -> [bytes, mtime in ns] of the copy here; [] for one that was left out."""
    file, found = project.sync / "brought.jsonl", {}
    for line in file.read_bytes().splitlines() if file.exists() else []:
        try:
            name, stamp = json.loads(line)
        except ValueError:
            continue  # torn by a kill; that file is brought again
        found[name] = stamp
    return found


def _remember(project: Project, name: str, stamp: list[int]) -> None:
    """Note that a file is here as it is at home."""
    project.sync.mkdir(exist_ok=True)
    with open(project.sync / "brought.jsonl", "ab", buffering=0) as file:  # one write: processes may do it at once
        file.write(json.dumps([name, stamp]).encode() + b"\n")


def forget(project: Project) -> None:
    """Nothing is wanted of an earlier home, nor known to be at the new one."""
    for name in ("wanted.json", "brought.jsonl"):
        (project.sync / name).unlink(missing_ok=True)


def bringing(project: Project) -> Iterator[tuple[int, str]]:
    """Bring what is wanted, verified. Yields (bytes, "") for every block, (0, a sentence) for each file left out.

    Raises OSError when home fails; the rest is brought the next time.
    """
    for name in wanted(project):
        source, target = project.remote / name, project.folder / name
        try:
            if not target.exists():
                yield from ((count, "") for count in copy_verified(source, target))
            if target.suffix == ".safetensors":
                verify_safetensors(target)
        except FileNotFoundError:
            if not (project.remote / MARK).exists():
                raise
            _remember(project, name, [])
            yield 0, f"{name} is left out: it is not at home any more."
        except ModelFileError as error:
            target.unlink()
            _remember(project, name, [])
            yield 0, f"{name} is left out: {str(error).replace(str(target), str(source))}"
        else:
            _remember(project, name, [target.stat().st_size, target.stat().st_mtime_ns])
