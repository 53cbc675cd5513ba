"""Every sample is seen as often as announced, and counts as much as any other."""

from __future__ import annotations

import random
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
from each import each
from sessions import new_run
from tiny import save_images, save_sd15

from lorakit.data.scan import Sample, Scan
from lorakit.events import Finished, Started, Stepped
from lorakit.run.config import configure
from lorakit.run.stages import make_plan
from lorakit.training.loop import Session, train

SEEDS = range(40)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_sd15(tmp_path_factory.mktemp("base"))


def random_case(seed):
    """A random dataset, and the plan of a random run over it."""
    draw = random.Random(seed)
    samples = tuple(
        Sample(str(i), Path(), "", draw.choice((512, 640, 768)), draw.choice((512, 640, 768)), "", draw.randint(1, 5))
        for i in range(draw.randint(1, 30))
    )
    loop = {
        "batch_size": draw.randint(1, 8),
        "gradient_accumulation_steps": draw.randint(1, 5),
        "epochs": draw.randint(1, 4),
        "seed": seed,
    }
    config = configure({"model": {"family": "sd15", "source": "demo"}, "loop": loop})
    return samples, config, make_plan(config, Scan(samples, ()))


# ---- the plan --------------------------------------------------------------------------------------------------------


@each(SEEDS)
def test_every_sample_is_seen_exactly_repeats_times_an_epoch(seed):
    samples, config, plan = random_case(seed)
    seen: dict[int, Counter] = {}
    for step in range(1, plan.steps + 1):
        seen.setdefault(plan.epoch_of(step), Counter()).update(i for micro in plan.micro_batches(step) for i in micro)
    assert list(seen) == list(range(1, config.loop.epochs + 1))
    for counts in seen.values():
        assert counts == {i: sample.repeats for i, sample in enumerate(samples)}


@each(SEEDS)
def test_a_step_has_full_batches_of_one_shape_and_the_leftover_is_stepped_too(seed):
    samples, config, plan = random_case(seed)
    for step in range(1, plan.steps + 1):
        micro_batches = plan.micro_batches(step)
        assert 1 <= len(micro_batches) <= config.loop.gradient_accumulation_steps
        assert len(micro_batches) == config.loop.gradient_accumulation_steps or plan.ends_epoch(step)
        for micro in micro_batches:
            assert 1 <= len(micro) <= config.loop.batch_size
            assert len({frozenset(bucket) for bucket in plan.buckets if bucket and set(micro) <= set(bucket)}) == 1


def test_the_order_differs_from_epoch_to_epoch_and_from_seed_to_seed():
    samples = tuple(Sample(str(i), Path(), "", 512, 512, "", 1) for i in range(20))

    def order(epoch, seed):
        config = configure({"model": {"family": "sd15", "source": "demo"}, "loop": {"epochs": 2, "seed": seed}})
        plan = make_plan(config, Scan(samples, ()))
        first = (epoch - 1) * plan.steps_per_epoch
        return [i for step in range(first + 1, first + 21) for micro in plan.micro_batches(step) for i in micro]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(2, 0) and order(1, 0) != order(1, 1)


@pytest.mark.parametrize(
    "loop, steps",
    [
        ({"epochs": 1, "batch_size": 1}, 7),
        ({"epochs": 1, "batch_size": 2, "gradient_accumulation_steps": 3}, 2),
        ({"epochs": 3, "batch_size": 4, "gradient_accumulation_steps": 2}, 6),
        ({"epochs": 3, "steps": 4, "batch_size": 3}, 4),
        ({"epochs": 1, "steps": 9, "batch_size": 8}, 9),
    ],
)
def test_the_steps_announced_are_the_steps_taken(tmp_path, base, loop, steps):
    seen = list(train(new_run(tmp_path, base, {"loop": loop})))
    (started,) = [event for event in seen if isinstance(event, Started)]
    assert started.steps == steps and started.images == 7
    assert [event.step for event in seen if isinstance(event, Stepped)] == list(range(1, steps + 1))
    assert isinstance(seen[-1], Finished) and seen[-1].step == steps


# ---- the weight of a sample ------------------------------------------------------------------------------------------


def first_step(run):
    """The session after its first step, the event of it, and what its micro-batches put into the model's loss, what
    came out, and the step's gradients by weight."""
    session, inputs, losses, gradients = Session(run), [], [], []
    inner = session.model.loss

    def loss(*arguments):
        inputs.append(arguments)
        losses.append(inner(*arguments))
        return losses[-1]

    session.model.loss = loss
    for event in session.events(threading.Event()):
        if isinstance(event, Started):
            session.optimizer.register_step_pre_hook(lambda *_: gradients.extend(w.grad for w in trained(session)))
        if isinstance(event, Stepped):
            session.model.loss = inner
            return session, event, inputs, losses, gradients


def trained(session):
    """The trained weights, in order."""
    return [weight for group in session.optimizer.param_groups for weight in group["params"]]


def test_a_step_of_uneven_batches_has_the_gradient_of_one_big_batch(tmp_path, base):
    uneven = {"batch_size": 2, "gradient_accumulation_steps": 3}
    run = new_run(tmp_path, base, {"loop": uneven, "optimizer": {"max_grad_norm": 0.0}}, sizes=((64, 64),) * 5)
    _, _, inputs, _, gradients = first_step(run)
    assert sorted(len(x0) for x0, *_ in inputs) == [1, 2, 2]
    assert len({noise.sum().item() for _, eps, *_ in inputs for noise in eps}) == 5  # each sample has its own
    fresh = Session(run)  # with the weights as they were before that step
    stream = fresh.events(threading.Event())
    while not isinstance(next(stream), Started):
        pass
    x0, eps, t = (torch.cat([one[i] for one in inputs]) for i in range(3))
    text = {"hidden": torch.cat([one[3]["hidden"] for one in inputs])}
    fresh.model.loss(x0, eps, t, text, fresh.config.loss).mean().backward()
    assert max(gradient.abs().max() for gradient in gradients) > 1e-4
    for weight, gradient in zip(trained(fresh), gradients, strict=True):
        torch.testing.assert_close(gradient, weight.grad, rtol=1e-4, atol=1e-7)


def test_the_loss_of_a_step_is_the_mean_over_its_samples_with_regularization_images_weighted(tmp_path, base):
    folder = save_images(tmp_path / "dataset", sizes=((64, 64),) * 5)
    save_images(folder / "reg", repeats=2, sizes=((64, 64),) * 2)
    loop = {"batch_size": 2, "gradient_accumulation_steps": 9}
    session, event, _, losses, _ = first_step(
        new_run(tmp_path, base, {"loop": loop, "loss": {"prior_loss_weight": 0.25}})
    )
    samples = [session.stage.scan.samples[index] for micro in session.stage.plan.micro_batches(1) for index in micro]
    weights = torch.tensor([0.25 if sample.is_reg else 1.0 for sample in samples])
    assert sorted(weights.tolist()) == [0.25] * 4 + [1.0] * 5
    assert event.loss == pytest.approx((torch.cat(losses).detach() * weights).mean().item(), rel=1e-6)
