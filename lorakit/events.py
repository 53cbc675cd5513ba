"""Events of a run as frozen data, and the log file that they are appended to."""

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
    """A session starts or resumes after `step` of `steps` steps."""

    step: int
    steps: int
    steps_per_epoch: int
    images: int
    precision: str
    device: str


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


def append(log: Path, event: Event, *, time: float) -> None:
    """Append one line to the log; an incomplete last line of a killed process is ended first."""
    line = json.dumps(
        {"kind": type(event).__name__.lower(), "time": round(time, 3), **dataclasses.asdict(event)}, ensure_ascii=False
    )
    # Append mode: each line reaches the file in one write, also beside a reader.
    with open(log, "ab+") as file:
        if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            file.write(b"\n")
        file.write(line.encode() + b"\n")


class Tail:
    """Reads a log while it grows; nothing is read twice."""

    def __init__(self, log: Path):
        self.log = log
        self._seen: tuple = ()  # inode, size and time of the file when it was last read
        self._head = b""  # first bytes of the file, to notice that another one has replaced it
        self._offset = 0  # of the first line that was still incomplete

    def new(self) -> list[tuple[float, Event]]:
        """(time, event) of everything logged since the last call, oldest first.

        An incomplete line of a killed process is skipped. When another file has replaced the log, all of it is new.
        """
        try:
            # Before reading: what is appended in between is then seen by the next call. A view asks often and mostly
            # finds nothing new, and a stat costs much less than reading.
            stat = os.stat(self.log)
            if (seen := (stat.st_ino, stat.st_size, stat.st_mtime_ns)) == self._seen:
                return []
            with open(self.log, "rb") as file:
                # A run that was deleted and created again, or a log that was restored, is read from its beginning.
                if file.read(len(self._head)) != self._head or stat.st_size < self._offset:
                    self._head, self._offset = b"", 0
                # A short log is identified by what it has so far.
                if len(self._head) < HEAD_BYTES:
                    file.seek(0)
                    self._head = file.read(HEAD_BYTES)
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        self._seen = seen
        return list(self._events(data))

    def _events(self, lines: bytes) -> Iterator[tuple[float, Event]]:
        for line in io.BytesIO(lines):
            try:
                data = json.loads(line)
            except ValueError:
                # Without its newline the line may still be in the middle of being written.
                if not line.endswith(b"\n"):
                    return
                data = None
            self._offset += len(line)
            if data is not None:
                yield data.pop("time"), EVENT_TYPES[data.pop("kind")](**data)


def read(log: Path) -> Iterator[tuple[float, Event]]:
    """(time, event) for every complete line of the log, oldest first; a line cut by a kill is skipped."""
    yield from Tail(log).new()


def steps(log: Path) -> dict[int, Stepped]:
    """Step -> its last `Stepped`: after a resume, steps that were trained again replace the earlier ones."""
    return {event.step: event for _, event in read(log) if isinstance(event, Stepped)}
