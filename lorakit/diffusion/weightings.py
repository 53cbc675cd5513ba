"""Weights of the loss, per timestep and per place: a row for each weighting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorakit.config import Config, Slider, setting
from lorakit.diffusion.timesteps import TIMESTEPS
from lorakit.machine.device import to_device

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Weighting:
    """One row: `weight(snr, prediction_type, gamma)` -> factor of the squared error, like snr [B].

    snr = abar_t / (1 - abar_t), the signal-to-noise ratio of x_t.
    """

    help: str
    weight: Callable[[torch.Tensor, str, float], torch.Tensor]


def _none(snr: torch.Tensor, prediction_type: str, gamma: float) -> torch.Tensor:
    return snr.new_ones(snr.shape)


def _min_snr(snr: torch.Tensor, prediction_type: str, gamma: float) -> torch.Tensor:
    """min(snr, gamma) on the error of x0 (Hang et al. 2023, arXiv:2303.09556, section 3.4).

    The error of eps is snr times that of x0, the error of v is snr + 1 times.
    """
    # weight of the x0 error, divided by what the error of eps or v already has
    return snr.clamp(max=gamma) / (snr if prediction_type == "epsilon" else snr + 1)


# The names are stored in configs.
WEIGHTINGS = {
    "none": Weighting("all timesteps have the same weight", _none),
    "min_snr": Weighting("timesteps with little noise have less weight: steadier, usually faster learning", _min_snr),
}


@dataclass(frozen=True, kw_only=True)
class LossConfig(Config):
    """How the loss is weighted, and which noise it is computed for."""

    weighting: str = setting("none", help="weight of each timestep (UNet models)", choices=lambda: WEIGHTINGS)
    min_snr_gamma: float = setting(
        5.0,
        help="lower = stronger effect; 5 is the paper's value, 20 has hardly any effect",
        range=(0.1, 20),
        ui=Slider(1, 20, 0.5, when=("weighting", ("min_snr",))),
    )
    noise_offset: float = setting(
        0.0,
        help="makes very dark and very bright images possible; 0.05 to 0.1 when used, 0 = off",
        range=(0, 1),
        ui=Slider(0, 0.2, 0.01),
    )
    timestep_sampling: str = setting(
        "uniform",
        help="times that are trained most in flow models (Anima); t = 1 is pure noise",
        choices=lambda: TIMESTEPS,
    )
    sigmoid_scale: float = setting(
        1.0,
        help="above 1 = more of both ends, below 1 = more of the middle",
        range=(0.1, 5),
        ui=Slider(0.1, 3, 0.1, when=("timestep_sampling", ("sigmoid", "shift"))),
    )
    logit_mean: float = setting(
        0.0,
        help="above 0 = more noise",
        range=(-5, 5),
        ui=Slider(-2, 2, 0.1, when=("timestep_sampling", ("logit_normal",))),
    )
    logit_std: float = setting(
        1.0,
        help="spread around the mean; lower = more of the centre",
        range=(0.1, 5),
        ui=Slider(0.1, 3, 0.1, when=("timestep_sampling", ("logit_normal",))),
    )
    shift: float = setting(
        3.0,
        help="t' = s t / (1 + (s - 1) t); above 1 = more noise",
        range=(0.1, 20),
        ui=Slider(0.1, 10, 0.1, when=("timestep_sampling", ("shift",))),
    )
    prior_loss_weight: float = setting(
        1.0,
        help="weight of regularization images in the loss (prior loss weight)",
        range=(0, 10),
        ui=Slider(0, 2, 0.05, label="regularization weight"),
    )


def masked(error: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The errors [B, C, h, w], weighted by place: `mask` is [B, 1, h, w] in 0..1, or None for all places equally.

    The mean is later taken over all places, as kohya's scripts do for alpha_mask and masked_loss: the more of a sample
    is masked out, the less weight it has.
    """
    # [B, 1, h, w] broadcasts over the channels.
    return error if mask is None else error * to_device(mask, error.device)
