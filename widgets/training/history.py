"""What a view tells of a run, kept up to date event by event."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

from lorakit import events
from lorakit.events import Event, Failed, Finished, Progress, Sampled, Saved, Started, Stepped, Stopped, Warned
from lorakit.training.status import smoothed

PACE = 500  # newest steps that the time left is reckoned from
RATE = 20  # newest steps that images/s are the mean of


@dataclass
class History:
    """A run's log as far as it was read. Times are seconds since 1970, 0.0 for never."""

    log: Path
    at: float = 0.0  # of the newest event
    step: int = 0  # that the run has reached; steps above it are of an earlier sitting
    started: Started | None = None
    started_at: float = 0.0
    prepared: Progress | None = None
    prepared_at: float = 0.0
    saved: Saved | None = None
    saved_at: float = 0.0
    ended: Stopped | Finished | Failed | None = None  # None while the newest sitting goes on, or was cut
    steps: dict[int, Stepped] = field(default_factory=dict)  # as they were done last
    sittings: list[int] = field(default_factory=list)  # steps after which training went on
    samples: dict[int, dict[str, Sampled]] = field(default_factory=dict)  # step -> prompt -> image
    warnings: Counter[str] = field(default_factory=Counter)  # text -> how often; the newest stand last
    pace: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=PACE))  # (time, step) of this sitting

    def __post_init__(self) -> None:
        self._tail = events.Tail(self.log)

    def read_on(self) -> History:
        """Take in what was logged since the last time."""
        for time, event in self._tail.new():
            self.add(time, event)
        return self

    def add(self, time: float, event: Event) -> None:
        """Take the next event in."""
        self.at = time
        match event:
            case Stepped():
                self.step = event.step
                self.steps[event.step] = event
                self.pace.append((time, event.step))
            case Started():
                self.started, self.started_at, self.step, self.ended = event, time, event.step, None
                self.pace.clear()
                self.pace.append((time, event.step))
                if event.step:
                    self.sittings.append(event.step)
            case Progress():
                self.prepared, self.prepared_at, self.ended = event, time, None
            case Saved():
                self.saved, self.saved_at = event, time
            case Sampled():
                self.samples.setdefault(event.step, {})[event.prompt] = event
            case Warned():
                self.warnings[event.text] = self.warnings.pop(event.text, 0) + 1
            case Stopped() | Finished() | Failed():
                self.ended = event

    @property
    def total(self) -> int:
        """Steps of the whole run; 0 while nobody knows."""
        return self.started.steps if self.started else 0

    def losses(self) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
        """(step, loss) raw and smoothed, over the whole log: a resume leaves no mark in them."""
        raw = [(step, self.steps[step].loss) for step in sorted(self.steps)]
        raw = [(step, loss) for step, loss in raw if loss is not None]
        smooth = smoothed([loss for _, loss in raw])
        return raw, [(step, loss) for (step, _), loss in zip(raw, smooth, strict=True)]

    def rates(self) -> list[tuple[float, float]]:
        """(step, learning rate); for optimizers that find their own it is what they found times the setting."""
        return [(step, self.steps[step].lr) for step in sorted(self.steps)]

    def images_per_second(self) -> float:
        """Mean over the newest steps, 0.0 before the first."""
        recent = [self.steps[step] for _, step in list(self.pace)[-RATE:] if step in self.steps]
        return len(recent) / sum(1 / event.images_per_second for event in recent) if recent else 0.0

    def seconds_left(self) -> float | None:
        """Until the last step at the pace of this sitting, saves and samples included; None before its second step."""
        if len(self.pace) < 3:
            return None
        (begun, first), (now, last) = self.pace[0], self.pace[-1]
        return (now - begun) / max(1, last - first) * (self.total - last)

    def epoch_of(self, step: int) -> int | None:
        """The epoch that a step belongs to, as logged."""
        return self.steps[step].epoch if step in self.steps else None
