"""A run that is cut anywhere, as often as you like, ends bit for bit where an uncut one ends."""

from __future__ import annotations

import random

import pytest
import torch
from sessions import HARD, TEXT, assert_same_end, at, copy_of, killed, merged, new_run, rates, trace, until
from tiny import save_sd15

from lorakit.config import ConfigError
from lorakit.events import Sampled, Saved, Started, Stepped
from lorakit.optimizers import OPTIMIZERS, OptimizerConfig, build
from lorakit.project import Project
from lorakit.run import checkpoint
from lorakit.training.loop import train

# HARD has 6 steps, 2 an epoch, and saves after steps 2, 4 and 6; each entry is one session's end
CUTS = {
    "before the first step": [at(Started, 0)],
    "inside an epoch, nothing saved yet": [at(Stepped, 1)],
    "right before a save": [at(Stepped, 2), at(Stepped, 4)],
    "right after a save": [at(Saved, 2), at(Saved, 4)],
    "after steps that were not saved": [at(Stepped, 3), at(Stepped, 3), at(Stepped, 5)],
    "right after the last save": [at(Saved, 6)],
    "after every event": [
        at(kind, step) for step in range(1, 7) for kind in ((Stepped, Saved) if step % 2 == 0 else (Stepped,))
    ],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_sd15(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def uncut_of(tmp_path_factory, base):
    """The uncut run of some settings, trained once for this file."""
    made = {}

    def uncut(*changes):
        key = repr(changes)
        if key not in made:
            made[key] = new_run(tmp_path_factory.mktemp("uncut") / "project", base, *changes)
            assert [event.step for event in train(made[key]) if isinstance(event, Saved)] == [2, 4, 6]
        return made[key]

    return uncut


@pytest.fixture(params=OPTIMIZERS)
def optimizer(request):
    """The name of every optimizer whose package is here."""
    try:
        build(OptimizerConfig(name=request.param), {"unet": ([torch.nn.Parameter(torch.zeros(1))], 1.0)})
    except ConfigError as error:
        pytest.skip(str(error))
    return request.param


# ---- cut between steps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
def test_a_run_cut_anywhere_ends_bitwise_where_an_uncut_one_does(tmp_path, base, uncut_of, cuts):
    run = new_run(tmp_path, base, HARD, TEXT)
    for cut in cuts:
        until(run, cut)
    list(train(run))
    assert_same_end(run, uncut_of(HARD, TEXT))


def test_that_holds_for_every_optimizer(tmp_path, base, uncut_of, optimizer):
    settings = merged(HARD, TEXT, rates(optimizer))
    run = new_run(tmp_path, base, settings)
    for cut in (at(Saved, 2), at(Stepped, 5)):
        until(run, cut)
    list(train(run))
    state = checkpoint.newest(run.states).state
    assert len(state["optimizer"]["state"]) == len(state["adapter"])  # it remembers something about every weight
    assert_same_end(run, uncut_of(settings))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"optimizer": {"learning_rate": 0.0, "text_encoder_lr": 1e-2}},
        {"loop": {"steps": 6, "gradient_accumulation_steps": 1}},
    ],
    ids=["frozen text", "only the text encoder", "a part of an epoch"],
)
def test_that_holds_for_other_kinds_of_runs(tmp_path, base, uncut_of, change):
    settings = merged(HARD, change)
    run = new_run(tmp_path, base, settings)
    for cut in (at(Saved, 2), at(Stepped, 5)):
        until(run, cut)
    list(train(run))
    assert_same_end(run, uncut_of(settings))


@pytest.mark.parametrize(
    "part, change",
    [
        ("data", {"flip_aug": False}),
        ("data", {"shuffle_caption": False}),
        ("data", {"caption_dropout_rate": 0.0}),
        ("data", {"caption_tag_dropout_rate": 0.0}),
        ("adapter", {"dropout": 0.0}),
        ("loss", {"weighting": "none"}),
        ("loss", {"noise_offset": 0.0}),
        ("schedule", {"warmup": 0}),
        ("schedule", {"cycles": 1}),
        ("loop", {"gradient_accumulation_steps": 1}),
        ("loop", {"seed": 43}),
        ("optimizer", {"text_encoder_stop_step": 0}),
    ],
)
def test_each_setting_of_these_runs_really_changes_them(tmp_path, base, uncut_of, part, change):
    run = new_run(tmp_path, base, HARD, TEXT, {part: change}, {"save": {"every_steps": 0}})
    uncut = trace(uncut_of(HARD, TEXT))
    until(run, lambda event: isinstance(event, Stepped) and trace(run)[event.step] != uncut.get(event.step))
    assert trace(run) != uncut


@pytest.mark.parametrize(
    "change", [TEXT, {"data": {"cache_latents": False, "cache_text": False}}], ids=["text", "none"]
)
def test_samples_change_nothing_in_the_run_and_may_be_asked_for_later(tmp_path, base, uncut_of, change):
    prompts = {"sample": {"prompts": ["mofu, girl", "red hat"], "every_steps": 1, "sampler": "euler_a"}}
    run = new_run(tmp_path, base, HARD, change, prompts)
    assert len([event for event in until(run, at(Stepped, 5)) if isinstance(event, Sampled)]) == 8
    new_run(tmp_path, base, HARD, change, {"save": {"every_steps": 2, "keep_states": 3}})  # free settings may change
    list(train(run))
    assert_same_end(run, uncut_of(HARD, change))


def test_a_finished_run_is_left_as_it_is(tmp_path, uncut_of):
    run = copy_of(uncut_of(HARD, TEXT), tmp_path / "again")
    assert [type(event).__name__ for event in train(run)] == ["Started", "Finished"]
    assert_same_end(run, uncut_of(HARD, TEXT))


# ---- killed ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kills", [15, 50])
def test_a_trainer_killed_many_times_ends_bitwise_where_an_undisturbed_one_does(tmp_path, base, kills):
    frequent = merged(HARD, TEXT, {"adapter": {"rank": 4}, "loop": {"epochs": 10}, "save": {"every_steps": 1}})
    new_run(tmp_path / "p", base, frequent)
    seed = random.SystemRandom().randrange(2**32)
    found = killed("often", folder=str(tmp_path / "p"), name="r", kills=kills, seed=seed)
    print(f"seed {seed}: {found['phases']}, {len(found['runs'])} runs, {found['seconds']:.1f} s")
    assert sum(found["phases"].values()) == kills
    assert len(found["phases"]) >= 2  # they came at different moments
    for folder in found["runs"]:
        assert_same_end(Project(folder).run("r"), Project(tmp_path / "p-uncut").run("r"))


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_trainer_killed_before_any_of_its_file_operations_ends_there_too(tmp_path, base, every):
    run = new_run(tmp_path / "p", base, HARD, {"loop": {"epochs": 2}, "save": {"every_steps": 1}})
    until(run, at(Saved, 3))
    first = random.SystemRandom().randrange(every)
    print(f"killed before operation {first} and every {every}. after it")
    folders = killed("everywhere", folder=str(tmp_path / "p"), name="r", first=first, every=every)
    assert len(folders) >= 8 // every
    for folder in folders:
        assert_same_end(Project(folder).run("r"), Project(tmp_path / "p-uncut").run("r"))
