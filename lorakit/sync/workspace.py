"""A project that lives on a slow disk, opened on this machine's own: what is newest and whole there is brought here."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from lorakit.errors import UserError
from lorakit.files import is_locked, write_json
from lorakit.files.archive import is_archive
from lorakit.project import RUN_NAME, Project
from lorakit.sync import fetch, packs, pending, service, staging
from lorakit.sync.fetch import MARK
from lorakit.sync.pending import Sent
from lorakit.sync.restore import Restore, copied_file, stamp
from lorakit.sync.staging import Copied

SMALL = 1 << 24  # bytes; larger files beside the runs stay at home


class WorkspaceError(UserError):
    """A project cannot be brought from its home."""


def local_folder(remote: Path, local_root: Path) -> Path:
    """Where a project is on this machine: its own name below `local_root`, told apart from others of that name."""
    remote = Path(remote).expanduser().absolute()
    plain = Project(Path(local_root) / remote.name)
    is_free = not plain.folder.exists() or not any(plain.folder.iterdir())
    if is_free or plain.remote == remote:
        return plain.folder
    return plain.folder.with_name(f"{remote.name}-{hashlib.sha256(str(remote).encode()).hexdigest()[:6]}")


def open_remote(remote: Path, local_root: Path) -> Project:
    """Bring a project from its home to this machine, start its mirror, and return it. Raises as `opening` does."""
    for _ in opening(remote, local_root):
        pass
    return Project(local_folder(remote, local_root))


def opening(remote: Path, local_root: Path) -> Iterator[Copied]:
    """`open_home`, telling what is brought: settings, logs, states, datasets, caches; then the mirror is started.

    What is here already is not copied again. Files at home that are damaged are left out, each with a note. LoRA
    files and older images follow in the background (`bringing_loras` waits for them). Raises WorkspaceError when home
    cannot be reached or fails meanwhile; opening again goes on.
    """
    remote = Path(remote).expanduser().absolute()
    project = Project(local_folder(remote, local_root))
    notes: list[str] = []
    try:
        _settle_in(remote)
        project.sync.mkdir(parents=True, exist_ok=True)
        if project.remote is None:
            write_json(project.remote_file, {"home": str(remote)})
        for copied in _opening(project):
            notes += [copied.note] if copied.note else []
            yield copied
    except OSError as error:
        raise WorkspaceError(
            f"{remote} failed while the project was opened ({error}). What was downloaded so far is kept in "
            f"{project.folder}. When the disk is mounted and works, open the project again to continue."
        ) from error
    write_json(project.sync / "notes.json", notes)
    service.start(project)


def notes(project: Project) -> tuple[str, ...]:
    """What was left out, or is to be known, of the last opening."""
    try:
        return tuple(json.loads((project.sync / "notes.json").read_bytes()))
    except FileNotFoundError:
        return ()


def bringing_loras(project: Project) -> Iterator[Copied]:
    """Bring, now, the LoRA files and images that the mirror would bring in the background. Raises WorkspaceError."""
    done, total = 0, sum(fetch.wanted(project).values())
    try:
        for count, problem in fetch.bringing(project):
            done += count
            yield Copied("LoRA files and images", done, total, problem)
    except OSError as error:
        raise WorkspaceError(f"{project.remote} failed while LoRA files were brought ({error}); try again.") from error


def _settle_in(remote: Path) -> None:
    """Make a home, or find it. Raises WorkspaceError where no disk seems to be mounted."""
    above = next(folder for folder in remote.parents if folder.exists())
    missing = remote.relative_to(above).parts
    if not remote.exists() and len(missing) > 2:
        raise WorkspaceError(
            f"{remote} cannot be made: there is no {above / missing[0]}. Is the disk mounted (in Colab: "
            "drive.mount('/content/drive'))? If it is, make that folder first."
        )
    remote.mkdir(parents=True, exist_ok=True)
    if not (remote / MARK).exists():
        mark = {"this is": "the home of a lorakit project", "made": f"{time.time():.0f} {os.urandom(4).hex()}"}
        (remote / MARK).write_text(json.dumps(mark) + "\n")


def _opening(project: Project) -> Iterator[Copied]:
    with (service.away if _is_behind(project) else service.only_one)(project) as lock:
        if lock is not None:  # a running mirror knows what home has of the runs
            sent = Sent.of(project)
            sent.on_remote_id(project, (project.remote / MARK).read_text())
            yield from _settings(project, sent)
            for folder in sorted((project.remote / "runs").glob("*")):
                if re.fullmatch(RUN_NAME, folder.name) and (folder / "config.yaml").exists():
                    yield from Restore(project.run(folder.name), sent, folder).copied()
                    sent.remember(project)
    for folder in staging.folders(project.remote):
        yield from staging.staging(project, folder)
    yield from staging.restoring_cache(project)


def _is_behind(project: Project) -> bool:
    """Whether home has another log of some run than was sent from here, as another machine went on; not while one is
    trained here, which the mirror is not to leave."""
    sent, here = Sent.of(project), project.runs()
    if any(is_locked(run.lock) for run in here):
        return False
    logs = {str(run.log.relative_to(project.folder)): project.remote / "runs" / run.name / run.log.name for run in here}
    return any(log.exists() and sent.files.get(name, [0])[0] != log.stat().st_size for name, log in logs.items())


def _settings(project: Project, sent: Sent) -> Iterator[Copied]:
    """The files beside the runs, such as settings.yaml: home's, unless this machine changed its own since."""
    for path in sorted(project.remote.iterdir()):
        here = project.folder / path.name
        is_ours = path.name in ("runs", packs.ARCHIVES, MARK) or pending.UNSENT.fullmatch(path.name)
        is_data = (path.is_dir() or is_archive(path)) and packs.is_packed(path.name.partition(".")[0])
        if is_ours or is_data:
            continue
        if path.is_dir():
            if not here.exists():
                yield Copied(path.name, 0, 0, f"The folder {path} stays there; copy what you need of it.")
            continue
        size = path.stat().st_size
        if size > SMALL:
            yield Copied(path.name, 0, 0, f"{path} ({size / 1e6:.0f} MB) stays there; copy it if you need it.")
        elif not here.exists() or (sent.files.get(path.name) == stamp(here) and here.read_bytes() != path.read_bytes()):
            yield from copied_file(path, here, sent, path.name)
    sent.remember(project)
