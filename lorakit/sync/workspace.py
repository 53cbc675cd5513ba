"""Open a project that has a remote copy: what is newest and valid there is downloaded to this machine's disk."""

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
from lorakit.files.disk import is_full, read_json, reason_of
from lorakit.project import RUN_NAME, Project
from lorakit.sync import fetch, packs, pending, service, staging
from lorakit.sync.fetch import MARK
from lorakit.sync.pending import Sent
from lorakit.sync.restore import Restore, copied_file, stamp
from lorakit.sync.staging import Copied

# bytes; larger files beside the runs are not downloaded
SMALL = 1 << 24


class WorkspaceError(UserError):
    """A project cannot be downloaded from its remote copy."""


def local_folder(remote: Path, local_root: Path) -> Path:
    """Local folder of a project: its own name below `local_root`, with a hash if that name is taken."""
    remote = Path(remote).expanduser().absolute()
    plain = Project(Path(local_root) / remote.name)
    is_free = not plain.folder.exists() or not any(plain.folder.iterdir())
    if is_free or plain.remote == remote:
        return plain.folder
    # Two remotes may have folders of equal names: a hash of the whole path keeps them apart.
    return plain.folder.with_name(f"{remote.name}-{hashlib.sha256(str(remote).encode()).hexdigest()[:6]}")


def open_remote(remote: Path, local_root: Path) -> Project:
    """Download a project, start its sync service, and return it. Raises as `opening` does."""
    for _ in opening(remote, local_root):
        pass
    return Project(local_folder(remote, local_root))


def opening(remote: Path, local_root: Path) -> Iterator[Copied]:
    """`open_remote` as a stream of progress: settings, logs, states, datasets, caches; then the sync service starts.

    Files that are here already are not copied again. Damaged remote files are skipped, each with a note. LoRA files
    and older images follow in the background (`downloading_loras` waits for them). Raises WorkspaceError when the
    remote cannot be reached or fails meanwhile; opening again continues.
    """
    remote = Path(remote).expanduser().absolute()
    project = Project(local_folder(remote, local_root))
    notes: list[str] = []
    try:
        _settle_in(remote)
        project.sync.mkdir(parents=True, exist_ok=True)
        # The key is a stored name.
        if project.remote is None:
            write_json(project.remote_file, {"home": str(remote)})
        for copied in _opening(project):
            notes += [copied.note] if copied.note else []
            yield copied
    except OSError as error:
        is_here = is_full(error) or str(project.folder) in str(error)
        failed = project.folder if is_here else remote
        raise WorkspaceError(
            f"{failed} failed while the project was opened ({reason_of(error, failed)}). What was downloaded "
            f"so far is kept in {project.folder}. When the disk is mounted and works, open the project again to "
            "continue."
        ) from error
    write_json(project.sync / "notes.json", notes)
    service.start(project)


def notes(project: Project) -> tuple[str, ...]:
    """Notes of the last opening: what was skipped or needs attention."""
    try:
        return tuple(read_json(project.sync / "notes.json", list))
    # What it says is of the last opening only.
    except (FileNotFoundError, UserError):
        return ()


def downloading_loras(project: Project) -> Iterator[Copied]:
    """Download the LoRA files and images now instead of in the background. Raises WorkspaceError."""
    done, total = 0, sum(fetch.queued(project).values())
    try:
        for count, problem in fetch.downloading(project):
            done += count
            yield Copied("LoRA files and images", done, total, problem)
    except OSError as error:
        raise WorkspaceError(
            f"{project.remote} failed while LoRA files were downloaded ({reason_of(error, project.remote)}); try again."
        ) from error


def _settle_in(remote: Path) -> None:
    """Create the remote folder and its mark if needed. Raises WorkspaceError where no disk seems to be mounted."""
    # Creating a whole path would hide that the disk is not mounted: only two new levels are allowed.
    above = next(folder for folder in remote.parents if folder.exists())
    missing = remote.relative_to(above).parts
    if not remote.exists() and len(missing) > 2:
        raise WorkspaceError(
            f"{remote} cannot be created: there is no {above / missing[0]}. Is the disk mounted (in Colab: "
            "drive.mount('/content/drive'))? If it is, create that folder first."
        )
    remote.mkdir(parents=True, exist_ok=True)
    # Time and random bytes: a remote that was deleted and created again is another one.
    if not (remote / MARK).exists():
        mark = {"this is": "the home of a lorakit project", "made": f"{time.time():.0f} {os.urandom(4).hex()}"}
        (remote / MARK).write_text(json.dumps(mark) + "\n")


def _opening(project: Project) -> Iterator[Copied]:
    with (service.away if _is_behind(project) else service.only_one)(project) as lock:
        if lock is not None:  # a running sync service knows what the remote has of the runs
            sent = Sent.of(project)
            sent.on_remote_id(project, (project.remote / MARK).read_text())
            yield from _settings(project, sent)
            # The remote is a folder of the user: other folders may be there.
            for folder in sorted((project.remote / "runs").glob("*")):
                if re.fullmatch(RUN_NAME, folder.name) and (folder / "config.yaml").exists():
                    yield from Restore(project.run(folder.name), sent, folder).copied()
                    sent.remember(project)
    for folder in staging.folders(project.remote):
        yield from staging.staging(project, folder)
    yield from staging.restoring_cache(project)


def _is_behind(project: Project) -> bool:
    """Whether some run's remote log differs from what was uploaded here: another machine continued it.

    False while a run trains here: the sync service must not leave it.
    """
    sent, here = Sent.of(project), project.runs()
    if any(is_locked(run.lock) for run in here):
        return False
    logs = {str(run.log.relative_to(project.folder)): project.remote / "runs" / run.name / run.log.name for run in here}
    return any(log.exists() and sent.files.get(name, [0])[0] != log.stat().st_size for name, log in logs.items())


def _settings(project: Project, sent: Sent) -> Iterator[Copied]:
    """Download files beside the runs, such as settings.yaml, unless this machine changed its own since."""
    for path in sorted(project.remote.iterdir()):
        here = project.folder / path.name
        is_ours = path.name in ("runs", packs.ARCHIVES, MARK) or pending.UNSENT.fullmatch(path.name)
        is_data = (path.is_dir() or is_archive(path)) and packs.is_packed(path.name.partition(".")[0])
        if is_ours or is_data:
            continue
        if path.is_dir():
            if not here.exists():
                yield Copied(path.name, 0, 0, f"The folder {path} is not downloaded; copy what you need from it.")
            continue
        size = path.stat().st_size
        if size > SMALL:
            yield Copied(path.name, 0, 0, f"{path} ({size / 1e6:.0f} MB) is not downloaded; copy it if you need it.")
        # A file that equals what was uploaded last was not changed here, so the remote's version is newer.
        elif not here.exists() or (sent.files.get(path.name) == stamp(here) and here.read_bytes() != path.read_bytes()):
            yield from copied_file(path, here, sent, path.name)
    sent.remember(project)
