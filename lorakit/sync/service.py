"""The sync service: a process that uploads a project in the background and never delays training."""

from __future__ import annotations

import dataclasses
import fcntl
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lorakit.errors import UserError
from lorakit.files import is_locked, write_json
from lorakit.files.disk import read_json
from lorakit.machine.host import child_environment
from lorakit.project import Project, Run
from lorakit.sync import packs
from lorakit.sync.copier import Copier, mount_of
from lorakit.sync.fetch import queued
from lorakit.sync.pending import Due, Sent, left
from lorakit.sync.remote_lock import elsewhere

__all__ = ["Pace", "Standing", "elsewhere", "serve", "settle", "standing", "start"]
# seconds within which a service that was asked to leave does so, unless it hangs
LEAVING = 15.0
# seconds between two looks at the disk while somebody waits
HURRY = 0.3


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Intervals of the sync service in seconds; tests pass small ones."""

    # between two looks at the local disk
    look: float = 3.0
    # between uploads of logs
    logs: float = 45.0
    # between renewals of the stamp that other machines read
    stamp: float = 60.0
    # without changes before a folder is packed; longer for some, see `packs.patience`
    quiet: float = 20.0
    # without a message of the copier before the disk is reported as hanging
    silence: float = 30.0
    # without a message before the copier is killed
    patience: float = 120.0
    # between tries while a disk fails
    retry: float = 30.0
    # without work before the service ends
    linger: float = 900.0


PACE = Pace()


@dataclass(frozen=True)
class Standing:
    """The sync service's last report, or None without a remote. Reads the local disk only."""

    # run -> step of its newest training state on the remote; 0: none
    confirmed: dict[str, int]
    files_left: int
    bytes_left: int
    trouble: str
    # Unix time at which the trouble began; 0 without trouble
    since: float
    # Unix time of the last look at the local disk, taken before the other numbers were read
    seen: float
    is_running: bool
    # files that were left out, and why
    notes: tuple[str, ...] = ()


def start(project: Project) -> bool:
    """Start the sync service as a detached process; False without a remote or if it runs already."""
    if project.remote is None or is_locked(_lock(project)):
        return False
    project.sync.mkdir(parents=True, exist_ok=True)
    with open(project.sync / "mirror.log", "ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "lorakit", "sync", str(project.folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=child_environment(),
            # A session of its own: closing the terminal or restarting the notebook kernel does not end it.
            start_new_session=True,
        )
    return True


def standing(project: Project) -> Standing | None:
    """The sync service's last report, or None for a project without a remote. Reads the local disk only."""
    if project.remote is None:
        return None
    try:
        stored = read_json(project.sync / "standing.json")
        current = Standing(**{**stored, "notes": tuple(stored["notes"])})
    except (FileNotFoundError, ValueError, TypeError, LookupError):
        current = Standing(_confirmed(project, Sent.of(project)), *left(project, Sent.of(project)), "", 0.0, 0.0, False)
    if is_locked(_lock(project)):
        return current
    # No service runs: its last report may be older than the newest files.
    count, size = left(project, Sent.of(project))
    return dataclasses.replace(current, files_left=count, bytes_left=size, is_running=False)


def settle(project: Project, timeout: float) -> Iterator[Standing]:
    """Upload what is left without the usual waiting; yields the standing twice a second until nothing is left.

    Ends after `timeout` seconds at the latest. All is safe if the last standing has files_left == 0.
    """
    started, until = time.time(), time.monotonic() + timeout
    while (state := standing(project)) is not None:
        start(project)
        project.sync.mkdir(parents=True, exist_ok=True)
        # The service reads this file's mtime; touched twice a second while somebody waits.
        (project.sync / "hurry").touch()
        yield state
        if time.monotonic() >= until or (state.files_left == 0 and state.seen > started and not state.trouble):
            return
        time.sleep(0.5)


def serve(project: Project, pace: Pace = PACE) -> None:
    """Upload until nothing is left and no run trains: `lorakit sync`. Returns at once if another process does it.

    Raises UserError for a project without a remote.
    """
    if project.remote is None:
        raise UserError(f"{project.folder} has no remote copy; projects opened with `lorakit open FOLDER` have one.")
    with only_one(project) as lock:
        if lock is not None:
            SyncService(project, pace, lock).run()


