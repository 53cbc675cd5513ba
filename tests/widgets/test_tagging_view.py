"""Tagging in a notebook: the form stores its settings, tagging shows its progress and continues after a cut."""

from __future__ import annotations

import shutil
from dataclasses import fields
from types import SimpleNamespace

import pytest
from IPython import display as ipython_display
from tiny_taggers import chat_server, completion

from lorakit import taggers
from lorakit.config import ConfigError
from lorakit.demo import DATASET, TRIGGER
from lorakit.project import Project
from lorakit.tags.tagging import TaggingConfig, read_tagging, write_tagging
from widgets import i18n
from widgets.project.draft import Draft
from widgets.tags import tagging
from widgets.tags.tagging import run_tagger
from widgets.tags.tagging_form import TaggingForm, tag_images

UNCAPTIONED = 4  # images whose captions the fixture deletes


@pytest.fixture
def shown(monkeypatch):
    """Every text that a cell shows, one after the other."""
    outputs = []

    def display(thing, display_id=False):
        outputs.append(getattr(thing, "data", thing))
        return SimpleNamespace(update=lambda html: outputs.append(html.data))

    monkeypatch.setattr(ipython_display, "display", display)
    monkeypatch.setattr(tagging, "REDRAW", 0.0)
    monkeypatch.setattr(tagging.service, "start", lambda project: False)
    return outputs


@pytest.fixture
def project(tmp_path):
    """The demo's images, some without captions, and the demo tagger, which reads two images at once."""
    project = Project(tmp_path / "project")
    shutil.copytree(DATASET, project.dataset)
    for file in captions(project)[:UNCAPTIONED]:
        file.unlink()
    Draft(project).set("data.trigger", TRIGGER)
    write_tagging(project, "wd14", {"source": "demo", "batch_size": 2}, TaggingConfig())
    return project


def captions(project):
    return sorted(project.dataset.rglob("*.txt"))


# ---- the form --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", taggers.names())
def test_the_form_shows_the_settings_of_every_tagger(name, project):
    form = TaggingForm(project)
    form.tagger.value = name
    assert {path for path in form.rows if path.startswith(f"{name}.")} == {
        f"{name}.{field.name}" for field in fields(taggers.config_class(name))
    }
    is_about_tags = "tagging.general_threshold" in form.rows
    assert is_about_tags == (taggers.output(name) == "tags")
    again = TaggingForm(project)
    assert again.name == name and list(again.rows) == list(form.rows)


def test_settings_are_on_disk_at_once_and_other_taggers_keep_theirs(project):
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


def test_a_missing_setting_is_reported_and_disables_the_buttons(project):
    form = TaggingForm(project)
    form.tagger.value = "server"
    assert "model is empty" in form.rows["server.model"].problem and form.button.disabled and form.preview.disabled
    form.set("server.model", "m")
    assert "model is empty" not in form.rows["server.model"].problem
    assert not form.button.disabled


def test_a_key_typed_into_the_form_never_gets_to_the_disk(project):
    form = TaggingForm(project)
    form.tagger.value = "server"
    for typed in ("s", "sk-secret", "sk-secret1"):
        form.rows["server.key_variable"].control.field.value = typed
    assert "name of an environment variable" in form.rows["server.key_variable"].problem
    assert "sk-secret" not in (project.folder / "tagging.yaml").read_text()
    with pytest.raises(ConfigError, match="0.05 to 1"):
        form.set("tagging.general_threshold", 7)


def test_a_damaged_file_is_explained_in_the_cell(project, shown):
    (project.folder / "tagging.yaml").write_text("tagger: [")
    tag_images(project)
    run_tagger(project)
    assert "tagging.yaml" in shown[0] and "tagging.yaml" in shown[-1]


# ---- tagging ---------------------------------------------------------------------------------------------------------


def test_captions_are_written_and_shown_with_counts_and_examples(project, shown):
    before = {file: file.read_text() for file in captions(project)}
    run_tagger(project)
    new = [file for file in captions(project) if file not in before]
    assert len(new) == UNCAPTIONED and {file: file.read_text() for file in before} == before
    result = shown[-1]
    assert f"{UNCAPTIONED} captions written" in result and "26 kept (hand-written or locked)" in result
    assert "4 images scored by demo (onnxruntime, CPU)" in result
    assert "data:image/jpeg;base64," in result and new[0].read_text().strip() in result
    assert any("2 of 4 images" in text for text in shown)


def test_the_button_does_the_same(project, shown):
    form = TaggingForm(project)
    form.button.click()
    assert f"{UNCAPTIONED} captions written" in form.status.value and len(captions(project)) == 30


def test_no_tagger_is_downloaded_when_no_image_needs_a_caption(project, shown):
    run_tagger(project)
    write_tagging(project, "wd14", {"source": "nobody/has-this-tagger"}, TaggingConfig())
    run_tagger(project)
    assert "No image needs a caption." in shown[-1] and "the tag editor unlocks them" in shown[-1]


def test_the_form_shows_the_trigger_word_or_a_field_for_it(project):
    form = TaggingForm(project)
    assert TRIGGER in form.trigger_text.value and form.trigger.layout.display == "none"
    Draft(project).set("data.trigger", "")
    form = TaggingForm(project)
    assert "No trigger word yet" in form.trigger_text.value and not form.trigger.layout.display
    form.trigger.value = "mofurin2"
    assert Draft(project).data.trigger == "mofurin2" and "mofurin2" in form.trigger_text.value


def test_a_preview_writes_nothing_and_scores_locked_images_too(project, shown):
    before = {file: file.read_text() for file in captions(project)}
    run_tagger(project, preview=True)
    assert {file: file.read_text() for file in captions(project)} == before
    assert "30 images scored" in shown[-1] and "0 captions written" in shown[-1]


def test_an_interrupted_tagging_continues_with_the_rest(project, shown, monkeypatch):
    run, batches = taggers.wd14.Tagger.run, []

    def interrupted(self, images):
        batches.append(len(images))
        if len(batches) == 2:
            raise KeyboardInterrupt
        return run(self, images)

    monkeypatch.setattr(taggers.wd14.Tagger, "run", interrupted)
    run_tagger(project)
    assert "Stopped after 2 images" in shown[-1] and len(captions(project)) == 30 - UNCAPTIONED
    run_tagger(project)
    assert batches == [2, 2, 2] and f"{UNCAPTIONED} captions written" in shown[-1]


def test_results_of_a_server_that_fails_halfway_are_kept(project, shown, monkeypatch):
    monkeypatch.setattr(taggers.server, "WAITS", ())
    with chat_server() as chat:
        write_tagging(project, "server", {"address": chat.address, "model": "m"}, TaggingConfig())
        chat.answer = lambda number, body: completion("a girl") if number < 3 else (402, {}, b"<b>no</b>")
        run_tagger(project)
        assert "HTTP 402, &lt;b&gt;no" in shown[-1] and "The results of 2 images are stored." in shown[-1]
        chat.answer = lambda number, body: completion("a girl in a forest")
        run_tagger(project)
        assert len(chat.requests) == 3 + 2 and "4 captions written" in shown[-1]


def test_descriptions_of_taggers_are_translated():
    assert set(i18n.translations()["taggers"]) == {taggers.about(name) for name in taggers.names()}
