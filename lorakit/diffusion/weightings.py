"""How much each timestep's error counts, and each image's: a row for each weighting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorakit.config import Config, Slider, setting
from lorakit.diffusion.timesteps import TIMESTEPS

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Weighting:
    """One row: `weight(snr, prediction_type, gamma)` -> factor of the squared error, like snr [B]."""

    help: str
    weight: Callable[[torch.Tensor, str, float], torch.Tensor]


def _none(snr: torch.Tensor, prediction_type: str, gamma: float) -> torch.Tensor:
    return snr.new_ones(snr.shape)


def _min_snr(snr: torch.Tensor, prediction_type: str, gamma: float) -> torch.Tensor:
    """Hang et al. 2023, arXiv:2303.09556: min(snr, gamma) of the x0 error, said in terms of eps or v."""
    return snr.clamp(max=gamma) / (snr if prediction_type == "epsilon" else snr + 1)


WEIGHTINGS = {
    "none": Weighting("every timestep counts alike", _none),
    "min_snr": Weighting("easy (nearly clean) timesteps count less: steadier, usually faster learning", _min_snr),
}


@dataclass(frozen=True, kw_only=True)
class LossConfig(Config):
    """What is summed up as the loss."""

    weighting: str = setting("none", help="how timesteps are weighted", choices=lambda: WEIGHTINGS)
    min_snr_gamma: float = setting(
        5.0,
        help="with min_snr: 1 is the strongest, 20 hardly does anything",
        range=(0.1, 20),
        ui=Slider(1, 20, 0.5, when=("weighting", ("min_snr",))),
    )
    noise_offset: float = setting(
        0.0, help="helps very dark and very bright images; 0.05 to 0.1 when used", range=(0, 1), ui=Slider(0, 0.2, 0.01)
    )
    timestep_sampling: str = setting(
        "uniform", help="how times are drawn in flow families (Anima); t = 1 is noise", choices=lambda: TIMESTEPS
    )
    sigmoid_scale: float = setting(
        1.0,
        help="with sigmoid and shift: above 1 more of the ends, below 1 more of the middle",
        range=(0.1, 5),
        ui=Slider(0.1, 3, 0.1, when=("timestep_sampling", ("sigmoid", "shift"))),
    )
    logit_mean: float = setting(
        0.0,
        help="with logit_normal: above 0 more noise",
        range=(-5, 5),
        ui=Slider(-2, 2, 0.1, when=("timestep_sampling", ("logit_normal",))),
    )
    logit_std: float = setting(
        1.0,
        help="with logit_normal: spread around the mean",
        range=(0.1, 5),
        ui=Slider(0.1, 3, 0.1, when=("timestep_sampling", ("logit_normal",))),
    )
    shift: float = setting(
        3.0,
        help="with shift: t' = s t / (1 + (s - 1) t); above 1 more noise",
        range=(0.1, 20),
        ui=Slider(0.1, 10, 0.1, when=("timestep_sampling", ("shift",))),
    )
    prior_loss_weight: float = setting(
        1.0,
        help="how much regularization images count",
        range=(0, 10),
        ui=Slider(0, 2, 0.05, label="regularization weight"),
    )


def masked(error: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The errors [B, C, h, w], each times how much its place counts: `mask` [B, 1, h, w] in 0..1, None for all alike.

    Their mean is taken over all places, as kohya's scripts do for alpha_mask and masked_loss: a sample counts the less
    the more of it is masked out.
    """
    return error if mask is None else error * mask.to(error.device)
