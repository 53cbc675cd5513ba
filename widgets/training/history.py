"""A run's log as views need it: its newest events, curves and times, kept up to date event by event."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from lorakit import events
from lorakit.events import Event, Failed, Finished, Progress, Sampled, Saved, Started, Stepped, Stopped, Warned
from lorakit.training.status import smoothed

PACE = 500  # newest steps, from which the time left is estimated
JUMP = 3600.0  # s between two steps, beyond which the clock was set
RATE = 20  # newest steps, over which images/s are averaged


@dataclass
class History:
    """What was read of a run's log. Times are seconds since 1970, 0.0 for never."""

    log: Path
    at: float = 0.0  # of the newest event
    # The step reached. Logged steps above it were lost with an interrupted session and are trained again.
    step: int = 0
    started: Started | None = None
    started_at: float = 0.0
    prepared: Progress | None = None
    prepared_at: float = 0.0
    saved: Saved | None = None
    saved_at: float = 0.0
    # None while the newest session runs, and after it was killed.
    ended: Stopped | Finished | Failed | None = None
    steps: dict[int, Stepped] = field(default_factory=dict)  # the newest event of each step
    # Steps after which training was resumed.
    resumes: list[int] = field(default_factory=list)
    # Step -> prompt -> image.
    samples: dict[int, dict[str, Sampled]] = field(default_factory=dict)
    # Text -> count; the newest text last.
    warnings: Counter[str] = field(default_factory=Counter)
    # (time, step) of the newest steps of this session.
    pace: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=PACE))

    def __post_init__(self) -> None:
        self._tail = events.Tail(self.log)

    def read_on(self) -> History:
        """Read the events logged since the last time."""
        for time, event in self._tail.new():
            self.add(time, event)
        if self._tail.skipped:
            self.warnings.setdefault(self._tail.skipped, 1)
        return self

    def add(self, time: float, event: Event) -> None:
        """Add the next event."""
        self.at = time
        match event:
            case Stepped():
                self.step = event.step
                self.steps[event.step] = event
                self.pace.append((time, event.step))
            case Started():
                self.started, self.started_at, self.step, self.ended = event, time, event.step, None
                # Time passed between two sessions is no training time.
                self.pace.clear()
                self.pace.append((time, event.step))
                if event.step:
                    self.resumes.append(event.step)
            case Progress():
                self.prepared, self.prepared_at, self.ended = event, time, None
            case Saved():
                self.saved, self.saved_at = event, time
            case Sampled():
                self.samples.setdefault(event.step, {})[event.prompt] = event
            case Warned():
                # popped and put back, so that the newest text stands last
                self.warnings[event.text] = self.warnings.pop(event.text, 0) + 1
            case Stopped() | Finished() | Failed():
                self.ended = event

    @property
    def total(self) -> int:
        """Steps of the whole run; 0 before training has started."""
        return self.started.steps if self.started else 0

    def losses(self) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
        """(step, loss), raw and smoothed, over the whole log: resuming leaves no trace in them."""
        raw = [(step, self.steps[step].loss) for step in sorted(self.steps)]
        raw = [(step, loss) for step, loss in raw if loss is not None]
        smooth = smoothed([loss for _, loss in raw])
        return raw, [(step, loss) for (step, _), loss in zip(raw, smooth, strict=True)]

    def rates(self) -> list[tuple[float, float]]:
        """(step, learning rate); of an optimizer that finds its own, that times the schedule."""
        return [(step, self.steps[step].lr) for step in sorted(self.steps)]

    def images_per_second(self) -> float:
        """Mean over the newest steps, 0.0 before the first."""
        recent = [self.steps[step].images_per_second for _, step in list(self.pace)[-RATE:] if step in self.steps]
        recent = [rate for rate in recent if rate > 0]
        # The harmonic mean: steps hold equally many images, so that times are averaged and not speeds.
        return len(recent) / sum(1 / rate for rate in recent) if recent else 0.0

    def seconds_left(self) -> float | None:
        """Until the last step at the pace of this session, with saves and samples; None before its second step."""
        # The start and two steps: the first step alone is slow and would say little.
        if len(self.pace) < 3:
            return None
        times, (last,) = [time for time, _ in self.pace], self.pace[-1][1:]
        spans = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
        # a clock that is set jumps by hours, forwards or backwards; saves and samples take less
        spans = [span for span in spans if 0 <= span <= max(JUMP, 100 * median(spans))]
        return sum(spans) / len(spans) * (self.total - last) if spans else None

    def epoch_of(self, step: int) -> int | None:
        """The epoch that a step belongs to, as logged."""
        return self.steps[step].epoch if step in self.steps else None
