"""More epochs and further stages for a run that has begun or finished: what was trained stays; it continues exactly."""

from __future__ import annotations

import os

import pytest
from sessions import HARD, TEXT, assert_same_end, at, copy_of, merged, new_run, trace, until
from tiny import save_sd15

from lorakit.config import ConfigError, read_yaml
from lorakit.events import Finished, Saved, Stepped
from lorakit.files import write_json
from lorakit.project.lock import RunBusy, lock_run
from lorakit.run import checkpoint
from lorakit.run.checkpoint import STATE
from lorakit.run.config import configure, read_config
from lorakit.run.create import save_config
from lorakit.run.extend import (
    NothingToDo,
    add_stage,
    amend,
    extend_run,
    history,
    more_epochs,
    steps_per_epoch,
    with_stage,
)
from lorakit.run.resume import RunChanged, load_record
from lorakit.run.stages import lr_curve
from lorakit.training.loop import train

# 2 steps an epoch; the learning rate falls from step to step
FALLING = merged(HARD, TEXT, {"schedule": {"name": "linear", "warmup": 0}, "loop": {"epochs": 2}})
STAGE = {"loop": {"epochs": 1, "batch_size": 3}, "schedule": {"name": "cosine"}, "data": {"resolution": 96}}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_sd15(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def half(tmp_path_factory, base):
    """A run of 4 steps, cut after the save of step 2; only to be copied."""
    run = new_run(tmp_path_factory.mktemp("half") / "project", base, FALLING)
    until(run, at(Saved, 2))
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory, half):
    """The same run, finished; only to be copied."""
    run = copy_of(half, tmp_path_factory.mktemp("whole") / "project")
    list(train(run))
    return run


def rates(run) -> list[float]:
    """The factors of the denoiser's rate that were trained with."""
    return [line[2] / 1e-2 for line in trace(run).values()]


# ---- more epochs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "way, expected",
    [
        ("stretch", [1, 3 / 4, 2 / 4, 1 / 4, 2 / 6, 1 / 6]),  # linear over 6, from step 5 on
        ("hold", [1, 3 / 4, 2 / 4, 1 / 4, 1 / 4, 1 / 4]),
    ],
)
def test_a_finished_run_gets_more_epochs_at_the_rates_that_were_shown(tmp_path, whole, way, expected):
    run = copy_of(whole, tmp_path / "p")
    before = trace(run)
    shown = lr_curve(more_epochs(run, 3, way), (2,))
    assert read_config(run) == read_config(whole)  # that was only looked at
    extend_run(run, 3, way)
    assert [event.step for event in train(run) if isinstance(event, (Stepped, Finished))] == [5, 6, 6]
    assert rates(run) == pytest.approx(expected) and [rate * 1e-2 for rate in rates(run)] == pytest.approx(shown)
    assert {step: trace(run)[step] for step in before} == before


@pytest.mark.parametrize("way", ["stretch", "hold", "stage"])
def test_a_run_extended_in_the_middle_and_then_cut_ends_bitwise_where_it_ends_uncut(tmp_path, half, way):
    runs = [copy_of(half, tmp_path / name) for name in ("uncut", "cut", "damaged")]
    for run in runs:
        add_stage(run, STAGE) if way == "stage" else extend_run(run, 4, way)
    list(train(runs[0]))
    for cut in (at(Stepped, 3), at(Saved, 4)):
        until(runs[1], cut)
    list(train(runs[1]))
    assert_same_end(runs[1], runs[0])
    # from a state before the extension, the steps up to it are done again as they were
    until(runs[2], at(Saved, 4))
    (runs[2].states / "00000004" / STATE).unlink()
    list(train(runs[2]))
    assert_same_end(runs[2], runs[0])


def test_steps_done_again_from_before_an_extension_have_the_rates_they_had(tmp_path, whole, half):
    """The newest state is lost: the run resumes from step 2, though it was stretched at step 4."""
    run, same = (copy_of(whole, tmp_path / name) for name in ("p", "same"))
    for extended in (run, same):
        extend_run(extended, 3, "stretch")
    (run.states / "00000004" / STATE).unlink()
    list(train(run))
    list(train(same))
    assert rates(run)[2:4] == pytest.approx([2 / 4, 1 / 4])
    assert_same_end(run, same)


