"""A run of several stages is one run: it counts on, crosses their borders exactly, and ends where an uncut one does."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from sessions import (
    HARD,
    assert_same_end,
    at,
    family_settings,
    merged,
    new_run,
    trace,
    until,
    warnings,
)
from tiny import save_images, save_sd15, settings

from lorakit.config import ConfigError
from lorakit.data.scan import SCAN_SETTINGS, scan
from lorakit.events import Finished, Progress, Saved, Started, Stepped
from lorakit.models import config_class
from lorakit.run import checkpoint
from lorakit.run.config import configure, read_config, settings_of
from lorakit.run.resume import RunChanged
from lorakit.run.stages import lr_curve, stage_steps, stages
from lorakit.training.loop import Session, train

# steps 1 and 2; 3, 4 and 5, which end inside an epoch; 6 and 7. The text parts: trained, not, again.
ONE = {"loop": {"epochs": 1}, "save": {"every_steps": 2}}
TWO = {
    "loop": {"steps": 3, "batch_size": 3},
    "data": {"resolution": 96, "flip_aug": False},
    "schedule": {"name": "linear", "warmup": 0},
    "optimizer": {"learning_rate": 5e-3, "text_encoder_lr": 0.0},
    "loss": {"noise_offset": 0.0},
}
THREE = {"loop": {"epochs": 1}, "optimizer": {"args": {"weight_decay": 0.1}}, "data": {"trigger": "hat"}}
STAGES = {"stages": [TWO, THREE]}


@pytest.fixture(scope="module")
def sd15(tmp_path_factory):
    return save_sd15(tmp_path_factory.mktemp("sd15"))


def events_of(run, kind) -> list:
    return [event for event in train(run) if isinstance(event, kind)]


def refusal(*changes: dict) -> str:
    with pytest.raises(ConfigError) as caught:
        configure(settings("somewhere", **merged(*changes)))
    return str(caught.value)


# ---- one run ---------------------------------------------------------------------------------------------------------


def test_a_run_of_stages_that_is_cut_ends_bitwise_where_an_uncut_one_does(tmp_path, family, base):
    """The text parts are trained, then frozen, then trained again."""
    hard, text = family_settings(family, base)
    unsupported = config_class(family).unsupported
    off = {rate: 0.0 for rate in config_class(family).rates.values() if rate != "learning_rate"}
    two = {part: {k: v for k, v in own.items() if f"{part}.{k}" not in unsupported} for part, own in TWO.items()}
    two["optimizer"] = {**off, "learning_rate": 5e-3}
    staged = merged(hard, text, ONE, {"stages": [two, THREE]})
    uncut = new_run(tmp_path / "uncut", base, staged)
    assert [event.step for event in events_of(uncut, Saved)] == [2, 4, 5, 6, 7]
    run = new_run(tmp_path / "cut", base, staged)
    for cut in (at(Saved, 2), at(Saved, 4), at(Saved, 5), at(Stepped, 6)):
        until(run, cut)
    list(train(run))
    assert_same_end(run, uncut)


def test_further_stages_with_nothing_else_are_the_same_run(tmp_path, sd15):
    """The order of the images, the noise and the counting go on over the border."""
    even = merged(HARD, {"schedule": {"name": "constant", "warmup": 0}})
    whole = new_run(tmp_path / "whole", sd15, even)
    parts = new_run(tmp_path / "parts", sd15, even, ONE, {"stages": [{"loop": {"epochs": 1}}, {"loop": {"steps": 2}}]})
    list(train(whole))
    list(train(parts))
    assert_same_end(parts, whole)
    assert [line[0] for line in trace(parts).values()] == [1, 1, 2, 2, 3, 3]


@pytest.fixture(scope="module")
def plain(tmp_path_factory, sd15):
    """What was trained in a run whose second stage has nothing of its own but its length."""
    run = new_run(tmp_path_factory.mktemp("plain"), sd15, HARD, ONE, {"stages": [{"loop": {"steps": 3}}]})
    list(train(run))
    return trace(run)


@pytest.mark.parametrize("part", TWO)
def test_what_a_stage_has_of_its_own_changes_its_steps_and_none_before(tmp_path, sd15, plain, part):
    stage = merged({"loop": {"steps": 3}}, {part: TWO[part]})
    run = new_run(tmp_path, sd15, HARD, ONE, {"stages": [stage]})
    seen = until(run, lambda event: isinstance(event, Stepped) and trace(run)[event.step] != plain.get(event.step))
    assert isinstance(seen[-1], Stepped) and seen[-1].step > 2  # the first that differs


def test_each_step_has_the_rate_of_its_stages_schedule_over_its_stages_steps(tmp_path, sd15):
    run = new_run(tmp_path, sd15, HARD, ONE, STAGES)
    started = events_of(run, Started)
    config = read_config(run)
    assert stage_steps(config, (2, 2, 2)) == (2, 3, 2) and started[0].steps == 7
    assert [line[2] for line in trace(run).values()] == lr_curve(config, (2, 2, 2))
    # warming up for 2 steps of 2; falling over 3 steps; warming up again
    expected = [1e-2 / 3, 2e-2 / 3, 5e-3, 5e-3 * 2 / 3, 5e-3 / 3, 1e-2 / 3, 2e-2 / 3]
    assert lr_curve(config, (2, 2, 2)) == pytest.approx(expected)


def test_a_part_stands_still_in_a_stage_that_does_not_train_it(tmp_path, sd15):
    text = {"optimizer": {"text_encoder_lr": 1e-2}, "save": {"every_steps": 1, "keep_states": 9}}
    denoiser_off = {**TWO, "optimizer": {"learning_rate": 0.0}}
    run = new_run(tmp_path, sd15, HARD, ONE, text, {"stages": [TWO, denoiser_off]})
    list(train(run))
    states = {
        step: torch.load(run.states / f"{step:08d}" / checkpoint.STATE, weights_only=True)["adapter"]
        for step in range(1, 9)
    }
    for part, moved in {"unet": {2, 3, 4, 5}, "text_encoder": {2, 6, 7, 8}}.items():
        for step in range(2, 9):
            names = [name for name in states[step] if name.startswith(f"{part}.")]
            same = all(torch.equal(states[step][name], states[step - 1][name]) for name in names)
            assert names and same == (step not in moved), (part, step)


@pytest.mark.parametrize(
    "stage, why",
    [
        ({}, ""),
        ({"optimizer": {"learning_rate": 3e-3, "max_grad_norm": 0.5}}, ""),
        ({"optimizer": {"args": {"weight_decay": 0.1}}}, "optimizer.args"),
        ({"optimizer": {"text_encoder_lr": 1e-2}}, "what is trained"),
    ],
)
def test_an_optimizer_is_kept_while_it_is_the_same_and_otherwise_replaced_with_a_warning(tmp_path, sd15, stage, why):
    run = new_run(tmp_path, sd15, HARD, ONE, {"stages": [merged(stage, {"loop": {"epochs": 1}})]})
    # others are about the high learning rate
    texts = [text for text in warnings(list(train(run))) if text.startswith("Stage ")]
    steps = {int(of["step"]) for of in checkpoint.newest(run.states).state["optimizer"]["state"].values()}
    assert steps == ({2} if why else {4})
    assert [why in text and "step 3" in text and "50 to 200 steps" in text for text in texts] == [True] * bool(why)


@pytest.mark.parametrize("stop", [0, 3])
def test_text_parts_that_stopped_learn_again_in_a_stage_that_stops_later_or_never(tmp_path, sd15, stop):
    text = {"optimizer": {"text_encoder_lr": 1e-2, "text_encoder_stop_step": 1}}
    again = {"loop": {"epochs": 1}, "optimizer": {"text_encoder_stop_step": stop}}
    uncut, run = (new_run(tmp_path / name, sd15, HARD, ONE, text, {"stages": [again]}) for name in ("uncut", "cut"))
    list(train(uncut))
    until(run, at(Saved, 2))
    list(train(run))
    assert_same_end(run, uncut)
    steps = {int(of["step"]) for of in checkpoint.newest(run.states).state["optimizer"]["state"].values()}
    assert steps == {4, 3 if stop == 0 else 2}


# ---- data ------------------------------------------------------------------------------------------------------------


def two_folders(folder, base, *changes):
    """A run whose second stage has a dataset of its own, which has other images."""
    save_images(folder / "better", sizes=((64, 64), (96, 96)))
    stage = {"loop": {"epochs": 2}, "data": {"folder": "better", "resolution": 96}}
    return new_run(folder, base, HARD, ONE, *changes, {"stages": [stage]})


def test_a_stage_may_have_another_data_set_and_all_is_encoded_before_the_first_step(tmp_path, sd15):
    run = two_folders(tmp_path, sd15)
    seen = list(train(run))
    started = next(i for i, event in enumerate(seen) if isinstance(event, Started))
    progress = [i for i, event in enumerate(seen) if isinstance(event, Progress)]
    assert max(progress) < started and {event.step for event in seen if isinstance(event, Finished)} == {4}
    session = Session(run)
    assert session.stage.number == 2 and {sample.path.parts[-3] for sample in session.feed.samples} == {"better"}
    assert session.model.loaded() == ()


def test_a_run_does_not_resume_with_other_images_in_a_stage_that_has_begun(tmp_path, sd15):
    run = two_folders(tmp_path, sd15, {"save": {"every_steps": 1}})
    until(run, at(Saved, 2))
    caption = tmp_path / "better" / "1_mofu" / "00.txt"
    caption.write_text("girl, hat")  # before it, they may change
    until(run, at(Saved, 3))
    caption.write_text("girl, hat, smile")
    with pytest.raises(RunChanged, match=r"data of stage 2\.1_mofu/00\.png: .* -> "):
        list(train(run))
    caption.write_text("girl, hat")
    list(train(run))


def test_a_scan_reads_no_other_settings_than_those_by_which_stages_share_it(tmp_path):
    class Only:
        def __init__(self, config):
            for name in SCAN_SETTINGS:
                setattr(self, name, getattr(config, name))

    save_images(tmp_path / "dataset")
    data = configure(settings("somewhere")).data
    assert scan(Only(data), tmp_path) == scan(data, tmp_path)


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stage, message",
    [
        ({"data": {"resolution": 7}}, "stages.2.data.resolution is 7; allowed is"),
        ({"data": {"resolution": 100}}, "stages.2.data.resolution is 100; it must be a multiple"),
        (
            {"data": {"resolutoin": 64}},
            "stages.2.data.resolutoin is not a setting. Did you mean stages.2.data.resolution?",
        ),
        ({"dat": {"resolution": 64}}, "stages.2.dat is not a setting. Did you mean stages.2.data?"),
        ({"data": 3}, "stages.2.data is 3, expected a table of settings"),
        ({"loop": 3}, "stages.2.loop is 3, expected a table of settings"),
        ({"optimizer": {"learning_rate": 0.0}}, "stages.2.optimizer.learning_rate, "),
        ({"adapter": {"rank": 3}}, "stages.2.adapter cannot be set: a run has one adapter"),
        ({"model": {}}, "stages.2.model cannot be set: a run has one base"),
        ({"loop": {"epochs": 1, "seed": 3}}, "stages.2.loop.seed cannot be set: it applies to the whole run"),
        ({"loop": {"batch_size": 3}}, "stages.2.loop.epochs is missing: it sets the length of the stage"),
        ({"stages": []}, "stages.2.stages cannot be set"),
        (3, "stages is (3,), expected a list, each item a table of names and values (numbers, "),
    ],
)
def test_a_wrong_setting_of_a_stage_is_reported_with_its_path(stage, message):
    if isinstance(stage, dict) and "loop" not in stage:
        stage = {"loop": {"epochs": 1}, **stage}
    assert message in refusal({"stages": [stage]})


def test_all_stages_are_checked_and_numbers_in_them_may_be_written_as_in_yaml():
    message = refusal({"stages": [{"loop": {"epochs": 0}}, {"loop": {"epochs": -1}}]})
    assert "stages.2.loop.epochs is 0" in message and "stages.3.loop.epochs is -1" in message
    written = {"loop": {"epochs": 1}, "optimizer": {"learning_rate": "1e-4"}}
    config = configure(settings("somewhere", stages=[written]))
    assert config.stage_configs[1].rates == {"unet": 1e-4}


def test_a_stage_has_the_main_settings_but_for_its_length():
    main = {"loop": {"steps": 9, "batch_size": 3}, "schedule": {"steps": 4, "name": "linear"}}
    second = configure(settings("somewhere", **main, stages=[{"loop": {"epochs": 5}}])).stage_configs[1]
    assert (second.loop.epochs, second.loop.steps, second.loop.batch_size) == (5, 0, 3)
    assert (second.schedule.name, second.schedule.steps) == ("linear", 0)


def test_a_run_keeps_its_stages_when_it_is_read_again(tmp_path):
    run = new_run(tmp_path, "somewhere", HARD, ONE, STAGES)
    assert read_config(run).stages == tuple(STAGES["stages"])
    assert configure(settings_of(run, "8 GB"), "8 GB").stages == tuple(STAGES["stages"])


def test_a_run_does_not_resume_with_other_stages(tmp_path, sd15):
    until(run := new_run(tmp_path, sd15, HARD, ONE, STAGES), at(Saved, 2))
    with pytest.raises(RunChanged, match=r"stages\.2\.data\.resolution: 96 -> 128"):
        changed = {**TWO, "data": {"resolution": 128, "flip_aug": False}}
        new_run(tmp_path, sd15, HARD, ONE, {"stages": [changed, THREE]})
    written = {**TWO, "optimizer": {"learning_rate": "5e-3", "text_encoder_lr": 0}}  # the same, written otherwise
    new_run(run.project.folder, sd15, HARD, ONE, {"stages": [written, THREE]})


# ---- what files tell -------------------------------------------------------------------------------------------------


def test_a_file_tells_the_stages_up_to_its_own_and_no_path(tmp_path, sd15):
    save_images(tmp_path / "secretfolder")
    two = {"loop": {"epochs": 1}, "data": {"folder": str(tmp_path / "secretfolder"), "resolution": 96}}
    run = new_run(tmp_path / "p", sd15, HARD, ONE, {"stages": [two, THREE]})
    list(train(run))
    by_step = {}
    for step in run.lora_steps():
        with safe_open(run.lora_file(step), framework="pt") as file:
            by_step[step] = file.metadata()
    assert [by_step[step]["ss_epoch"] for step in (2, 4, 6)] == ["1", "2", "3"]
    assert {found["ss_num_epochs"] for found in by_step.values()} == {"3"}
    assert {found["ss_max_train_steps"] for found in by_step.values()} == {"6"}
    assert "lorakit.stages" not in by_step[2]
    assert json.loads(by_step[6]["lorakit.stages"]) == [
        {"last_step": 2},
        {"last_step": 4, "data.resolution": 96},
        {"last_step": 6, "data.trigger": "hat", "optimizer.args": {"weight_decay": 0.1}},
    ]
    assert by_step[4]["ss_resolution"] == "(96, 96)" and by_step[6]["ss_resolution"] == "(64, 64)"
    assert "secretfolder" not in json.dumps(by_step)


def test_the_plan_of_stages_needs_no_model(tmp_path):
    run = two_folders(tmp_path, "nowhere")
    first, second = stages(read_config(run), run.project.folder)
    assert (first.plan.last, second.plan.steps_before, second.plan.last) == (2, 2, 4)
    assert [len(stage.scan.samples) for stage in (first, second)] == [7, 2]
    for step in (3, 4):
        assert sorted(index for micro in second.plan.micro_batches(step) for index in micro) == [0, 1]
    assert [second.plan.epoch_of(step) for step in (3, 4)] == [2, 3]
