"""Seeds never change in silence: a run that was begun goes on bit for bit with a newer version of the kit."""

from __future__ import annotations

import random

import pytest
import torch

from lorakit.data import DataConfig
from lorakit.data.captions import training_caption, variant
from lorakit.data.plan import Plan
from lorakit.randomness import generator, rng, seed_of


@pytest.mark.parametrize(
    ("keys", "seed"),
    [
        ((), 2847183694713211083),
        ((0,), 2631537505891389924),
        ((1,), 1695107200560264221),
        (("1",), 8650004321376049118),
        ((42, "plan"), 7925253634566407819),
        ((42, 7, "noise"), 609143266167872667),
        (("mofu, 帽子", 3), 6749081548343235296),
        (("\U0001fae8",), 2763632395361003827),  # a letter that Python 3.10 and 3.11 do not know yet
        ((2**63,), 8272099441332883007),
    ],
)
def test_a_seed_is_what_it_always_was(keys, seed):
    assert seed_of(*keys) == seed


def test_the_draws_of_a_seed_are_what_they_always_were():
    drawn_by, draws, letters = rng(42, "x"), generator(42, 7, "noise"), list("abcdef")
    assert [drawn_by.randrange(1000) for _ in range(4)] == [302, 360, 183, 572]
    assert drawn_by.random() == 0.3111506289008279
    assert drawn_by.sample(range(10), 10) == [4, 2, 9, 1, 0, 8, 6, 7, 3, 5]
    drawn_by.shuffle(letters)
    assert "".join(letters) == "baedfc"
    assert torch.randn(4, generator=draws).tolist() == pytest.approx([0.0279, -1.7916, 0.8567, 0.5192], abs=1e-4)
    assert torch.randint(0, 1000, (4,), generator=draws).tolist() == [41, 742, 378, 754]
    noise = torch.randn(2, 4, 4, 4, generator=draws).flatten()
    assert noise[-3:].tolist() == pytest.approx([-0.8347, -0.0527, 0.4235], abs=1e-4)


def test_captions_and_order_of_a_run_are_what_they_always_were():
    config = DataConfig(shuffle_caption=True, caption_tag_dropout_rate=0.3)
    assert variant("a, b, c, d, e, f", 2, config, 42) == "a, d, b, c"
    assert [training_caption("a, b, c, d, e, f", config, 42, step, 0) for step in range(3)] == [
        "a, f, d, b",
        "a, e, c, b",
        "a, e",
    ]
    plan = Plan(((0, 0, 1, 2, 3), (4, 5, 6)), batch_size=2, accumulation=2, epochs=3, max_steps=0, seed=42)
    assert [plan.micro_batches(step) for step in range(1, 5)] == [
        [[0], [0, 1]],
        [[4], [2, 3]],
        [[5, 6]],
        [[0], [5]],
    ]


def test_seeds_are_63_bits_and_every_key_and_its_kind_and_place_count():
    keys = [(a, b) for a in (0, 1, 2, "0", "1", "a") for b in (0, 1, 2, "0", "1", "a")] + [(0,), ("0, 1",), (0, 1, "")]
    seeds = {seed_of(*key) for key in keys}
    assert len(seeds) == len(keys) and all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62


def test_drawing_leaves_the_global_generators_alone():
    before = random.getstate(), torch.get_rng_state()
    rng(1).random(), torch.randn(3, generator=generator(1))
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])
