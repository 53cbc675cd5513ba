"""Times that a flow model is trained at: a row for each distribution. t = 0 is the image, t = 1 is noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# t stays this far from 0 and from 1: float32 would round some draws to exactly these, where x_t is x0 or eps alone.
END = 2.0**-20


@dataclass(frozen=True)
class TimestepSampling:
    """One row: `sample(batch, generator, config)` -> float32 [batch]; `config` is a LossConfig of `weightings`."""

    help: str
    sample: Callable[[int, torch.Generator, Any], torch.Tensor]


def sample(config: Any, batch: int, generator: torch.Generator) -> torch.Tensor:
    """Times of a batch, float32 [batch] in (0, 1), on the CPU; drawn as `config` (a LossConfig) says."""
    # clamp draws nothing, so the generator's state depends on the batch alone.
    return TIMESTEPS[config.timestep_sampling].sample(batch, generator, config).clamp(END, 1 - END)


def shifted(t: torch.Tensor, shift: float) -> torch.Tensor:
    """t' = s t / (1 + (s - 1) t) (Esser et al. 2024, arXiv:2403.03206, eq. 23): above 1 moves times towards noise."""
    # At the ends it changes nothing: 0 stays 0 and 1 stays 1.
    return shift * t / (1 + (shift - 1) * t)


def _uniform(batch: int, generator: torch.Generator, config: Any) -> torch.Tensor:
    import torch

    return torch.rand(batch, generator=generator)


def _sigmoid(batch: int, generator: torch.Generator, config: Any) -> torch.Tensor:
    """t = sigmoid(s n) with n normal, as sd-scripts."""
    import torch

    return torch.sigmoid(config.sigmoid_scale * torch.randn(batch, generator=generator))


def _logit_normal(batch: int, generator: torch.Generator, config: Any) -> torch.Tensor:
    """The logit of t is normal (Esser et al. 2024, arXiv:2403.03206, section 3.1)."""
    import torch

    return torch.sigmoid(config.logit_mean + config.logit_std * torch.randn(batch, generator=generator))


def _shift(batch: int, generator: torch.Generator, config: Any) -> torch.Tensor:
    return shifted(_sigmoid(batch, generator, config), config.shift)


# The names are stored in configs; sd-scripts calls them timestep_sampling, too.
TIMESTEPS = {
    "uniform": TimestepSampling("all times equally often", _uniform),
    "sigmoid": TimestepSampling("mostly the middle, where most is learned; the sigmoid scale widens it", _sigmoid),
    "logit_normal": TimestepSampling("mostly around a centre that you choose: logit mean and std", _logit_normal),
    "shift": TimestepSampling("as sigmoid, then shifted towards noise: more composition, less detail", _shift),
}
