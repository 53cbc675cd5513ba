"""Rectified flow training (Liu et al. 2022, arXiv:2209.03003): noise, noisy images x_t, the loss of the velocity.

One convention everywhere: t is in (0, 1), t = 0 is the image x0, t = 1 is the noise eps, x_t = (1 - t) x0 + t eps,
and the model predicts the velocity v = dx_t / dt = eps - x0. A shift s moves times to t' = s t / (1 + (s - 1) t),
above 1 towards noise. The times that training draws (`loss.timestep_sampling`) and those at which images are sampled
(`sample.shift`) are two settings.
"""

from __future__ import annotations

import torch

from lorakit.diffusion import timesteps
from lorakit.diffusion.weightings import LossConfig, masked
from lorakit.machine.device import to_device


def sample_noise(x0: torch.Tensor, generator: torch.Generator, loss: LossConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise eps, like x0 [B, ...], and times t, float32 [B] in (0, 1); drawn on the CPU, moved to x0's device."""
    # First the noise, then the times: a resumed run must draw the same.
    eps = torch.randn(x0.shape, generator=generator)
    t = timesteps.sample(loss, len(x0), generator)
    return to_device(eps, x0.device), to_device(t, x0.device)


def add_noise(x0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """x_t = (1 - t) x0 + t eps, like x0 [B, ...]; t is [B]."""
    t = t.view(-1, *[1] * (x0.ndim - 1))  # [B, 1, ...]
    return (1 - t) * x0 + t * eps


def loss(velocity: torch.Tensor, x0: torch.Tensor, eps: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean squared error of each sample's velocity, float32 [B]; x0 and eps are float32, all are [B, ...].

    mask    see `weightings.masked`
    """
    return masked((velocity - (eps - x0)).square(), mask).flatten(1).mean(dim=1)


def scheduler(sampler: str, config: dict, shift: float, steps: int):
    """The diffusers scheduler of a sampler (euler, dpmpp_2m), ready for `steps` steps: t of step i is `sigmas[i]`.

    config    of the base's FlowMatchEulerDiscreteScheduler
    shift     in place of the base's own; 0 keeps the base's

    Euler's times are linspace(1, 1 / steps, steps), shifted, as in diffusers' pipelines; those of DPM-Solver++
    (Lu et al. 2022, arXiv:2211.01095) start at 0.999, as it divides by 1 - t.
    """
    from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

    # A setting of 0 means the base's own.
    shift = shift or config["shift"]
    # the base model's configuration is of Euler's class, so the other one is built from the shift alone
    if sampler == "euler":
        sampling = FlowMatchEulerDiscreteScheduler.from_config({**config, "shift": shift})
        sampling.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps, dtype=torch.float64).tolist())
    else:
        sampling = DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, solver_order=2
        )
        sampling.set_timesteps(steps)
    # without it, each step would look for its own place by its timestep
    sampling.set_begin_index(0)
    return sampling
