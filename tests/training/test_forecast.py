"""Promise: what is told before the start is what training then does and writes, to the step and within 2 % in bytes."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
from sessions import HARD, family_settings, merged, new_run, rates
from tiny import save_base, save_images, settings

from lorakit import events, hub, models
from lorakit.errors import UserError
from lorakit.events import Sampled, Saved, Stepped
from lorakit.files.disk import DiskFull
from lorakit.hub import fingerprint
from lorakit.optimizers import OPTIMIZERS
from lorakit.project import Project
from lorakit.run.config import configure, read_config
from lorakit.run.create import save_config
from lorakit.run.stages import stages
from lorakit.training import forecast, sizes
from lorakit.training.loop import train


@pytest.fixture(scope="module")
def sd15(tmp_path_factory):
    """A base for what is the same in every family."""
    return save_base("sd15", tmp_path_factory.mktemp("sd15"))


def estimate(run):
    return forecast.forecast(read_config(run), run.project, run)


def row(found: forecast.Forecast, what: str) -> forecast.Written:
    return next(row for row in found.written if row.what == what)


def sizes_of(folder: Path, pattern: str) -> list[int]:
    return [file.stat().st_size for file in folder.glob(pattern)]


# ---- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family, optimizer",
    [
        *((family, next(iter(OPTIMIZERS))) for family in models.names() if family != "sd15"),
        *product(["sd15"], OPTIMIZERS),
    ],
    indirect=["family"],
)
def test_states_and_files_are_as_large_as_was_told(family, base, optimizer, tmp_path):
    hard, text = family_settings(family, base)
    chosen = {"prodigy": {"optimizer": {"name": "prodigy", "learning_rate": 1.0}}, "adamw8bit": rates("adamw8bit")}
    run = new_run(tmp_path, base, hard, chosen.get(optimizer, text), {"adapter": {"rank": 64}, "loop": {"steps": 1}})
    before = estimate(run)
    list(train(run))
    for what, pattern in (("states", "states/*/state.pt"), ("loras", "lora/*.safetensors")):
        written = sizes_of(run.folder, pattern)
        assert row(before, what).each == pytest.approx(sum(written) / len(written), rel=0.02)


def test_counts_are_those_of_training_in_every_stage(sd15, tmp_path):
    saves = {"save": {"every_steps": 5, "every_epochs": 0}, "sample": {"prompts": ["a", "b"], "every_steps": 4}}
    run = new_run(tmp_path, sd15, merged(HARD, saves))
    save_config(run, replace(read_config(run), stages=({"loop": {"epochs": 1}, "data": {"flip_aug": False}},)))
    before = estimate(run)
    seen = list(train(run))
    assert before.steps == sum(isinstance(event, Stepped) for event in seen)
    assert before.epochs == max(event.epoch for event in seen if isinstance(event, Stepped))
    assert before.lr == pytest.approx([event.lr for event in seen if isinstance(event, Stepped)])
    assert row(before, "loras").count == sum(isinstance(event, Saved) and event.lora != "" for event in seen)
    assert row(before, "samples").count == sum(isinstance(event, Sampled) for event in seen)


def test_what_is_encoded_is_counted_before_and_found_after(family, base, tmp_path):
    hard, _ = family_settings(family, base)
    run = new_run(tmp_path, base, hard, {"loop": {"steps": 1}})
    before = estimate(run)
    assert before.images.there == before.texts.there == 0
    list(train(run))
    for cached, what in ((before.images, "latents"), (before.texts, "text")):
        written = sizes_of(run.project.cache, f"{what}/*/*.safetensors")
        assert cached.total == len(written)
        assert cached.each == pytest.approx(sum(written) / len(written), rel=0.3)  # headers weigh much in tiny files
    after = estimate(run)
    assert after.images.there == after.images.total and after.texts.there == after.texts.total
    assert after.done == after.steps and row(after, "images").needed == row(after, "loras").needed == 0


def test_nothing_is_hashed_while_nothing_is_cached(family, base, tmp_path, monkeypatch):
    run = new_run(tmp_path, base, family_settings(family, base)[0])
    monkeypatch.setattr(fingerprint, "_sha256", lambda file: pytest.fail(f"{file} is read"))
    assert estimate(run).unknown == ""


# ---- steps and data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_steps_and_images_are_those_of_the_plan(seed, tmp_path):
    draw = random.Random(seed)
    some = tuple((draw.choice((64, 96, 200)), draw.choice((64, 96))) for _ in range(draw.randint(1, 9)))
    save_images(tmp_path / "dataset", repeats=draw.randint(1, 4), sizes=some)
    loop = {
        "epochs": draw.randint(1, 4),
        "steps": draw.choice((0, 0, draw.randint(1, 30))),
        "batch_size": draw.randint(1, 4),
        "gradient_accumulation_steps": draw.randint(1, 3),
    }
    config = replace(configure(settings(tmp_path / "none", loop=loop)), stages=({"loop": {"steps": 5}},))
    project = Project(tmp_path)
    found, plans = forecast.forecast(config, project), [stage.plan for stage in stages(config, project.folder)]
    assert found.unknown and found.steps == plans[-1].last
    for stage, plan in zip(found.stages, plans, strict=True):
        steps = range(plan.last - plan.steps + 1, plan.last + 1)
        assert stage.images == sum(len(batch) for step in steps for batch in plan.micro_batches(step))
        assert stage.epochs == len({plan.epoch_of(step) for step in steps})
        assert sum(bucket.images for bucket in stage.buckets) == len(some)
        assert sum(c.images * c.repeats for c in stage.concepts) == sum(bucket.samples for bucket in stage.buckets)
        for step in steps:
            whole = sum(plan.ends_epoch(s) for s in steps if s <= step) + plan.epochs_before
            assert found.whole_epochs(step) in (whole, whole + (step == plan.last))


def test_buckets_tell_what_is_enlarged_and_what_is_cropped(tmp_path):
    save_images(tmp_path / "dataset", sizes=((64, 64), (40, 40), (128, 32), (100, 64)))
    data = {"bucket_no_upscale": False}
    config = configure(settings(tmp_path / "none", data=data))
    (stage,) = forecast.forecast(config, Project(tmp_path)).stages
    square = next(bucket for bucket in stage.buckets if bucket.size == (64, 64))
    assert (square.images, square.enlarged, square.cropped) == (3, 1, 1)  # 40 x 40, and 100 x 64 of no other shape
    assert sum(bucket.cropped for bucket in stage.buckets) == 1


def test_left_out_files_and_cut_captions_are_told(family, base, tmp_path):
    run = new_run(tmp_path, base, family_settings(family, base)[0])
    concept = next(run.project.dataset.iterdir())
    (concept / "broken.png").write_bytes(b"no image")
    (concept / "00.txt").write_text("mofu, " + "girl, " * 900)
    notes = estimate(run).notes
    assert any("broken.png" in note for note in notes)
    assert any("00.png" in note and "is cut" in note for note in notes)


# ---- the base and the disks ------------------------------------------------------------------------------------------


def test_a_base_that_is_elsewhere_leaves_sizes_unknown_and_is_not_downloaded(tmp_path, monkeypatch):
    save_images(tmp_path / "dataset")
    monkeypatch.setattr(hub, "download", lambda *_, **__: pytest.fail("a download"))
    for source in ("somebody/model", "somebody/model/file.safetensors", "http://127.0.0.1:9/model.safetensors"):
        config = configure(settings(tmp_path / "none", model={"source": source}))
        found = forecast.forecast(config, Project(tmp_path))
        assert "not on this machine yet" in found.unknown
        assert found.weights is None and found.steps == 8 and not found.written


def test_a_disk_that_would_be_filled_is_tight_at_home_too(sd15, tmp_path, monkeypatch):
    run = new_run(tmp_path / "local", sd15, HARD)
    remote = tmp_path / "home"
    remote.mkdir()
    run.project.remote_file.write_text(json.dumps({"home": str(remote)}))
    needed = estimate(run).disks[0].needed
    free = {True: needed / 0.89, False: needed / 0.91}
    monkeypatch.setattr(
        forecast.shutil, "disk_usage", lambda path: SimpleNamespace(free=free[Path(path).is_relative_to(remote)])
    )
    local, far = estimate(run).disks
    assert (far.folder, far.is_remote, far.is_tight) == (remote, True, False)
    assert (local.is_remote, local.is_tight) == (False, True)


def test_no_step_is_trained_where_the_next_state_and_a_file_have_no_room(sd15, tmp_path, monkeypatch):
    run = new_run(tmp_path, sd15, {"loop": {"epochs": 1}})
    found = estimate(run)
    needed = row(found, "states").each + row(found, "loras").each
    free = [int(0.98 * needed)]
    monkeypatch.setattr(sizes.shutil, "disk_usage", lambda path: SimpleNamespace(free=free[0]))
    with pytest.raises(DiskFull, match=r"no room for what run 'r' saves.*Free some space"):
        list(train(run))
    assert not events.steps(run.log) and not run.record_file.exists()
    free[0] = int(1.02 * needed)
    assert events.Finished in map(type, train(run))
    free[0] = 0  # all is written
    list(train(run))


def test_a_run_without_images_is_refused_with_the_folder(tmp_path):
    with pytest.raises(UserError, match="dataset does not exist"):
        forecast.forecast(configure(settings(tmp_path)), Project(tmp_path))
