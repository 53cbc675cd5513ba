"""The form for what LoRA files say about themselves stores each change in the run, and nothing else of it."""

from __future__ import annotations

import pytest

from lorakit.config import ConfigError, to_dict
from lorakit.project import Project
from lorakit.run.config import configure, read_config
from lorakit.run.create import save_config
from widgets.evaluate.about_file import FIELDS, AboutFile


def test_every_row_shows_what_is_stored_and_stores_what_is_typed(tmp_path):
    run = Project(tmp_path / "p").run("run1")
    save_config(run, configure({"model": {"family": "sd15", "source": "demo"}, "save": {"author": "me"}}))
    before = to_dict(read_config(run))
    form = AboutFile(run)
    assert tuple(form.rows) == FIELDS and form.rows["author"].control.read() == "me"
    typed = {"author": "you, too: x", "license": "CC0", "thumbnail": True, "dataset_details": False}
    for name, value in typed.items():
        form.rows[name].control.widget.value = value
    after = to_dict(read_config(run))
    assert after == {**before, "save": before["save"] | typed}
    form.rows["author"].undo.click()
    assert read_config(run).save.author == "" and form.rows["author"].control.read() == ""
    with pytest.raises(ConfigError, match="thumbnail"):
        form.set("thumbnail", "perhaps")
    assert read_config(run).save.thumbnail is True