def test_a_run_may_be_extended_again_and_again(tmp_path, whole):
    run = copy_of(whole, tmp_path / "p")
    extend_run(run, 3, "hold")
    until(run, at(Saved, 6))
    extend_run(run, 4, "stretch")
    list(train(run))
    assert rates(run) == pytest.approx([1, 3 / 4, 2 / 4, 1 / 4, 1 / 4, 1 / 4, 2 / 8, 1 / 8])
    extend_run(run, 5, "hold")
    list(train(run))
    assert rates(run)[8:] == pytest.approx([1 / 8, 1 / 8])
    assert [entry["step"] for entry in history(run)] == [4, 6, 8]
    assert "loop.epochs: 2 -> 3" in history(run)[0]["changes"]


def test_a_run_that_has_not_begun_is_only_planned_anew(tmp_path, base):
    run = new_run(tmp_path, base, FALLING)
    extend_run(run, 4, "stretch")
    assert read_config(run).loop.epochs == 4 and read_config(run).schedule.past == ()
    extend_run(run, 6, "hold")
    assert lr_curve(read_config(run), (2,))[8:] == pytest.approx([1e-2 / 8] * 4)
    assert history(run) == []


@pytest.mark.parametrize("epochs", [0, 1, 2])
def test_epochs_that_are_trained_or_planned_already_are_refused(tmp_path, whole, epochs):
    run = copy_of(whole, tmp_path / "p")
    before = run.config_file.read_text(), run.record_file.read_text()
    with pytest.raises(NothingToDo, match="nothing was changed"):
        extend_run(run, epochs, "stretch")
    assert (run.config_file.read_text(), run.record_file.read_text()) == before
    assert [type(event) for event in train(run) if isinstance(event, Stepped)] == []


def test_planned_epochs_may_become_fewer_while_they_are_not_trained(tmp_path, base):
    run = new_run(tmp_path, base, FALLING, {"loop": {"epochs": 5}})
    until(run, at(Saved, 2))
    with pytest.raises(NothingToDo):
        extend_run(run, 1, "hold")
    extend_run(run, 2, "hold")
    list(train(run))
    assert rates(run) == pytest.approx([1, 9 / 10, 8 / 10, 7 / 10])


def test_a_run_that_ends_inside_an_epoch_continues_inside_it(tmp_path, base, whole):
    """What is trained is that of a run which was asked for all epochs at first, but for the rate."""
    even = merged(FALLING, {"schedule": {"name": "constant"}})
    run, asked = new_run(tmp_path / "p", base, even, {"loop": {"steps": 3}}), new_run(tmp_path / "q", base, even)
    list(train(run))
    extend_run(run, 2, "hold")
    list(train(run))
    list(train(asked))
    assert trace(run) == trace(asked)


# ---- stages ----------------------------------------------------------------------------------------------------------


def test_a_finished_run_gets_a_stage_and_then_more_epochs_of_it(tmp_path, whole):
    run = copy_of(whole, tmp_path / "p")
    add_stage(run, STAGE)
    assert history(run)[0]["step"] == 4 and "stages" in history(run)[0]["changes"][0]
    list(train(run))
    assert len(trace(run)) == 6
    extend_run(run, 2, "stretch")
    assert lr_curve(read_config(run), steps_per_epoch(run, read_config(run)))[:4] == lr_curve(read_config(whole), (2,))
    list(train(run))
    assert rates(run) == pytest.approx([1, 3 / 4, 2 / 4, 1 / 4, 1, 1 / 2, 1 / 2, 0.5 - 2**-1.5], abs=1e-6)
    assert read_config(run).loop.epochs == 2 and read_config(run).schedule.past == ()


def test_stages_that_have_not_begun_may_be_changed_and_removed_and_those_that_have_may_not(tmp_path, half):
    run = copy_of(half, tmp_path / "p")
    config = with_stage(run, STAGE)
    amend(run, config)
    add_stage(run, {"loop": {"epochs": 3}})
    settings = read_yaml(run.config_file)
    amend(run, configure({**settings, "stages": [{**STAGE, "loss": {"noise_offset": 0.0}}]}))
    until(run, at(Saved, 6))
    for stages in ([], [STAGE], [{**STAGE, "data": {"resolution": 96, "trigger": "x"}}]):
        with pytest.raises(RunChanged, match=r"stages\.2"):
            amend(run, configure({**settings, "stages": stages}))
    amend(run, configure({**settings, "stages": [{**STAGE, "loss": {"noise_offset": 0.0}}, {"loop": {"steps": 1}}]}))
    list(train(run))
    assert len(trace(run)) == 7


