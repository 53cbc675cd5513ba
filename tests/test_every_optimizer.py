"""Every optimizer descends, continues bit for bit after a reload, and refuses unknown arguments."""

from __future__ import annotations

import io
import math
import sys

import pytest
import torch
from sessions import assert_same_bits

from lorakit.config import ConfigError
from lorakit.optimizers import OPTIMIZERS, OptimizerConfig, build, effective_rate, set_rates

pytestmark = pytest.mark.filterwarnings("ignore")  # of the optional packages, while they are imported

OPTIONAL = {name: row.package for name, row in OPTIMIZERS.items() if row.package}
WELL = torch.linspace(-1, 1, 64 * 96).reshape(64, 96)  # 6144 weights: above 4096 an 8 bit optimizer is one


class Descent:
    """A quadratic well and an optimizer in it; the gradient of a step depends on the step alone."""

    def __init__(self, name: str, rate: float = 0.0):
        row = OPTIMIZERS[name]
        self.rate = rate or row.learning_rate
        self.weights = [torch.nn.Parameter(torch.zeros(64, 96)), torch.nn.Parameter(torch.zeros(64, 96))]
        self.optimizer = build(
            OptimizerConfig(name=name, learning_rate=self.rate),
            {"unet": ([self.weights[0]], self.rate), "text_encoder": ([self.weights[1]], self.rate)},
        )

    def loss(self) -> torch.Tensor:
        return sum((weight - WELL).square().sum() for weight in self.weights)

    def walk(self, first: int, last: int) -> Descent:
        for step in range(first, last + 1):
            set_rates(self.optimizer, 1 - step / 400)
            self.optimizer.zero_grad(set_to_none=True)
            (self.loss() * (1 + 0.5 * math.sin(step))).backward()
            self.optimizer.step()
        return self

    def saved(self) -> bytes:
        file = io.BytesIO()
        torch.save([self.optimizer.state_dict(), [weight.detach() for weight in self.weights]], file)
        return file.getvalue()

    def loaded(self, data: bytes) -> Descent:
        state, weights = torch.load(io.BytesIO(data), weights_only=True)
        for mine, theirs in zip(self.weights, weights, strict=True):
            mine.data.copy_(theirs)
        self.optimizer.load_state_dict(state)
        return self


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_goes_downhill(name):
    descent = Descent(name, rate=0 if OPTIMIZERS[name].adapts_rate else 2e-2)
    before = descent.loss().item()
    assert descent.walk(1, 100).loss().item() < 0.05 * before


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("cut", [0, 1, 7])
def test_saved_and_loaded_it_continues_bit_for_bit(name, cut):
    uncut = Descent(name).walk(1, 20)
    saved = Descent(name).walk(1, cut).saved()
    resumed = Descent(name).loaded(saved).walk(cut + 1, 20)
    assert all(map(torch.equal, uncut.weights, resumed.weights))
    assert same(uncut.optimizer.state_dict(), resumed.optimizer.state_dict())
    assert Descent(name).loaded(saved).saved() == saved, "loading loses nothing"


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_without_a_gradient_stay_where_they_are(name):
    descent = Descent(name).walk(1, 3)
    before = descent.weights[1].detach().clone()
    descent.weights[1].requires_grad_(False)
    descent.optimizer.zero_grad(set_to_none=True)
    descent.loss().backward()
    descent.optimizer.step()
    assert torch.equal(descent.weights[1], before) and not torch.equal(descent.weights[0], before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_groups_keep_their_part_and_the_rate_follows_the_schedule(name):
    descent = Descent(name)
    set_rates(descent.optimizer, 0.25)
    assert [group["part"] for group in descent.optimizer.param_groups] == ["unet", "text_encoder"]
    assert [group["lr"] for group in descent.optimizer.param_groups] == [descent.rate / 4] * 2
    own = descent.optimizer.param_groups[0]["d"] if OPTIMIZERS[name].adapts_rate else 1
    assert effective_rate(descent.optimizer) == descent.rate / 4 * own


def test_each_part_moves_at_its_own_rate():
    weights = [torch.nn.Parameter(torch.zeros(3)) for _ in range(2)]
    optimizer = build(OptimizerConfig(), {"unet": ([weights[0]], 1e-2), "text_encoder": ([weights[1]], 1e-3)})
    for weight in weights:
        weight.grad = torch.ones(3)
    optimizer.step()
    assert weights[0].tolist() == pytest.approx([-1e-2] * 3) and weights[1].tolist() == pytest.approx([-1e-3] * 3)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"wieght_decay": 0.1}, "wieght_decay"),
        ({"betas": [0.9]}, "optimizer.args.betas is (0.9,); expected a list like [0.9, 0.999]"),
        ({"betas": 0.9}, "optimizer.args.betas is 0.9; expected a list like"),
        ({"betas": [2, 0.9]}, "optimizer.args {'betas': [2, 0.9]} do not fit"),
        ({"weight_decay": "much"}, "optimizer.args {'weight_decay': 'much'} do not fit"),
        ({"lr": 1.0}, "set optimizer.learning_rate"),
        ({"params": []}, "optimizer.args {'params': []} do not fit"),
    ],
)
def test_arguments_that_it_does_not_know_are_refused_in_one_sentence(name, args, message):
    with pytest.raises(ConfigError) as caught:
        build(OptimizerConfig(name=name, args=args), {"unet": ([torch.nn.Parameter(torch.zeros(3))], 1.0)})
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_its_arguments_reach_it(name):
    config = OptimizerConfig(name=name, args={"betas": [0.8, 0.9], "weight_decay": 0.5})
    group = build(config, {"unet": ([torch.nn.Parameter(torch.zeros(3))], 1.0)}).param_groups[0]
    assert tuple(group["betas"]) == (0.8, 0.9) and group["weight_decay"] == 0.5


