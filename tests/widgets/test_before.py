"""Before training the view shows steps, disk space, time and where a session ends; a probe in it ends cleanly."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from sessions import new_run
from tiny import save_base, save_images, settings

from lorakit.errors import UserError
from lorakit.events import Progress
from lorakit.project import Project
from lorakit.run.config import configure, read_config
from lorakit.training.forecast import Disk, Forecast, forecast
from lorakit.training.probe import Probed, ProbeFailed
from widgets import i18n
from widgets.training import before as view

MEASURED = Probed(
    device="Tesla T4",
    seconds_per_step=2.0,
    images_per_second=1.0,
    seconds_to_first_step=60.0,
    seconds_per_save=None,
    seconds_per_sample=None,
    peak_memory_gb=11.24,
    total_memory_gb=15.8,
    phases={"start": 40.0, "encode": 9.0, "load": 15.0, "first step": 5.0},
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("before")
    return new_run(folder / "p", save_base("sd15", folder / "base"), {"loop": {"epochs": 6}})


@pytest.fixture(scope="module")
def plan(run) -> Forecast:
    return forecast(read_config(run), run.project, run)


@pytest.fixture
def cell(monkeypatch):
    """Everything that a cell displays, in order."""
    shown: list[str] = []

    class Shown:
        def update(self, drawn):
            shown.append(drawn.data)

    def display(*drawn, **_):
        shown.extend(one.data for one in drawn if hasattr(one, "data"))
        return Shown()

    monkeypatch.setattr("IPython.display.display", display)
    return shown


def words(text: str) -> str:
    """The text of HTML, images left out."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))


def rendered(plan: Forecast, run, **options) -> str:
    return words(view.render(plan, read_config(run), **options))


def test_steps_data_sizes_and_space_are_shown(plan, run):
    text = rendered(plan, run)
    assert "24 steps" in text and "6 epochs" in text and "42 images in total" in text
    assert "7 images × 1" in text and "64 × 64 px" in text and "0 of 7 cached" in text
    assert "training states 3 ×" in text and "LoRA files 6 ×" in text and "free" in text
    assert "not known yet" in text  # time and memory


@pytest.mark.parametrize(
    "hours, sentence",
    [
        (1.0, "finish within one session of 1 h"),
        (0.025, "After 0.025 h: step 17 of 24, 4 of 6 epochs; 2 sessions in total"),
    ],
)
def test_the_end_of_a_session_is_shown(plan, run, hours, sentence):
    text = rendered(plan, run, probed=MEASURED, hours=hours)
    assert sentence in text
    assert "11.2 of 15.8 GB, Tesla T4" in text and "1 images/s" in text
    assert "start 40.0 s, base model 15.0 s, first step 5.0 s" in text


def test_memory_that_may_run_out_is_shown_with_settings_that_save_some(plan, run):
    assert "gradient checkpointing" not in rendered(plan, run, probed=MEASURED)
    tight = replace(MEASURED, peak_memory_gb=15.5)
    assert "“Gradient checkpointing” yes" in rendered(plan, run, probed=tight)


@pytest.mark.parametrize(
    "free, warning", [(10_000, ""), (1_100, "Disk space is tight"), (900, "Not enough disk space"), (None, "")]
)
def test_a_disk_that_fills_up_is_shown(plan, run, free, warning):
    disk = Disk(folder=Path("/drive"), is_remote=True, needed=1_000, free=free)
    text = rendered(replace(plan, disks=(disk,)), run)
    assert (("Not enough" in text) or ("is tight" in text)) == bool(warning) and warning in text
    assert "remote copy" in text


