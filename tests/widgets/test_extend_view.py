"""More epochs are shown before they are added; resuming and starting a new run have a button each."""

from __future__ import annotations

import re
from pathlib import Path

import ipywidgets
import pytest
from sessions import copy_of, new_run
from tiny import save_base

from lorakit.errors import UserError
from lorakit.events import Stepped
from lorakit.lora.names import LoraFileError
from lorakit.run import extend
from lorakit.run.checkpoint import saved_step
from lorakit.run.config import read_config
from lorakit.training.loop import train
from widgets.training import extend as view


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 2 epochs of 4 steps, all of them trained; the learning rate falls to zero."""
    folder = tmp_path_factory.mktemp("extend")
    run = new_run(folder / "p", save_base("sd15", folder / "base"), {"schedule": {"name": "linear"}})
    list(train(run))
    return run


@pytest.fixture
def run(trained, tmp_path):
    return copy_of(trained, tmp_path / "p")


@pytest.fixture
def cell(monkeypatch):
    """All that a cell displays."""
    shown: list = []
    monkeypatch.setattr("IPython.display.display", lambda *drawn, **_: shown.extend(drawn))
    return shown


def buttons(cell: list) -> dict[str, ipywidgets.Button]:
    by_label, left = {}, list(cell)
    while left:
        widget = left.pop()
        left += getattr(widget, "children", ())
        if isinstance(widget, ipywidgets.Button):
            by_label[widget.description] = widget
    return by_label


def texts(cell: list) -> str:
    parts, left = [], list(cell)
    while left:
        shown = left.pop(0)
        left += getattr(shown, "children", ())
        parts += [text for text in (getattr(shown, "data", None), getattr(shown, "value", None)) if text]
    return re.sub(r"<[^>]+>", " ", " ".join(parts))


def test_each_way_has_an_image_a_sentence_and_a_button_and_nothing_is_done(run, cell):
    before = run.config_file.read_bytes()
    view.more_epochs(run, 5)
    assert list(buttons(cell)) and set(buttons(cell)) == {"Stretch", "Hold", "New stage"}
    drawn = [view.render(run, 5, way) for way in view.WAYS]
    assert all("<img" in image and "current plan" in image for image in drawn)
    assert len({re.sub(r"<[^>]+>", " ", image) for image in drawn}) == 3
    assert run.config_file.read_bytes() == before


@pytest.mark.parametrize("way, steps", [("stretch", 20), ("hold", 20), ("stage", 20)])
def test_a_way_does_what_it_showed(run, cell, way, steps):
    shown = view._curve(run, view.planned(run, 5, way))
    view.more_epochs(run, 5, way)
    assert "now has 20 steps" in texts(cell)
    further = [event.lr for event in train(run) if isinstance(event, Stepped)]
    assert saved_step(run) == len(shown) == steps
    assert further == pytest.approx(shown[8:])


def test_a_button_does_it_once_and_then_all_are_off(run, cell):
    view.more_epochs(run, 5)
    by_label = buttons(cell)
    by_label["New stage"].click()
    assert len(read_config(run).stages) == 1 and "now has 20 steps" in texts(cell)
    assert all(button.disabled for button in by_label.values())


def test_epochs_of_a_run_of_several_stages_are_shown_to_be_those_of_the_last(run):
    assert "last stage" not in view.render_title(run, 5)
    extend.add_stage(run, {"loop": {"epochs": 1}})
    assert "counts epochs of the last stage only" in view.render_title(run, 5)


@pytest.mark.parametrize("way", ["", "stretch", "hold", "stage"])
@pytest.mark.parametrize("epochs", [1, 2])
def test_epochs_that_are_done_are_shown_and_nothing_happens(run, cell, epochs, way):
    before = run.config_file.read_bytes()
    view.more_epochs(run, epochs, way)
    assert "Nothing to do" in texts(cell) and not buttons(cell)
    assert run.config_file.read_bytes() == before


def test_holding_a_learning_rate_near_zero_is_warned_of(run, trained, tmp_path):
    assert "close to zero" not in view.render(run, 5, "hold")  # linear ends at an eighth
    longer = new_run(
        tmp_path / "again", Path(read_config(run).model.source), {"schedule": {"name": "cosine"}, "loop": {"epochs": 5}}
    )
    list(train(longer))  # the last of its 20 steps has 0.6 % of the rate
    assert "close to zero" in view.render(longer, 40, "hold")


def test_resuming_and_starting_a_new_run_are_two_buttons(run, cell, monkeypatch):
    started = []
    monkeypatch.setattr(view.jobs, "start", lambda run: started.append(run.name) or True)
    view.continue_run(run)
    by_label = buttons(cell)
    assert set(by_label) == {"Resume this run", "Start a new run from these weights"}
    by_label["Start a new run from these weights"].click()
    assert not started and [other.name for other in run.project.runs()] == ["r", "r-2"]
    config = read_config(run.project.run("r-2"))
    assert config.adapter.network_weights == str(run.lora_file(8)) and config.adapter.rank == 2


def test_resuming_starts_the_trainer(run, cell, monkeypatch):
    started = []
    monkeypatch.setattr(view.jobs, "start", lambda run: started.append(run.name) or True)
    view.continue_run(run)
    buttons(cell)["Resume this run"].click()
    assert started == ["r"] and "is training" in texts(cell)


def test_a_new_run_has_the_settings_of_the_old_and_its_own_steps(run):
    extend.add_stage(run, {"loop": {"epochs": 1}})
    new = view.new_run_from(run, "again")
    config, old = read_config(new), read_config(run)
    assert (config.data, config.optimizer, config.loop) == (old.data, old.optimizer, old.loop)
    assert config.stages == () and saved_step(new) == 0


def test_files_that_no_run_can_start_from_are_refused(run, tmp_path):
    with pytest.raises(UserError, match="like="):
        view.new_run_from(run.lora_file(8), "again")
    with pytest.raises(LoraFileError):
        view.new_run_from(next(run.project.cache.rglob("*.safetensors")), "again", like=run)
    fresh = new_run(run.project.folder, tmp_path / "none", name="fresh")
    with pytest.raises(UserError, match="no LoRA file yet"):
        view.new_run_from(fresh, "again")


def test_a_refusal_behind_a_button_is_a_sentence(run, cell):
    view.continue_run(run)
    name = next(w for w in cell[0].children if isinstance(w, ipywidgets.Text))
    name.value = "no/name"
    buttons(cell)["Start a new run from these weights"].click()
    assert "cannot be a run" in texts(cell)
