"""The terminal starts runs in the background, watches them, stops them, and tells what became of them."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import tiny
import yaml

from lorakit.cli import main
from lorakit.config import to_dict, to_yaml
from lorakit.events import Failed, Stopped, append, read
from lorakit.project import Project, platforms
from lorakit.run.config import configure, read_config
from lorakit.run.create import save_config
from lorakit.training import jobs
from lorakit.training.loop import train
from lorakit.training.status import run_status

pytestmark = pytest.mark.usefixtures("forked")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny.save_sd15(tmp_path_factory.mktemp("base"))


@pytest.fixture
def project(tmp_path) -> Path:
    """A project with images and no run."""
    tiny.save_images(tmp_path / "project" / "dataset")
    return tmp_path / "project"


@pytest.fixture
def run(project, base):
    """A run that has a config and was never trained."""
    made = Project(project).run("run1")
    save_config(made, configure(tiny.settings(base)))
    return made


def output_of(capsys, *arguments: object, status: int = 0) -> str:
    """What a command prints; its exit status is as expected."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == status
    out, err = capsys.readouterr()
    return err if status else out


def test_a_run_is_configured_and_started_in_the_background_watched_and_stopped(project, base, tmp_path, capsys):
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(tiny.settings(base)))
    settings = ("--config", tmp_path / "settings.yaml", "--set", "loop.epochs=5000", "--set", "sample.prompts=[]")
    message = output_of(capsys, "start", project, *settings)
    assert "training now" in message and f"lorakit watch {project} --run run1" in message and "lorakit stop" in message
    run = Project(project).run("run1")
    assert jobs.is_alive(run) and read_config(run).loop.epochs == 5000
    assert "was training already" in output_of(capsys, "start", project)
    for verb in ("start", "train"):  # its config stays as it is
        assert "is already training, in process" in output_of(capsys, verb, project, "--set", "loop.epochs=1", status=2)
    assert "is already training" in output_of(capsys, "train", project, status=2)
    assert "running" in output_of(capsys, "status", project)
    assert "finishes its step, saves and stops" in output_of(capsys, "stop", project)
    message = output_of(capsys, "watch", project)
    assert "encoding images: 7 of 7" not in message and "stopped after step" in message
    assert isinstance(list(read(run.log))[-1][1], Stopped) and read_config(run).loop.epochs == 5000
    assert "stopped" in output_of(capsys, "status", project)
    assert "is not training" in output_of(capsys, "stop", project)


def test_ctrl_c_ends_the_watching_only(run, monkeypatch, capsys):
    def interrupted(run):
        yield None
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "follow", interrupted)
    monkeypatch.setattr(jobs, "stop", lambda run: pytest.fail("it was stopped"))
    message = output_of(capsys, "watch", run.project.folder)
    assert "the training continues" in message and "lorakit stop" in message


def test_a_dead_trainer_is_reported_by_watch_and_status(run, capsys):
    append(run.log, Failed(reason="The image 00.png is broken.\nRemove it."), time=time.time())
    message = output_of(capsys, "watch", run.project.folder, status=1)
    assert "00.png is broken" in message and "No step was saved yet" in message
    message = output_of(capsys, "status", run.project.folder)
    assert "failed" in message and "! The image 00.png is broken." in message and "Remove it" not in message
    (status,) = json.loads(output_of(capsys, "status", run.project.folder, "--json"))
    assert status["state"] == "failed"


def test_a_run_that_nobody_trains_can_be_watched_and_needs_no_stop(run, capsys):
    assert output_of(capsys, "watch", run.project.folder) == ""
    assert "is not training" in output_of(capsys, "stop", run.project.folder)


@pytest.mark.parametrize("verb", ["watch", "stop"])
def test_unknown_projects_and_runs_are_refused(run, verb, capsys):
    folder = run.project.folder
    assert "nowhere does not exist" in output_of(capsys, verb, folder / "nowhere", status=2)
    assert "no run 'other'" in output_of(capsys, verb, folder, "--run", "other", status=2)


# ---- a project with a remote copy ------------------------------------------------------------------------------------


def test_open_and_sync_get_the_project(run, tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr("lorakit.sync.workspace.open_remote", lambda *where: seen.append(where) or run.project)
    monkeypatch.setattr("lorakit.sync.service.serve", seen.append)
    remote, here = tmp_path / "drive" / "mine", run.project.folder
    assert output_of(capsys, "open", remote, "--local", tmp_path) == f"{here}\n"
    output_of(capsys, "open", remote)
    assert seen == [(remote, tmp_path), (remote, platforms.find(os.environ).fast)]
    output_of(capsys, "sync", here)
    assert seen[2].folder == here


# ---- more of a run, and a new run from its weights -------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory) -> Path:
    """A project whose run `run1` is complete; tests copy it."""
    folder = tmp_path_factory.mktemp("trained") / "project"
    tiny.save_images(folder / "dataset")
    run = Project(folder).run("run1")
    save_config(run, configure(tiny.settings(base, loop={"epochs": 1, "batch_size": 4})))
    list(train(run))
    return folder


def test_a_finished_run_gets_more_epochs_and_another_stage(trained, tmp_path, capsys):
    folder = shutil.copytree(trained, tmp_path / "p")
    steps = run_status(Project(folder).run("run1")).steps
    assert "Continue: lorakit start" in output_of(capsys, "extend", folder, "--epochs", 2, "--way", "hold")
    assert f"finished after step {2 * steps}" in output_of(capsys, "train", folder)
    output_of(capsys, "extend", folder, "--stage", "loop.epochs=1", "--stage", "schedule.name=cosine")
    assert f"finished after step {3 * steps}" in output_of(capsys, "train", folder)


def test_more_epochs_are_refused_without_a_way_or_when_they_are_trained(trained, capsys):
    assert "allowed are stretch, hold" in output_of(capsys, "extend", trained, "--epochs", 2, status=2)
    assert "Enter a larger number" in output_of(capsys, "extend", trained, "--epochs", 0, "--way", "hold", status=2)
    assert "no run 'other'" in output_of(capsys, "extend", trained, "--run", "other", "--epochs", 2, status=2)


def test_a_new_run_from_the_weights_of_another_takes_its_settings_and_changes(trained, tmp_path, capsys):
    folder = shutil.copytree(trained, tmp_path / "p")
    (lora,) = (folder / "runs" / "run1" / "lora").iterdir()
    run = Project(folder).run("run1")
    # a stage of the run that made the file is not trained again
    run.config_file.write_text(to_yaml(configure({**to_dict(read_config(run)), "stages": [{"loop": {"epochs": 2}}]})))
    message = output_of(capsys, "train", folder, "--run", "two", "--from-weights", lora, "--set", "loop.steps=1")
    assert "step 0 of 1" in message and "finished after step 1" in message
    config = read_config(Project(folder).run("two"))
    assert config.adapter.rank == 2 and config.adapter.network_weights == str(lora) and config.stages == ()
    larger = ("--run", "three", "--from-weights", lora, "--set", "adapter.rank=4", "--set", "loop.steps=1")
    assert "finished after step 1" in output_of(capsys, "train", folder, *larger)
    assert read_config(Project(folder).run("three")).adapter.rank == 4
    assert "has trained already" in output_of(capsys, "train", folder, "--run", "two", "--from-weights", lora, status=2)
