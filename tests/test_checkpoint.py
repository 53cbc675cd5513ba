"""States are whole or not there, damage is noticed, and nothing goes on that would end elsewhere."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sittings import HARD, TEXT, assert_same_bits, assert_same_end, at, copy_of, merged, new_run, trace, until, warnings
from tiny import save_sd15

from lorakit import checkpoint, events
from lorakit.checkpoint import COMPLETE, STATE
from lorakit.events import Saved, Started, Stepped
from lorakit.run import RunChanged
from lorakit.train import train

# ---- damaged states --------------------------------------------------------------------------------------------------


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def zero(file):
    file.write_bytes(bytes(file.stat().st_size))


def flip_a_byte(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def empty(file):
    file.write_bytes(b"")


DAMAGES = {"truncated": truncate, "zeroed": zero, "deleted": os.remove, "a byte flipped": flip_a_byte, "empty": empty}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_sd15(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def half(tmp_path_factory, base):
    """A run of 6 steps with whole states of steps 2 and 4, cut there; only to be copied."""
    run = new_run(tmp_path_factory.mktemp("half") / "project", base, HARD, TEXT)
    until(run, at(Saved, 4))
    return run


@pytest.fixture(scope="module")
def uncut(tmp_path_factory, half):
    run = copy_of(half, tmp_path_factory.mktemp("uncut") / "project")
    shutil.rmtree(run.states)
    run.log.unlink()
    list(train(run))
    return run


def test_a_state_consists_of_the_files_that_are_damaged_here(half):
    folders = sorted(folder.name for folder in half.states.iterdir())
    assert folders == ["00000002", "00000004"]
    assert sorted(file.name for file in (half.states / folders[1]).iterdir()) == [COMPLETE, STATE]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("file", [STATE, COMPLETE])
def test_a_run_with_a_damaged_newest_state_goes_on_from_the_one_before_and_says_why(
    tmp_path, half, uncut, file, damage
):
    run = copy_of(half, tmp_path / "project")
    damage(run.states / "00000004" / file)
    seen = list(train(run))
    assert next(event.step for event in seen if isinstance(event, Started)) == 2
    (told,) = warnings(seen)
    assert "step 4" in told and "is passed over: " in told
    assert file in told or (file == COMPLETE and damage is flip_a_byte)  # then the hash in it, and not it, looks wrong
    assert_same_end(run, uncut)


def test_a_run_whose_states_are_all_damaged_begins_again_and_says_why(tmp_path, half, uncut):
    run = copy_of(half, tmp_path / "project")
    truncate(run.states / "00000004" / STATE)
    (run.states / "00000002" / COMPLETE).unlink()
    seen = list(train(run))
    assert next(event.step for event in seen if isinstance(event, Started)) == 0
    assert ["step 4" in told for told in warnings(seen)] == [True, False]
    assert_same_end(run, uncut)


def test_a_state_that_would_run_code_is_not_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    folder = checkpoint.write(tmp_path / "states", 1, small(1), 2)
    torch.save({"step": 1, "adapter": Bomb()}, folder / STATE)
    digest, size = checkpoint._digest(folder / STATE), (folder / STATE).stat().st_size
    (folder / COMPLETE).write_text(json.dumps({"step": 1, "sha256": digest, "bytes": size}))
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.newest(tmp_path / "states")
    assert not (tmp_path / "ran").exists()


# ---- which states are kept -------------------------------------------------------------------------------------------


def small(step, value=0.0):
    """A state as `checkpoint.write` takes it."""
    return {"step": step, "adapter": {"unet.a.lora_A.weight": torch.full((4,), value)}, "optimizer": {}}


def steps_in(states):
    return sorted(int(folder.name) for folder in states.glob("[0-9]*"))


def test_the_newest_states_are_kept_and_at_least_two(tmp_path):
    for step in (1, 2, 3, 4):
        checkpoint.write(tmp_path, step, small(step), keep=2)
    assert steps_in(tmp_path) == [3, 4]
    for step in (5, 6, 7):
        checkpoint.write(tmp_path, step, small(step), keep=3)
    assert steps_in(tmp_path) == [5, 6, 7]
    assert checkpoint.newest(tmp_path).state["step"] == 7


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("file", [STATE, COMPLETE])
def test_a_state_that_is_not_whole_is_not_counted_among_the_two(tmp_path, file, damage):
    for step in (1, 2, 3):
        checkpoint.write(tmp_path, step, small(step), keep=3)
    damage(tmp_path / "00000003" / file)
    checkpoint.write(tmp_path, 4, small(4), keep=2)
    shutil.rmtree(tmp_path / "00000004")
    assert checkpoint.newest(tmp_path).state["step"] == 2


def test_what_a_killed_save_left_is_cleared_away_by_the_next_one(tmp_path):
    checkpoint.write(tmp_path, 1, small(1), keep=2)
    (tmp_path / ".00000007.part").mkdir()
    (tmp_path / ".00000007.part" / STATE).write_bytes(b"half of it")
    checkpoint.write(tmp_path, 2, small(2), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000001", "00000002"]


# ---- half-written files ----------------------------------------------------------------------------------------------


class PowerCut(Exception):
    """Stands for the end of the process."""


def cut_power_at(monkeypatch, count):
    """The renaming number `count`, counted from 0, does not happen, nor does anything after it."""
    replace, left = os.replace, [count]

    def counted(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise PowerCut
        return replace(*arguments)

    monkeypatch.setattr(os, "replace", counted)


@pytest.mark.parametrize("count", [0, 1])
def test_a_state_without_its_last_renaming_is_never_seen_as_whole(tmp_path, monkeypatch, count):
    for step in (1, 2):
        checkpoint.write(tmp_path, step, small(step), keep=2)
    cut_power_at(monkeypatch, count)
    with pytest.raises(PowerCut):
        checkpoint.write(tmp_path, 3, small(3), keep=2)
    found = checkpoint.newest(tmp_path)
    assert found.state["step"] == 2
    assert len(found.problems) == count  # a folder without its mark is reported; one aside is nothing yet
    assert {1, 2} <= set(steps_in(tmp_path))


def test_a_lora_file_without_its_last_renaming_is_never_seen_as_whole(tmp_path, half, monkeypatch):
    run = copy_of(half, tmp_path / "project")
    before = run.lora_steps()
    sitting = train(run)
    while not isinstance(event := next(sitting), Stepped) or event.step < 6:
        pass
    cut_power_at(monkeypatch, 0)
    with pytest.raises(PowerCut):
        next(sitting)
    assert run.lora_steps() == before
    assert list(run.loras.glob("*.part"))  # it was under way, beside the whole ones
    assert checkpoint.newest(run.states).state["step"] == 4


def test_a_disk_that_is_full_while_saving_leaves_the_state_before(tmp_path):
    for step in (1, 2):
        checkpoint.write(tmp_path, step, small(step), keep=2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        with pytest.raises((OSError, RuntimeError)):
            checkpoint.write(tmp_path, 3, {**small(3), "optimizer": {"s": torch.zeros(4096)}}, keep=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.newest(tmp_path).state["step"] == 2
    assert steps_in(tmp_path) == [1, 2]


def test_a_line_that_a_killed_process_tore_is_passed_over(tmp_path, half):
    run = copy_of(half, tmp_path / "project")
    whole = list(events.read(run.log))
    with open(run.log, "ab") as log:
        log.write('{"kind": "stepped", "time": 1.0, "step": 5, "los\xc3'.encode("latin-1"))
    assert list(events.read(run.log)) == whole
    events.append(run.log, Stepped(step=5, epoch=3, loss=1.0, lr=1.0, grad_norm=1.0, skipped=0, images_per_second=1.0,
                                   memory_gb=1.0), time=2.0)  # fmt: skip
    assert list(events.read(run.log))[:-1] == whole and events.steps(run.log)[5].loss == 1.0


# ---- what may not change between sittings ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "leaf, value",
    [
        ("model.clip_skip", 2),
        ("data.flip_aug", False),
        ("data.trigger", "other"),
        ("data.resolution", 96),
        ("adapter.rank", 3),
        ("adapter.dropout", 0.1),
        ("loss.noise_offset", 0.05),
        ("optimizer.learning_rate", 1e-3),
        ("optimizer.args", {"weight_decay": 0.1}),
        ("schedule.name", "linear"),
        ("loop.epochs", 4),
        ("loop.batch_size", 3),
        ("loop.seed", 43),
    ],
)
@pytest.mark.parametrize("edited", [False, True], ids=["asked for", "edited in the file"])
def test_a_run_does_not_go_on_with_another_config(tmp_path, base, half, uncut, leaf, value, edited):
    run = copy_of(half, tmp_path / "project")
    part, name = leaf.split(".")
    changed = new_run(tmp_path / "other", base, HARD, TEXT, {part: {name: value}})
    before = run.config_file.read_text()
    with pytest.raises(RunChanged) as error:
        if edited:
            run.config_file.write_text(changed.config_file.read_text())
            list(train(run))
        else:
            new_run(run.project.folder, base, HARD, TEXT, {part: {name: value}})
    told = str(error.value)
    assert leaf in told and " -> " in told
    assert told.count(" -> ") == 2 or (edited and name == "trigger")  # the legend and one difference
    assert "put back" in told and "start a new run" in told
    assert edited or run.config_file.read_text() == before
    assert checkpoint.newest(run.states).state["step"] == 4


def test_every_difference_is_named_and_a_run_goes_on_when_all_is_put_back(tmp_path, base, half, uncut):
    run = copy_of(half, tmp_path / "project")
    with pytest.raises(RunChanged) as error:
        new_run(run.project.folder, base, HARD, TEXT, {"adapter": {"rank": 3, "alpha": 2.0}, "loop": {"seed": 1}})
    for difference in ("adapter.rank: 2 -> 3", "adapter.alpha: 1 -> 2.0", "loop.seed: 42 -> 1"):
        assert difference in str(error.value)
    new_run(run.project.folder, base, HARD, TEXT)
    list(train(run))
    assert_same_end(run, uncut)


def test_saves_and_samples_may_change_between_sittings(tmp_path, base, half, uncut):
    run = copy_of(half, tmp_path / "project")
    free = {
        "save": {"every_steps": 1, "every_epochs": 1, "every_minutes": 1.0, "keep_states": 5, "dtype": "fp32"},
        "sample": {"prompts": ["girl"], "steps": 1, "seed": 3},
    }
    new_run(run.project.folder, base, merged(HARD, free), TEXT)
    list(train(run))
    assert steps_in(run.states) == [2, 4, 5, 6] and run.lora_steps() == [2, 4, 5, 6]
    assert trace(run) == trace(uncut)
    assert_same_bits(checkpoint.newest(run.states).state, checkpoint.newest(uncut.states).state)


def test_the_same_config_written_otherwise_is_the_same_config(tmp_path, base):
    written = {"optimizer": {"args": {"betas": (0.9, 0.99)}, "learning_rate": 1}}
    run = new_run(tmp_path, base, HARD, written)
    until(run, at(Saved, 2))
    new_run(tmp_path, base, HARD, {"optimizer": {"args": {"betas": [0.9, 0.99]}, "learning_rate": 1.0}})
    new_run(tmp_path, base, HARD, written)


def repaint(folder, base):
    Image.new("RGB", (64, 64), "navy").save(folder / "1_mofu" / "00.png")


def recaption(folder, base):
    (folder / "1_mofu" / "00.txt").write_text("mofu, boy")


def rename_repeats(folder, base):
    (folder / "1_mofu").rename(folder / "2_mofu")


def add(folder, base):
    shutil.copy(folder / "1_mofu" / "00.png", folder / "1_mofu" / "new.png")


def remove(folder, base):
    (folder / "1_mofu" / "00.png").unlink()


def change_weights(part):
    def change(folder, base):
        (file,) = (base / part).glob("*.safetensors")
        weights = load_file(file)
        next(iter(weights.values())).view(-1)[0] += 1
        save_file(weights, file, {"format": "pt"})

    return change


def change_prediction(folder, base):
    file = base / "scheduler" / "scheduler_config.json"
    file.write_text(file.read_text().replace('"epsilon"', '"v_prediction"'))


INPUTS = {
    "picture": (repaint, "1_mofu/00.png"),
    "caption": (recaption, "mofu, boy"),
    "repeats": (rename_repeats, "2_mofu/00.png"),
    "added picture": (add, "1_mofu/new.png"),
    "removed picture": (remove, "1_mofu/00.png"),
    "unet": (change_weights("unet"), "base.unet"),
    "vae": (change_weights("vae"), "base.vae"),
    "text encoder": (change_weights("text_encoder"), "base.text_encoder"),
    "prediction type of the base": (change_prediction, "base.unet"),
}


@pytest.mark.parametrize("change, named", INPUTS.values(), ids=INPUTS)
def test_a_run_does_not_go_on_with_other_pictures_or_another_base(tmp_path, base, half, uncut, change, named):
    mine = Path(shutil.copytree(base, tmp_path / "base"))
    run = new_run(tmp_path / "project", mine, HARD, TEXT)
    until(run, at(Saved, 2))
    state = (run.states / "00000002" / STATE).read_bytes()
    change(run.project.dataset, mine)
    with pytest.raises(RunChanged) as error:
        list(train(run))
    assert named in str(error.value) and "put back" in str(error.value) and "start a new run" in str(error.value)
    assert (run.states / "00000002" / STATE).read_bytes() == state
    for there, kept in ((run.project.dataset, half.project.dataset), (mine, base)):
        shutil.rmtree(there)
        shutil.copytree(kept, there)
    list(train(run))  # put back, it goes on
    assert_same_end(run, uncut)