class SyncService:
    """The watching process: it reads only the local disk and leaves the remote to copiers, which may hang."""

    def __init__(self, project: Project, pace: Pace, lock: int):
        self.project, self.pace, self.lock = project, pace, lock
        self.sent = Sent.of(project)
        self.copier: Copier | None = None
        # copiers that were killed but hang in the disk: (process id, mount, monotonic time)
        self.stuck: list[tuple[int, str, float]] = []
        # (problem, remedy)
        self.trouble = ("", "")
        # Unix time at which the trouble began; whether it is the copier's silence.
        self.since, self.is_silent = 0.0, False
        # Seconds on the monotonic clock, as all times below.
        self.next_try, self.wait = 0.0, 1.0
        # Copiers killed in a row: each next one gets more time.
        self.given_up = 0
        # run -> when its training was last announced to other machines
        self.announced: dict[str, float] = {}
        self.logged = -math.inf
        # folder -> (its files, when they last changed)
        self.changed: dict[str, tuple[packs.Stamps, float]] = {}
        self.notes: list[str] = []
        # when there was last something to do
        self.busy = time.monotonic()
        self.training: set[str] = set()
        # Files and bytes left at the last look, and the Unix time of that look.
        self.count, self.size, self.looked = 0, 0, 0.0

    def run(self) -> None:
        while True:
            # of the local disk: full, or a file that goes while it is looked at; the next look is seconds away
            with suppress(OSError):
                self._look()
            now = time.monotonic()
            if self.copier is None and now >= self.next_try and not self._hangs(now):
                self._begin(now)
            self._listen()
            with suppress(OSError):
                self._write()
            if self.copier is None and not self.training and (self.project.sync / "leave").exists():
                return
            if self.copier is None and not self.count and not self.training and not self.announced:
                if time.monotonic() - self.busy >= self.pace.linger:
                    return
            else:
                self.busy = time.monotonic()

    def _look(self) -> None:
        """Read the local disk: runs in training, files left, changed folders."""
        looked = time.time()
        self.training = {run.name for run in self.project.runs() if is_locked(run.lock)}
        self.sent.count_downloaded(self.project)
        self.count, self.size = left(self.project, self.sent)
        for folder in packs.folders(self.project):
            now = packs.stamps(self.project.folder / folder)
            if self.changed.get(folder, (None,))[0] != now:
                self.changed[folder] = (now, time.monotonic())
        self.looked = looked

    # ---- copying ----------------------------------------------------------------------------------------------

    def _begin(self, now: float) -> None:
        """Start a copier when something is due."""
        hurry = self._is_hurried()
        due = Due(
            logs=hurry or not self.training or now - self.logged >= self.pace.logs,
            packs=tuple(folder for folder in self.changed if self._is_quiet(folder, hurry, now)),
            training={
                **{name: _step(self.project.run(name)) for name in self.training if self._must_announce(name, now)},
                **{name: -1 for name in self.announced.keys() - self.training},
            },
            announced=frozenset(self.announced),
        )
        if self._has_work(due):
            self.logged = now if due.logs else self.logged
            self.copier = Copier(self.project, self.sent, due, self.lock)

    def _has_work(self, due: Due) -> bool:
        """Whether a pass would do anything; logs and folders that must wait are no work."""
        if due.training or due.packs or queued(self.project) or self.trouble[0]:
            return True
        # Every run in training has two logs that grow: events and the trainer's output.
        waiting = sum(packs.unsent(self.project, folder, now)[0] for folder, (now, _) in self.changed.items())
        logs = 0 if due.logs else 2 * len(self.training)
        return self.count > waiting + logs

    def _is_hurried(self) -> bool:
        hurry = self.project.sync / "hurry"
        # Seconds: longer than the time between two touches, so it ends soon after nobody waits any more.
        return hurry.exists() and time.time() - hurry.stat().st_mtime < 30

    def _must_announce(self, name: str, now: float) -> bool:
        return now - self.announced.get(name, -math.inf) >= self.pace.stamp

    def _is_quiet(self, folder: str, hurry: bool, now: float) -> bool:
        """Whether a folder differs from its archives, and nobody has written into it for a while."""
        together = {name: state for name, state in self.changed.items() if packs.exchange(name, folder)}
        quiet = now - max(since for _, since in together.values())
        wait = self.pace.quiet * max(packs.patience(self.project, name, files) for name, (files, _) in together.items())
        return (hurry or quiet >= wait) and packs.unsent(self.project, folder, self.changed[folder][0])[0] > 0

    def _listen(self) -> None:
        """Process the copier's messages until the next look; give up a silent copier."""
        end = time.monotonic() + (min(HURRY, self.pace.look) if self._is_hurried() else self.pace.look)
        while self.copier and (line := self.copier.next_line(end)) is not None:
            if self.is_silent:
                self._recover()
            self._apply(line)
        if self.copier is None:
            time.sleep(max(0.0, end - time.monotonic()))
            return
        silent = time.monotonic() - self.copier.heard
        if silent >= self.pace.silence:
            self._fail(f"{self.project.remote} has not responded for {silent:.0f} s", "If this stays, mount it again.")
            self.is_silent = True
            # Killed after a long silence, or at once when the disk was mounted again: it hangs in the old mount.
            if silent >= self.pace.patience * 2 ** min(self.given_up, 3) or self.copier.mount != mount_of(
                self.project.remote
            ):
                self.stuck.append((self.copier.give_up(), self.copier.mount, time.monotonic()))
                self.copier, self.given_up = None, self.given_up + 1

    def _apply(self, line: dict) -> None:
        """Apply one message of a copier."""
        if "remote" in line:
            self.sent.on_remote_id(self.project, line["remote"])
        elif "lost" in line:
            self.sent.lose(line["lost"])
        elif "sent" in line:
            self.sent.files[line["sent"]] = line["stamp"]
        elif "states" in line:
            self.sent.states[line["states"]] = line["steps"]
            with suppress(OSError):
                self.sent.remember(self.project)
        elif "announced" in line:
            self.announced[line["announced"]] = time.monotonic()
            if line["ends"]:
                del self.announced[line["announced"]]
        elif "note" in line:
            # Each note once, the last 20.
            self.notes = [*dict.fromkeys([*self.notes, line["note"]])][-20:]
        elif "also" in line:
            other = line["machine"].partition(" ")[0]
            what = f"Run {line['also']!r} is trained on another machine, too ({other}), and is not uploaded from here"
            self._fail(what, "Stop one of the two.")
        elif "end" in line:
            self._ended(line)

    def _ended(self, line: dict) -> None:
        with suppress(OSError):
            self.sent.remember(self.project)
        self.copier.reap()
        self.copier = None
        if line["all"]:
            self._recover()
            self.wait, self.given_up = 1.0, 0
            return
        if line["end"]:
            self._fail(line["end"], line["cure"])
        # The wait doubles with every failure, up to pace.retry.
        self.next_try, self.wait = time.monotonic() + self.wait, min(2 * self.wait, self.pace.retry)

    def _fail(self, what: str, cure: str) -> None:
        self.trouble, self.since = (what, cure), self.since or time.time()

    def _recover(self) -> None:
        self.trouble, self.since, self.is_silent = ("", ""), 0.0, False

    def _sentence(self) -> str:
        """What is wrong, how much is not uploaded, and what happens next; "" when all is well."""
        what, cure = self.trouble
        return what and (
            f"{what}. Training continues and everything is saved on this machine. Files that are not uploaded yet: "
            f"{self.count} ({self.size / 1e6:.1f} MB). {cure} Uploading is retried automatically, "
            f"at least every {self.pace.retry:.0f} s."
        )

    def _hangs(self, now: float) -> bool:
        """Whether a given-up copier still hangs in the disk as it is mounted now; another one would hang, too."""
        # waitpid with WNOHANG also collects those that have died.
        self.stuck = [(pid, mount, at) for pid, mount, at in self.stuck if os.waitpid(pid, os.WNOHANG)[0] == 0]
        return any(
            mount == mount_of(self.project.remote) and now - at < 10 * self.pace.retry for _, mount, at in self.stuck
        )

    def _write(self) -> None:
        confirmed, trouble = _confirmed(self.project, self.sent), self._sentence()
        current = Standing(
            confirmed, self.count, self.size, trouble, self.since, self.looked, True, notes=tuple(self.notes)
        )
        write_json(self.project.sync / "standing.json", dataclasses.asdict(current))


