"""A run does not go on with another config, dataset or base; it names what differs and the ways on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sessions import HARD, TEXT, assert_same_bits, assert_same_end, at, copy_of, merged, new_run, trace, until, warnings
from tiny import save_sd15

from lorakit.events import Saved, Started
from lorakit.hub.files import ModelFileError
from lorakit.project import Project
from lorakit.run import checkpoint
from lorakit.run.checkpoint import STATE
from lorakit.run.config import configure, read_config, settings_of
from lorakit.run.create import save_config
from lorakit.run.resume import RunChanged
from lorakit.training.loop import train


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_sd15(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def half(tmp_path_factory, base):
    """A run of 6 steps, cut after the save of step 4; only to be copied."""
    run = new_run(tmp_path_factory.mktemp("half") / "project", base, HARD, TEXT)
    until(run, at(Saved, 4))
    return run


@pytest.fixture(scope="module")
def uncut(tmp_path_factory, base):
    run = new_run(tmp_path_factory.mktemp("uncut") / "project", base, HARD, TEXT)
    list(train(run))
    return run


# ---- the config ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "leaf, value",
    [
        ("model.clip_skip", 2),
        ("data.flip_aug", False),
        ("data.trigger", "other"),
        ("data.repeats", 2),
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
def test_a_run_does_not_resume_with_another_config(tmp_path, base, half, leaf, value, edited):
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
    shown = str(error.value)
    assert leaf in shown and " -> " in shown
    assert shown.count(" -> ") == 2 or (edited and name == "trigger")  # the legend and one difference
    assert "undo these changes" in shown and "start a new run" in shown
    assert edited or run.config_file.read_text() == before
    assert checkpoint.newest(run.states).state["step"] == 4


def test_every_difference_is_named_and_the_run_resumes_once_all_are_undone(tmp_path, base, half, uncut):
    run = copy_of(half, tmp_path / "project")
    with pytest.raises(RunChanged) as error:
        new_run(run.project.folder, base, HARD, TEXT, {"adapter": {"rank": 3, "alpha": 2.0}, "loop": {"seed": 1}})
    for difference in ("adapter.rank: 2 -> 3", "adapter.alpha: 1 -> 2.0", "loop.seed: 42 -> 1"):
        assert difference in str(error.value)
    new_run(run.project.folder, base, HARD, TEXT)
    list(train(run))
    assert_same_end(run, uncut)


def test_saves_and_samples_may_change_between_sessions(tmp_path, base, half, uncut):
    run = copy_of(half, tmp_path / "project")
    free = {
        "save": {"every_steps": 1, "every_epochs": 1, "every_minutes": 1.0, "keep_states": 5, "dtype": "fp32"},
        "sample": {"prompts": ["girl"], "steps": 1, "seed": 3},
    }
    new_run(run.project.folder, base, merged(HARD, free), TEXT)
    list(train(run))
    assert run.lora_steps() == [2, 4, 5, 6]
    assert trace(run) == trace(uncut)
    assert_same_bits(checkpoint.newest(run.states).state, checkpoint.newest(uncut.states).state)


def test_the_same_config_written_otherwise_is_the_same_config(tmp_path, base):
    written = {"optimizer": {"args": {"betas": (0.9, 0.99)}, "learning_rate": 1}}
    run = new_run(tmp_path, base, HARD, written)
    until(run, at(Saved, 2))
    new_run(tmp_path, base, HARD, {"optimizer": {"args": {"betas": [0.9, 0.99]}, "learning_rate": 1.0}})
    new_run(tmp_path, base, HARD, written)


def test_a_config_that_leaves_out_what_nobody_sets_is_taken_as_recorded(tmp_path, half):
    run = copy_of(half, tmp_path / "project")
    whole = run.config_file.read_text()
    run.config_file.write_text("".join(line for line in whole.splitlines(True) if "reading:" not in line))
    assert whole != run.config_file.read_text() and read_config(run).data.reading == 2
    until(run, at(Started, 4))


def test_another_number_of_threads_is_warned_of_once(tmp_path, half, monkeypatch):
    run, here = copy_of(half, tmp_path / "project"), torch.get_num_threads()
    for threads, before in ((7, here), (7, None), (5, 7)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        shown = [text for text in warnings(until(run, at(Started, 4))) if "threads" in text]
        assert len(shown) == (before is not None)
        if shown:
            assert f"{threads} CPU threads" in shown[0] and f"OMP_NUM_THREADS={before} " in shown[0]


# ---- the data and the base -------------------------------------------------------------------------------------------


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
    "image": (repaint, "1_mofu/00.png"),
    "caption": (recaption, "mofu, boy"),
    "repeats": (rename_repeats, "2_mofu/00.png"),
    "added image": (add, "1_mofu/new.png"),
    "removed image": (remove, "1_mofu/00.png"),
    "unet": (change_weights("unet"), "base.unet"),
    "vae": (change_weights("vae"), "base.vae"),
    "text encoder": (change_weights("text_encoder"), "base.text_encoder"),
    "prediction type of the base": (change_prediction, "base.unet"),
}


@pytest.fixture(scope="module")
def own_base(tmp_path_factory, base):
    """A run with a base model of its own, cut after the save of step 2; each test leaves both as they were."""
    folder = tmp_path_factory.mktemp("own")
    run = new_run(folder / "project", Path(shutil.copytree(base, folder / "base")), HARD, TEXT)
    until(run, at(Saved, 2))
    return run, folder / "base"


@pytest.mark.parametrize("change, named", INPUTS.values(), ids=INPUTS)
def test_a_run_is_not_resumed_with_other_images_or_another_base_until_they_are_restored(
    own_base, base, half, change, named
):
    run, its_base = own_base
    state = (run.states / "00000002" / STATE).read_bytes()
    change(run.project.dataset, its_base)
    with pytest.raises(RunChanged) as error:
        list(train(run))
    message = str(error.value)
    assert named in message and "undo these changes" in message and "start a new run" in message
    assert (run.states / "00000002" / STATE).read_bytes() == state
    for there, kept in ((run.project.dataset, half.project.dataset), (its_base, base)):
        shutil.rmtree(there)
        shutil.copytree(kept, there)
    until(run, at(Started, 2))


def test_a_run_that_was_refused_and_restored_ends_bitwise_where_an_uncut_one_does(own_base, uncut):
    run, _ = own_base
    list(train(run))
    assert_same_end(run, uncut)


# ---- before it has begun ---------------------------------------------------------------------------------------------


def test_a_run_whose_base_could_not_be_loaded_has_not_begun(tmp_path, base):
    broken = shutil.copytree(base, tmp_path / "broken")
    weights = load_file(broken / "unet" / "diffusion_pytorch_model.safetensors")
    weights.popitem()
    save_file(weights, broken / "unet" / "diffusion_pytorch_model.safetensors")
    run = new_run(tmp_path / "p", broken, HARD)
    with pytest.raises(ModelFileError):
        list(train(run))
    assert not run.record_file.exists()
    list(train(new_run(tmp_path / "p", base, HARD)))
    assert run.record_file.exists()


def test_another_family_or_gpu_preset_before_that_keeps_the_settings_made_by_hand(tmp_path):
    run = Project(tmp_path).run("r")
    chosen = {"model": {"family": "sd15", "source": "somewhere"}, "adapter": {"rank": 7}}
    save_config(run, configure(chosen, "8 GB"))
    settings = settings_of(run, "32 GB")
    settings["model"]["family"] = "sdxl"
    expected = {**chosen, "model": {"family": "sdxl", "source": "somewhere"}}
    assert configure(settings, "32 GB") == configure(expected, "32 GB")


def test_a_run_that_has_begun_keeps_all_its_settings(half):
    assert configure(settings_of(half)) == read_config(half)
