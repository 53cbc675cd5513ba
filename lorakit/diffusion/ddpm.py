"""DDPM training (Ho et al. 2020, arXiv:2006.11239): noise, noisy images x_t, and what the model predicts."""

from __future__ import annotations

import torch

from lorakit.machine.device import to_device

# Training timesteps t = 0..999, for all Stable Diffusion models.
STEPS = 1000


def alphas_cumprod(scheduler: dict) -> torch.Tensor:
    """abar_t, float32 [1000], of a diffusers scheduler configuration (beta_schedule, beta_start, beta_end)."""
    from diffusers import DDPMScheduler

    # Only what decides the schedule: a base's configuration also has settings of its own sampler.
    names = ("beta_schedule", "beta_start", "beta_end", "trained_betas", "rescale_betas_zero_snr")
    # built by diffusers, so that training and sampling agree on every schedule
    return DDPMScheduler(STEPS, **{name: scheduler[name] for name in names if name in scheduler}).alphas_cumprod


def sample_noise(
    x0: torch.Tensor, generator: torch.Generator, noise_offset: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise eps, like x0 [B, C, h, w], and timesteps t, int64 [B]; drawn on the CPU, moved to x0's device.

    noise_offset adds a normal shift per image and channel (crosslabs.org, "Diffusion with Offset Noise", 2023).
    """
    batch, channels = x0.shape[:2]
    # The order of these draws is part of every stored run: a resumed run must draw the same.
    eps = torch.randn(x0.shape, generator=generator)  # [B, C, h, w]
    t = torch.randint(0, STEPS, (batch,), generator=generator)  # [B]
    if noise_offset:
        # [B, C, 1, 1]: the same for all places of a channel, so it shifts the mean brightness.
        eps += noise_offset * torch.randn((batch, channels, 1, 1), generator=generator)
    return to_device(eps, x0.device), to_device(t, x0.device)


def add_noise(x0: torch.Tensor, eps: torch.Tensor, abar: torch.Tensor) -> torch.Tensor:
    """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps (eq. 4), [B, C, h, w]; abar is [B, 1, 1, 1]."""
    return abar.sqrt() * x0 + (1 - abar).sqrt() * eps


def target(x0: torch.Tensor, eps: torch.Tensor, abar: torch.Tensor, prediction_type: str) -> torch.Tensor:
    """What the model should predict, like x0: eps, or v = sqrt(abar) eps - sqrt(1 - abar) x0.

    v prediction: Salimans & Ho 2022, arXiv:2202.00512, appendix D.
    """
    return eps if prediction_type == "epsilon" else abar.sqrt() * eps - (1 - abar).sqrt() * x0


def scheduler(sampler: str, config: dict):
    """The diffusers scheduler of a sampler (ddim, euler, euler_a, dpmpp_2m) for a base's scheduler configuration."""
    import diffusers

    name = {
        "ddim": "DDIMScheduler",
        "euler": "EulerDiscreteScheduler",
        "euler_a": "EulerAncestralDiscreteScheduler",
        "dpmpp_2m": "DPMSolverMultistepScheduler",
    }
    # from_config keeps prediction type and zero terminal SNR of the base model
    return getattr(diffusers, name[sampler]).from_config(config)
