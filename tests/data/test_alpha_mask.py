"""Transparent parts of images: laid on a colour, or left out of what is learned."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from sessions import assert_same_bits, assert_same_end, at, copy_of, family_settings, new_run, trace, until

from lorakit.config import ConfigError
from lorakit.data import DataConfig
from lorakit.data.scan import DataError
from lorakit.events import Progress, Saved, Stepped
from lorakit.randomness import generator
from lorakit.run.config import read_config
from lorakit.run.create import save_config
from lorakit.training.loop import Session, train

MASKED = {"data": {"alpha_mask": True}}
STEP = {"loop": {"steps": 2, "epochs": 1}, "save": {"every_steps": 0}}


def cut_out(folder, *, left_of: int = 32) -> None:
    """Make every second image transparent from `left_of` px on; under it stays what was there."""
    for file in sorted(folder.glob("*.png"))[::2]:
        image = Image.open(file).convert("RGBA")
        image.paste((*image.getpixel((0, 0))[:3], 0), (left_of, 0, *image.size))
        image.save(file)


@pytest.fixture
def masked(tmp_path, family, base):
    """A run of every family, not begun, whose images are transparent in part."""
    run = new_run(tmp_path / "p", base, family_settings(family, base)[0], MASKED)
    cut_out(run.project.dataset / "1_mofu")
    return run


def prepared(run):
    """A session right before its first step."""
    session = Session(run)
    list(session.prepare())
    return session


# ---- as a loss mask --------------------------------------------------------------------------------------------------


def test_a_mask_is_the_mean_opacity_of_each_latents_pixels(masked):
    session = prepared(masked)
    sample = next(s for s in session.feed.samples if s.name.endswith("00.png"))
    for flip in (False, True):
        mask = session.feed.image(sample, flip)["mask"]
        expected = torch.zeros(1, 8, 8)
        expected[:, :, slice(4, 8) if flip else slice(0, 4)] = 1
        assert torch.equal(mask, expected)


def test_the_loss_is_the_plain_mean_of_errors_times_the_mask(masked):
    session = prepared(masked)
    model, config = session.model, session.stage.config.loss
    places = [i for i, s in enumerate(session.feed.samples) if (s.width, s.height) == (64, 64)]
    batch = session.feed.batch(places[:3], 1, 0)
    draws = generator(1, "test")
    x0 = model.latents(batch.images, draws)
    eps, t = model.sample_noise(x0, draws, config)
    text = model.condition(session.feed.encode_texts(batch.captions), batch.sizes)
    assert batch.masks.shape == (len(x0), 1, *x0.shape[-2:]) and 0 < batch.masks.mean() < 1
    with torch.no_grad():
        found = model.loss(x0, eps, t, text, config, batch.masks)
        parts = []  # each place alone
        for place in range(64):
            only = torch.zeros(1, 1, 64)
            only[..., place] = 1
            parts.append(model.loss(x0, eps, t, text, config, only.view(1, 1, 8, 8)))
        everything = model.loss(x0, eps, t, text, config)
    errors = torch.stack(parts, dim=1)
    torch.testing.assert_close(errors.sum(1), everything)
    torch.testing.assert_close(found, (errors * batch.masks.flatten(1)).sum(1))


def test_what_is_masked_out_has_no_gradient_at_all(masked):
    session = prepared(masked)
    model, config = session.model, session.stage.config.loss
    batch = session.feed.batch([0], 1, 0)
    x0 = model.latents(batch.images, generator(1, "test"))
    eps, t = model.sample_noise(x0, generator(1, "test"), config)
    weights = [w for part in session.config.rates for w in session.adapter.parameters(part)]
    for share in (0.0, 1.0):
        text = model.condition(session.feed.encode_texts(batch.captions), batch.sizes)
        model.loss(x0, eps, t, text, config, torch.full_like(x0[:, :1], share)).sum().backward()
        assert any(w.grad.any() for w in weights) == bool(share)


def test_a_masked_run_that_is_cut_ends_bitwise_where_an_uncut_one_does(tmp_path, masked):
    uncut = copy_of(masked, tmp_path / "uncut")
    list(train(uncut))
    for cut in (at(Saved, 2), at(Stepped, 5)):
        until(masked, cut)
    list(train(masked))
    assert_same_end(masked, uncut)


@pytest.mark.parametrize("family", ["sd15"], indirect=True)
def test_the_mask_counts_and_changes_nothing_for_opaque_images(tmp_path, family, base):
    hard = family_settings(family, base)[0]
    runs = [new_run(tmp_path / str(i), base, hard, STEP, change) for i, change in enumerate(({}, MASKED))]
    for run in runs:
        list(train(run))
    assert_same_end(*runs)
    transparent = [new_run(tmp_path / f"{i}t", base, hard, STEP, change) for i, change in enumerate(({}, MASKED))]
    for run in transparent:
        cut_out(run.project.dataset / "1_mofu")
        list(train(run))
    assert trace(transparent[0]) != trace(transparent[1])


@pytest.mark.parametrize("family", ["sd15"], indirect=True)
def test_a_wholly_transparent_image_is_refused_by_name(masked):
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(masked.project.dataset / "1_mofu" / "03.png")
    with pytest.raises(DataError, match=r"03\.png is transparent wherever"):
        list(train(masked))


# ---- on a colour, caches, earlier runs -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd15"], indirect=True)
def test_caches_tell_masks_and_backgrounds_apart_and_the_default_is_what_it_was(masked):
    plain = replace(read_config(masked).data, alpha_mask=False)
    session = Session(masked)
    feed, sample = session.feed, session.feed.samples[0]
    paths = []
    for change in ({}, {"alpha_mask": True}, {"background": "#ff0000"}, {"alpha_mask": True, "background": "black"}):
        feed.config = replace(plain, **change)
        paths += [path for path, item in feed.cached_images().items() if item == (sample, False)]
    assert len(set(paths)) == 4
    made_from = (*session.model.image_key(), sample.digest, (64, 64), (64, 64), (0, 0), False)
    assert paths[0] == feed.latents.path(*made_from)  # as before there were masks


@pytest.mark.parametrize("family", ["sd15"], indirect=True)
@pytest.mark.parametrize("background", ("white", "#000000"))
def test_an_image_is_encoded_as_if_it_had_been_painted_on_the_background(masked, background):
    session = Session(masked)
    feed, sample = session.feed, session.feed.samples[0]
    feed.config = replace(feed.config, background=background, alpha_mask=False, cache_latents=False)
    encoded = feed.image(sample, False)
    image = Image.open(sample.path)
    flat = Image.new("RGB", image.size, background)
    flat.paste(image, mask=image.getchannel("A"))
    flat.save(sample.path)
    assert_same_bits(encoded, feed.image(sample, False))


@pytest.mark.parametrize("wrong", ["", "whiteish", "#fff", "#12345g", "rgb(1,2,3)", "white "])
def test_a_background_that_is_no_colour_is_refused(wrong):
    with pytest.raises(ConfigError, match="background"):
        DataConfig(background=wrong)


@pytest.mark.parametrize("family", ["sd15"], indirect=True)
def test_a_run_begun_before_these_settings_goes_on(tmp_path, family, base):
    run = new_run(tmp_path, base, family_settings(family, base)[0], STEP)
    until(run, at(Stepped, 1))
    known = json.loads(run.record_file.read_text())
    for name in ("background", "alpha_mask"):
        del known["config"]["data"][name]
    run.record_file.write_text(json.dumps(known))
    config = read_config(run)
    save_config(run, config)
    assert not [event for event in train(run) if isinstance(event, Progress)]  # and nothing is encoded again
