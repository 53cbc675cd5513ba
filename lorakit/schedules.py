"""Learning rate schedules: factor = f(absolute step, planned steps), a row each; nothing to restore."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lorakit.config import Config, Field, setting


@dataclass(frozen=True)
class Schedule:
    """One row: `factor(x, cycles)` for x = share of the run after warm-up, 0 <= x < 1."""

    help: str
    factor: Callable[[float, int], float]


SCHEDULES = {
    "constant": Schedule("the same rate all the time", lambda x, cycles: 1.0),
    "linear": Schedule("falls evenly to zero", lambda x, cycles: 1.0 - x),
    "cosine": Schedule("falls to zero, slowly at both ends", lambda x, cycles: (1 + math.cos(math.pi * x)) / 2),
    "cosine_with_restarts": Schedule(
        "falls to zero several times, jumping back up in between",
        # rounded, so that a restart that falls on a step is not put off to the next
        lambda x, cycles: (1 + math.cos(math.pi * (round(x * cycles, 9) % 1.0))) / 2,
    ),
}


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Config):
    """How the learning rate moves over the run."""

    name: str = setting(
        "cosine", help="shape of the learning rate over the run", choices=lambda: SCHEDULES, ui=Field(label="schedule")
    )
    warmup: float = setting(
        0.0, help="rise from zero over this many steps; a value below 1 is a share of the run", range=(0, None)
    )
    cycles: int = setting(
        1,
        help="how often cosine_with_restarts falls to zero",
        range=(1, 100),
        ui=Field(when=("name", ("cosine_with_restarts",))),
    )
    steps: int = setting(
        0,
        help="plan the shape over this many steps, then hold its last value; 0: over the whole run, or stage",
        range=(0, None),
    )
    past: tuple[dict, ...] = setting(
        (),
        help="how the shape was planned before the run was given more epochs, as {until: step, steps: planned}; "
        "written when that is done, so that steps which were trained keep the rate they had",
        ui=Field(hidden=True),
    )

    def conflicts(self) -> list[str]:
        return [
            f"past has {entry!r}; entries look like {{until: 400, steps: 1000}}, whole numbers from 1 on."
            for entry in self.past
            if entry.keys() != {"until", "steps"} or not all(type(n) is int and n > 0 for n in entry.values())
        ]


def factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """What the base learning rate is multiplied with at step `step` (counted from 1) of `steps`; 0 to 1."""
    planned = next((entry["steps"] for entry in config.past if step <= entry["until"]), config.steps or steps)
    step = min(step, planned)
    warmup = round(config.warmup * planned) if config.warmup < 1 else int(config.warmup)
    if step <= warmup:
        return step / (warmup + 1)
    return SCHEDULES[config.name].factor((step - 1 - warmup) / max(1, planned - warmup), config.cycles)
