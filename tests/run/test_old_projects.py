"""A project of version 0.1 opens, and its runs resume, with today's code.

`tests/builders/old_project` was written by version 0.1 on the embedded base: run `cut` was stopped after step 5 of 8
and has its state of step 4; run `whole` is its uncut twin. Floating point sums differ between CPUs, so the log and the
LoRA of the resumed run are compared bit for bit where this machine computes the state of step 4 with the same bits as
the stored one, and within 1e-5 elsewhere. Takes a few seconds.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sessions import at, tensors, trace, until

from lorakit import events
from lorakit.data import DataConfig
from lorakit.events import Finished, Saved
from lorakit.examine import excluded
from lorakit.prepare.boxes import Box, Boxes
from lorakit.prepare.crop import read_prepare_config
from lorakit.project import Project, Run
from lorakit.run import checkpoint
from lorakit.run.config import configure, read_config, settings_of
from lorakit.run.create import save_config
from lorakit.run.resume import recorded_config
from lorakit.tags.editor import CaptionEditor
from lorakit.tags.tagging import read_tagging
from lorakit.training.loop import train
from lorakit.training.status import project_status
from widgets.project.draft import Draft

STORED = Path(__file__).parents[1] / "builders" / "old_project"
MORE = DataConfig(folder="more", trigger="mofu")  # the images whose captions were edited


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(shutil.copytree(STORED, tmp_path / "project"))


def states_agree(run: Run, other: Run) -> bool:
    """True when the newest states of two runs have the same bits."""
    mine, theirs = (dict(tensors(checkpoint.newest(each.states).state)) for each in (run, other))
    return mine.keys() == theirs.keys() and all(
        torch.equal(value, theirs[path]) if isinstance(value, torch.Tensor) else value == theirs[path]
        for path, value in mine.items()
    )


def test_a_cut_run_of_version_0_1_ends_as_its_uncut_twin(project):
    cut, whole, anew = (project.run(name) for name in ("cut", "whole", "anew"))
    save_config(anew, read_config(cut))
    until(anew, at(Saved, 4))
    is_exact = states_agree(anew, cut)
    assert [event.step for event in train(cut) if isinstance(event, Finished)] == [8]
    tolerance = 0.0 if is_exact else 1e-5
    resumed, uncut = trace(cut), trace(whole)
    assert resumed.keys() == uncut.keys() == set(range(1, 9))
    for step, values in uncut.items():
        assert resumed[step] == pytest.approx(values, rel=0, abs=tolerance), f"step {step}"
    lora, expected = load_file(cut.lora_file(8)), load_file(whole.lora_file(8))
    assert lora.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(lora[name], weight, rtol=0, atol=tolerance)


def test_its_runs_read_their_captions_and_images_as_they_did_and_new_ones_as_today(project):
    cut = project.run("cut")
    assert read_config(cut).data.reading == 1 and read_config(cut).data == recorded_config(cut).data
    # a form knows nothing of it
    assert save_config(cut, configure({**settings_of(cut)})).data.reading == 1
    assert "reading: 1" in cut.config_file.read_text()
    assert configure(settings_of(cut)).data.reading == 2
    assert save_config(project.run("anew"), configure(settings_of(cut))).data.reading == 2


def test_its_runs_and_logs_are_read(project):
    assert {run.name: (run.state, run.step, run.saved_step) for run in project_status(project)} == {
        "cut": ("cut", 5, 4),
        "whole": ("finished", 8, 8),
    }
    assert len(events.steps(project.run("whole").log)) == 8


def test_its_settings_are_those_that_were_set_by_hand(project):
    draft = Draft(project)
    assert not draft.notes and draft.run.name == "whole"
    assert draft.by_hand["adapter.rank"] == 8 and draft.by_hand["optimizer.max_grad_norm"] == 0.5


def test_its_caption_edits_are_listed_and_can_be_undone(project):
    excluded.restore(project, excluded.batches(project)[0])  # a missing caption would count as a newer change
    editor = CaptionEditor(project, MORE)
    assert [(change.what, change.by) for change in editor.history()] == [("rename", "person")]
    caption = project.folder / "more" / "2_mofu" / "00.txt"
    assert caption.read_text() == "mofu, girl, red hair, smile, smile\n"
    assert editor.undo().number == 1
    assert caption.read_text().strip() == "mofu, girl, red hair, smile"


def test_its_excluded_files_are_listed_and_restored(project):
    (batch,) = excluded.batches(project)
    missing = project.folder / "more" / "2_mofu" / "02.txt"
    assert not missing.exists()
    assert excluded.restore(project, batch) == [] and missing.read_text().startswith("mofu")


def test_its_boxes_and_the_settings_of_its_tools_are_read(project):
    assert Boxes(project).of("2_mofu/00.png") == (Box(0, 0, 40, 40),)
    assert read_prepare_config(project).pad == "1x1"
    tagger, settings, _ = read_tagging(project)
    assert (tagger, settings["source"]) == ("wd14", "demo")
