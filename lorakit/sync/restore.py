"""Download one run: settings, newest valid training state, log; large files follow later."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lorakit.files import write_json
from lorakit.files.copying import CorruptCopy, copy_verified
from lorakit.files.disk import read_json
from lorakit.project import Run
from lorakit.run.checkpoint import COMPLETE, STATE
from lorakit.sync import fetch, pending
from lorakit.sync.pending import LOGS, Sent
from lorakit.sync.staging import READERS, Copied

# newest samples of a run that are downloaded at once; older ones follow in the background
IMAGES = 12
# Suffix of a second run: the remote's version of a run that was trained further on both machines.
TWIN = ".home"


def stamp(path: Path) -> list[int]:
    """[bytes, mtime in ns] of a file."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def copied_file(source: Path, target: Path, sent: Sent, name: str) -> Iterator[Copied]:
    """Download one file and record it as present on both sides. Raises OSError."""
    done, total = 0, source.stat().st_size
    for count in copy_verified(source, target):
        done += count
        yield Copied(name, done, total)
    sent.files[name] = stamp(target)


class Restore:
    """Download of one run; `remote` is its folder there, `sent` what this machine knows about the remote."""

    def __init__(self, run: Run, sent: Sent, remote: Path):
        self.run, self.sent, self.remote = run, sent, remote

    def copied(self) -> Iterator[Copied]:
        """Download the run if it is missing here or the remote is ahead; else nothing. Raises OSError."""
        is_ahead = self._is_ahead()
        if is_ahead is None:
            # A run's name has at most 64 characters.
            run, twin = self.run, self.run.project.run(f"{self.run.name[:58]}{TWIN}")
            text = (
                f"Run {run.name!r} differs here and in the remote copy; the remote one is now run {twin.name!r} here."
            )
            if not twin.exists():
                yield Copied(run.name, 0, 0, text)
            self.run, is_ahead = twin, not twin.exists()
        if is_ahead:
            settings = [path for path in self._direct() if not path.name.endswith(LOGS)]
            logs = [path for path in self._direct() if path.name.endswith(LOGS)]
            yield from self._files(settings)
            yield from self._state()
            if self._began_only():
                logs.remove(self.remote / self.run.log.name)
                name = self.run.name
                text = f"No training state of run {name!r} was uploaded before its machine was lost: it starts again."
                yield Copied(self.run.name, 0, 0, text)
            yield from self._rest()
            # The log comes last: a run with its log has everything else.
            yield from self._files(logs)

    def _is_ahead(self) -> bool | None:
        """Whether the remote is ahead of this machine; None if each has steps that the other lacks."""
        here, remote = self.run.log, self.remote / self.run.log.name
        size = remote.stat().st_size if remote.exists() else 0
        if not self.run.exists():
            return True
        # The remote log is as long as when this machine uploaded it, so nobody continued the run there.
        if size and self.sent.files.get(self._name(here), [None])[0] == size:
            return False
        local = here.read_bytes() if here.exists() else b""
        theirs = remote.read_bytes() if size else b""
        # Logs are only appended to, so the longer one of two equal beginnings is ahead.
        if theirs.startswith(local):
            return theirs != local
        return False if local.startswith(theirs) else None

    def _began_only(self) -> bool:
        """Whether the remote log mentions saved states although none was ever uploaded completely."""
        log = self.remote / self.run.log.name
        if pending.states(self.run) or any((self.remote / "states").glob(f"*/{COMPLETE}")) or not log.exists():
            return False
        return b'"kind": "saved"' in log.read_bytes()

    def _name(self, here: Path) -> str:
        return str(here.relative_to(self.run.project.folder))

    def _direct(self) -> list[Path]:
        """Files directly in the run's remote folder."""
        return sorted(p for p in self.remote.iterdir() if p.is_file() and not pending.UNSENT.fullmatch(p.name))

    def _files(self, paths: list[Path]) -> Iterator[Copied]:
        for path in paths:
            target = self.run.folder / path.relative_to(self.remote)
            yield from copied_file(path, target, self.sent, self._name(target))

    # ---- states ----------------------------------------------------------------------------------------------

    def _state(self) -> Iterator[Copied]:
        """Download the newest valid state; a note for every newer invalid one. Older ones are checked by size only."""
        here = pending.states(self.run)
        confirmed: dict[str, str] = {}
        for folder in sorted((self.remote / "states").glob("[0-9]*"), reverse=True):
            mark, problem = _mark(folder)
            # Only the newest valid state is downloaded; states have hundreds of megabytes.
            if not problem and not confirmed and folder.name not in here:
                problem = yield from self._copied_state(folder, mark)
            if problem:
                text = f"The remote state of step {int(folder.name)} of run {self.run.name!r} is skipped: {problem}."
                yield Copied(folder.name, 0, 0, text)
            else:
                confirmed[folder.name] = mark["sha256"]
        self.sent.states[self.run.name] = confirmed

    def _copied_state(self, folder: Path, mark: dict[str, Any]) -> Generator[Copied, None, str]:
        """Download a state, its mark last; returns why it cannot be used, or ""."""
        target, done = self.run.states / folder.name, 0
        try:
            for count in copy_verified(folder / STATE, target / STATE, mark["sha256"]):
                done += count
                yield Copied(f"{self.run.name}: state of step {int(folder.name)}", done, mark["bytes"])
        except CorruptCopy:
            with contextlib.suppress(OSError):
                target.rmdir()
            return f"its {STATE} is damaged (its SHA-256 differs)"
        write_json(target / COMPLETE, mark)
        return ""

    # ---- what can wait ---------------------------------------------------------------------------------------

    def _rest(self) -> Iterator[Copied]:
        """The newest samples now; LoRA files, the newest first, grids and older samples when there is time."""
        paths = []
        for parent, inside, names in os.walk(self.remote):
            top = Path(parent)
            inside[:] = [name for name in inside if not name.startswith(".") and (top, name) != (self.remote, "states")]
            if top != self.remote:
                paths += [top / name for name in names if not pending.UNSENT.fullmatch(name)]
        paths.sort(key=lambda path: path.name, reverse=True)
        samples = [path for path in paths if path.parent == self.remote / "samples"]
        loras = [path for path in paths if path.parent == self.remote / "lora"]
        later = [path for path in paths if path not in {*samples, *loras}]
        yield from self._files([path for path in samples[:IMAGES] if not self._is_here(path)])
        waiting = [path for path in [*loras, *later, *samples[IMAGES:]] if not self._is_here(path)]
        # In parallel: an online disk takes a while for each stat.
        with ThreadPoolExecutor(READERS) as readers:
            sizes = list(readers.map(lambda path: path.stat().st_size, waiting))
        names = [self._name(self.run.folder / path.relative_to(self.remote)) for path in waiting]
        # The download list uses equal paths on both sides, which a twin's files do not have.
        if self.run.name == self.remote.name:
            fetch.enqueue(self.run.project, dict(zip(names, sizes, strict=True)))

    def _is_here(self, path: Path) -> bool:
        return (self.run.folder / path.relative_to(self.remote)).exists()


def _mark(folder: Path) -> tuple[dict[str, Any], str]:
    """The mark of a remote state, and why the state cannot be used, or ""."""
    try:
        mark = read_json(folder / COMPLETE)
        size, _ = mark["bytes"], mark["sha256"]
    except FileNotFoundError:
        return {}, f"{COMPLETE} is missing, so it was not written to the end"
    except (ValueError, LookupError, TypeError):
        return {}, f"{COMPLETE} is damaged"
    if not (folder / STATE).exists():
        return {}, f"{STATE} is missing"
    there = (folder / STATE).stat().st_size
    return (mark, "") if there == size else ({}, f"{STATE} has {there} bytes instead of {size}")
