"""Tagging in a notebook: the form keeps what is chosen, tagging tells what it does and goes on where it was cut."""

from __future__ import annotations

import shutil
from dataclasses import fields
from types import SimpleNamespace

import pytest
from IPython import display as ipython_display
from tiny_taggers import chatting, said

from lorakit import taggers
from lorakit.config import ConfigError
from lorakit.demo import DATASET, TRIGGER
from lorakit.project import Project
from lorakit.tags.tagging import TaggingConfig, read_tagging, write_tagging
from widgets import i18n
from widgets.project.draft import Draft
from widgets.tags import tagging
from widgets.tags.tagging import TaggingForm, tag

MISSING = 4  # captions that are taken away at first


@pytest.fixture
def shown(monkeypatch):
    """Every text that a cell shows, one after the other."""
    found = []

    def display(thing, display_id=False):
        found.append(getattr(thing, "data", thing))
        return SimpleNamespace(update=lambda html: found.append(html.data))

    monkeypatch.setattr(ipython_display, "display", display)
    monkeypatch.setattr(tagging, "REDRAW", 0.0)
    monkeypatch.setattr(tagging.service, "start", lambda project: False)
    return found


@pytest.fixture
def project(tmp_path):
    """The demo's images, some without captions, and the demo tagger, which reads two images at once."""
    project = Project(tmp_path / "project")
    shutil.copytree(DATASET, project.dataset)
    for file in captions(project)[:MISSING]:
        file.unlink()
    Draft(project).set("data.trigger", TRIGGER)
    write_tagging(project, "wd14", {"source": "demo", "batch_size": 2}, TaggingConfig())
    return project


def captions(project):
    return sorted(project.dataset.rglob("*.txt"))


# ---- the form --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", taggers.names())
def test_the_form_of_every_tagger_shows_its_settings_and_a_new_form_the_same(name, project):
    form = TaggingForm(project)
    form.tagger.value = name
    assert {path for path in form.rows if path.startswith(f"{name}.")} == {
        f"{name}.{field.name}" for field in fields(taggers.config_class(name))
    }
    is_about_tags = "tagging.general_threshold" in form.rows
    assert is_about_tags == (taggers.output(name) == "tags")
    again = TaggingForm(project)
    assert again.name == name and list(again.rows) == list(form.rows)


def test_what_is_set_is_on_disk_at_once_and_other_taggers_keep_theirs(project):
    form = TaggingForm(project)
    form.rows["tagging.general_threshold"].control.slider.value = 0.5
    form.rows["tagging.blacklist"].control.widget.value = "* background\nsolo"
    form.tagger.value = "server"
    form.rows["server.prompt"].control.widget.value = "Who is it?"
    form.rows["server.model"].control.list.value = "gpt-4o"
    form.tagger.value = "wd14"
    name, settings, config = read_tagging(project)
    assert (name, settings) == ("wd14", {"source": "demo", "batch_size": 2})
    assert config.general_threshold == 0.5 and config.blacklist == ("* background", "solo")
    assert read_tagging(project, "server")[1] == {"prompt": "Who is it?", "model": "gpt-4o"}


def test_a_suggestion_is_written_into_its_field(project):
    form = TaggingForm(project)
    control = form.rows["wd14.source"].control
    control.list.value = "SmilingWolf/wd-vit-tagger-v3"
    assert control.field.value == "SmilingWolf/wd-vit-tagger-v3" and control.list.value == ""
    assert read_tagging(project)[1]["source"] == "SmilingWolf/wd-vit-tagger-v3"
    form.reset("wd14.source")
    assert "source" not in read_tagging(project)[1]


def test_a_setting_that_is_missing_is_told_and_nothing_can_be_asked_meanwhile(project):
    form = TaggingForm(project)
    form.tagger.value = "server"
    assert "model is empty" in form.rows["server.model"].trouble and form.button.disabled and form.ask.disabled
    form.set("server.model", "m")
    assert not form.rows["server.model"].trouble or "none" in form.rows["server.model"]._trouble.layout.display
    assert not form.button.disabled