@contextmanager
def away(project: Project) -> Iterator[int | None]:
    """`only_one`, after asking a running service without a trainer to leave, which takes a few seconds."""
    leave, end = project.sync / "leave", time.monotonic() + LEAVING
    leave.touch()
    try:
        while is_locked(_lock(project)) and time.monotonic() < end:
            time.sleep(0.1)
        with only_one(project) as lock:
            yield lock
    finally:
        leave.unlink(missing_ok=True)


@contextmanager
def only_one(project: Project) -> Iterator[int | None]:
    """Hold the service's lock; yields None when another process has it."""
    project.sync.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(_lock(project), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # Up to a second: `is_locked` of another process holds a shared lock for a moment.
        for _ in range(20):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.05)
                continue
            yield descriptor
            return
        yield None
    finally:
        os.close(descriptor)


def _lock(project: Project) -> Path:
    return project.sync / "mirror.lock"


def _confirmed(project: Project, sent: Sent) -> dict[str, int]:
    return {run.name: max(map(int, sent.states.get(run.name, {})), default=0) for run in project.runs()}


def _step(run: Run) -> int:
    """Last step in a run's log."""
    if not run.log.exists():
        return 0
    with open(run.log, "rb") as file:
        # The last 4096 bytes hold several events; a log can have many megabytes.
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        steps = re.findall(rb'"step": (\d+)', file.read())
    return int(steps[-1]) if steps else 0
