"""The trainer as a process of its own: start it, follow what happens in it, stop it, tell what became of it."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from lorakit import events
from lorakit.errors import UserError
from lorakit.events import Event, Failed, Finished, Stepped, Stopped
from lorakit.files import write_atomic
from lorakit.machine import host
from lorakit.project import Run
from lorakit.project.lock import (
    Heartbeat,
    RunBusy,
    Trainer,
    is_alive,
    last_heartbeat,
    last_trainer,
    lock_run,
    locked,
    sign,
)

__all__ = [
    "Elsewhere",
    "RunBusy",
    "lock_run",
    "fate",
    "follow",
    "history",
    "is_alive",
    "last_trainer",
    "share",
    "start",
    "stop",
]

TICK = 0.2  # s between two looks at a log
SIGNING = 2.0  # s in which a trainer that is being started has signed its lock
LOG_LIMIT, LOG_KEPT = 1_000_000, 200_000  # bytes of trainer.log: when it is cut at a start, and to what
TAIL = 8_000  # bytes of trainer.log that are looked at when a trainer is gone
SHOWN = 12  # lines of them
MARKS = ("Traceback (most recent call last)", "Fatal Python error")
FULL = 1_000_000  # bytes that are free on a disk on which nothing more could be told
LOW = 0.05  # share of the host's memory; with less left the kernel's killing is near


class Elsewhere(UserError):
    """The run is trained on another machine, whose processes cannot be told anything from here."""


# ---- start, follow, stop ---------------------------------------------------------------------------------------------


def start(run: Run) -> bool:
    """Train a run, from its newest state to its end, in a process that outlives this one; upload it meanwhile.

    Returns False when somebody trains it already. Output goes to trainer.log in the run's folder.
    Raises ProjectError for a run without a config, NoLocks on a file system without flock, and as `share`.

    >>> start(open_run("my-project"))
    True
    """
    share(run)
    try:
        with locked(run) as lock:
            log = _open_log(run)
            with log, _kept_for_later(signal.SIGINT):
                begin = log.tell()
                command = [sys.executable, "-X", "faulthandler", "-m", "lorakit"]
                command += ["train", str(run.project.folder), "--run", run.name]
                log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')}  {shlex.join(command)}\n".encode())
                # the lock changes hands as the standard input: there is no moment in which nobody holds it
                trainer = subprocess.Popen(
                    command, stdin=lock, stdout=log, stderr=log, env=host.child_environment(), start_new_session=True
                )
                sign(lock, Trainer.of(trainer.pid, log=begin))
            threading.Thread(target=trainer.wait, daemon=True).start()  # so that it leaves no zombie
    except RunBusy:
        return False
    return True


def share(run: Run) -> None:
    """Start uploading before a run with a remote copy is trained here. Does nothing for one without.

    Raises Elsewhere when another machine trains it, which takes up to three minutes to tell if one did just now.
    """
    if run.project.remote is None:
        return
    from lorakit.sync import service

    if not is_alive(run) and (told := service.elsewhere(run)):
        raise Elsewhere(told)
    service.start(run.project)


def follow(run: Run) -> Iterator[Event | None]:
    """All that has happened in a run, then what happens, as it does; None every 0.2 s while nothing does.

    Ends when nobody trains the run (any more) and all of its log was returned.

    >>> type([event for event in follow(open_run("my-project")) if event][-1]).__name__
    'Finished'
    """
    tail = events.Tail(run.log)
    while True:
        may_write = is_alive(run)  # asked before reading, so that last words are not missed
        told = [event for _, event in tail.new()]
        yield from told
        if not may_write:
            return
        if not told:
            yield None
            time.sleep(TICK)


def stop(run: Run) -> bool:
    """Tell the run's trainer, wherever on this machine it was started, to finish its step, save and end.

    Returns False when nobody trains the run. A trainer that is told a second time ends at once, unsaved.
    Raises Elsewhere when it is trained on another machine.

    >>> stop(open_run("my-project"))
    False
    """
    until = time.monotonic() + SIGNING
    while (trainer := last_trainer(run)) is None and is_alive(run) and time.monotonic() < until:
        time.sleep(0.02)
    if not is_alive(run):
        return False
    if trainer is None or not trainer.is_near or host.process_start(trainer.pid) != trainer.process:
        where = f"process {trainer.pid} of {trainer.host}" if trainer else "a process that has not told its name"
        raise Elsewhere(f"Run {run.name!r} is trained by {where}, which cannot be reached from here: stop it there.")
    os.kill(trainer.pid, signal.SIGINT)
    return True


def _open_log(run: Run) -> BinaryIO:
    """trainer.log, to be appended to, without what is old in one that has grown large."""
    path = run.folder / "trainer.log"
    if path.exists() and path.stat().st_size > LOG_LIMIT:
        write_atomic(path, path.read_bytes()[-LOG_KEPT:].partition(b"\n")[2])
    return open(path, "ab", buffering=0)


@contextmanager
def _kept_for_later(number: int) -> Iterator[None]:
    """The kernel keeps this signal back from us for a moment, and from a child until it asks for it: `train` does."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---- what became of it -----------------------------------------------------------------------------------------------


