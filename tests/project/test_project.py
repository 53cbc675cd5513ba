"""The folders of a project and of a run, and files that are whole or not there."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from pathlib import Path

import pytest

from lorakit.files import write_atomic, write_json
from lorakit.project import Project, ProjectError


@pytest.mark.parametrize("name", ["run1", "角色-v2.1_b", "_", "1", "x" * 64])
def test_a_run_lies_below_its_project_under_its_name(name, tmp_path):
    run = Project(tmp_path).run(name)
    assert run.folder == tmp_path / "runs" / name and not run.exists()
    assert {p.parent for p in (run.config_file, run.log, run.states, run.loras, run.samples, run.grids)} == {run.folder}


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "-x", "a/b", "../x", "a b", "a\n", "x" * 65, "a\\b", "a:b"])
def test_a_name_that_could_leave_the_folder_or_hide_is_refused(name, tmp_path):
    with pytest.raises(ProjectError, match="cannot be a run's name: use up to 64 letters"):
        Project(tmp_path).run(name)


def test_a_project_is_absolute_wherever_the_process_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    project = Project("mine")
    monkeypatch.chdir("/")
    assert project.folder == tmp_path / "mine" and project.dataset == tmp_path / "mine/dataset"
    assert Project("~/lora").folder == tmp_path / "home/lora"


def test_only_folders_with_a_config_are_runs(tmp_path):
    project = Project(tmp_path)
    assert project.runs() == []
    for name, file in (("b", "config.yaml"), ("a", "config.yaml"), ("c", "events.jsonl"), ("a - Copy", "config.yaml")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / file).write_text("")
    assert [run.name for run in project.runs()] == ["a", "b"]
    assert [project.run(name).exists() for name in "abc"] == [True, True, False]


def test_the_steps_of_a_run_are_those_of_its_own_files_in_order(tmp_path):
    run = Project(tmp_path).run("a.b")
    run.loras.mkdir(parents=True)
    assert run.lora_steps() == []
    for step in (1_000_000, 20, 3):
        run.lora_file(step).write_bytes(b"")
    for other in ("aXb-000004.safetensors", "a.b-last.safetensors", "a.b-000005.part", "x.safetensors"):
        (run.loras / other).write_bytes(b"")
    assert run.lora_steps() == [3, 20, 1_000_000]
    assert run.lora_file(3).name == "a.b-000003.safetensors"


def test_the_newest_run_is_one_that_can_be_compared_and_exported(tmp_path):
    project = Project(tmp_path)
    with pytest.raises(ProjectError, match="no runs"):
        project.newest_run()
    for at, name in enumerate(("old", "new", "stopped")):
        project.run(name).loras.mkdir(parents=True)
        project.run(name).config_file.touch()
        os.utime(project.run(name).config_file, (at, at))
    with pytest.raises(ProjectError, match=r"No run has saved a LoRA file yet \(new, old, stopped\)"):
        project.newest_run()
    for name in ("old", "new"):
        project.run(name).lora_file(10).touch()
    assert project.newest_run().name == "new"


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path):
    file = tmp_path / "x.json"
    write_json(file, {"帽": [1, None]})
    with open(file, "rb") as reader:
        write_atomic(file, "x" * 100)
        assert json.loads(reader.read()) == {"帽": [1, None]}, "who had it open still sees the old one"
    assert file.read_text() == "x" * 100 and os.listdir(tmp_path) == ["x.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "x"
    write_atomic(file, b"old")

    def no_space(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="disk is full"):
        write_atomic(file, b"new")
    assert file.read_bytes() == b"old"


def _write_often(file: Path, text: str) -> None:
    for _ in range(200):
        write_atomic(file, text * 5000)


def test_two_processes_may_write_the_same_file(tmp_path):
    file, context = tmp_path / "x", multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_often, args=(file, text)) for text in "ab"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert not file.exists() or file.read_text() in ("a" * 5000, "b" * 5000)
    assert [writer.exitcode for writer in writers] == [0, 0]


def test_a_project_lives_at_home_only_when_it_says_so(tmp_path):
    project = Project(tmp_path)
    assert project.remote is None
    write_json(project.remote_file, {"home": "/content/drive/MyDrive/角色"})
    assert project.remote == Path("/content/drive/MyDrive/角色")


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"home": null}', '{"home": 5}'])
def test_a_damaged_home_file_is_reported(text, tmp_path):
    project = Project(tmp_path)
    project.remote_file.write_text(text)
    with pytest.raises(ProjectError, match=r"home\.json is damaged: it should name"):
        project.remote  # noqa: B018


@pytest.mark.parametrize("name", ["x" * 255, "\u732b" * 85, "x" * 230])
def test_a_file_of_the_longest_name_is_written(tmp_path, name):
    write_atomic(tmp_path / name, "a")
    write_atomic(tmp_path / name, "b")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "b")]


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    write_atomic(tmp_path / "a", "old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="space"):
        write_atomic(tmp_path / "a", "new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "old")]
