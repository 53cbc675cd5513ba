"""The tag editor: what is clicked, selected and typed ends in the caption files, and all of it can be taken back."""

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
from widgets.tags import editor as editor
from widgets.tags.choice import Choice
from widgets.tags.editor import TagEditor
from widgets.tags.sheet import numbers
from widgets.tags.state import OFFERED, PAGE

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
    """What the browser writes into the hidden field."""
    click.time += 1
    view.clicks.widget.value = json.dumps([click.time, list(message)])


click.time = 0


def press(view: TagEditor, action) -> None:
    view.do(action)


def shown(view: TagEditor) -> list[str]:
    return re.findall(r'title="(\w+)\.png"', view.sheet.images.value)


def test_a_tag_that_is_clicked_shows_who_has_it_and_who_has_not(project):
    view = TagEditor(project)
    assert shown(view) == ["a", "b", "c", "d"]
    click(view, "tag", "smile")
    assert shown(view) == ["a", "b", "d"] and view.editor.tag.value == "smile"
    view.sheet.show.widget.value = "without"
    assert shown(view) == ["c"]
    click(view, "tag", "smile")
    assert shown(view) == ["a", "b", "c", "d"]


def test_an_edit_reaches_the_selected_images_and_no_others(project):
    view = TagEditor(project)
    click(view, "image", "a.png")
    click(view, "image", "c.png")
    view.editor.tag.value = "outdoors, day"
    press(view, view.editor.add)
    assert on_disk(project) == {
        **CAPTIONS,
        "a": "mofurin, smile, red boots, outdoors, day",
        "c": "mofurin, hat, outdoors, day",
    }
    assert "images: 2" in view.told.value


def test_who_selects_means_the_selection_and_who_ends_it_means_all(project):
    view = TagEditor(project)
    assert len(view.editor.names()) == 4
    click(view, "image", "a.png")
    assert view.editor.names() == ["a.png"] and view.editor.where.widget.value == "selected"
    view.editor.where.widget.value = "all"
    click(view, "image", "b.png")
    assert len(view.editor.names()) == 4, "what was chosen by hand stays"
    view.sheet.none.click()
    assert view.editor.where.widget.value == "all"


def test_a_pattern_renames_many_tags_once_and_never_the_trigger(project):
    view = TagEditor(project)
    view.editor.tag.value = "* boots"
    assert "In 2 of these 4 images: red boots, blue boots" in view.editor.told.value
    view.editor.into.value = "boots"
    press(view, view.editor.rename)
    assert on_disk(project)["a"] == "mofurin, smile, boots" and on_disk(project)["b"] == "mofurin, smile, boots"
    view.editor.tag.value = "*"
    press(view, view.editor.remove)
    assert set(on_disk(project).values()) == {"mofurin"}


def test_who_has_a_tag_or_what_a_pattern_names_is_seen_without_a_click_on_a_tag(project):
    view = TagEditor(project)
    view.editor.tag.value = "* boots, hat"
    view.editor.who.click()
    assert shown(view) == ["a", "b", "c"]
    view.editor.tag.value = "nobody has this"
    view.editor.who.click()
    assert shown(view) == ["a", "b", "c"]


def test_a_doubted_tag_goes_from_all_its_images_as_one_change(project):
    view = TagEditor(project)
    click(view, "take", "smile", "a.png", "b.png")
    assert [name for name, text in on_disk(project).items() if "smile" in text] == ["d"]
    view.undo.click()
    assert on_disk(project) == CAPTIONS


def test_a_caption_that_cannot_be_written_is_told(project, monkeypatch):
    view = TagEditor(project)
    view.editor.tag.value = "new"

    def full(*_):
        raise OSError(28, "No space left on device", "a file")

    monkeypatch.setattr(Path, "replace", full)
    monkeypatch.setattr("os.replace", full)
    press(view, view.editor.add)
    monkeypatch.undo()
    assert "No space left on device" in view.told.value and on_disk(project) == CAPTIONS
    press(view, view.editor.add)
    assert all(text.endswith(", new") for text in on_disk(project).values())


def test_several_tags_are_merged_into_one(project):
    view = TagEditor(project)
    view.editor.tag.value, view.editor.into.value = "smile, hat", "happy"
    press(view, view.editor.rename)
    assert [text.split(", ")[1] for text in on_disk(project).values()] == ["happy"] * 4


def test_a_new_kernel_takes_back_and_repeats_what_another_did(project):
    first = TagEditor(project)
    click(first, "take", "smile", "a.png")
    click(first, "give", "smile", "c.png")
    edited = on_disk(project)
    second = TagEditor(project)
    second.undo.click()
    second.undo.click()
    assert on_disk(project) == CAPTIONS
    third = TagEditor(project)
    third.redo.click()
    third.redo.click()
    assert on_disk(project) == edited != CAPTIONS
    click(third, "absorb", "smile")
    assert "smile" not in str(on_disk(project))
    third._turn_to("history")
    assert "left smile to the trigger" in third.panels["history"].list.value


