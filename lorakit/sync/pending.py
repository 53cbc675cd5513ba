"""Files that the remote does not have yet, and the pass that uploads them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorakit.files import write_json
from lorakit.files.archive import ArchiveError
from lorakit.files.copying import append_verified, blocks, copy_verified, is_abandoned, wipe, write_verified
from lorakit.files.disk import read_json
from lorakit.project import Project, Run
from lorakit.run.checkpoint import COMPLETE, STATE
from lorakit.sync import packs
from lorakit.sync.fetch import MARK, downloaded, downloading, forget
from lorakit.sync.remote_lock import STAMP, machine, read_stamp

# Confirmed training states on the remote before an older one is deleted.
KEEP = 2
LOGS = (".jsonl", ".log")
# Failures in a row after which other files of the same rank wait for the next pass.
ENOUGH = 3
# Names that are never uploaded: hidden, unfinished, or of this machine alone.
UNSENT = re.compile(r"\..*|.*\.(part|lock|pid|tmp)|home\.json|heartbeat.*|" + re.escape(STAMP))


@dataclass
class Sent:
    """What is confirmed on the remote: file stamps, and each run's training states by step with their SHA-256."""

    files: dict[str, list[int]] = field(default_factory=dict)
    states: dict[str, dict[str, str]] = field(default_factory=dict)
    # Content of the remote's mark file (stored as "home"). Another content is another remote.
    remote_id: str = ""

    @classmethod
    def of(cls, project: Project) -> Sent:
        """Read the record; an empty one if it is damaged: then everything is uploaded or verified again."""
        try:
            stored = read_json(project.sync / "sent.json")
            sent = cls(stored["files"], stored["states"], stored["home"])
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            sent = cls()
        sent.count_downloaded(project)
        return sent

    def count_downloaded(self, project: Project) -> None:
        """Count downloaded files as uploaded, unless they were rewritten here since."""
        for name, stamp in downloaded(project).items():
            if stamp and self.files.get(name) != stamp:
                with contextlib.suppress(FileNotFoundError):
                    status = os.stat(project.folder / name)
                    if [status.st_size, status.st_mtime_ns] == stamp:
                        self.files[name] = stamp

    def remember(self, project: Project) -> None:
        project.sync.mkdir(exist_ok=True)
        write_json(project.sync / "sent.json", {"files": self.files, "states": self.states, "home": self.remote_id})

    def on_remote_id(self, project: Project, remote_id: str) -> None:
        """A different remote: everything has to be uploaded again."""
        if self.remote_id not in ("", remote_id):
            self.files, self.states = {}, {}
            packs.forget(project)
            forget(project)
        self.remote_id = remote_id

    def lose(self, run: str) -> None:
        """Forget what the remote had of a run."""
        self.states.pop(run, None)
        for name in [name for name in self.files if name.startswith(f"runs/{run}/")]:
            del self.files[name]


@dataclass(frozen=True)
class Due:
    """What the next pass may upload."""

    # logs grow at every step, so they are not part of every pass
    logs: bool
    # folders without changes for a while
    packs: tuple[str, ...]
    # run -> its step, for other machines; -1: its trainer is gone
    training: dict[str, int]
    # runs that an earlier pass announced as training here
    announced: frozenset[str]


def files(project: Project) -> dict[str, list[int]]:
    """[bytes, mtime in ns] of every plain file of the project, in the order in which they should be safe."""
    paths = []
    for parent, inside, names in os.walk(project.folder):
        top = Path(parent).relative_to(project.folder)
        # os.walk descends into what is left in the list: archived folders and training states have
        # their own ways of being uploaded.
        inside[:] = [n for n in inside if not n.startswith(".") and not (top == Path() and packs.is_packed(n))]
        if len(top.parts) == 2 and top.parts[0] == "runs" and "states" in inside:
            inside.remove("states")
        for name in names:
            if not UNSENT.fullmatch(name):
                # A file that was just replaced, or a dangling link.
                with contextlib.suppress(OSError):
                    status = os.stat(os.path.join(parent, name))
                    # Only plain files: opening a pipe would block.
                    if stat.S_ISREG(status.st_mode):
                        paths.append((str(top / name), [status.st_size, status.st_mtime_ns]))
    return dict(sorted(paths, key=lambda item: (_rank(item[0]), item[0])))


# 0 settings of the project, 1 of runs, 2 logs, 3 LoRA files, 4 samples and grids, 5 the rest.
def _rank(name: str) -> int:
    parts = Path(name).parts
    if parts[0] != "runs":
        return 0 if len(parts) == 1 else 5
    if len(parts) == 3:
        return 2 if name.endswith(LOGS) else 1
    return 3 if parts[2] == "lora" else 4


def states(run: Run) -> dict[str, tuple[str, int]]:
    """step -> (SHA-256, bytes) of every state here that is marked complete, newest first."""
    by_step = {}
    for folder in sorted(run.states.glob("[0-9]*"), reverse=True):
        # The trainer may have rotated it away just now, or its mark is damaged.
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            mark = read_json(folder / COMPLETE)
            by_step[folder.name] = (mark["sha256"], mark["bytes"])
    return by_step