def test_a_key_typed_into_the_form_never_gets_to_the_disk(project):
    form = TaggingForm(project)
    form.tagger.value = "server"
    for typed in ("s", "sk-secret", "sk-secret1"):
        form.rows["server.key_variable"].control.field.value = typed
    assert "name of an environment variable" in form.rows["server.key_variable"].trouble
    assert "sk-secret" not in (project.folder / "tagging.yaml").read_text()
    with pytest.raises(ConfigError, match="0.05 to 1"):
        form.set("tagging.general_threshold", 7)


def test_a_damaged_file_is_explained_in_the_cell(project, shown):
    (project.folder / "tagging.yaml").write_text("tagger: [")
    tagging.tagging(project)
    tag(project)
    assert "tagging.yaml" in shown[0] and "tagging.yaml" in shown[-1]


# ---- tagging ---------------------------------------------------------------------------------------------------------


def test_captions_are_written_and_told_with_the_locked_ones_and_an_example(project, shown):
    before = {file: file.read_text() for file in captions(project)}
    tag(project)
    new = [file for file in captions(project) if file not in before]
    assert len(new) == MISSING and {file: file.read_text() for file in before} == before
    told = shown[-1]
    assert f"captions written: {MISSING}" in told and "wrote or locked them: 26" in told
    assert "demo (onnxruntime, CPU) read 4 images" in told
    assert "data:image/jpeg;base64," in told and new[0].read_text().strip() in told
    assert any("2 of 4 images" in text for text in shown)


def test_the_button_does_the_same(project, shown):
    form = TaggingForm(project)
    form.button.click()
    assert f"captions written: {MISSING}" in form.told.value and len(captions(project)) == 30


def test_no_tagger_is_fetched_when_no_image_wants_a_caption(project, shown):
    tag(project)
    write_tagging(project, "wd14", {"source": "nobody/has-this-tagger"}, TaggingConfig())
    tag(project)
    assert "No image wants a caption." in shown[-1] and "the tag editor unlocks it" in shown[-1]


def test_the_form_says_which_trigger_is_written(project):
    assert TRIGGER in TaggingForm(project).trigger.value
    Draft(project).set("data.trigger", "")
    assert "No trigger is chosen" in TaggingForm(project).trigger.value


def test_only_asking_writes_nothing_and_asks_about_locked_images_too(project, shown):
    before = {file: file.read_text() for file in captions(project)}
    tag(project, only_ask=True)
    assert {file: file.read_text() for file in captions(project)} == before
    assert "read 30 images" in shown[-1] and "captions written: 0" in shown[-1]


def test_an_interrupted_tagging_says_so_and_asks_only_for_the_rest(project, shown, monkeypatch):
    read, asked = taggers.wd14.Tagger.read, []

    def interrupted(self, images):
        asked.append(len(images))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return read(self, images)

    monkeypatch.setattr(taggers.wd14.Tagger, "read", interrupted)
    tag(project)
    assert "Stopped after 2 images" in shown[-1] and len(captions(project)) == 30 - MISSING
    tag(project)
    assert asked == [2, 2, 2] and f"captions written: {MISSING}" in shown[-1]


def test_a_server_that_fails_halfway_is_told_and_its_answers_are_kept(project, shown, monkeypatch):
    monkeypatch.setattr(taggers.server, "WAITS", ())
    with chatting() as chat:
        write_tagging(project, "server", {"address": chat.address, "model": "m"}, TaggingConfig())
        chat.answer = lambda number, body: said("a girl") if number < 3 else (402, {}, b"<b>no</b>")
        tag(project)
        assert "HTTP 402, &lt;b&gt;no" in shown[-1] and "What 2 images were answered is kept." in shown[-1]
        chat.answer = lambda number, body: said("a girl in a forest")
        tag(project)
        assert len(chat.asked) == 3 + 2 and "captions written: 4" in shown[-1]


def test_what_taggers_are_is_said_in_chinese():
    assert set(i18n.translations()["taggers"]) == {taggers.about(name) for name in taggers.names()}
