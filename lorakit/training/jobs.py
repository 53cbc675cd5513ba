"""The trainer as a process of its own: start it, follow its events, stop it, explain why it ended."""

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
from lorakit.events import Event, Failed, Finished, Stepped, Stopped, Warned
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

TICK = 0.2  # s between two reads of a log
SIGNING = 2.0  # s within which a new trainer writes its process into its lock
# bytes: a trainer.log above the limit is cut at the next start, to its last LOG_KEPT
LOG_LIMIT, LOG_KEPT = 1_000_000, 200_000
TAIL = 8_000  # bytes of trainer.log that are searched for an error
SHOWN = 12  # lines of it in a message
MARKS = ("Traceback (most recent call last)", "Fatal Python error")
FULL = 1_000_000  # free bytes; with less the trainer could not even write its error
LOW = 0.05  # share of the computer's memory; with less available the kernel soon kills a process


class Elsewhere(UserError):
    """The run is trained on another machine, whose processes cannot be reached from here."""


# ---- start, follow, stop ---------------------------------------------------------------------------------------------


def start(run: Run) -> bool:
    """Train a run, from its newest state to its end, in a process that outlives this one; upload it meanwhile.

    Returns False when it is being trained already. Output goes to trainer.log in the run's folder.
    Raises ProjectError for a run without a config, NoLocks on a file system without flock, and as `share`.

    >>> start(open_run("my-project"))
    True
    """
    share(run)
    try:
        with locked(run) as lock:
            log = _open_log(run)
            # blocked in the child as well, until its handler stands: an early interrupt is not lost and kills nothing
            with log, _kept_for_later(signal.SIGINT):
                begin = log.tell()
                # faulthandler prints a traceback for crashes in C code, e.g. in CUDA.
                command = [sys.executable, "-X", "faulthandler", "-m", "lorakit"]
                command += ["train", str(run.project.folder), "--run", run.name]
                log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')}  {shlex.join(command)}\n".encode())
                # the lock changes hands as the standard input: there is no moment in which nobody holds it
                trainer = subprocess.Popen(
                    command, stdin=lock, stdout=log, stderr=log, env=host.child_environment(), start_new_session=True
                )
                sign(lock, Trainer.of(trainer.pid, run, log=begin))
            # waits for the process, so that it leaves no zombie
            threading.Thread(target=trainer.wait, daemon=True).start()
    except RunBusy:
        return False
    return True


def share(run: Run) -> None:
    """Start uploading before a run with a remote copy is trained here. Does nothing for one without.

    Raises Elsewhere when another machine trains it; finding out takes up to three minutes if one did just now.
    """
    if run.project.remote is None:
        return
    from lorakit.sync import service

    if not is_alive(run) and (reason := service.elsewhere(run)):
        raise Elsewhere(reason)
    service.start(run.project)


def follow(run: Run) -> Iterator[Event | None]:
    """Yield all events of a run so far, then new ones as they come; None every 0.2 s while there are none.

    Lines of the log that are no events are skipped, which is Warned of once. Ends when nobody trains the run (any more)
    and all of its log was returned.

    >>> type([event for event in follow(open_run("my-project")) if event][-1]).__name__
    'Finished'
    """
    tail, was_shown = events.Tail(run.log), False
    while True:
        # checked before reading: what is written in between is still read
        may_write = is_alive(run)
        new = [event for _, event in tail.new()]
        yield from new
        if tail.skipped and not was_shown:
            was_shown = True
            yield Warned(text=tail.skipped)
        if not may_write:
            return
        if not new:
            yield None
            time.sleep(TICK)


def stop(run: Run) -> bool:
    """Ask the run's trainer, wherever on this machine it was started, to finish its step, save and end.

    Returns False when nobody trains the run. A second call ends the trainer at once, unsaved.
    Raises Elsewhere when it is trained on another machine.

    >>> stop(open_run("my-project"))
    False
    """
    # a trainer that was started just now holds the lock but has not signed it yet
    until = time.monotonic() + SIGNING
    while (trainer := last_trainer(run)) is None and is_alive(run) and time.monotonic() < until:
        time.sleep(0.02)
    if not is_alive(run):
        return False
    # a process id alone may belong to another process by now: its start time must agree
    if trainer is None or not trainer.is_near or host.process_start(trainer.pid) != trainer.process:
        where = f"process {trainer.pid} of {trainer.host}" if trainer else "an unknown process"
        raise Elsewhere(f"Run {run.name!r} is trained by {where}, which cannot be reached from here: stop it there.")
    os.kill(trainer.pid, signal.SIGINT)
    return True


def _open_log(run: Run) -> BinaryIO:
    """Open trainer.log to append to it; a large one loses its oldest lines first."""
    path = run.folder / "trainer.log"
    if path.exists() and path.stat().st_size > LOG_LIMIT:
        write_atomic(path, path.read_bytes()[-LOG_KEPT:].partition(b"\n")[2])
    # Unbuffered: the trainer writes to the same file.
    return open(path, "ab", buffering=0)


