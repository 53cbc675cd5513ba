"""Promise: a probe tells what steps cost, leaves nothing but the cache behind, and no bit of the run depends on it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from sessions import assert_same_end, copy_of, family_settings, new_run

from lorakit.events import Progress, Sampled, Saved, Started, Stepped
from lorakit.project.lock import lock_run
from lorakit.run.config import read_config
from lorakit.training import probe as probes
from lorakit.training.forecast import forecast
from lorakit.training.loop import train
from lorakit.training.probe import Probed, ProbeFailed, measured, outlook, probe, remembered

pytestmark = pytest.mark.usefixtures("forked")
PAINTED = {"sample": {"prompts": ["mofu", "girl"]}, "loop": {"epochs": 4}}


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """A run of the tiny model, a copy of it that was probed, and everything that the probe told."""
    from tiny import save_base

    folder = tmp_path_factory.mktemp("probed")
    run = new_run(
        folder / "p", save_base("sd15", folder / "base"), family_settings("sd15", folder / "base")[0], PAINTED
    )
    tried = copy_of(run, folder / "tried")
    return run, tried, list(probe(read_config(tried), tried.project))


def stepped(step: int, count: float) -> Stepped:
    figures = {"loss": 0.1, "lr": 1e-3, "grad_norm": 1.0, "skipped": 0, "memory_gb": 1.0, "epoch": 1}
    return Stepped(step=step, images_per_second=count, **figures)


def result(**figures: float) -> Probed:
    estimate = {
        "device": "a GPU",
        "seconds_per_step": 2.0,
        "images_per_second": 1.0,
        "seconds_to_first_step": 0.0,
        "seconds_per_save": None,
        "seconds_per_sample": None,
        "peak_memory_gb": 3.0,
        "total_memory_gb": 16.0,
        "phases": {},
    }
    return Probed(**{**estimate, **figures})


def test_it_ends_with_its_figures(probed):
    *before, last = probed[2]
    assert isinstance(last, Probed) and all(isinstance(event, Progress) for event in before)
    assert {"start", "images", "captions", "load", "steps"} == {event.what for event in before}
    assert last.seconds_per_step > 0 and last.images_per_second > 0 and last.seconds_per_sample > 0
    assert 0 < last.seconds_per_save and 0.1 < last.peak_memory_gb < last.total_memory_gb


def test_it_leaves_only_the_cache_and_its_figures(probed):
    run, tried, _ = probed
    files = {path.relative_to(tried.project.folder) for path in tried.project.folder.rglob("*") if path.is_file()}
    old = {path.relative_to(run.project.folder) for path in run.project.folder.rglob("*") if path.is_file()}
    assert {path.parts[0] for path in files - old} == {"cache", "probes.json"}
    assert not any(path.suffix == ".part" for path in files)
    assert [path.name for path in tried.folder.iterdir()] == ["config.yaml"]


def test_a_probed_run_is_the_same_run_bit_for_bit(probed, tmp_path):
    run, tried = copy_of(probed[0], tmp_path / "a"), copy_of(probed[1], tmp_path / "b")
    count = [event for event in train(tried) if isinstance(event, Progress) and event.what == "images"]
    assert not count  # what the probe encoded was not lost
    list(train(run))
    assert_same_end(tried, run)


def test_its_result_is_remembered_for_what_decides_it(probed):
    _, tried, seen = probed
    config = read_config(tried)
    assert remembered(config, tried.project) == seen[-1]
    longer = replace(config, loop=replace(config.loop, epochs=50))
    assert remembered(longer, tried.project) == seen[-1]  # as many seconds a step
    larger = replace(config, loop=replace(config.loop, batch_size=3))
    thrifty = replace(config, memory=replace(config.memory, gradient_checkpointing=True))
    assert remembered(larger, tried.project) is remembered(thrifty, tried.project) is None


def test_a_damaged_memory_of_probes_is_none(probed, tmp_path):
    run = copy_of(probed[1], tmp_path / "p")
    (run.project.folder / "probes.json").write_text('{"a": ')
    assert remembered(read_config(run), run.project) is None


def test_it_does_not_begin_beside_a_trainer(probed):
    run = probed[0]
    with lock_run(run), pytest.raises(ProbeFailed, match="'r' is training"):
        next(probe(read_config(run), run.project))


def test_what_training_would_refuse_it_refuses_in_the_same_words(probed, tmp_path):
    run = copy_of(probed[0], tmp_path / "p")
    config = replace(read_config(run), data=replace(read_config(run).data, folder="elsewhere"))
    with pytest.raises(ProbeFailed, match="elsewhere does not exist"):
        list(probe(config, run.project))


def test_a_child_that_is_killed_is_explained_with_the_next_rung(probed, monkeypatch):
    run = probed[0]
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    popen = probes.subprocess.Popen
    monkeypatch.setattr(probes.subprocess, "Popen", lambda command, **how: popen([command[0], "-c", killed], **how))
    with pytest.raises(ProbeFailed, match="memory .*ran out(.|\n)*gradient_checkpointing=true.*third slower"):
        list(probe(read_config(run), run.project))


def test_an_error_that_nobody_foresaw_is_told_with_its_last_words(probed, monkeypatch):
    run = probed[0]
    popen = probes.subprocess.Popen
    monkeypatch.setattr(
        probes.subprocess, "Popen", lambda command, **how: popen([command[0], "-c", "import none_such"], **how)
    )
    with pytest.raises(ProbeFailed, match="No module named 'none_such'"):
        list(probe(read_config(run), run.project))


def test_closing_it_ends_its_process_and_leaves_no_folder(probed, tmp_path, monkeypatch):
    run = copy_of(probed[0], tmp_path / "p")
    monkeypatch.setattr(probes.tempfile, "tempdir", str(tmp_path))
    made = []
    popen = probes.subprocess.Popen
    monkeypatch.setattr(probes.subprocess, "Popen", lambda *a, **how: made.append(popen(*a, **how)) or made[-1])
    trying = probe(read_config(run), run.project)
    next(trying), next(trying)
    trying.close()
    assert made[0].poll() == -9
    assert not list(tmp_path.glob("lorakit-probe-*"))
    assert not (run.project.folder / "probes.json").exists()


# ---- figures ---------------------------------------------------------------------------------------------------------


def test_the_first_steps_do_not_count_and_phases_add_up():
    begun = Started(step=0, steps=9, steps_per_epoch=3, images=6, precision="fp32", device="cpu")
    encoded = [Progress(what="images", done=done, total=2) for done in (1, 2)]
    steps = [stepped(step, 2 / seconds) for step, seconds in enumerate((9, 5, 1, 2, 3), 1)]
    events = [None, *encoded, begun, *steps, Saved(step=5, state="", lora="", matched=""), None]
    events[-1] = Sampled(step=5, prompt="a", image="")
    times = [10, 14, 20, 25, 34, 39, 40, 42, 45, 49, 56]
    found = measured(zip(times, events, strict=True), "a GPU", 3.0, 16.0)
    assert found.seconds_per_step == 2.0 and found.images_per_second == 1.0
    assert found.phases == {"start": 14, "encode": 6, "load": 5, "first step": 9}
    assert found.seconds_to_first_step == 28
    assert (found.seconds_per_save, found.seconds_per_sample) == (4, 7)


@pytest.mark.parametrize("hours", [0.5, 1.0, 3.0])
def test_sessions_lead_to_the_end_of_the_run(probed, hours):
    run = probed[0]
    estimate = forecast(read_config(run), run.project)  # 4 epochs of 2 steps, 7 images each
    slow = result(images_per_second=1 / 360, seconds_to_first_step=60.0)
    found = outlook(estimate, slow, hours)
    assert found.seconds == pytest.approx(28 * 360)
    assert found.sessions == -(-28 * 360 // (3600 * hours - 60))
    reached = min(8, int((3600 * hours - 60) / (3.5 * 360)))
    assert (found.step, found.epochs) == (reached, reached // 2)
    assert outlook(estimate, result(), hours).step == estimate.steps


def test_samples_and_saves_take_their_time(probed):
    estimate = forecast(read_config(probed[0]), probed[0].project)
    bare, whole = (
        outlook(estimate, result(), 1),
        outlook(estimate, result(seconds_per_save=3.0, seconds_per_sample=10.0), 1),
    )
    assert whole.seconds - bare.seconds == pytest.approx(3 * estimate.count("loras") + 10 * estimate.count("samples"))


def test_its_figures_are_read_back_as_they_were_told(probed):
    estimate = json.loads((probed[1].project.folder / "probes.json").read_text())
    assert [Probed(**figures) for figures in estimate.values()] == [probed[2][-1]]