@pytest.mark.parametrize(
    "change, message",
    [
        ({"adapter": {"rank": 3}}, r"adapter\.rank: 2 -> 3"),
        ({"optimizer": {"learning_rate": 1e-3}}, r"optimizer\.learning_rate: 0\.01 -> 0\.001"),
        ({"loop": {"epochs": 3}}, "had other learning rates"),
        ({"loop": {"steps": 1}}, "had other learning rates or would not exist"),
        ({"schedule": {"name": "constant"}}, r"schedule\.name: linear -> constant"),
        ({"stages": [{"loop": {"epochs": 1}, "optimizer": {"text_encoder_lr": 0.0}}]}, ""),
    ],
)
def test_nothing_that_was_trained_may_change(tmp_path, half, change, message):
    run = copy_of(half, tmp_path / "p")
    before = run.config_file.read_text(), run.record_file.read_text()
    config = configure(merged(read_yaml(run.config_file), change))
    if not message:
        amend(run, config)
        return
    with pytest.raises(RunChanged, match=message):
        amend(run, config)
    assert (run.config_file.read_text(), run.record_file.read_text()) == before


def test_a_part_that_no_stage_trained_cannot_join_later(tmp_path, base):
    run = new_run(tmp_path, base, HARD)
    until(run, at(Saved, 2))
    with pytest.raises(RunChanged, match="adapter on unet; now it would be on unet, text_encoder"):
        add_stage(run, {"loop": {"epochs": 1}, "optimizer": {"text_encoder_lr": 1e-2}})


# ---- whatever happens ------------------------------------------------------------------------------------------------


def test_a_run_is_not_amended_while_it_trains(tmp_path, half):
    run = copy_of(half, tmp_path / "p")
    with lock_run(run), pytest.raises(RunBusy, match="lorakit stop"):
        extend_run(run, 3, "hold")
    extend_run(run, 3, "hold")


@pytest.mark.parametrize("count", [0, 1])
def test_an_extension_that_the_power_cut_off_is_done_again_whole(tmp_path, half, whole, monkeypatch, count):
    run, expected = copy_of(half, tmp_path / "p"), copy_of(half, tmp_path / "wanted")
    extend_run(expected, 3, "stretch")
    write, left = os.replace, [count]

    def cut(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise OSError("the power is gone")
        return write(*arguments)

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(os, "replace", cut)
        extend_run(run, 3, "stretch")
    extend_run(run, 3, "stretch")
    assert run.config_file.read_text() == expected.config_file.read_text()
    assert load_record(run) == load_record(expected) and len(history(run)) == 1


def test_a_new_run_with_the_settings_of_an_extended_one_has_no_past(tmp_path, half):
    run = copy_of(half, tmp_path / "p")
    extend_run(run, 3, "stretch")
    new = save_config(run.project.run("new"), read_config(run))
    assert read_config(run).schedule.past and not new.schedule.past and new == read_config(run.project.run("new"))
    assert lr_curve(new, (2,)) == pytest.approx([1e-2 * (6 - i) / 6 for i in range(6)])


def test_another_way_is_refused(half):
    with pytest.raises(ConfigError, match="way is 'restart'; allowed are stretch, hold"):
        more_epochs(half, 9, "restart")


def test_a_record_of_an_older_version_is_resumed(tmp_path, half):
    """Settings, and what is written beside them, that there were not yet, are not taken for changes."""
    run = copy_of(half, tmp_path / "p")
    known = load_record(run)
    del known["steps_per_epoch"], known["history"], known["config"]["adapter"]["network_weights"]
    del known["config"]["schedule"]["steps"], known["config"]["schedule"]["past"]
    write_json(run.record_file, known)
    list(train(run))
    assert checkpoint.newest(run.states).step == 4
