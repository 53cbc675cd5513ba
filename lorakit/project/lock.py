"""One trainer per run: a lock that the kernel releases when its process dies, and a heartbeat while it lives."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from lorakit.errors import UserError
from lorakit.files import NO_LOCKS, is_locked, open_lock, write_json
from lorakit.files.disk import read_json
from lorakit.machine import host
from lorakit.project import ProjectError, Run

HEARTBEAT = "heartbeat.json"  # in the run's folder
BEAT = 5.0  # s between heartbeats
# `is_alive` takes a shared lock for a moment, so a free lock may look taken: about a second of attempts in all.
TRIES = 40


class RunBusy(UserError):
    """Another process, or another cell of this one, is training the run."""


class NoLocks(UserError):
    """The file system cannot lock files, so two trainers of one run could not be kept apart."""


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """The process that trains a run, or trained it last."""

    pid: int
    # Start time of the process (`host.process_start`), as the kernel gives process numbers out again.
    process: str
    host: str
    # Id of this start of the machine or container.
    boot: str
    # Seconds since 1970.
    begun: float
    # Processes that the machine had killed for lack of memory when this one began.
    memory_kills: int
    # Offset in trainer.log (bytes) at which its output begins; -1: it prints to a terminal or a notebook.
    log: int
    # Bytes of the run's events when it began: what it logged lies behind, however the clock jumps. -1: of an earlier
    # version.
    logged: int = -1

    @classmethod
    def of(cls, pid: int, run: Run, log: int = -1) -> Trainer:
        """A process of this machine that starts to train a run now."""
        return cls(
            pid=pid,
            process=host.process_start(pid),
            **host.identity(),
            # Rounded like the times in the log, which are compared with it.
            begun=round(time.time(), 3),
            memory_kills=host.memory_kills(),
            log=log,
            logged=run.log.stat().st_size if run.log.exists() else 0,
        )

    @property
    def is_near(self) -> bool:
        """True for a process of this machine, or container, since it was last started."""
        return host.identity() == {"host": self.host, "boot": self.boot}


@contextlib.contextmanager
def lock_run(run: Run) -> Iterator[None]:
    """Be the run's only trainer within this context, and write its heartbeat.

    Raises RunBusy while another process trains it, NoLocks on a file system without flock, ProjectError for a run
    without a config.
    """
    inherited = _inherited_lock(run)
    with inherited or locked(run) as lock:
        # `jobs.start` signs for the process that it starts; any other trainer signs for itself.
        if inherited is None or last_trainer(run) is None:
            sign(lock, Trainer.of(os.getpid(), run))
        ended = threading.Event()
        heart = threading.Thread(target=_beat, args=(run, ended), daemon=True)
        heart.start()
        try:
            yield
        finally:
            ended.set()
            heart.join()


def locked(run: Run) -> BinaryIO:
    """The run's lock file, locked but not signed; held until every process that has it closes it.

    Raises as `lock_run` does.
    """
    if not run.exists():
        raise ProjectError(f"There is no run {run.name!r} in {run.project.folder}: it has no config yet.")
    with contextlib.ExitStack() as unless_taken:
        # The file is never removed: another process may have it open, and would then lock a file nobody sees.
        lock = open_lock(run.lock)
        unless_taken.enter_context(lock)
        _take(run, lock)
        lock.truncate(0)
        # The lock is ours: the file stays open after this block.
        unless_taken.pop_all()
    return lock


def sign(lock: BinaryIO, trainer: Trainer) -> None:
    """Write who trains into a locked lock file."""
    lock.truncate(0)
    lock.write(json.dumps(dataclasses.asdict(trainer)).encode())


def last_trainer(run: Run) -> Trainer | None:
    """Who signed the run's lock last; None when nobody did yet."""
    try:
        return Trainer(**read_json(run.lock))
    # TypeError: signed by another version, which has other fields.
    except (FileNotFoundError, ValueError, TypeError):
        return None


def is_alive(run: Run) -> bool:
    """True while a process trains the run."""
    try:
        return is_locked(run.lock)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        # Without locks no trainer can have started.
        return False


def _inherited_lock(run: Run) -> BinaryIO | None:
    """The lock that `jobs.start` took for this process and passed as its standard input; None otherwise."""
    try:
        if not os.path.samestat(os.fstat(0), os.stat(run.lock)):
            return None
    # No standard input, or no lock file yet.
    except OSError:
        return None
    # Never closed: the lock is released when this process ends, so the next trainer finds the GPU memory free.
    lock = open(os.dup(0), "ab+", buffering=0, closefd=False)
    # Children of the trainer must not inherit the lock through their standard input.
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    return lock


def _take(run: Run, lock: BinaryIO) -> None:
    for _ in range(TRIES):
        if _flock(lock, fcntl.LOCK_EX):
            return
        if not _flock(lock, fcntl.LOCK_SH):
            break
        # A shared lock was possible, so no trainer holds it: somebody just called `is_alive`.
        fcntl.flock(lock, fcntl.LOCK_UN)
        # A random time, so that two that try at once do not keep meeting.
        time.sleep(random.uniform(0.01, 0.04))
    raise busy(run)


def _flock(lock: BinaryIO, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise NoLocks(
            f"The file system of {lock.name} cannot lock files ({error.strerror}), so two trainers of one run could "
            "not be kept apart. Put the project on the machine's own disk."
        ) from error
    return True


def busy(run: Run) -> RunBusy:
    """The error for a run that is training: by whom, since when, what to do."""
    trainer = last_trainer(run)
    who = "another process"
    if trainer is not None:
        who = "this same process (perhaps in another cell)" if _is_me(trainer) else f"process {trainer.pid}"
        who += f" on {trainer.host} since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(trainer.begun))}"
    where = f"{run.project.folder} --run {run.name}"
    return RunBusy(
        f"Run {run.name!r} is already training, in {who}. Watch it (lorakit watch {where}), stop it (lorakit stop "
        f"{where}), or train another run."
    )


def _is_me(trainer: Trainer) -> bool:
    return trainer.is_near and (trainer.pid, trainer.process) == (os.getpid(), host.process_start(os.getpid()))


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """A sign of life of a trainer, with the memory of its host."""

    time: float  # time.time()
    pid: int
    memory: host.Memory | None  # of the host
    memory_kills: int
    # Start time of the process; "": of an earlier version.
    process: str = ""


def last_heartbeat(run: Run, trainer: Trainer) -> Heartbeat | None:
    """The newest heartbeat of this trainer; None when it died before its first."""
    try:
        stored = read_json(run.folder / HEARTBEAT)
        beat = Heartbeat(**{**stored, "memory": stored["memory"] and host.Memory(**stored["memory"])})
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return None
    # An earlier trainer may have had the same process number; times are no proof, as clocks jump.
    is_same = beat.process == trainer.process if beat.process else beat.time >= trainer.begun
    return beat if beat.pid == trainer.pid and is_same else None


def _beat(run: Run, ended: threading.Event) -> None:
    """Write a heartbeat every few seconds: the last one shows how much memory was left when the trainer died."""
    pid = os.getpid()
    process = host.process_start(pid)
    while True:
        kills = host.memory_kills()
        beat = Heartbeat(time=time.time(), pid=pid, memory=host.memory(), memory_kills=kills, process=process)
        # A full disk is no reason to stop training.
        with contextlib.suppress(OSError):
            write_json(run.folder / HEARTBEAT, dataclasses.asdict(beat))
        if ended.wait(BEAT):
            return
