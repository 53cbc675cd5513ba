"""What can happen in a run, as frozen data, and the log file that remembers it."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events; `time` is seconds since 1970, written when the event is logged."""


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """A session begins (or goes on) after `step` finished steps of `steps`."""

    step: int
    steps: int
    steps_per_epoch: int
    images: int
    precision: str
    device: str


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """Preparing: `done` of `total` things of one kind (encoding images, encoding captions) are ready."""

    what: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Stepped(Event):
    """One optimizer step is done; `step` counts from 1. `loss` is None when every micro-batch of it was skipped."""

    step: int
    epoch: int
    loss: float | None
    lr: float  # of the denoiser: base rate x schedule (x d for optimizers that find their own rate)
    grad_norm: float | None  # None: it was not finite, and the step changed nothing
    skipped: int  # samples left out because their loss was not finite
    images_per_second: float
    memory_gb: float  # peak of the process on a CPU, of the device on a GPU; 1e9 bytes


@dataclass(frozen=True, kw_only=True)
class Saved(Event):
    """The state after `step` is safe on disk; `lora` is the exported file, "" when only the state was saved."""

    step: int
    state: str
    lora: str
    matched: str  # modules of the file, "" without one; earlier versions wrote "192/192"


@dataclass(frozen=True, kw_only=True)
class Sampled(Event):
    """An image was painted with the weights after `step`; `image` is relative to the run folder."""

    step: int
    prompt: str
    image: str


@dataclass(frozen=True, kw_only=True)
class Warned(Event):
    """Something the user should know, in plain words; training goes on."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Stopped(Event):
    """The session ended before the run did: everything up to `step` is saved."""

    step: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Failed(Event):
    """The session ended with an error that it could explain; the states before it are kept."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """The run is complete; `lora` is the file of its last step, relative to the run folder."""

    step: int
    lora: str


BEGIN = 100  # bytes by which a log is told from another
KINDS = {kind.__name__.lower(): kind for kind in Event.__subclasses__()}


def append(log: Path, event: Event, *, time: float) -> None:
    """Add one line to the log; a half-written last line of a killed process is closed first."""
    line = json.dumps(
        {"kind": type(event).__name__.lower(), "time": round(time, 3), **dataclasses.asdict(event)}, ensure_ascii=False
    )
    with open(log, "ab+") as file:
        if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            file.write(b"\n")
        file.write(line.encode() + b"\n")


class Tail:
    """A log that is read while it grows; nothing is read twice."""

    def __init__(self, log: Path):
        self.log = log
        self._seen: tuple = ()  # what the file was at the last look
        self._begin = b""  # its first bytes, the time of its first event among them
        self._offset = 0  # of the first line that was not whole yet

    def new(self) -> list[tuple[float, Event]]:
        """(time, event) of what was logged since the last call, oldest first.

        A torn line of a killed process is passed over. When another file has taken the log's place all of it is new.
        """
        try:
            stat = os.stat(self.log)
            if (seen := (stat.st_ino, stat.st_size, stat.st_mtime_ns)) == self._seen:
                return []
            with open(self.log, "rb") as file:
                if file.read(len(self._begin)) != self._begin or stat.st_size < self._offset:
                    self._begin, self._offset = b"", 0
                if len(self._begin) < BEGIN:
                    file.seek(0)
                    self._begin = file.read(BEGIN)
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        self._seen = seen
        return list(self._events(data))

    def _events(self, data: bytes) -> Iterator[tuple[float, Event]]:
        for line in io.BytesIO(data):
            try:
                told = json.loads(line)
            except ValueError:
                if not line.endswith(b"\n"):
                    return  # the rest of it may come yet
                told = None
            self._offset += len(line)
            if told is not None:
                yield told.pop("time"), KINDS[told.pop("kind")](**told)


def read(log: Path) -> Iterator[tuple[float, Event]]:
    """(time, event) for every whole line of the log, oldest first; a torn line of a killed process is passed over."""
    yield from Tail(log).new()


def steps(log: Path) -> dict[int, Stepped]:
    """The last `Stepped` of every step: after a resume the steps that were done again replace the first ones."""
    return {event.step: event for _, event in read(log) if isinstance(event, Stepped)}
