"""Rectified flow: times are drawn as each row says, and noise, target, loss and samplers keep one convention."""

from __future__ import annotations

import base64
import re
from math import erf, log, sqrt

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from lorakit.diffusion import flow, timesteps
from lorakit.diffusion.timesteps import TIMESTEPS
from lorakit.diffusion.weightings import LossConfig
from widgets.training import timesteps as view

SCHEDULER = dict(FlowMatchEulerDiscreteScheduler(shift=3.0).config)
DRAWS = 20_000


def times(seed: int = 0, **settings) -> torch.Tensor:
    return timesteps.sample(LossConfig(**settings), DRAWS, torch.Generator().manual_seed(seed))


def normal(x: float) -> float:
    """The normal distribution's cumulative probability."""
    return (1 + erf(x / sqrt(2))) / 2


def logit(t: float) -> float:
    return log(t / (1 - t))


# how often a time is at most t, by row
SHARE = {
    "uniform": lambda t: t,
    "sigmoid": lambda t: normal(logit(t) / 1.3),
    "logit_normal": lambda t: normal((logit(t) - 0.5) / 0.8),
    "shift": lambda t: normal(logit(t / (2.5 - 1.5 * t)) / 1.3),
}


@pytest.mark.parametrize("kind", TIMESTEPS)
def test_times_are_distributed_by_the_formula(kind):
    t = times(timestep_sampling=kind, sigmoid_scale=1.3, logit_mean=0.5, logit_std=0.8, shift=2.5)
    assert t.dtype == torch.float32 and t.shape == (DRAWS,)
    for limit in (0.05, 0.2, 0.5, 0.8, 0.95):
        assert (t <= limit).float().mean().item() == pytest.approx(SHARE[kind](limit), abs=0.015)


@pytest.mark.parametrize("kind", TIMESTEPS)
def test_times_lie_between_the_ends_even_at_extreme_settings(kind):
    for extreme in ({}, {"sigmoid_scale": 5.0, "logit_mean": 5.0, "logit_std": 5.0, "shift": 20.0}, {"shift": 0.1}):
        t = times(timestep_sampling=kind, **extreme)
        assert t.min() > 0 and t.max() < 1


@pytest.mark.parametrize("kind", TIMESTEPS)
def test_times_follow_from_the_generator_alone(kind):
    first, again, other = (times(seed, timestep_sampling=kind) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_mean_time_rises_with_shift():
    means = [times(timestep_sampling="shift", shift=shift).mean().item() for shift in (0.3, 1.0, 3.0, 9.0)]
    assert means == sorted(means) and means[1] == pytest.approx(0.5, abs=0.01)
    assert torch.equal(times(timestep_sampling="shift", shift=1.0), times(timestep_sampling="sigmoid"))


def test_noise_is_drawn_on_the_cpu_and_times_after_it():
    x0, generator = torch.zeros(4, 16, 8, 6), torch.Generator().manual_seed(5)
    eps, t = flow.sample_noise(x0, generator, LossConfig(timestep_sampling="sigmoid"))
    again = torch.Generator().manual_seed(5)
    assert torch.equal(eps, torch.randn(4, 16, 8, 6, generator=again))
    assert torch.equal(t, torch.sigmoid(torch.randn(4, generator=again)))


def test_time_zero_is_the_image_and_time_one_is_the_noise():
    x0, eps = torch.randn(3, 16, 4, 4), torch.randn(3, 16, 4, 4)
    xt = flow.add_noise(x0, eps, torch.tensor([0.0, 1.0, 0.25]))
    assert torch.equal(xt[0], x0[0]) and torch.equal(xt[1], eps[1])
    torch.testing.assert_close(xt[2], 0.75 * x0[2] + 0.25 * eps[2])


def test_the_loss_is_zero_for_the_velocity_from_image_to_noise():
    x0, eps = torch.randn(3, 16, 4, 4), torch.randn(3, 16, 4, 4)
    velocity = (flow.add_noise(x0, eps, torch.full((3,), 0.75)) - flow.add_noise(x0, eps, torch.full((3,), 0.25))) / 0.5
    torch.testing.assert_close(flow.loss(velocity, x0, eps), torch.zeros(3), rtol=0, atol=1e-10)
    off = flow.loss((eps - x0 + torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1)).half(), x0, eps)
    assert off.dtype == torch.float32
    torch.testing.assert_close(off, torch.tensor([1.0, 4.0, 9.0]), rtol=1e-2, atol=0)


@pytest.mark.parametrize("sampler", ("euler", "dpmpp_2m"))
@pytest.mark.parametrize("shift", (0.0, 1.0, 5.0))
def test_samplers_step_from_noise_to_the_image_at_shifted_times(sampler, shift):
    made = flow.scheduler(sampler, SCHEDULER, shift, 8)
    start = 1.0 if sampler == "euler" else 0.999
    even = torch.linspace(start, start / 8, 8)
    torch.testing.assert_close(
        made.sigmas, torch.cat([timesteps.shifted(even, shift or 3.0), torch.zeros(1)]), rtol=1e-3, atol=1e-4
    )
    x0, eps = torch.randn(1, 16, 4, 4), torch.randn(1, 16, 4, 4)
    x = eps
    for step, sigma in zip(made.timesteps, made.sigmas[:-1], strict=True):
        said = (x - x0) / sigma  # the velocity of a model that knows the image
        x = made.step(said, step, x, return_dict=False)[0]
    torch.testing.assert_close(x, x0, rtol=1e-3, atol=1e-4)


def test_the_plot_shows_what_is_drawn():
    even, middle = (view.densities(LossConfig(timestep_sampling=kind)) for kind in ("uniform", "sigmoid"))
    assert sum(even) == pytest.approx(len(even)) and max(even) < 1.2 and min(even) > 0.8
    assert middle[len(middle) // 2] > 1.4 and middle[0] < 0.1
    html = view.render(LossConfig(timestep_sampling="shift", shift=4.0))
    drawn = [base64.b64decode(data).decode() for data in re.findall(r"base64,([^\"]+)", html)]
    assert max(svg.count("z") for svg in drawn) >= view.BARS, "a closed shape for each bar"
    assert re.search(r"Shift, mean t 0\.7\d", html) and "mostly noise" in html
