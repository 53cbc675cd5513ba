"""Files of earlier versions, in which settings had other names, are read as the same run."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import yaml

from lorakit.config import RENAMED, ConfigError, current_names, to_dict
from lorakit.project import Project
from lorakit.run.config import configure, read_config
from lorakit.run.create import save_config
from lorakit.run.resume import check_unchanged, current_inputs, save_record
from widgets.project.draft import FILE, Draft

NOTHING = SimpleNamespace(samples=())  # a scan of an empty dataset
SETTINGS = {"model": {"family": "sd15", "source": "demo"}, "adapter": {"rank": 8}, "data": {"trigger": "mofu"}}


def before_renaming(settings: dict) -> dict:
    """Settings as they were written while each still had its old name."""
    for old, new in RENAMED.items():
        (old_part, old_name), (part, name) = old.split("."), new.split(".")
        # a record holds only what decides the result, and so not how files are saved
        if part in settings:
            settings[old_part][old_name] = settings[part].pop(name)
    return settings


@pytest.fixture
def run(tmp_path):
    """A run that has begun, and whose files an earlier version wrote."""
    run = Project(tmp_path / "project").run("run1")
    config = save_config(run, configure(SETTINGS))
    save_record(run, current_inputs(config, [NOTHING], {}, "fp32"), [1])
    run.config_file.write_text(yaml.safe_dump(before_renaming(to_dict(config))))
    record = json.loads(run.record_file.read_text())
    run.record_file.write_text(json.dumps({**record, "config": before_renaming(record["config"])}))
    assert "kind" in record["config"]["adapter"] and {"kind: lora", "form: auto"} <= {
        line.strip() for line in run.config_file.read_text().splitlines()
    }
    return run


def test_a_run_under_old_names_is_the_same_run(run):
    config = read_config(run)
    assert config == configure(SETTINGS)
    check_unchanged(run, current_inputs(config, [NOTHING], {}, "fp32"), 1)
    assert save_config(run, config) == config


def test_stages_and_settings_that_are_given_may_have_old_names():
    stage = {"loop": {"epochs": 2}, "adapter": {"kind": "lora"}}
    with pytest.raises(ConfigError, match="stages.2.adapter cannot be set"):
        configure({**SETTINGS, "stages": [stage]})
    assert configure({**SETTINGS, "adapter": {"kind": "lora", "rank": 8}}) == configure(SETTINGS)


def test_a_project_keeps_what_was_chosen_under_an_old_name(tmp_path):
    project = Project(tmp_path / "project")
    draft = Draft(project)
    draft.set("adapter.rank", 8)
    draft.set("adapter.type", "lora")
    saved = yaml.safe_load(draft.file.read_text())
    (project.folder / FILE).write_text(yaml.safe_dump({**saved, "settings": before_renaming(saved["settings"])}))
    again = Draft(project)
    assert again.choice.settings == {"adapter.rank": 8, "adapter.type": "lora"} and not again.notes


def test_both_names_at_once_are_refused_and_what_was_given_stays():
    settings = {"adapter": {"kind": "lora", "type": "lora"}}
    with pytest.raises(ConfigError, match="adapter.kind is called adapter.type now, and both are set"):
        current_names(settings)
    given = {"adapter": {"kind": "lora"}}
    assert current_names(given) == {"adapter": {"type": "lora"}} and given == {"adapter": {"kind": "lora"}}
