"""Caches change no bit of a run, encode nothing twice, and spare what is not needed."""

from __future__ import annotations

import os
import shutil
import threading

import pytest
from PIL import Image
from sessions import HARD, TEXT, assert_same_end, copy_of, merged, new_run
from tiny import save_sd15

from lorakit.events import Finished, Progress, Sampled, Stepped
from lorakit.training.loop import Session, train

VARIANTS = {"data": {"shuffle_caption": True, "caption_variants": 3, "caption_dropout_rate": 0.5}}
ONE_STEP = {"loop": {"steps": 1}}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_sd15(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def filled(tmp_path_factory, base):
    """A run whose caches are full: 7 images, 6 different captions; only to be copied."""
    run = new_run(tmp_path_factory.mktemp("filled") / "project", base, ONE_STEP)
    list(train(run))
    return run


def encoded(run):
    """How much a session had to encode, by kind."""
    return {event.what: event.total for event in train(run) if isinstance(event, Progress)}


def next_run(run, base, *changes):
    """Another run in the project of `run`."""
    return new_run(run.project.folder, base, ONE_STEP, *changes, name="next")


# ---- what is encoded -------------------------------------------------------------------------------------------------


def test_everything_is_encoded_once_however_often_it_is_repeated(tmp_path, base):
    run = new_run(tmp_path, base, ONE_STEP, repeats=5)
    assert encoded(run) == {"images": 7, "captions": 6}
    assert encoded(next_run(run, base)) == {}


@pytest.mark.parametrize(
    "changes, expected",
    [
        ([{"optimizer": {"learning_rate": 1e-3}, "adapter": {"rank": 3}, "loss": {"noise_offset": 0.1}}], {}),
        ([{"data": {"flip_aug": True}}], {"images": 7}),
        ([{"data": {"enable_bucket": False}}], {"images": 1}),  # only one is in another bucket
        ([{"model": {"clip_skip": 2}}], {"captions": 6}),
        ([{"model": {"max_token_length": 150}}], {"captions": 6}),
        ([{"data": {"caption_dropout_rate": 0.5}}], {"captions": 1}),
        ([{"data": {"trigger": "new"}}], {"captions": 6}),
        ([{"sample": {"prompts": ["boy", "girl"]}}], {"captions": 3}),  # and the empty negative prompt
        ([TEXT], {"captions": 6}),  # their token ids
    ],
    ids=lambda value: "" if isinstance(value, dict) else str(value[0]),
)
def test_another_run_encodes_only_what_depends_on_its_changes(tmp_path, base, filled, changes, expected):
    assert encoded(next_run(copy_of(filled, tmp_path / "p"), base, *changes)) == expected


def add_an_image(folder):
    Image.new("RGB", (64, 64), "navy").save(folder / "new.png")
    shutil.copy(folder / "00.txt", folder / "new.txt")


def add_a_copy(folder):
    shutil.copy(folder / "00.png", folder / "copy.png")
    shutil.copy(folder / "00.txt", folder / "copy.txt")


def rename(folder):
    for ending in ("png", "txt"):
        (folder / f"00.{ending}").rename(folder / f"z.{ending}")


def edit_an_image(folder):
    Image.open(folder / "00.png").rotate(90).save(folder / "00.png")


def edit_a_caption(folder):
    (folder / "00.txt").write_text("mofu, boy, hat")


@pytest.mark.parametrize(
    "edit, expected",
    [
        (add_an_image, {"images": 1}),
        (add_a_copy, {}),
        (rename, {}),
        (edit_an_image, {"images": 1}),
        (edit_a_caption, {"captions": 1}),
        (lambda folder: (folder / "00.png").touch(), {}),
        (lambda folder: folder.rename(folder.with_name("9_other")), {}),
    ],
)
def test_an_edit_of_the_data_encodes_only_what_was_edited(tmp_path, base, filled, edit, expected):
    run = copy_of(filled, tmp_path / "p")
    edit(run.project.dataset / "1_mofu")
    assert encoded(next_run(run, base)) == expected


def test_an_edited_caption_encodes_its_variants_and_no_other(tmp_path, base):
    run = new_run(tmp_path, base, ONE_STEP, VARIANTS)
    everything = encoded(run)["captions"]
    edit_a_caption(run.project.dataset / "1_mofu")
    assert 1 <= encoded(next_run(run, base, VARIANTS))["captions"] <= 3 < everything


# ---- what is not needed ----------------------------------------------------------------------------------------------


def loads(run):
    """Every part that a whole session loads, and those in memory at its steps and its end."""
    session, seen, kept = Session(run), set(), set()
    load = session.model.load
    session.model.load = lambda part: (seen.add(part), load(part))[1]
    for event in session.events(threading.Event()):
        if isinstance(event, (Stepped, Finished)):
            kept |= set(session.model.loaded())
    return seen, kept


def test_with_full_caches_vae_and_frozen_text_encoder_are_never_loaded(tmp_path, base, filled):
    fresh = new_run(tmp_path / "fresh", base, ONE_STEP)
    assert loads(fresh) == ({"unet", "vae", "text_encoder"}, {"unet"})  # used, then let go
    assert loads(next_run(copy_of(filled, tmp_path / "p"), base)) == ({"unet"}, {"unet"})


def test_a_text_encoder_that_is_trained_is_loaded_and_the_vae_is_not(tmp_path, base, filled):
    seen, kept = loads(next_run(copy_of(filled, tmp_path / "p"), base, TEXT))
    assert seen == kept == {"unet", "text_encoder"}


def test_samples_load_the_vae_for_as_long_as_they_are_painted(tmp_path, base, filled):
    run = next_run(copy_of(filled, tmp_path / "p"), base, {"sample": {"prompts": ["mofu"]}})
    assert loads(run) == ({"unet", "vae", "text_encoder"}, {"unet"})
    assert not any(isinstance(event, Sampled) for event in train(run))  # finished


# ---- what changes nothing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "off", [{"cache_latents": False}, {"cache_text": False}, {"cache_latents": False, "cache_text": False}]
)
def test_runs_with_and_without_caches_agree_bit_for_bit(tmp_path, base, off):
    runs = [new_run(tmp_path / str(i), base, HARD, {"data": data}) for i, data in enumerate(({}, off))]
    for run in runs:
        list(train(run))
    assert not (runs[1].project.cache / "latents").exists() or off.get("cache_latents", True)
    assert not (runs[1].project.cache / "text").exists() or off.get("cache_text", True)
    assert_same_end(runs[1], runs[0])


