"""Events of a run as frozen data, and the log file that they are appended to."""

from __future__ import annotations

import json
import os
import stat
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lorakit.files.disk import DamagedFile, disk_error, disk_errors
from lorakit.secrets import hidden


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events; `time` is seconds since 1970, written when the event is logged."""


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """A session starts or resumes after `step` of `steps` steps."""

    step: int
    steps: int
    steps_per_epoch: int
    images: int
    precision: str
    device: str
    # What the base model predicts (epsilon, v_prediction, flow); "" in the logs of earlier versions.
    prediction: str = ""


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """Preparation: `done` of `total` items of one kind (`what`: images, captions) are encoded."""

    what: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Stepped(Event):
    """One optimizer step is done; `step` counts from 1. `loss` is None when every micro-batch of it was skipped."""

    step: int
    epoch: int
    loss: float | None
    # Of the UNet / DiT: base rate x schedule, and x d for optimizers that estimate d.
    lr: float
    # Before clipping. None: not finite, so the step changed nothing.
    grad_norm: float | None
    # Samples without effect, as their loss was not finite.
    skipped: int
    images_per_second: float
    # Peak in 1e9 bytes: of the GPU, or of the process when training on a CPU.
    memory_gb: float


@dataclass(frozen=True, kw_only=True)
class Saved(Event):
    """The training state of `step` is on disk; `lora` is the exported file, "" when only the state was saved."""

    step: int
    state: str
    lora: str
    # Number of modules in the LoRA file, "" without one. Earlier versions wrote "192/192", so it is text.
    matched: str


@dataclass(frozen=True, kw_only=True)
class Sampled(Event):
    """An image was generated with the weights of `step`; `image` is relative to the run folder."""

    step: int
    prompt: str
    image: str


@dataclass(frozen=True, kw_only=True)
class Warned(Event):
    """Something the user should know; training continues."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Stopped(Event):
    """The session ended before the run was complete; everything up to `step` is saved."""

    step: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Failed(Event):
    """The session ended with an error that it could explain; earlier training states are kept."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """The run is complete; `lora` is the LoRA file of its last step, relative to the run folder."""

    step: int
    lora: str


# The first bytes identify a log file: they contain the time of its first event.
HEAD_BYTES = 100
# Stored name -> class; the names stand in every log, so renaming a class would break old projects.
EVENT_TYPES = {kind.__name__.lower(): kind for kind in Event.__subclasses__()}
# Event -> the types that each field may have; JSON writes 3.0 as 3.
_FIELDS = {
    kind: {
        name: (*(typing.get_args(expected) or (expected,)), *((int,) if "float" in str(expected) else ()))
        for name, expected in typing.get_type_hints(kind).items()
    }
    for kind in EVENT_TYPES.values()
}
LINE_BYTES = 1 << 22  # a longer line is read in pieces, none of which is an event
LOG_BYTES = 1 << 30  # a million steps have a quarter of that
LAST_TIME = 1e11  # s since 1970; beyond, a time is damage, and no calendar has it


def append(log: Path, event: Event, *, time: float) -> None:
    """Append one line to the log; an incomplete last line of a killed process is ended first.

    Passwords and tokens of addresses are not written. Raises DiskError.
    """
    fields = {name: hidden(value) if isinstance(value, str) else value for name, value in vars(event).items()}
    line = json.dumps({"kind": type(event).__name__.lower(), "time": round(time, 3), **fields}, ensure_ascii=False)
    # Append mode: each line reaches the file in one write, also beside a reader.
    if log.exists() and not log.is_file():
        raise _no_log(log)
    with disk_errors(log), open(log, "ab+") as file:
        if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            file.write(b"\n")
        # surrogates, of the name of a file that is no UTF-8, as JSON's own escapes
        file.write(line.encode("utf-8", "backslashreplace") + b"\n")


def _no_log(log: Path) -> DamagedFile:
    return DamagedFile(f"{log} is a folder or a pipe, not a log: move it away, then run this again.")


class Tail:
    """Reads a log while it grows; nothing is read twice. `skipped`: a sentence once a line is no event, else ""."""

    def __init__(self, log: Path):
        self.log = log
        self.skipped = ""
        self._seen: tuple = ()  # inode, size and time of the file when it was last read
        self._head = b""  # first bytes of the file, to notice that another one has replaced it
        self._offset = 0  # of the first line that was still incomplete

    def new(self) -> list[tuple[float, Event]]:
        """(time, event) of everything logged since the last call, oldest first.

        An incomplete line of a killed process is skipped, and so is a line that is no event of this version. When
        another file has replaced the log, all of it is new. Raises DamagedFile when the log is no file.
        """
        try:
            # Before reading: what is appended in between is then seen by the next call. A view asks often and mostly
            # finds nothing new, and a stat costs much less than reading.
            status = os.stat(self.log)
            if (seen := (status.st_ino, status.st_size, status.st_mtime_ns)) == self._seen:
                return []
            # Opening a pipe would wait for a writer.
            if not stat.S_ISREG(status.st_mode):
                raise _no_log(self.log)
            if status.st_size > LOG_BYTES:
                raise DamagedFile(f"{self.log} has {status.st_size / 1e9:.0f} GB, which no log has: move it away.")
            with open(self.log, "rb") as file:
                # A run that was deleted and created again, or a log that was restored, is read from its beginning.
                if file.read(len(self._head)) != self._head or status.st_size < self._offset:
                    self._head, self._offset = b"", 0
                # A short log is identified by what it has so far.
                if len(self._head) < HEAD_BYTES:
                    file.seek(0)
                    self._head = file.read(HEAD_BYTES)
                file.seek(self._offset)
                new = list(self._events(file))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise disk_error(error, self.log) or error from error
        self._seen = seen
        return new

    def _events(self, file: BinaryIO) -> Iterator[tuple[float, Event]]:
        while line := file.readline(LINE_BYTES):
            logged = _parsed(line)
            # Without its newline the line may still be in the middle of being written.
            if logged is None and not line.endswith(b"\n") and len(line) < LINE_BYTES:
                return
            self._offset += len(line)
            if logged is not None:
                yield logged
            elif not self.skipped and _is_json(line):
                self.skipped = (
                    f"{self.log}: a line is no event that this version of lorakit knows ({line[:60]!r}); such lines "
                    "are skipped. A newer version may have written it: update lorakit to see it."
                )


def _parsed(line: bytes) -> tuple[float, Event] | None:
    """(time, event) of a line; None for anything else. Fields that a newer version added are left out."""
    try:
        data = json.loads(line)
        kind = EVENT_TYPES[data["kind"]]
        values = {name: data[name] for name in _FIELDS[kind]}
        time = float(data["time"])
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None
    whole = 0 <= time < LAST_TIME and all(isinstance(values[name], types) for name, types in _FIELDS[kind].items())
    return (time, kind(**values)) if whole else None


def _is_json(line: bytes) -> bool:
    """Whether a line is whole JSON: one that a kill has cut is not worth a word."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def read(log: Path) -> Iterator[tuple[float, Event]]:
    """(time, event) for every complete line of the log, oldest first; a line cut by a kill is skipped."""
    yield from Tail(log).new()


def steps(log: Path) -> dict[int, Stepped]:
    """Step -> its last `Stepped`: after a resume, steps that were trained again replace the earlier ones."""
    return {event.step: event for _, event in read(log) if isinstance(event, Stepped)}