def unsent_states(run: Run, sent: Sent) -> dict[str, tuple[str, int]]:
    """States of a run to upload: the newest, and the one before while the remote has fewer than KEEP."""
    here, there = states(run), sent.states.get(run.name, {})
    candidates = list(here.items())[: 1 if len(there) >= KEEP else KEEP]
    return {step: state for step, state in candidates if there.get(step) != state[0]}


def left(project: Project, sent: Sent) -> tuple[int, int]:
    """Number of files (archives, states) that are not uploaded yet, and their bytes."""
    count, size = 0, 0
    for name, stamp in files(project).items():
        # Logs are appended to on the remote, so only the new bytes count.
        sent_stamp = sent.files.get(name)
        if sent_stamp != stamp:
            count += 1
            size += (
                stamp[0] - sent_stamp[0]
                if sent_stamp and name.endswith(LOGS) and sent_stamp[0] <= stamp[0]
                else stamp[0]
            )
    for run in project.runs():
        pending = unsent_states(run, sent)
        count, size = count + len(pending), size + sum(size_of for _, size_of in pending.values())
    for folder in packs.folders(project):
        more, larger = packs.unsent(project, folder, packs.stamps(project.folder / folder))
        count, size = count + more, size + larger
    return count, size


class Pass:
    """One upload pass over everything that is due; `lines` yields messages for the watching process."""

    def __init__(self, project: Project, sent: Sent, due: Due):
        self.project, self.remote, self.sent, self.due = project, project.remote, sent, due
        self.failed: list[OSError] = []
        # Failures in a row: a disk that takes other files is not a failing disk.
        self.in_a_row = 0

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield progress and confirmations as JSON. Raises the first OSError after everything else was tried."""
        try:
            mark = (self.remote / MARK).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            raise FileNotFoundError(2, "the project's folder is not there", str(self.remote)) from None
        self.sent.on_remote_id(self.project, mark)
        yield {"remote": mark}
        elsewhere = yield from self._stamps()
        yield from self._lost(elsewhere)
        here = files(self.project)
        # The order matters when a session ends in the middle: settings, captions, then for each run what
        # another machine needs to resume, then LoRA files and images.
        for rank in (0, 1):
            yield from self._files(here, rank, elsewhere)
        yield from self._packs("texts")
        for run in self.project.runs():
            if run.name not in elsewhere:
                yield from self._tried(self._run(run, here))
        for rank in (3, 4, 5):
            yield from self._files(here, rank, elsewhere)
        yield from self._packs("all")
        yield from self._tried(
            {"note": text} if text else {"bytes": count} for count, text in downloading(self.project)
        )
        if self.failed:
            raise self.failed[0]

    def _tried(self, work: Iterator[dict]) -> Iterator[dict]:
        """Run one part; if it fails, others still run, since only one name or size may be the problem."""
        try:
            yield from work
            self.in_a_row = 0
        except OSError as error:
            if isinstance(error, FileNotFoundError) and self._is_here(error.filename):
                # Removed on this machine during the pass, e.g. by rotation.
                return
            self.failed.append(error)
            self.in_a_row += 1
            if not (self.remote / MARK).exists():
                raise self.failed[0] from None
        except ArchiveError as error:
            yield {"note": str(error)}

    def _is_here(self, name: Any) -> bool:
        return name is not None and self.project.folder in Path(os.fsdecode(name)).parents

    def _stamps(self) -> Iterator[dict]:
        """Write who trains here; returns the runs that another machine trains as well."""
        other = set()
        this_machine = machine(self.project)
        for name, step in self.due.training.items():
            file = self.remote / "runs" / name / STAMP
            there = read_stamp(file.read_bytes() if file.exists() else b"")
            if name in self.due.announced and there["time"] and there["machine"] != this_machine:
                other.add(name)
                yield {"also": name, "machine": there["machine"]}
            file.parent.mkdir(parents=True, exist_ok=True)
            stamp = {"machine": this_machine, "time": time.time() if step >= 0 else 0, "step": step}
            # Written in place: a file replaced every minute would fill an online disk's trash.
            file.write_text(json.dumps(stamp))
            yield {"announced": name, "ends": step < 0}
        return other

    def _lost(self, elsewhere: set[str]) -> Iterator[dict]:
        """Runs in training whose remote folder was deleted or renamed: upload all of them again."""
        for run in self.project.runs():
            name = str(run.config_file.relative_to(self.project.folder))
            if run.name not in elsewhere and name in self.sent.files and unsent_states(run, self.sent):
                if not (self.remote / name).exists():
                    self.sent.lose(run.name)
                    yield {"lost": run.name}

    def _files(self, here: dict[str, list[int]], rank: int, elsewhere: set[str]) -> Iterator[dict]:
        """Upload the missing files of one rank. A file that fails, e.g. by its name, stops no others."""
        self.in_a_row = 0
        for name, stamp in here.items():
            parts = Path(name).parts
            if _rank(name) == rank and (parts[0] != "runs" or parts[1] not in elsewhere):
                if self.sent.files.get(name) != stamp and self.in_a_row < ENOUGH:
                    yield from self._tried(self._file(name, stamp))

    def _file(self, name: str, stamp: list[int]) -> Iterator[dict]:
        for count in copy_verified(self.project.folder / name, self.remote / name):
            yield {"bytes": count}
        self.sent.files[name] = stamp
        yield {"sent": name, "stamp": stamp}

    def _packs(self, which: str) -> Iterator[dict]:
        failed = len(self.failed)
        for folder in sorted(self.due.packs, key=lambda folder: packs.loses(self.project, folder)):
            if (which == "all") or folder != "cache":
                if len(self.failed) > failed and packs.loses(self.project, folder):
                    # Its missing files may be in a folder that was not uploaded: the old archive has the last copy.
                    continue
                yield from self._tried({"bytes": count} for count in packs.sending(self.project, folder))

    # ---- a run -----------------------------------------------------------------------------------------------

    def _run(self, run: Run, here: dict[str, list[int]]) -> Iterator[dict]:
        """Upload LoRA files, then the log, then states: another machine resumes from the newest remote state, so
        everything else of that step must be there already.
        """
        if unsent_states(run, self.sent):
            yield from self._loras(run)
        # Again: the trainer saves and removes states while LoRA files are uploaded.
        if pending := unsent_states(run, self.sent):
            yield from self._loras(run)
        if pending or self.due.logs:
            for name in here:
                if _rank(name) == 2 and Path(name).parts[1] == run.name:
                    yield from self._log(name)
        if pending:
            there = yield from self._confirmed_there(run)
            for step, (sha256, _) in pending.items():
                if there.get(step) != sha256:
                    yield from self._state(run, step, sha256)
                    there[step] = sha256
                yield {"states": run.name, "steps": there}
            yield from self._rotated(run, there)

    def _loras(self, run: Run) -> Iterator[dict]:
        here = {name: stamp for name, stamp in files(self.project).items() if name.startswith(f"runs/{run.name}/")}
        yield from self._files(here, 3, set())

    def _log(self, name: str) -> Iterator[dict]:
        source = self.project.folder / name
        mtime = source.stat().st_mtime_ns
        size = source.stat().st_size
        for count in append_verified(source, size, self.remote / name, self.sent.files.get(name, [0])[0]):
            yield {"bytes": count}
        # Size and mtime of before the copy: what is appended meanwhile counts as not uploaded.
        yield {"sent": name, "stamp": [size, mtime]}

    def _confirmed_there(self, run: Run) -> Iterator[dict]:
        """Confirmed states whose mark and size are still right on the remote: step -> SHA-256."""
        newest, confirmed = {}, self.sent.states.get(run.name, {})
        folder = self.remote / "runs" / run.name / "states"
        for state in sorted(folder.glob("[0-9]*")):
            yield {"bytes": 0}
            with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
                mark = json.loads((state / COMPLETE).read_bytes())
                if (state / STATE).stat().st_size == mark["bytes"] and confirmed.get(state.name) == mark["sha256"]:
                    newest[state.name] = mark["sha256"]
        return newest

    def _is_whole(self, state: Path) -> Generator[dict, None, bool]:
        """Whether a remote state matches the hash in its mark. Reads all of it."""
        hasher = hashlib.sha256()
        try:
            expected = json.loads((state / COMPLETE).read_bytes())["sha256"]
            with open(state / STATE, "rb") as file:
                for block in blocks(file):
                    hasher.update(block)
                    yield {"bytes": 0}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return False
        return hasher.hexdigest() == expected

    def _state(self, run: Run, step: str, sha256: str) -> Iterator[dict]:
        """Upload one state, its mark last. If the trainer removes it meanwhile, the open file is still read."""
        source, target = run.states / step, self.remote / "runs" / run.name / "states" / step
        mark = (source / COMPLETE).read_bytes()
        # The mark goes first and comes last, so a state with a mark is always whole.
        wipe(target / COMPLETE)
        yield {"bytes": 0}
        for count in copy_verified(source / STATE, target / STATE, sha256):
            yield {"bytes": count}
        for count in write_verified([mark], target / COMPLETE):
            yield {"bytes": count}

    def _rotated(self, run: Run, there: dict[str, str]) -> Iterator[dict]:
        """Remove remote states that were removed here, except the newest KEEP, and leftovers of unfinished uploads."""
        here, newest = states(run), sorted(there)[-KEEP:]
        folder = self.remote / "runs" / run.name / "states"
        for state in sorted(folder.glob("[0-9]*")):
            for part in state.glob(".*.part"):
                if is_abandoned(part):
                    wipe(part)
            yield {"bytes": 0}
            if len(newest) < KEEP or state.name in newest or state.name in here:
                continue
            # a newer one that is complete is another machine's work
            if state.name < newest[-1] or not (yield from self._is_whole(state)):
                wipe(state / COMPLETE)
                wipe(state / STATE)
                state.rmdir()
                there.pop(state.name, None)
        yield {"states": run.name, "steps": there}
