"""The tag editor: clicks, selections and typed edits reach the caption files, and all of them can be undone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from lorakit.data import DataConfig
from lorakit.project import Project
from lorakit.tags.editor import CaptionEditor
from lorakit.tags.scores import ScoreFile
from lorakit.tags.suspects import SUSPICIOUS
from widgets import i18n
from widgets.project.draft import Draft
from widgets.tags import editor
from widgets.tags.choice import Choice
from widgets.tags.editor import TagEditor
from widgets.tags.image_grid import numbers
from widgets.tags.state import MAX_COMPLETIONS, PAGE

CAPTIONS = {
    "a": "mofurin, smile, red boots",
    "b": "mofurin, smile, blue boots",
    "c": "mofurin, hat",
    "d": "mofurin, smile, <b>odd</b>",
}


@pytest.fixture
def project(tmp_path) -> Project:
    """Four images with captions, and a trigger."""
    project = Project(tmp_path / "project")
    fill(project, CAPTIONS)
    Draft(project).set("data.trigger", "mofurin")
    return project


def fill(project: Project, captions: dict[str, str]) -> None:
    project.dataset.mkdir(parents=True, exist_ok=True)
    for i, (stem, caption) in enumerate(captions.items()):
        Image.new("RGB", (48, 32), (i % 256, 90, i // 256)).save(project.dataset / f"{stem}.png")
        (project.dataset / f"{stem}.txt").write_text(caption, encoding="utf-8")


def on_disk(project: Project) -> dict[str, str]:
    return {file.stem: file.read_text(encoding="utf-8").strip() for file in sorted(project.dataset.glob("*.txt"))}


def click(view: TagEditor, *message: str) -> None:
    """Write into the hidden field what the browser would."""
    click.time += 1
    view.clicks.widget.value = json.dumps([click.time, list(message)])


click.time = 0


def press(view: TagEditor, action) -> None:
    view.do(action)


def shown(view: TagEditor) -> list[str]:
    return re.findall(r'title="(\w+)\.png"', view.grid.images.value)


def test_a_click_on_a_tag_shows_the_images_with_it_and_without_it(project):
    view = TagEditor(project)
    assert shown(view) == ["a", "b", "c", "d"]
    click(view, "tag", "smile")
    assert shown(view) == ["a", "b", "d"] and view.bulk_edit.tag.value == "smile"
    view.grid.show.widget.value = "without"
    assert shown(view) == ["c"]
    click(view, "tag", "smile")
    assert shown(view) == ["a", "b", "c", "d"]


def test_an_edit_reaches_the_selected_images_and_no_others(project):
    view = TagEditor(project)
    click(view, "image", "a.png")
    click(view, "image", "c.png")
    view.bulk_edit.tag.value = "outdoors, day"
    press(view, view.bulk_edit.add)
    assert on_disk(project) == {
        **CAPTIONS,
        "a": "mofurin, smile, red boots, outdoors, day",
        "c": "mofurin, hat, outdoors, day",
    }
    assert "2 images" in view.status.value


def test_selecting_sets_the_scope_and_deselecting_resets_it(project):
    view = TagEditor(project)
    assert len(view.bulk_edit.names()) == 4
    click(view, "image", "a.png")
    assert view.bulk_edit.names() == ["a.png"] and view.bulk_edit.scope_choice.widget.value == "selected"
    view.bulk_edit.scope_choice.widget.value = "all"
    click(view, "image", "b.png")
    assert len(view.bulk_edit.names()) == 4, "the user's choice stays"
    view.grid.deselect.click()
    assert view.bulk_edit.scope_choice.widget.value == "all"


def test_a_pattern_renames_many_tags_once_and_never_the_trigger(project):
    view = TagEditor(project)
    view.bulk_edit.tag.value = "* boots"
    assert "In 2 of these 4 images: red boots, blue boots" in view.bulk_edit.preview.value
    view.bulk_edit.new_name.value = "boots"
    press(view, view.bulk_edit.rename)
    assert on_disk(project)["a"] == "mofurin, smile, boots" and on_disk(project)["b"] == "mofurin, smile, boots"
    view.bulk_edit.tag.value = "*"
    press(view, view.bulk_edit.remove)
    assert set(on_disk(project).values()) == {"mofurin"}


def test_images_with_a_typed_tag_or_pattern_are_shown_by_a_button(project):
    view = TagEditor(project)
    view.bulk_edit.tag.value = "* boots, hat"
    view.bulk_edit.find.click()
    assert shown(view) == ["a", "b", "c"]
    view.bulk_edit.tag.value = "nobody has this"
    view.bulk_edit.find.click()
    assert shown(view) == ["a", "b", "c"]


def test_a_suspicious_tag_is_removed_from_all_its_images_as_one_change(project):
    view = TagEditor(project)
    click(view, "remove", "smile", "a.png", "b.png")
    assert [name for name, text in on_disk(project).items() if "smile" in text] == ["d"]
    view.undo.click()
    assert on_disk(project) == CAPTIONS


def test_a_caption_that_cannot_be_written_is_reported(project, monkeypatch):
    view = TagEditor(project)
    view.bulk_edit.tag.value = "new"

    def full(*_):
        raise OSError(28, "No space left on device", "a file")

    monkeypatch.setattr(Path, "replace", full)
    monkeypatch.setattr("os.replace", full)
    press(view, view.bulk_edit.add)
    monkeypatch.undo()
    assert "the disk is full" in view.status.value and on_disk(project) == CAPTIONS
    press(view, view.bulk_edit.add)
    assert all(text.endswith(", new") for text in on_disk(project).values())


def test_several_tags_are_merged_into_one(project):
    view = TagEditor(project)
    view.bulk_edit.tag.value, view.bulk_edit.new_name.value = "smile, hat", "happy"
    press(view, view.bulk_edit.rename)
    assert [text.split(", ")[1] for text in on_disk(project).values()] == ["happy"] * 4


def test_a_new_kernel_undoes_and_redoes_what_another_did(project):
    first = TagEditor(project)
    click(first, "remove", "smile", "a.png")
    click(first, "add", "smile", "c.png")
    edited = on_disk(project)
    second = TagEditor(project)
    second.undo.click()
    second.undo.click()
    assert on_disk(project) == CAPTIONS
    third = TagEditor(project)
    third.redo.click()
    third.redo.click()
    assert on_disk(project) == edited != CAPTIONS
    click(third, "remove from all", "smile")
    assert "smile" not in str(on_disk(project))
    third.show_panel("history")
    assert "removed smile (left to the trigger word)" in third.panels["history"].list.value


def test_redo_ends_with_another_change(project):
    view = TagEditor(project)
    assert view.redo.disabled
    click(view, "remove", "smile", "a.png")
    view.undo.click()
    assert not view.redo.disabled
    click(view, "add", "smile", "c.png")
    assert view.redo.disabled and view.state.editor.redo() is None


def test_one_caption_is_edited_as_text_and_locked_against_taggers(project):
    view = TagEditor(project)
    click(view, "image", "b.png")
    panel = view.panels["image"]
    panel.text.value = "mofurin,\nby hand"
    press(view, panel.save)
    assert on_disk(project) == {**CAPTIONS, "b": "mofurin, by hand"}
    captions = CaptionEditor(project, DataConfig(trigger="mofurin"))
    assert captions.is_locked("b.png") and panel.lock.description == "Unlock"
    assert captions.change("tagged", {"b.png": "mofurin, robot"}, by="robot") is None
    press(view, panel.toggle_lock)
    assert CaptionEditor(project, DataConfig()).change("tagged", {"b.png": "mofurin, robot"}, by="robot") is not None
    view.reload.click()
    assert panel.text.value == "mofurin, robot" and 'title="robot"' in panel.tags.value, "its author"


def test_a_half_typed_caption_survives_other_actions(project):
    view = TagEditor(project)
    click(view, "image", "b.png")
    panel = view.panels["image"]
    panel.text.value = "mofurin, half a sent"
    click(view, "tag", "smile")
    press(view, panel.toggle_lock)
    assert panel.text.value == "mofurin, half a sent"
    click(view, "focus", "a.png")
    assert panel.text.value == CAPTIONS["a"]
    click(view, "remove", "smile", "a.png")
    assert panel.text.value == view.state.editor.captions["a.png"]


@pytest.mark.parametrize("message", [("focus",), ("image",), ("remove", "smile"), ("add", "hat")])
def test_a_click_on_an_image_that_is_gone_does_nothing(project, message):
    view = TagEditor(project)
    (project.dataset / "a.png").unlink()
    view.reload.click()
    click(view, *message, "a.png")
    click(view, "focus", "b.png")
    assert view.state.focus == "b.png" and on_disk(project) == CAPTIONS and "a.png" not in view.state.selected


def test_text_typed_into_the_hidden_field_by_hand_does_nothing(project):
    view = TagEditor(project)
    for text in ("x", "1", "[]", "null", '{"a": 1}'):
        view.clicks.widget.value = text
    assert shown(view) == ["a", "b", "c", "d"] and not view.state.selected


def test_selecting_sends_no_image_again(project):
    view = TagEditor(project)
    sent = []
    view.grid.images.observe(lambda change: sent.append(change), "value")
    click(view, "image", "a.png")
    click(view, "image", "b.png")
    assert view.state.selected == {"a.png", "b.png"} and not sent and view.grid.marks.value.count("outline") == 2
    click(view, "image", "a.png")
    assert view.state.selected == {"b.png"}


def test_images_are_selected_by_number_where_clicks_do_not_arrive(project):
    view = TagEditor(project)
    view.grid.numbers.value = "1, 3-9"
    assert view.state.selected == {"a.png", "c.png", "d.png"} and view.state.focus == "d.png"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("2", [2]),
        ("1,3 5-7", [1, 3, 5, 6, 7]),
        ("9-99", [9]),
        ("0, 12", []),
        ("7-5", []),
        ("x", []),
        ("9" * 5000, []),
        ("1，2", [1, 2]),
    ],
)
def test_numbers_outside_the_range_are_skipped(text, expected):
    assert numbers(text, 9) == expected


def test_names_and_tags_cannot_write_html(project):
    (project.dataset / "a.png").rename(project.dataset / "<i>e&'\".png")
    (project.dataset / "a.txt").rename(project.dataset / "<i>e&'\".txt")
    view = TagEditor(project)
    click(view, "tag", "<b>odd</b>")
    view.grid.show.widget.value = "all"
    for name in view.panels:
        view.show_panel(name)
    click(view, "focus", "<i>e&'\".png")
    press(view, view.panels["image"].toggle_lock)
    view.show_panel("history")
    written = [part.value for part in (view.table.rows, view.grid.images, view.bulk_edit.preview, view.grid.marks)]
    written += [view.panels["image"].tags.value, view.panels["image"].image.value]
    written += [view.panels["suspects"].list.value, view.panels["history"].list.value, view.status.value]
    assert not any("<i>" in text or "<b>odd" in text for text in written)
    assert any("&lt;b&gt;odd" in text for text in written)


def test_tags_that_the_tagger_disagrees_with_come_first_with_their_score(project):
    captions = CaptionEditor(project, DataConfig())
    scores = {sample.digest: {"smile": 0.9, "hat": 0.2, "red_boots": 0.37} for sample in captions.samples.values()}
    ScoreFile(project, "robot").add(scores, {"smile": "general", "hat": "general", "red_boots": "general"})
    view = TagEditor(project)
    suspects = [suspect for suspect in view.state.suspects if suspect.kind != "once"]
    kinds = {(suspect.image[0], suspect.tag): suspect.kind for suspect in suspects}
    assert kinds == {("c", "hat"): "unseen", ("c", "smile"): "missing", ("a", "red boots"): "close"}
    view.table.sort.value = "suspicious"
    assert [row.tag for row in view.state.rows()][0] == "hat"
    assert view.state.rows()[-1].tag == "mofurin" and "0.20" in view.table.rows.value
    click(view, "focus", "c.png")
    assert "+ smile" in view.panels["image"].tags.value and "+ hat" not in view.panels["image"].tags.value
    click(view, "remove", "hat", "c.png")
    click(view, "add", "smile", "c.png")
    assert "+ smile" not in view.panels["image"].tags.value
    assert {suspect.kind for suspect in view.state.suspects} <= {"close", "once"}
    click(view, "remove", "smile", "c.png")
    assert not any(suspect.kind == "missing" for suspect in view.state.suspects), "a person removed it"


def test_autocomplete_offers_tags_of_the_dataset_then_of_the_tagger(project):
    digest = next(iter(CaptionEditor(project, DataConfig()).samples.values())).digest
    many = {f"sm_{i}": 0.5 for i in range(2 * MAX_COMPLETIONS)}
    ScoreFile(project, "robot").add({digest: many}, dict.fromkeys(many, "general"))
    view = TagEditor(project)
    view.bulk_edit.tag.value = "hat, SM"
    assert (
        view.bulk_edit.tag.options[:2] == ("hat, smile", "hat, sm 0")
        and len(view.bulk_edit.tag.options) == MAX_COMPLETIONS
    )


def test_a_choice_stays_while_its_labels_change(project):
    view = TagEditor(project)
    view.grid.show.widget.value = "locked"
    assert len(shown(view)) == 4 and "Locked 4" in str(view.grid.show.widget.options), "hand-written"
    press(view, view.bulk_edit.unlock)
    assert view.state.show == view.grid.show.widget.value == "locked" and not shown(view)
    assert "Locked 0" in str(view.grid.show.widget.options)


def test_only_a_user_makes_a_choice():
    chosen = []
    choice = Choice(chosen.append)
    choice.draw([("a 1", "a"), ("b 2", "b")], "b")
    choice.draw([("a 2", "a"), ("b 1", "b")], "b")
    assert choice.widget.value == "b" and not chosen
    choice.widget.value = "a"
    assert chosen == ["a"]


def test_many_images_are_shown_a_page_at_a_time(project):
    fill(project, {f"n{i:03d}": "mofurin" for i in range(3 * PAGE)})
    view = TagEditor(project)
    assert len(shown(view)) == PAGE and "1–24 of 76" in view.grid.range.value and view.grid.previous.disabled
    for _ in range(3):
        view.grid.next.click()
    assert len(shown(view)) == 4 and "73–76 of 76" in view.grid.range.value and view.grid.next.disabled


def test_edits_made_elsewhere_are_kept_and_shown(project):
    view = TagEditor(project)
    (project.dataset / "a.txt").write_text("mofurin, elsewhere", encoding="utf-8")
    view.bulk_edit.tag.value = "new"
    press(view, view.bulk_edit.add)
    assert on_disk(project)["a"] == "mofurin, elsewhere, new"
    (project.dataset / "d.png").unlink()
    view.reload.click()
    assert shown(view) == ["a", "b", "c"]
    for file in project.dataset.glob("*.png"):
        file.unlink()
    view.reload.click()
    assert "No usable image" in view.status.value


def test_a_tag_that_no_image_has_any_more_is_no_longer_chosen(project):
    view = TagEditor(project)
    click(view, "tag", "hat")
    press(view, view.bulk_edit.remove)
    assert view.state.tag == "" and len(shown(view)) == 4


def test_a_diff_is_exported(project):
    view = TagEditor(project)
    click(view, "remove", "hat", "c.png")
    view.show_panel("history")
    view.panels["history"].export()
    text = (project.folder / "tags" / "difference.txt").read_text(encoding="utf-8")
    assert "-mofurin, hat" in text and "+mofurin\n" in text
    assert "difference.txt" in view.panels["history"].diff.value


def test_a_diff_that_cannot_be_written_is_still_shown(project):
    view = TagEditor(project)
    click(view, "remove", "hat", "c.png")
    (project.folder / "tags" / "difference.txt").mkdir()
    view.panels["history"].export()
    assert "Is a directory" in view.panels["history"].diff.value
    assert "-mofurin, hat" in view.panels["history"].diff.value


def test_an_empty_dataset_is_reported_not_raised(tmp_path, monkeypatch):
    outputs = []
    monkeypatch.setattr("IPython.display.display", lambda thing: outputs.append(thing.data))
    project = Project(tmp_path)
    project.dataset.mkdir()
    editor.tag_editor(project)
    assert str(project.dataset) in outputs[0]


def test_everything_is_shown_in_chinese_too(project):
    i18n.use("zh")
    try:
        view = TagEditor(project)
        click(view, "remove", "hat", "c.png")
        for name in view.panels:
            view.show_panel(name)
        assert "删除了 hat" in view.status.value and "图片" in view.grid.range.value + view.head.value
        assert i18n.say(SUSPICIOUS["once"][1], tag="&lt;b&gt;odd&lt;/b&gt;") in view.panels["suspects"].list.value
    finally:
        i18n.use("en")