DAMAGES = {
    "truncated": lambda file: os.truncate(file, file.stat().st_size - 9),
    "zeroed": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "emptied": lambda file: file.write_bytes(b""),
    "deleted": os.remove,
    "not ours": lambda file: file.write_bytes(b"what is this? " * 9),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_file_is_made_again(tmp_path, base, filled, damage):
    run = copy_of(filled, tmp_path / "p")
    contents = {file: file.read_bytes() for file in sorted(run.project.cache.rglob("*.safetensors"))}
    assert len(contents) == 7 + 6
    for kind in ("latents", "text"):
        damage(next(file for file in contents if kind in file.parts))
    assert encoded(next_run(run, base)) == {"images": 1, "captions": 1}
    assert {file: file.read_bytes() for file in sorted(run.project.cache.rglob("*.safetensors"))} == contents


def test_a_cache_file_damaged_during_the_run_is_made_again_too(tmp_path, base):
    settings = merged(HARD, {"loop": {"epochs": 2}})
    runs = [new_run(tmp_path / name, base, settings) for name in "ab"]
    list(train(runs[0]))
    for event in train(runs[1]):
        if getattr(event, "step", None) == 2:
            for file in runs[1].project.cache.rglob("*.safetensors"):
                os.truncate(file, 20)
    assert_same_end(runs[1], runs[0])
