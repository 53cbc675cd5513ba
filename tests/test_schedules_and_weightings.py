"""How the learning rate moves, and how much each timestep counts."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from each import each

from lorakit.diffusion import ddpm
from lorakit.diffusion.weightings import WEIGHTINGS
from lorakit.schedules import SCHEDULES, ScheduleConfig, factor


def curve(steps: int, **settings) -> list[float]:
    config = ScheduleConfig(**settings)
    return [factor(config, step, steps) for step in range(1, steps + 1)]


@each(product(SCHEDULES, [0, 0.1, 7, 0.999, 500], [1, 2, 10, 333]))
def test_every_factor_is_above_zero_and_at_most_one(name, warmup, steps):
    assert all(0 < value <= 1 for value in curve(steps, name=name, warmup=warmup, cycles=3))


@each(SCHEDULES)
def test_without_warmup_a_run_begins_at_the_full_rate(name):
    assert curve(100, name=name)[0] == 1


@each(product(SCHEDULES, [(20, 20), (0.1, 10), (0.25, 25), (1, 1), (99, 99)]))
def test_warmup_rises_evenly_to_the_full_rate_in_steps_or_as_a_share(name, warmup_and_risen):
    warmup, risen = warmup_and_risen
    rates = curve(100, name=name, warmup=warmup)
    assert rates[: risen + 1] == pytest.approx([(i + 1) / (risen + 1) for i in range(risen + 1)])


@each(SCHEDULES)
def test_after_the_warmup_the_whole_shape_follows(name):
    assert curve(120, name=name, warmup=20)[20:] == pytest.approx(curve(100, name=name))


@each(SCHEDULES)
def test_a_schedule_moves_in_small_steps_but_for_its_restarts(name):
    rates = curve(300, name=name, cycles=3, warmup=0.1)
    jumps = [i for i, (a, b) in enumerate(zip(rates, rates[1:], strict=False)) if abs(a - b) > 0.04]
    assert jumps == ([119, 209] if name == "cosine_with_restarts" else [])


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_falling_schedule_is_half_way_in_the_middle_and_near_zero_at_the_end(name):
    rates = curve(1000, name=name)
    assert rates == sorted(rates, reverse=True) and rates[500] == pytest.approx(0.5) and rates[-1] < 0.0011


def test_cosine_falls_slowly_at_both_ends():
    rates = curve(100, name="cosine")
    assert rates[0] - rates[10] < 0.03 and rates[45] - rates[55] > 0.15 and rates[90] < 0.03


def test_constant_stays():
    assert set(curve(50, name="constant")) == {1.0}


@pytest.mark.parametrize("cycles", [1, 2, 3, 7, 22, 49, 100])
def test_restarts_are_that_many_cosines_one_after_another(cycles):
    whole = curve(10 * cycles, name="cosine_with_restarts", cycles=cycles)
    assert whole == pytest.approx(curve(10, name="cosine") * cycles, abs=1e-6)


# ---- weightings --------------------------------------------------------------------------------------------------


def noised() -> tuple[torch.Tensor, ...]:
    abar = ddpm.alphas_cumprod({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
    abar = abar.double().reshape(-1, 1)
    draws = torch.Generator().manual_seed(0)
    x0, eps, wrong = (torch.randn(1000, 8, generator=draws, dtype=torch.float64) for _ in range(3))
    return abar, x0, eps, wrong


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weighs_the_error_of_the_clean_image_with_min_snr_gamma(prediction_type, gamma):
    """Hang et al. 2023, arXiv:2303.09556, eq. 8: the loss is min(SNR, gamma) |x0 - x0_predicted|^2 in any terms."""
    abar, x0, eps, wrong = noised()
    x_t = abar.sqrt() * x0 + (1 - abar).sqrt() * eps
    target = ddpm.target(x0, eps, abar, prediction_type)
    said = target + 0.1 * wrong
    if prediction_type == "epsilon":
        x0_said = (x_t - (1 - abar).sqrt() * said) / abar.sqrt()
    else:
        x0_said = abar.sqrt() * x_t - (1 - abar).sqrt() * said
    snr = (abar / (1 - abar)).flatten()
    expected = torch.minimum(snr, torch.tensor(gamma)) * (x0_said - x0).square().mean(1)
    got = WEIGHTINGS["min_snr"].weight(snr, prediction_type, gamma) * (said - target).square().mean(1)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_without_weighting_every_timestep_counts_one(prediction_type):
    assert WEIGHTINGS["none"].weight(torch.tensor([0.01, 5.0, 400.0]), prediction_type, 5.0).tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_weight_is_finite_between_zero_and_one_for_every_timestep(name, prediction_type):
    snr = (lambda abar: abar / (1 - abar))(noised()[0].flatten())
    weight = WEIGHTINGS[name].weight(snr, prediction_type, 5.0)
    assert weight.shape == snr.shape and bool(((weight > 0) & (weight <= 1)).all())
