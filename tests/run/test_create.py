"""A run is created from a project and settings in one call, and the same call finds it again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lorakit.config import ConfigError
from lorakit.project import Project
from lorakit.project.lock import RunBusy, lock_run
from lorakit.run.config import configure, read_config
from lorakit.run.create import create_run
from lorakit.run.resume import RunChanged, current_inputs, save_record

NO_IMAGES = SimpleNamespace(samples=())  # a scan of an empty dataset
SETTINGS = {"model": {"family": "sd15", "source": "demo"}, "data": {"trigger": "mofurin"}}


def test_a_run_is_created_with_its_config(tmp_path):
    run = create_run(tmp_path / "project", SETTINGS)
    assert (run.name, run.project.folder) == ("run1", tmp_path / "project")
    assert read_config(run) == configure(SETTINGS)


def test_a_path_a_text_and_a_project_mean_the_same(tmp_path):
    folders = {create_run(project, SETTINGS, "a").folder for project in (tmp_path, str(tmp_path), Project(tmp_path))}
    assert folders == {tmp_path / "runs" / "a"}


def test_a_gpu_preset_fills_in_what_the_settings_leave_open(tmp_path):
    run = create_run(tmp_path, SETTINGS, gpu_preset="8 GB")
    assert read_config(run) == configure(SETTINGS, "8 GB") != configure(SETTINGS)


def test_settings_may_change_until_the_run_has_trained(tmp_path):
    run = create_run(tmp_path, SETTINGS)
    other = {**SETTINGS, "adapter": {"rank": 4}}
    assert read_config(create_run(tmp_path, other)).adapter.rank == 4
    save_record(run, current_inputs(read_config(run), [NO_IMAGES], {}, "fp32"), [1])
    assert create_run(tmp_path, other).folder == run.folder
    with pytest.raises(RunChanged, match=r"settings changed since it was started.*\n  adapter\.rank: 4 -> 16"):
        create_run(tmp_path, SETTINGS)


def test_wrong_settings_write_nothing(tmp_path):
    with pytest.raises(ConfigError, match=r"adapter\.rank is 0"):
        create_run(tmp_path, {**SETTINGS, "adapter": {"rank": 0}})
    assert not (tmp_path / "runs").exists()


def test_a_run_that_is_training_is_left_alone(tmp_path):
    run = create_run(tmp_path, SETTINGS)
    with lock_run(run), pytest.raises(RunBusy, match="already training"):
        create_run(tmp_path, {**SETTINGS, "adapter": {"rank": 4}})
    assert read_config(run).adapter.rank == 16
