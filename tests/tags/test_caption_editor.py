"""Edits of captions are crash-safe and undone byte for byte; hand-written captions are safe from taggers.

The tests with `die_at` kill a process before each of its file operations in turn.
"""

import json
import os
import random
import shutil
import signal
import traceback
from pathlib import Path

import pytest
from PIL import Image

from lorakit.data import DataConfig
from lorakit.data.caption_parts import tags_of
from lorakit.project import Project
from lorakit.tags.editor import CaptionEditor, tag_counts
from lorakit.tags.edits import CaptionEditError, Edit
from lorakit.tags.rules import Add, Remove, Rename

CONFIG = DataConfig()
FILES = {  # as people have them
    "a": b"girl, boots, smile\n",
    "b": "girl, boots, röd".encode(),
    "c": b"girl\r\nboots\r\n",
    "d": "\ufeffgirl, hat\n".encode(),
    "e": "女孩, 靴子, 帽子\n".encode("utf-16"),
    "f": None,
    "g": b"",
    "h": None,  # of captions.json
}


@pytest.fixture
def project(tmp_path):
    """Eight images with captions of many kinds."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    for number, (name, data) in enumerate(FILES.items()):
        Image.new("RGB", (16, 16), (number * 20, 0, 0)).save(folder / f"{name}.png")
        if data is not None:
            (folder / f"{name}.txt").write_bytes(data)
    (folder / "captions.json").write_text(json.dumps({"h.png": "girl, from json"}))
    return Project(tmp_path)


def files(project):
    return {path.name: path.read_bytes() for path in sorted(project.dataset.glob("*.txt"))}


def everywhere(editor, rule):
    return {name: rule.apply(caption) for name, caption in editor.captions.items()}


def fork(work):
    """Do `work` in a process of its own, which SIGKILL may end; returns its exit status, below 0 for a signal."""
    if child := os.fork():
        status = os.waitpid(child, 0)[1]
        return os.waitstatus_to_exitcode(status)
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def die_at(count):
    """Kill this process with SIGKILL just before its file operation number `count` (from 0)."""
    left = iter(range(count, -1, -1))

    def counted(operation):
        def do(*arguments, **options):
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **options)

        return do

    for owner, name in ((os, "fsync"), (os, "replace"), (os, "unlink"), (Path, "write_bytes")):
        setattr(owner, name, counted(getattr(owner, name)))


def test_opening_reads_every_caption_and_writes_nothing(project):
    before = files(project)
    editor = CaptionEditor(project, CONFIG)
    assert editor.captions["c.png"] == "girl, boots" and editor.captions["e.png"] == "女孩, 靴子, 帽子"
    assert editor.captions["h.png"] == "girl, from json" and editor.captions["f.png"] == ""
    assert files(project) == before and editor.history() == []


@pytest.mark.parametrize("seed", range(6))
def test_any_sequence_is_undone_and_redone_byte_for_byte(project, seed):
    rng, start = random.Random(seed), files(project)
    editors = [CaptionEditor(project, CONFIG), CaptionEditor(project, CONFIG)]
    for step in range(25):
        editor, name = rng.choice(editors), rng.choice("abcdefgh") + ".png"
        editor.refresh()
        tag = rng.choice(["girl", "boots", "hat", "x", "y", "靴子"])
        by = rng.choice(["person", "wd14"])
        rule = rng.choice([Add(tag), Add(tag, "start"), Remove(tag), Rename(tag, "z"), Rename("*", "all")])
        match rng.randrange(7):
            case 0:
                editor.change("one", {name: rule.apply(editor.captions[name])}, by)
            case 1 | 2:
                editor.change("all", everywhere(editor, rule), by)
            case 3:
                (editor.lock if rng.random() < 0.5 else editor.unlock)([name])
            case 4:
                editor.undo()
            case 5:
                editor.redo()
            case 6:
                editor.samples[name].caption_file.write_bytes(f"by hand, {step}".encode() + b"\r\n" * (step % 2))
    editor = CaptionEditor(project, CONFIG)
    while editor.redo():
        pass
    end, locks = files(project), {name: editor.is_locked(name) for name in editor.samples}
    while editor.undo():
        pass
    assert files(project) == start
    assert all(change.undone for change in editor.history()) and editor.diff() == ""
    other = CaptionEditor(project, CONFIG)
    while other.redo():
        pass
    assert files(project) == end and {name: other.is_locked(name) for name in other.samples} == locks
    editor.refresh()
    assert editor.captions == other.captions == CaptionEditor(project, CONFIG).captions


@pytest.mark.parametrize("what", ["change", "undo", "elsewhere"])
def test_killed_anywhere_captions_are_whole_then_all_old_or_all_new(project, tmp_path, what):
    some = {f"{name}.png" for name in "acfh"}
    CaptionEditor(project, CONFIG).change("first", dict.fromkeys(some, "first"))
    if what == "elsewhere":
        (project.dataset / "b.txt").write_bytes(b"by hand")

    def work(here):
        other = CaptionEditor(here, CONFIG)
        if what == "change":
            other.change("second", {name: f"second, {other.captions[name]}" for name in some})
        elif what == "undo":
            other.undo()

    # after each kill: the files as the dead process left them, and after the next editor finished its work
    old, runs, status = files(project), [], None
    while status != 0:
        here = Project(tmp_path / f"copy{len(runs)}")
        shutil.copytree(project.dataset, here.dataset)
        shutil.copytree(project.folder / "tags", here.folder / "tags")
        status = fork(lambda here=here: (die_at(len(runs)), work(here)))
        assert status in (0, -signal.SIGKILL)
        torn = files(here)
        fork(
            lambda here=here: (die_at(3), CaptionEditor(here, CONFIG))
        )  # the first editor that finishes it is killed, too
        editor = CaptionEditor(here, CONFIG)
        runs.append((torn, files(here)))
        assert editor.captions == CaptionEditor(here, CONFIG).captions
        while editor.undo():
            pass
        assert files(here) == {f"{name}.txt": data for name, data in FILES.items() if data is not None}
    new = runs[-1][0]
    assert len(runs) > (2 if what == "elsewhere" else 10)
    for torn, finished in runs:
        assert all(torn.get(name) in (old.get(name), new.get(name)) for name in {*old, *new, *torn})
        assert finished in (old, new)


def test_an_outside_edit_during_an_interrupted_change_is_kept(project):
    CaptionEditor(project, CONFIG)
    assert fork(lambda: (die_at(2), CaptionEditor(project, CONFIG).change("add", {"a.png": "new", "b.png": "new"}))) < 0
    history = (project.folder / "tags" / "history.jsonl").read_text()
    assert '"what": "add"' in history and '"done"' not in history
    (project.dataset / "a.txt").write_text("by hand")
    editor = CaptionEditor(project, CONFIG)
    assert (editor.captions["a.png"], editor.captions["b.png"]) == ("by hand", "new")
    assert [(change.by, set(change.new)) for change in editor.history()] == [
        ("person", {"b.png"}),
        ("person", {"a.png"}),
    ]


def test_two_editors_at_once_lose_no_change(project):
    one, other = CaptionEditor(project, CONFIG), CaptionEditor(project, CONFIG)
    other.change("theirs", {"a.png": "girl, smile, theirs"})
    one.change("mine", everywhere(one, Add("mine")))
    assert one.captions["a.png"] == "girl, smile, theirs, mine"
    assert other.refresh() is None and other.captions == one.captions


def test_two_processes_at_once_lose_no_change(project):
    CaptionEditor(project, CONFIG)

    def work(who):
        editor = CaptionEditor(project, CONFIG)
        for number in range(8):  # each based on what this editor read last
            editor.change("add", everywhere(editor, Add(f"{who}{number}")))

    child = os.fork()
    if child == 0:
        os._exit(fork(lambda: work("a")))
    assert fork(lambda: work("b")) == 0
    assert os.waitpid(child, 0)[1] == 0
    editor = CaptionEditor(project, CONFIG)
    expected = {f"{who}{number}" for who in "ab" for number in range(8)}
    assert all(expected <= set(tags_of(caption)) for caption in editor.captions.values())
    assert all("girl" in editor.captions[name] for name in ("a.png", "b.png", "h.png"))
    assert len(editor.history()) == 16


def test_outside_edits_become_a_persons_and_undo_skips_them(project):
    editor = CaptionEditor(project, CONFIG)
    editor.change("add", everywhere(editor, Add("x")))
    (project.dataset / "a.txt").write_text("by hand")
    undone = editor.undo()
    assert (undone.what, undone.skipped, editor.captions["a.png"]) == ("add", ("a.png",), "by hand")
    assert (project.dataset / "a.txt").read_text() == "by hand" and (project.dataset / "b.txt").read_bytes() == FILES[
        "b"
    ]
    last = editor.history()[-1]
    assert (last.by, set(last.new)) == ("person", {"a.png"})
    editor.undo()
    assert editor.captions["a.png"] == "girl, boots, smile, x"


def test_redo_skips_captions_changed_elsewhere(project):
    editor, other = CaptionEditor(project, CONFIG), CaptionEditor(project, CONFIG)
    editor.change("add", everywhere(editor, Add("x")))
    editor.lock(editor.samples)
    editor.undo(), editor.undo()
    other.refresh()
    other.change("more", {"a.png": "other"})
    assert (
        editor.redo().skipped == ("a.png",) and editor.captions["a.png"] == "other" and "x" in editor.captions["b.png"]
    )


def test_taggers_skip_hand_written_captions_until_they_are_unlocked(project):
    editor = CaptionEditor(project, CONFIG)
    free = {"f.png", "g.png"}  # nobody wrote anything there
    assert {name for name in editor.samples if not editor.is_locked(name)} == free
    change = editor.change("tagged", dict.fromkeys(editor.samples, "cat"), by="wd14")
    assert set(change.new) == free and set(change.skipped) == set(editor.samples) - free
    editor.change("by hand", {"f.png": "cat, dog"})
    assert editor.is_locked("f.png") and not editor.is_locked("g.png")
    assert editor.change("tagged", {"f.png": "bird"}, by="wd14") is None
    editor.unlock(["f.png", "a.png"])
    again = CaptionEditor(project, CONFIG)
    assert not again.is_locked("f.png") and not again.is_locked("a.png") and again.is_locked("b.png")
    editor.undo()
    assert editor.is_locked("f.png") and editor.is_locked("a.png")


def test_each_tag_has_an_author(project):
    editor = CaptionEditor(project, CONFIG)
    editor.change("tagged", {"f.png": "cat, dog, bird"}, by="wd14")
    editor.change("by hand", {"f.png": "cat, bird, mouse"})
    assert editor.authors("f.png") == {"cat": "wd14", "bird": "wd14", "mouse": "person"}
    assert editor.removed_tags("f.png") == {"dog"}
    editor.unlock(["f.png"])
    editor.change("tagged", {"f.png": "bird, mouse"}, by="wd14")
    assert editor.removed_tags("f.png") == {"dog"}
    editor.undo(), editor.undo()
    assert set(editor.authors("a.png").values()) == {"person"}
    editor.change("moved", {"f.png": "mouse, bird, cat"})
    assert editor.authors("f.png") == {"mouse": "person", "bird": "wd14", "cat": "wd14"}
    editor.undo(), editor.undo()
    assert editor.removed_tags("f.png") == set() and "dog" in CaptionEditor(project, CONFIG).authors("f.png")


def test_deleted_and_renamed_images_do_not_break_undo(project):
    editor = CaptionEditor(project, CONFIG)
    editor.change("add", everywhere(editor, Add("x")))
    (project.dataset / "a.png").rename(project.dataset / "new.png")
    (project.dataset / "a.txt").rename(project.dataset / "new.txt")
    (project.dataset / "b.png").unlink()
    editor = CaptionEditor(project, CONFIG)
    assert editor.captions["new.png"] == "girl, boots, smile, x" and "b.png" not in editor.captions
    assert set(editor.undo().skipped) == {"a.png", "b.png"}
    assert (
        editor.captions["new.png"] == "girl, boots, smile, x" and (project.dataset / "c.txt").read_bytes() == FILES["c"]
    )


@pytest.mark.parametrize(
    "tail", [b'{"number": 2, "at": "2', b"\xff\xfe\n", b'{"number": 2}\n[]\n', b'{"done": 7, "of": 1}']
)
def test_a_torn_line_of_the_history_is_skipped(project, tail):
    editor = CaptionEditor(project, CONFIG)
    editor.change("add", everywhere(editor, Add("x")))
    with open(project.folder / "tags" / "history.jsonl", "ab") as file:
        file.write(tail)
    editor = CaptionEditor(project, CONFIG)
    editor.change("more", everywhere(editor, Add("y")))
    assert [change.what for change in CaptionEditor(project, CONFIG).history()] == ["add", "more"]
    assert CaptionEditor(project, CONFIG).undo().what == "more"


def test_a_caption_of_a_json_file_gets_its_own_file_and_undo_removes_it(project):
    editor = CaptionEditor(project, CONFIG)
    editor.change("add", {"h.png": "girl, from me"})
    assert (project.dataset / "h.txt").read_text() == "girl, from me\n"
    assert CaptionEditor(project, CONFIG).undo() is not None
    assert (
        not (project.dataset / "h.txt").exists()
        and CaptionEditor(project, CONFIG).captions["h.png"] == "girl, from json"
    )


def test_images_that_share_a_caption_file_change_together(project):
    shutil.copy(project.dataset / "a.png", project.dataset / "a.jpg")
    Image.new("RGB", (16, 16), "red").save(project.dataset / "a.jpg")
    editor = CaptionEditor(project, CONFIG)
    change = editor.change("tagged", {"a.jpg": "one", "a.png": "two"})
    assert change.skipped == ("a.png",) and editor.captions["a.png"] == editor.captions["a.jpg"] == "one"
    assert (
        CaptionEditor(project, CONFIG).captions == editor.captions
        and len(CaptionEditor(project, CONFIG).history()) == 1
    )


def test_a_caption_file_that_cannot_be_read_is_never_written(project):
    (project.dataset / "f.txt").mkdir()
    editor = CaptionEditor(project, CONFIG)
    if "f.png" in editor.samples:
        assert editor.is_locked("f.png") and editor.change("add", {"f.png": "x"}) is None
    (project.dataset / "a.txt").write_bytes(b"gar\xe7on, gar\xe7on")
    editor = CaptionEditor(project, CONFIG)
    assert "a.png" not in editor.samples or editor.is_locked("a.png")
    editor.change("add", everywhere(editor, Add("x")))
    assert (project.dataset / "a.txt").read_bytes() == b"gar\xe7on, gar\xe7on" and (project.dataset / "f.txt").is_dir()


def test_a_full_disk_is_reported_and_unwritten_captions_are_unchanged(project, monkeypatch):
    editor, real = CaptionEditor(project, CONFIG), os.replace

    def full(part, file):
        if Path(file).name == "b.txt":
            raise OSError(28, "No space left on device", str(file))
        real(part, file)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CaptionEditError, match="1 caption.*b.txt: the disk is full"):
        editor.change("add", everywhere(editor, Add("x")))
    monkeypatch.undo()
    assert not list(project.dataset.glob(".*.part")), "what was begun is gone"
    assert editor.captions["b.png"] == "girl, boots, röd" and editor.captions["a.png"].endswith(", x")
    other = CaptionEditor(project, CONFIG)
    assert other.captions == editor.captions and len(other.history()) == 1
    other.undo()
    assert files(project) == {f"{name}.txt": data for name, data in FILES.items() if data is not None}


def test_a_history_line_cut_by_a_full_disk_is_removed(project, monkeypatch):
    editor = CaptionEditor(project, CONFIG)
    editor.change("add", everywhere(editor, Add("x")))
    history = project.folder / "tags" / "history.jsonl"
    before = history.read_bytes()

    def full(handle):
        os.ftruncate(handle, len(before) + 5)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CaptionEditError, match="free some space"):
        editor.change("more", everywhere(editor, Add("y")))
    assert history.read_bytes() == before
    assert CaptionEditor(project, CONFIG).captions["a.png"] == "girl, boots, smile, x", "with a disk that is full still"


def test_folders_without_fsync_work_and_a_failing_disk_is_reported(project, monkeypatch):
    real = os.fsync

    def fsync(handle, error=22):
        if error == 5 or os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(error, os.strerror(error))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    editor = CaptionEditor(project, CONFIG)
    assert len(editor.change("add", everywhere(editor, Add("x"))).new) == len(FILES)
    monkeypatch.setattr("lorakit.tags.files.fsync", lambda path: fsync(None, 5))
    with pytest.raises(CaptionEditError, match="an input/output error"):
        editor.change("more", everywhere(editor, Add("y")))
    monkeypatch.undo()
    assert len(CaptionEditor(project, CONFIG).history()) == 2 and b"y" in files(project)["a.txt"]


def test_the_next_call_finishes_an_interrupted_change(project, monkeypatch):
    editor, real, left = CaptionEditor(project, CONFIG), os.replace, iter([True, True, False])

    def replace(part, file):
        if not next(left):
            raise KeyboardInterrupt
        real(part, file)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        editor.change("add", everywhere(editor, Add("x")))
    monkeypatch.undo()
    editor.change("more", {"a.png": editor.captions["a.png"] + ", y"})
    assert set(tags_of(editor.captions["a.png"])) == {"girl", "boots", "smile", "x", "y"}
    assert all("x" in tags_of(caption) for caption in editor.captions.values())
    assert [change.what for change in editor.history()] == ["add", "more"] and CaptionEditor(
        project, CONFIG
    ).refresh() is None
    editor.undo(), editor.undo()
    assert files(project) == {f"{name}.txt": data for name, data in FILES.items() if data is not None}


def test_an_emptied_caption_comes_back_with_undo(project):
    editor = CaptionEditor(project, CONFIG)
    editor.change("nothing left", dict.fromkeys(["a.png", "h.png"], ""))
    again = CaptionEditor(project, CONFIG)
    assert again.captions["a.png"] == again.captions["h.png"] == "" and len(again.history()) == 1
    assert again.is_locked("a.png") and not tag_counts(again.captions.values()).get("smile")
    again.undo()
    assert files(project) == {f"{name}.txt": data for name, data in FILES.items() if data is not None}


def test_regularization_images_are_not_edited(project):
    reg = project.dataset / "reg/1_girl"
    reg.mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(reg / "r.png")
    (reg / "r.txt").write_bytes(b"girl")
    editor = CaptionEditor(project, CONFIG)
    assert {Path(name).stem for name in editor.captions} == {*FILES}
    editor.change("add x", everywhere(editor, Add("x")), "wd")
    assert (reg / "r.txt").read_bytes() == b"girl"


def test_two_datasets_have_a_history_each(project):
    shutil.copytree(project.dataset, project.folder / "prepared")
    editor, other = CaptionEditor(project, CONFIG), CaptionEditor(project, DataConfig(folder="prepared"))
    editor.change("add", everywhere(editor, Add("x")))
    assert other.undo() is None and other.change("add", {"a.png": "y"}).number == 2
    assert editor.undo().what == "add" and editor.captions["a.png"] == "girl, boots, smile"
    assert CaptionEditor(project, DataConfig(folder="prepared")).captions["a.png"] == "y"


def test_the_diff_is_unified_and_tag_counts_begin_with_the_rarest(project):
    editor = CaptionEditor(project, CONFIG)
    editor.change("rename", {"a.png": "girl, red boots, smile", "f.png": "new"})
    assert editor.diff().splitlines() == [
        *("--- a.png", "+++ a.png", "@@ -1 +1 @@", "-girl, boots, smile", "+girl, red boots, smile"),
        *("--- f.png", "+++ f.png", "@@ -0,0 +1 @@", "+new"),
    ]
    assert (
        list(tag_counts(editor.captions.values()).items())[-1] == ("girl", 5)
        and tag_counts(editor.captions.values())["red boots"] == 1
    )
    assert {name: (change.old[name], change.new[name]) for change in editor.history() for name in change.new} == {
        "a.png": ("boots", "red boots"),
        "f.png": ("", "new"),
    }


def test_unknown_images_and_texts_that_utf8_cannot_hold_are_refused(project):
    editor = CaptionEditor(project, CONFIG)
    with pytest.raises(CaptionEditError, match="no training image"):
        editor.change("x", {"nobody.png": "x"})
    with pytest.raises(CaptionEditError, match="UTF-8"):
        editor.change("x", {"a.png": "\ud800"})
    editor.change("lines", {"a.png": "\ufeffgirl,\nboots, ,\n\n"})
    assert editor.captions["a.png"] == "girl, boots" and CaptionEditor(project, CONFIG).refresh() is None
    assert len(CaptionEditor(project, CONFIG).history()) == 1


@pytest.mark.parametrize("text", ["una ragazza è seduta", "é", "1girl, α", "да", "猫", "帽子, 微笑", "ó, ñ"])
def test_captions_in_every_language_are_read_again_also_beside_gbk(project, text):
    (project.dataset / "b.txt").write_bytes("帽子, 红色头发, 蓝色眼睛, 白色背景, 连衣裙, 室外, 天空".encode("gbk"))
    editor = CaptionEditor(project, CONFIG)
    editor.change("written", {"a.png": text})
    again = CaptionEditor(project, CONFIG)
    assert again.captions["a.png"] == text and len(again.history()) == 1
    again.undo()
    assert files(project)["a.txt"] == FILES["a"]


def test_a_caption_too_long_to_be_read_again_is_refused(project):
    editor = CaptionEditor(project, CONFIG)
    with pytest.raises(CaptionEditError, match="longer than any that is read again"):
        editor.change("pasted", {"a.png": "x" * 1_000_000})
    assert editor.captions == CaptionEditor(project, CONFIG).captions


@pytest.mark.parametrize("seed", range(20))
def test_an_edit_leads_from_any_text_to_any_other_and_back(seed):
    rng = random.Random(seed)
    old, new = (", ".join(rng.choices(["a", "b", "", "a,b", " c"], k=rng.randrange(5))) for _ in range(2))
    edit = Edit.between(old, new)
    assert edit.apply(old) == new and edit.reversed().apply(new) == old and edit.is_empty == (old == new)


def test_a_file_of_alternatives_is_never_made_one_caption_and_a_sentence_has_one_author(tmp_path):
    folder = tmp_path / "dataset"
    folder.mkdir()
    for name, text in (("a", "girl, hat\na girl in a hat\n"), ("b", "girl, boots")):
        Image.new("RGB", (16, 16), name == "a" and "red" or "blue").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(text)
    editor = CaptionEditor(Project(tmp_path), DataConfig(caption_lines="alternatives"))
    assert editor.is_locked("a.png")
    sentence = "A girl, who wears boots, stands in the rain."
    editor.unlock(["b.png"])
    editor.change("x", {"a.png": "girl, hat, shoes", "b.png": f"girl, boots, {sentence}"}, by="writer")
    assert (folder / "a.txt").read_text() == "girl, hat\na girl in a hat\n"
    assert editor.authors("b.png") == {"girl": "person", "boots": "person", sentence: "writer"}
    editor.change("y", {"b.png": f"girl, boots, {sentence.replace('boots', 'shoes')}"})
    assert editor.authors("b.png")[sentence.replace("boots", "shoes")] == "person"
