"""Which times a flow model is trained at: a row for each way to draw them. t = 0 is the image, t = 1 is noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

END = 2.0**-20  # t stays this far from 0 and from 1, which float32 would round some draws to


@dataclass(frozen=True)
class Sampling:
    """One row: `sample(batch, generator, config)` -> float32 [batch]; `config` is a LossConfig of `weightings`."""

    help: str
    sample: Callable[[int, torch.Generator, Any], torch.Tensor]


def sample(config: Any, batch: int, generator: torch.Generator) -> torch.Tensor:
    """Times of a batch, float32 [batch] in (0, 1), as `config.timestep_sampling` (of a LossConfig) says; on the CPU."""
    return TIMESTEPS[config.timestep_sampling].sample(batch, generator, config).clamp(END, 1 - END)


def shifted(t: torch.Tensor, shift: float) -> torch.Tensor:
    """t' = s t / (1 + (s - 1) t) (Esser et al. 2024, arXiv:2403.03206, eq. 23): above 1 moves times towards noise."""
    return shift * t / (1 + (shift - 1) * t)


def _uniform(batch: int, generator: torch.Generator, config: Any) -> torch.Tensor:
    import torch

    return torch.rand(batch, generator=generator)


def _sigmoid(batch: int, generator: torch.Generator, config: Any) -> torch.Tensor:
    import torch

    return torch.sigmoid(config.sigmoid_scale * torch.randn(batch, generator=generator))


def _logit_normal(batch: int, generator: torch.Generator, config: Any) -> torch.Tensor:
    """Esser et al. 2024, section 3.1: the logit of t is normal."""
    import torch

    return torch.sigmoid(config.logit_mean + config.logit_std * torch.randn(batch, generator=generator))


def _shift(batch: int, generator: torch.Generator, config: Any) -> torch.Tensor:
    return shifted(_sigmoid(batch, generator, config), config.shift)


TIMESTEPS = {
    "uniform": Sampling("every time alike", _uniform),
    "sigmoid": Sampling("mostly the middle, where most is learned; sigmoid_scale widens it", _sigmoid),
    "logit_normal": Sampling("mostly around a middle of your own: logit_mean, logit_std", _logit_normal),
    "shift": Sampling("as sigmoid, then moved towards noise by shift: more composition, less detail", _shift),
}