def test_what_was_undone_before_another_change_is_not_offered_again(project):
    view = TagEditor(project)
    assert view.redo.disabled
    click(view, "take", "smile", "a.png")
    view.undo.click()
    assert not view.redo.disabled
    click(view, "give", "smile", "c.png")
    assert view.redo.disabled and view.state.book.redo() is None


def test_one_caption_is_edited_as_text_and_locked_against_taggers(project):
    view = TagEditor(project)
    click(view, "image", "b.png")
    panel = view.panels["image"]
    panel.text.value = "mofurin,\nby hand"
    press(view, panel.write)
    assert on_disk(project) == {**CAPTIONS, "b": "mofurin, by hand"}
    book = CaptionEditor(project, DataConfig(trigger="mofurin"))
    assert book.is_locked("b.png") and panel.lock.description == "unlock"
    assert book.change("tagged", {"b.png": "mofurin, robot"}, by="robot") is None
    press(view, panel.switch)
    assert CaptionEditor(project, DataConfig()).change("tagged", {"b.png": "mofurin, robot"}, by="robot") is not None
    view.again.click()
    assert panel.text.value == "mofurin, robot" and 'title="robot"' in panel.tags.value, "who set it is told"


def test_a_caption_that_is_being_typed_stays_while_other_things_are_done(project):
    view = TagEditor(project)
    click(view, "image", "b.png")
    panel = view.panels["image"]
    panel.text.value = "mofurin, half a sent"
    click(view, "tag", "smile")
    press(view, panel.switch)
    assert panel.text.value == "mofurin, half a sent"
    click(view, "look", "a.png")
    assert panel.text.value == CAPTIONS["a"]
    click(view, "take", "smile", "a.png")
    assert panel.text.value == view.state.book.captions["a.png"]


@pytest.mark.parametrize("message", [("look",), ("image",), ("take", "smile"), ("give", "hat")])
def test_a_click_on_an_image_that_is_gone_does_nothing(project, message):
    view = TagEditor(project)
    (project.dataset / "a.png").unlink()
    view.again.click()
    click(view, *message, "a.png")
    click(view, "look", "b.png")
    assert view.state.focus == "b.png" and on_disk(project) == CAPTIONS and "a.png" not in view.state.selected


def test_what_is_typed_into_the_hidden_field_by_hand_does_nothing(project):
    view = TagEditor(project)
    for text in ("x", "1", "[]", "null", '{"a": 1}'):
        view.clicks.widget.value = text
    assert shown(view) == ["a", "b", "c", "d"] and not view.state.selected


def test_selecting_sends_no_image_again(project):
    view = TagEditor(project)
    sent = []
    view.sheet.images.observe(lambda change: sent.append(change), "value")
    click(view, "image", "a.png")
    click(view, "image", "b.png")
    assert view.state.selected == {"a.png", "b.png"} and not sent and view.sheet.marks.value.count("outline") == 2
    click(view, "image", "a.png")
    assert view.state.selected == {"b.png"}


def test_images_are_chosen_by_number_where_clicks_do_not_arrive(project):
    view = TagEditor(project)
    view.sheet.numbers.value = "1, 3-9"
    assert view.state.selected == {"a.png", "c.png", "d.png"} and view.state.focus == "d.png"


