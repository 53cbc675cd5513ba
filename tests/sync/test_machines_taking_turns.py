"""Homes that are deleted, machines that are lost and machines that take turns: nobody's work is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from remotes import begin, content, opened, safetensors, save_data, serving, state, until, whole_states

from lorakit.project import Project
from lorakit.run import checkpoint
from lorakit.sync import service, workspace
from lorakit.sync.workspace import notes


@pytest.fixture
def remote(tmp_path) -> Path:
    """A home with a run of two states and a dataset, whose machine is gone."""
    (tmp_path / "drive/lorakit").mkdir(parents=True)
    remote = tmp_path / "drive/lorakit/mofu"
    save_data(remote / "dataset")
    project = opened(remote, tmp_path / "gone")
    run = begin(project)
    run.loras.mkdir()
    for step in (10, 20):
        state(run, step)
        run.lora_file(step).write_bytes(safetensors())
    project.cache.mkdir()
    (project.cache / "ab.safetensors").write_bytes(safetensors())
    mirrored(project)
    shutil.rmtree(tmp_path / "gone")
    return remote


def mirrored(project: Project) -> None:
    """Copy until all is on the remote."""
    assert serving(project).wait(30) == 0
    standing = service.standing(project)
    assert (standing.files_left, standing.trouble) == (0, ""), standing


@pytest.mark.parametrize("running", [False, True])
def test_a_home_that_was_deleted_and_made_anew_gets_everything_again(running, remote, tmp_path):
    project = opened(remote, tmp_path / "new")
    for _ in workspace.downloading_loras(project):
        pass
    mirrored(project)
    process = serving(project, linger=600.0) if running else None
    shutil.rmtree(remote)
    again = opened(remote, tmp_path / "new")
    if process:
        until(again, lambda found: found.seen and not found.files_left and not found.trouble)
        until(again, lambda found: len(whole_states(remote)) > 0 and not found.files_left)
        process.kill()
        process.wait()
    mirrored(again)
    third = opened(remote, tmp_path / "third")
    for _ in workspace.downloading_loras(third):
        pass
    assert content(third.folder) == content(again.folder) and len(content(third.folder)) > 12


def test_a_mirror_with_nothing_to_do_gives_way_to_work_of_another_machine(remote, tmp_path):
    one, two = opened(remote, tmp_path / "one"), opened(remote, tmp_path / "two")
    process = serving(two, linger=600.0)
    until(two, lambda found: not found.files_left)
    opened(remote, tmp_path / "two")
    assert process.poll() is None, "there is nothing new"
    state(one.run("r"), 30)
    mirrored(one)
    two = opened(remote, tmp_path / "two")
    assert process.wait(5) == 0 and (two.run("r").states / "00000030/COMPLETE.json").exists()


def test_work_of_another_machine_stays_at_home_when_this_one_goes_on_from_before(remote, tmp_path):
    one, two = opened(remote, tmp_path / "one"), opened(remote, tmp_path / "two")
    state(one.run("r"), 30)
    mirrored(one)
    for step in (22, 24):
        state(two.run("r"), step)
    mirrored(two)
    assert 30 in whole_states(remote)


def test_a_file_that_was_brought_and_then_written_anew_goes_home_once(remote, tmp_path):
    project = opened(remote, tmp_path / "new")
    for _ in workspace.downloading_loras(project):
        pass
    file = project.run("r").lora_file(20)
    file.write_bytes(safetensors(200))
    mirrored(project)
    assert (remote / "runs/r/lora" / file.name).read_bytes() == safetensors(200)


def test_a_run_of_which_no_state_came_home_begins_again_and_is_told(remote, tmp_path):
    shutil.rmtree(remote / "runs/r/states/00000010")
    (remote / "runs/r/states/00000020/COMPLETE.json").unlink()  # it was on its way
    with open(remote / "runs/r/events.jsonl", "ab") as log:
        log.write(b'{"kind": "saved", "time": 1.0, "step": 20, "state": "", "lora": "", "matched": ""}\n')
    project = opened(remote, tmp_path / "new")
    assert checkpoint.latest_state(project.run("r")).step == 0
    assert any("No training state of run 'r' was uploaded" in note for note in notes(project))