@contextmanager
def _kept_for_later(number: int) -> Iterator[None]:
    """Block a signal here for the duration; a child started meanwhile has it blocked until `train` unblocks it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---- why it ended ----------------------------------------------------------------------------------------------------


def history(run: Run) -> tuple[str, list[tuple[float, Event]], str]:
    """A run's state, its log of (time, event), and a sentence once lines of it are no events, else "".

    The state is "new", "running", "stopped", "finished", "failed" (with an error in its log) or "cut" (the
    trainer died and logged no reason).
    """
    # checked before and after reading, as a trainer may start or end meanwhile
    was_alive = is_alive(run)
    tail = events.Tail(run.log)
    log = tail.new()
    trainer = last_trainer(run)
    if was_alive or is_alive(run):
        return "running", log, tail.skipped
    time_of_last, last = log[-1] if log else (0.0, None)
    if trainer is not None and _logged_nothing(run, trainer, time_of_last):
        # it died before its first event; those in the log are of a trainer before it
        return "cut", log, tail.skipped
    ends = {type(None): "new", Stopped: "stopped", Finished: "finished", Failed: "failed"}
    return ends.get(type(last), "cut"), log, tail.skipped


def _logged_nothing(run: Run, trainer: Trainer, time_of_last: float) -> bool:
    """Whether a trainer ended before its first event: by the size of the log, as clocks jump."""
    if trainer.logged < 0:
        return trainer.begun > time_of_last
    return (run.log.stat().st_size if run.log.exists() else 0) <= trainer.logged


def fate(run: Run) -> str:
    """Why the trainer of a run that is neither trained nor complete nor stopped is gone, and how to continue.

    "" for all other runs. The first line says what happened.
    """
    state, log, _ = history(run)
    if state not in ("failed", "cut"):
        return ""
    reason = log[-1][1].reason if state == "failed" else _cause(run, log)
    # Read from the files, as the log may end before the last save.
    saved = max((int(mark.parent.name) for mark in run.states.glob("[0-9]*/COMPLETE.json")), default=0)
    reached = next((event.step for _, event in reversed(log) if isinstance(event, Stepped)), 0)
    lost = reached - saved
    kept = f"Saved up to step {saved}" if saved else "No step was saved yet"
    kept += f"; the {lost} steps after it will be done again" if lost > 0 else ""
    first = "Once that is fixed, train it again" if state == "failed" else "Train it again"
    where = f"it resumes after step {saved}" if saved else "it begins at step 1; what was encoded is kept"
    return f"{reason}\n{kept}. {first}: {where}."


def _cause(run: Run, log: list[tuple[float, Event]]) -> str:
    """Why a trainer died that logged no reason, from its output, its last heartbeat and this machine."""
    trainer = last_trainer(run)
    if trainer is None:
        return "The machine on which it was trained is gone: its session ended in the middle of the training."
    lines, heartbeat = _output(run, trainer), last_heartbeat(run, trainer)
    output = "\n".join(["\nThe last lines of its log:", *lines[-SHOWN:]]) if lines else ""
    if error := _error(lines):
        return f"The trainer ended with an error: {error}{output}"
    seen = max([trainer.begun, *(at for at, _ in log[-1:]), *([heartbeat.time] if heartbeat else [])])
    when = f"last seen alive on {time.strftime('%Y-%m-%d at %H:%M:%S', time.localtime(seen))}"
    if memory := _memory_trouble(trainer, heartbeat):
        return f"The trainer was most likely killed because the computer's memory ran out ({memory}); {when}.\n" + (
            "Close other programs and the kernels of other notebooks, take a machine with more memory, or lower "
            f"loop.batch_size (in a new run) or memory.offload.{output}"
        )
    if (free := shutil.disk_usage(run.folder).free) < FULL:
        return f"The disk that {run.folder} is on is full ({free / 1e6:.1f} MB left): free some space; {when}.{output}"
    if not trainer.is_near:
        return f"The machine on which it was trained ({trainer.host}) is gone or was started again; {when}.{output}"
    if trainer.log < 0:
        return f"The terminal or the notebook's kernel in which it was trained was closed or killed; {when}."
    return f"The training process was killed by another program or the system; {when}.{output}"


def _memory_trouble(trainer: Trainer, heartbeat: Heartbeat | None) -> str:
    """Signs that the system killed the trainer for lack of memory; "" when there are none."""
    signs = []
    # the kernel only counts its kills since boot, so the last heartbeat's count is subtracted
    before = (heartbeat or trainer).memory_kills
    if trainer.is_near and host.memory_kills() > before:
        signs.append("the kernel has killed a process for it since")
    left = heartbeat and heartbeat.memory
    if left and left.available < LOW * left.total:
        signs.append(f"{left.available / 1e9:.1f} of {left.total / 1e9:.1f} GB were left at its last sign of life")
    return " and ".join(signs)


def _output(run: Run, trainer: Trainer) -> list[str]:
    """The last lines that a detached trainer printed; none for one in a terminal or a kernel."""
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
    # a traceback's own lines are indented, the error is not
    rest = [line for line in lines[mark + 1 :] if not line.startswith(" ")]
    # steps after it: the error was caught and did not end the training
    continued = any(line.startswith("step ") for line in rest)
    return rest[0] if rest and not continued else ""