def history(run: Run) -> tuple[str, list[tuple[float, Event]]]:
    """A run's state, and its log of (time, event).

    The state is "new", "running", "stopped", "finished", "failed" (with an error that the log tells) or "cut" (the
    trainer died without a word).
    """
    was_alive = is_alive(run)
    log = list(events.read(run.log))
    trainer = last_trainer(run)
    if was_alive or is_alive(run):
        return "running", log
    time_of_last, last = log[-1] if log else (0.0, None)
    if trainer is not None and trainer.begun > time_of_last:
        return "cut", log  # before its first word
    ends = {type(None): "new", Stopped: "stopped", Finished: "finished", Failed: "failed"}
    return ends.get(type(last), "cut"), log


def fate(run: Run) -> str:
    """Why the trainer of a run that is neither trained nor complete nor stopped is gone, and how to go on.

    "" for all other runs. The first line says what happened.
    """
    state, log = history(run)
    if state not in ("failed", "cut"):
        return ""
    reason = log[-1][1].reason if state == "failed" else _cause(run, log)
    saved = max((int(mark.parent.name) for mark in run.states.glob("[0-9]*/COMPLETE.json")), default=0)
    reached = next((event.step for _, event in reversed(log) if isinstance(event, Stepped)), 0)
    lost = reached - saved
    kept = f"Saved up to step {saved}" if saved else "No step was saved yet"
    kept += f"; the {lost} steps after it will be done again" if lost > 0 else ""
    first = "Once that is put right, train it again" if state == "failed" else "Train it again"
    where = f"it goes on after step {saved}" if saved else "it begins at step 1; what was encoded is kept"
    return f"{reason}\n{kept}. {first}: {where}."


def _cause(run: Run, log: list[tuple[float, Event]]) -> str:
    """What became of a trainer that died without a word."""
    trainer = last_trainer(run)
    if trainer is None:
        return "The machine on which it was trained is gone: its session ended in the middle of the training."
    lines, heartbeat = _output(run, trainer), last_heartbeat(run, trainer)
    told = "\n".join(["\nThe last lines of its log:", *lines[-SHOWN:]]) if lines else ""
    if error := _error(lines):
        return f"The trainer ended with an error: {error}{told}"
    seen = max([trainer.begun, *(at for at, _ in log[-1:]), *([heartbeat.time] if heartbeat else [])])
    when = f"last seen alive on {time.strftime('%Y-%m-%d at %H:%M:%S', time.localtime(seen))}"
    if memory := _memory_trouble(trainer, heartbeat):
        return f"The trainer was most likely killed because the computer's memory ran out ({memory}); {when}.\n" + (
            "Close other programs and the kernels of other notebooks, take a machine with more memory, or lower "
            f"loop.batch_size (in a new run) or memory.offload.{told}"
        )
    if (free := shutil.disk_usage(run.folder).free) < FULL:
        return f"The disk that {run.folder} is on is full ({free / 1e6:.1f} MB left): free some space; {when}.{told}"
    if not trainer.is_near:
        return f"The machine on which it was trained ({trainer.host}) is gone or was started again; {when}.{told}"
    if trainer.log < 0:
        return f"The terminal or the notebook's kernel in which it was trained was closed or killed; {when}."
    return f"The trainer was killed from outside, without a word; {when}.{told}"


def _memory_trouble(trainer: Trainer, heartbeat: Heartbeat | None) -> str:
    """What speaks for a kill for memory; "" when nothing does."""
    found = []
    known = (heartbeat or trainer).memory_kills
    if trainer.is_near and host.memory_kills() > known:
        found.append("the kernel has killed a process for it since")
    left = heartbeat and heartbeat.memory
    if left and left.available < LOW * left.total:
        found.append(f"{left.available / 1e9:.1f} of {left.total / 1e9:.1f} GB were left at its last sign of life")
    return " and ".join(found)


def _output(run: Run, trainer: Trainer) -> list[str]:
    """The last lines of what a detached trainer said; none when it said nothing, or said it elsewhere."""
    path = run.folder / "trainer.log"
    if trainer.log < 0 or not path.exists():
        return []
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(trainer.log, size - TAIL))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("--- ")]


def _error(lines: list[str]) -> str:
    """The error that a program's output ends with; "" when it ends otherwise."""
    mark = next((i for i in reversed(range(len(lines))) if lines[i].startswith(MARKS)), None)
    if mark is None:
        return lines[-1] if lines and lines[-1].startswith("lorakit: ") else ""
    if lines[mark].startswith(MARKS[1]):
        return lines[mark]
    told = [line for line in lines[mark + 1 :] if not line.startswith(" ")]
    went_on = any(line.startswith("step ") for line in told)  # after an error that ended nothing
    return told[0] if told and not went_on else ""
