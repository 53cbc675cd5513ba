"""Learning rate schedules, a row each: factor = f(absolute step, planned steps), so nothing has to be restored."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lorakit.config import Config, Field, setting


@dataclass(frozen=True)
class Schedule:
    """One row: a line of help, and `factor(x, cycles)` for x = share of the run after warmup, 0 <= x < 1."""

    help: str
    factor: Callable[[float, int], float]


SCHEDULES = {
    "constant": Schedule("the same learning rate from start to end", lambda x, cycles: 1.0),
    "linear": Schedule("falls evenly to zero", lambda x, cycles: 1.0 - x),
    "cosine": Schedule("falls to zero, slowly at both ends", lambda x, cycles: (1 + math.cos(math.pi * x)) / 2),
    "cosine_with_restarts": Schedule(
        "falls to zero several times, jumping back up in between",
        # Rounded: floating point error must not move a restart to the next step.
        lambda x, cycles: (1 + math.cos(math.pi * (round(x * cycles, 9) % 1.0))) / 2,
    ),
}


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Config):
    """Learning rate scheduler and warmup."""

    name: str = setting(
        "cosine",
        help="how the learning rate changes over the run",
        choices=lambda: SCHEDULES,
        ui=Field(label="learning rate scheduler"),
    )
    warmup: float = setting(
        0.0,
        help="steps over which the learning rate rises from zero; below 1 = a share of the run",
        range=(0, None),
        ui=Field(label="warmup"),
    )
    cycles: int = setting(
        1,
        help="how often the learning rate falls to zero",
        range=(1, 100),
        ui=Field(label="restarts (cycles)", when=("name", ("cosine_with_restarts",))),
    )
    steps: int = setting(
        0,
        help="length of the curve, after which its last value is held; 0 = the whole run or stage",
        range=(0, None),
        ui=Field(label="scheduler steps"),
    )
    past: tuple[dict, ...] = setting(
        (),
        help="earlier curves of an extended run, {until: step, steps: planned}, so that trained steps keep their rate",
        ui=Field(hidden=True),
    )

    def conflicts(self) -> list[str]:
        return [
            f"past has {entry!r}; entries look like {{until: 400, steps: 1000}}, integers from 1 on."
            for entry in self.past
            if entry.keys() != {"until", "steps"} or not all(type(n) is int and n > 0 for n in entry.values())
        ]


def warmup_steps(config: ScheduleConfig, planned: int) -> int:
    """The steps of the warmup; below 1 the setting is a share of the planned steps."""
    return round(config.warmup * planned) if config.warmup < 1 else int(config.warmup)


def factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """Factor on the base learning rate at step `step` (counted from 1) of `steps`; 0 to 1."""
    # The first earlier curve that reaches this step applies; after all of them the present one.
    planned = next((entry["steps"] for entry in config.past if step <= entry["until"]), config.steps or steps)
    # After the curve its last value is held.
    step = min(step, planned)
    warmup = warmup_steps(config, planned)
    if step <= warmup:
        # The first step already moves, and step warmup + 1 has the full rate.
        return step / (warmup + 1)
    # From 0 at the first step after the warmup to below 1 at the last one: no step has a rate of 0.
    return SCHEDULES[config.name].factor((step - 1 - warmup) / max(1, planned - warmup), config.cycles)