@pytest.mark.parametrize(
    "text, found",
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
def test_numbers_are_counted_inside_what_there_is(text, found):
    assert numbers(text, 9) == found


def test_names_and_tags_cannot_write_html(project):
    (project.dataset / "a.png").rename(project.dataset / "<i>e&'\".png")
    (project.dataset / "a.txt").rename(project.dataset / "<i>e&'\".txt")
    view = TagEditor(project)
    click(view, "tag", "<b>odd</b>")
    view.sheet.show.widget.value = "all"
    for name in view.panels:
        view._turn_to(name)
    click(view, "look", "<i>e&'\".png")
    press(view, view.panels["image"].switch)
    view._turn_to("history")
    written = [part.value for part in (view.table.rows, view.sheet.images, view.editor.told, view.sheet.marks)]
    written += [view.panels["image"].tags.value, view.panels["image"].image.value]
    written += [view.panels["doubts"].list.value, view.panels["history"].list.value, view.told.value]
    assert not any("<i>" in text or "<b>odd" in text for text in written)
    assert any("&lt;b&gt;odd" in text for text in written)


def test_what_a_tagger_doubts_comes_first_with_its_score(project):
    book = CaptionEditor(project, DataConfig())
    scores = {sample.digest: {"smile": 0.9, "hat": 0.2, "red_boots": 0.37} for sample in book.samples.values()}
    ScoreFile(project, "robot").add(scores, {"smile": "general", "hat": "general", "red_boots": "general"})
    view = TagEditor(project)
    kinds = {(hint.image[0], hint.tag): hint.kind for hint in view.state.hints if hint.kind != "once"}
    assert kinds == {("c", "hat"): "unseen", ("c", "smile"): "missing", ("a", "red boots"): "close"}
    view.table.sort.value = "suspicious"
    assert [row.tag for row in view.state.rows()][0] == "hat"
    assert view.state.rows()[-1].tag == "mofurin" and "0.20" in view.table.rows.value
    click(view, "look", "c.png")
    assert "+ smile" in view.panels["image"].tags.value and "+ hat" not in view.panels["image"].tags.value
    click(view, "take", "hat", "c.png")
    click(view, "give", "smile", "c.png")
    assert "+ smile" not in view.panels["image"].tags.value
    assert {hint.kind for hint in view.state.hints} <= {"close", "once"}
    click(view, "take", "smile", "c.png")
    assert not any(hint.kind == "missing" for hint in view.state.hints), "a person took it out"


def test_autocomplete_offers_a_few_tags_of_the_data_set_and_the_tagger(project):
    digest = next(iter(CaptionEditor(project, DataConfig()).samples.values())).digest
    many = {f"sm_{i}": 0.5 for i in range(2 * OFFERED)}
    ScoreFile(project, "robot").add({digest: many}, dict.fromkeys(many, "general"))
    view = TagEditor(project)
    view.editor.tag.value = "hat, SM"
    assert view.editor.tag.options[:2] == ("hat, smile", "hat, sm 0") and len(view.editor.tag.options) == OFFERED


def test_a_choice_stays_while_its_words_change(project):
    view = TagEditor(project)
    view.sheet.show.widget.value = "locked"
    assert len(shown(view)) == 4 and "locked 4" in str(view.sheet.show.widget.options), "a person wrote them"
    press(view, view.editor.unlock)
    assert view.state.show == view.sheet.show.widget.value == "locked" and not shown(view)
    assert "locked 0" in str(view.sheet.show.widget.options)


def test_only_a_person_chooses():
    chosen = []
    choice = Choice(chosen.append)
    choice.draw([("a 1", "a"), ("b 2", "b")], "b")
    choice.draw([("a 2", "a"), ("b 1", "b")], "b")
    assert choice.widget.value == "b" and not chosen
    choice.widget.value = "a"
    assert chosen == ["a"]


def test_many_images_come_a_page_at_a_time(project):
    fill(project, {f"n{i:03d}": "mofurin" for i in range(3 * PAGE)})
    view = TagEditor(project)
    assert len(shown(view)) == PAGE and "1–24 of 76" in view.sheet.where.value and view.sheet.back.disabled
    for _ in range(3):
        view.sheet.on.click()
    assert len(shown(view)) == 4 and "73–76 of 76" in view.sheet.where.value and view.sheet.on.disabled


def test_what_others_write_meanwhile_is_kept_and_seen(project):
    view = TagEditor(project)
    (project.dataset / "a.txt").write_text("mofurin, elsewhere", encoding="utf-8")
    view.editor.tag.value = "new"
    press(view, view.editor.add)
    assert on_disk(project)["a"] == "mofurin, elsewhere, new"
    (project.dataset / "d.png").unlink()
    view.again.click()
    assert shown(view) == ["a", "b", "c"]
    for file in project.dataset.glob("*.png"):
        file.unlink()
    view.again.click()
    assert "No usable image" in view.told.value


def test_a_tag_that_nobody_has_any_more_is_no_longer_chosen(project):
    view = TagEditor(project)
    click(view, "tag", "hat")
    press(view, view.editor.remove)
    assert view.state.tag == "" and len(shown(view)) == 4


def test_the_difference_is_exported(project):
    view = TagEditor(project)
    click(view, "take", "hat", "c.png")
    view._turn_to("history")
    view.panels["history"].export()
    text = (project.folder / "tags" / "difference.txt").read_text(encoding="utf-8")
    assert "-mofurin, hat" in text and "+mofurin\n" in text
    assert "difference.txt" in view.panels["history"].difference.value


def test_a_difference_that_cannot_be_written_is_shown_all_the_same(project):
    view = TagEditor(project)
    click(view, "take", "hat", "c.png")
    (project.folder / "tags" / "difference.txt").mkdir()
    view.panels["history"].export()
    assert "Is a directory" in view.panels["history"].difference.value
    assert "-mofurin, hat" in view.panels["history"].difference.value


def test_an_empty_data_set_is_told_not_raised(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("IPython.display.display", lambda thing: told.append(thing.data))
    project = Project(tmp_path)
    project.dataset.mkdir()
    editor.tag_editor(project)
    assert str(project.dataset) in told[0]


def test_everything_is_said_in_chinese_too(project):
    i18n.use("zh")
    try:
        view = TagEditor(project)
        click(view, "take", "hat", "c.png")
        for name in view.panels:
            view._turn_to(name)
        assert "删除了 hat" in view.told.value and "图片" in view.sheet.where.value + view.head.value
        assert i18n.say(SUSPICIOUS["once"][1], tag="&lt;b&gt;odd&lt;/b&gt;") in view.panels["doubts"].list.value
    finally:
        i18n.use("en")