@pytest.mark.parametrize(
    "precision, requested, capability, sentence",
    [
        ("fp32", "auto", None, "fp32: no GPU found"),
        ("fp16", "auto", (7, 5), "fp16: Tesla T4 has no fast bf16 (compute capability 7.5; bf16 needs 8.0)"),
        ("bf16", "auto", (8, 9), "bf16: supported by Tesla T4 (compute capability 8.9)"),
        ("bf16", "bf16", (8, 9), "bf16 (set by hand)"),
    ],
)
def test_the_precision_is_shown_with_its_reason(plan, precision, requested, capability, sentence):
    changed = replace(
        plan, precision=precision, requested_precision=requested, capability=capability, device="Tesla T4"
    )
    assert view.precision(changed) == sentence


def test_a_base_that_is_not_there_leaves_sizes_open_and_the_rest_shown(tmp_path):
    save_images(tmp_path / "dataset")
    config = configure(settings(tmp_path / "none", model={"source": "somebody/model"}))
    text = words(view.render(forecast(config, Project(tmp_path)), config))
    assert "8 steps" in text and "not on this machine yet" in text and "Known once the base model is downloaded" in text


def test_names_of_files_are_text_and_not_html(plan, run):
    changed = replace(plan, notes=("<script>alert(1)</script>.png: left out.",) * 30)
    drawn = view.render(changed, read_config(run))
    assert "<script>" not in drawn and "30 notes" in drawn and "and 10 more" in drawn


def test_all_of_it_is_in_chinese(plan, run):
    english = words(view.render(plan, read_config(run), MEASURED))
    i18n.use("zh")
    try:
        chinese = words(view.render(plan, read_config(run), MEASURED))
    finally:
        i18n.use("en")
    assert "24 步" in chinese and not {"Disk space", "whole run", "precision"} & set(re.findall(r"[A-Za-z ]+", chinese))
    assert english != chinese


def test_the_whole_view_stays_small_for_a_long_run(tmp_path):
    save_images(tmp_path / "dataset")
    config = configure(settings(tmp_path / "none", loop={"steps": 10_000}))
    assert len(view.render(forecast(config, Project(tmp_path)), config, MEASURED)) < 30_000


# ---- in a cell -------------------------------------------------------------------------------------------------------


def test_a_probe_draws_what_it_does_and_then_its_figures(run, cell, monkeypatch):
    seen = [Progress(what="start", done=0, total=1), Progress(what="steps", done=2, total=5), MEASURED]
    monkeypatch.setattr(view, "REDRAW", 0.0)
    monkeypatch.setattr(view, "try_steps", lambda config, project: iter(seen))
    view.probe(run)
    assert "Starting" in cell[1] and "Measuring steps 2 / 5" in cell[2]
    assert "Time and memory" in cell[-1] and "Measuring" not in cell[-1]


def test_drawings_come_at_most_once_a_second(run, cell, monkeypatch):
    seen = [Progress(what="images", done=done, total=500) for done in range(1, 500)]
    monkeypatch.setattr(view, "try_steps", lambda config, project: iter([*seen, MEASURED]))
    view.probe(run)
    assert len(cell) <= 4


@pytest.mark.parametrize(
    "error, text", [(KeyboardInterrupt(), "Stopped. The caches are kept"), (ProbeFailed("no room"), "no room")]
)
def test_an_interrupt_and_a_refusal_end_in_a_sentence(run, cell, monkeypatch, error, text):
    def trying(config, project):
        yield Progress(what="start", done=0, total=1)
        raise error

    monkeypatch.setattr(view, "try_steps", trying)
    view.probe(run)
    assert text in cell[-1]


def test_settings_without_a_project_are_refused(run):
    with pytest.raises(UserError, match="project"):
        view.before_training(read_config(run))


def test_the_slider_moves_the_end_of_the_session(run, cell, monkeypatch):
    monkeypatch.setattr(view, "remembered", lambda config, project: MEASURED)
    view_of_run = view._View(run, None, 3.0)
    view_of_run.show()
    view_of_run._set_hours({"new": 0.025})
    assert "finish within" in cell[0] and "step 17 of 24" in cell[-1]
