"""How flow families draw the times of a step: a row for each sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Sampling:
    """One row: `draw(config, batch, generator)` -> t float32 [batch] in (0, 1), 1 being noise; a line of help."""

    help: str
    draw: Callable[[Any, int, torch.Generator], torch.Tensor]


def _uniform(config: Any, batch: int, generator: torch.Generator) -> torch.Tensor:
    import torch

    return torch.rand(batch, generator=generator)


def _sigmoid(config: Any, batch: int, generator: torch.Generator) -> torch.Tensor:
    import torch

    return torch.sigmoid(config.sigmoid_scale * torch.randn(batch, generator=generator))


def _logit_normal(config: Any, batch: int, generator: torch.Generator) -> torch.Tensor:
    """Esser et al. 2024, arXiv:2403.03206, section 3.1."""
    import torch

    return torch.sigmoid(config.logit_mean + config.logit_std * torch.randn(batch, generator=generator))


def _shift(config: Any, batch: int, generator: torch.Generator) -> torch.Tensor:
    t = _sigmoid(config, batch, generator)
    return config.shift * t / (1 + (config.shift - 1) * t)


TIMESTEPS = {
    "uniform": Sampling("every time alike", _uniform),
    "sigmoid": Sampling("more of the middle, where a character's shape is decided", _sigmoid),
    "logit_normal": Sampling("as sigmoid, with a mean: towards noise or towards detail", _logit_normal),
    "shift": Sampling("sigmoid, then moved towards noise: for large pictures", _shift),
}