@pytest.mark.parametrize(("name", "package"), OPTIONAL.items())
def test_a_missing_package_is_named_with_its_install_line(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as caught:
        build(OptimizerConfig(name=name), {"unet": ([torch.nn.Parameter(torch.zeros(3))], 1.0)})
    assert str(caught.value).startswith(f"This optimizer needs the package {package}")
    assert f"pip install {package}" in str(caught.value) and "optimizer.name adamw" in str(caught.value)


def test_every_row_has_a_line_of_help_and_a_rate_within_the_settings_range():
    for name, row in OPTIMIZERS.items():
        assert row.help and OptimizerConfig(name=name, learning_rate=row.learning_rate)


PRODIGY = {
    "as we set it": {},
    "without the safeguard or corrections": {"safeguard_warmup": False, "use_bias_correction": False},
    "with its other numbers": {"weight_decay": 0.0, "growth_rate": 1.02, "beta3": 0.9, "d0": 1e-4, "eps": 1e-6},
    "with what is left to prodigyopt": {"decouple": False, "slice_p": 3},
}


@pytest.mark.parametrize("args", PRODIGY.values(), ids=PRODIGY)
def test_prodigy_gives_the_bits_of_prodigyopt(args):
    prodigyopt = pytest.importorskip("prodigyopt")
    from lorakit.optimizers.prodigy import Prodigy

    def walked(kind) -> tuple[list, dict]:
        draws = torch.Generator().manual_seed(1)
        # as in a LoRA: one matrix is 0 in the beginning, one learns nothing until later
        weights = [torch.nn.Parameter(torch.randn(8, 6, generator=draws) * scale) for scale in (1, 0, 1)]
        groups = [{"params": weights[:2], "lr": 1.0}, {"params": weights[2:], "lr": 1.0}]
        optimizer = kind(groups, **{**OPTIMIZERS["prodigy"].defaults, **args})
        for step in range(31):
            for weight in weights[: 2 if step < 4 else 3]:
                weight.grad = torch.randn(weight.shape, generator=draws) + 3
            for group in optimizer.param_groups:
                group["lr"] = 1.0 - step / 30  # 0 in the last step
            optimizer.step()
        return weights, optimizer.state_dict()

    ours, theirs = walked(Prodigy), walked(prodigyopt.Prodigy)
    assert all(torch.equal(one, other) for one, other in zip(ours[0], theirs[0], strict=True))
    assert_same_bits(ours[1], theirs[1])
    found = ours[1]["param_groups"][0]
    assert found["d0"] < found["d"] < math.inf and found["k"] == 30
