"""Captions are changed whole, remembered, and taken back to the letter; what people wrote is safe from taggers."""

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
from lorakit.data.captions import tags_of
from lorakit.project import Project
from lorakit.tags.editor import CaptionEditor
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


def everywhere(book, rule):
    return {name: rule.apply(caption) for name, caption in book.captions.items()}


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
    """Let this process be killed when it begins its file operation number `count`."""
    left = iter(range(count, -1, -1))

    def counted(operation):
        def do(*arguments, **options):
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **options)

        return do

    for owner, name in ((os, "fsync"), (os, "replace"), (os, "unlink"), (Path, "write_bytes")):
        setattr(owner, name, counted(getattr(owner, name)))


def test_every_caption_is_read_and_nothing_is_written_by_opening(project):
    before = files(project)
    book = CaptionEditor(project, CONFIG)
    assert book.captions["c.png"] == "girl, boots" and book.captions["e.png"] == "女孩, 靴子, 帽子"
    assert book.captions["h.png"] == "girl, from json" and book.captions["f.png"] == ""
    assert files(project) == before and book.history() == []


@pytest.mark.parametrize("seed", range(6))
def test_any_sequence_is_undone_and_redone_to_the_letter(project, seed):
    rng, start = random.Random(seed), files(project)
    books = [CaptionEditor(project, CONFIG), CaptionEditor(project, CONFIG)]
    for step in range(25):
        book, name = rng.choice(books), rng.choice("abcdefgh") + ".png"
        book.refresh()
        tag = rng.choice(["girl", "boots", "hat", "x", "y", "靴子"])
        by = rng.choice(["person", "wd14"])
        rule = rng.choice([Add(tag), Add(tag, "start"), Remove(tag), Rename(tag, "z"), Rename("*", "all")])
        match rng.randrange(7):
            case 0:
                book.change("one", {name: rule.apply(book.captions[name])}, by)
            case 1 | 2:
                book.change("all", everywhere(book, rule), by)
            case 3:
                (book.lock if rng.random() < 0.5 else book.unlock)([name])
            case 4:
                book.undo()
            case 5:
                book.redo()
            case 6:
                book.samples[name].caption_file.write_bytes(f"by hand, {step}".encode() + b"\r\n" * (step % 2))
    book = CaptionEditor(project, CONFIG)
    while book.redo():
        pass
    end, locks = files(project), {name: book.is_locked(name) for name in book.samples}
    while book.undo():
        pass
    assert files(project) == start
    assert all(change.undone for change in book.history()) and book.diff() == ""
    other = CaptionEditor(project, CONFIG)
    while other.redo():
        pass
    assert files(project) == end and {name: other.is_locked(name) for name in other.samples} == locks
    book.refresh()
    assert book.captions == other.captions == CaptionEditor(project, CONFIG).captions


@pytest.mark.parametrize("what", ["change", "undo", "elsewhere"])
def test_killed_anywhere_captions_are_whole_and_after_opening_all_old_or_all_new(project, tmp_path, what):
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

    old, found, status = files(project), [], None
    while status != 0:
        here = Project(tmp_path / f"copy{len(found)}")
        shutil.copytree(project.dataset, here.dataset)
        shutil.copytree(project.folder / "tags", here.folder / "tags")
        status = fork(lambda here=here: (die_at(len(found)), work(here)))
        assert status in (0, -signal.SIGKILL)
        torn = files(here)
        fork(lambda here=here: (die_at(3), CaptionEditor(here, CONFIG)))  # the one that finishes it is killed as well
        book = CaptionEditor(here, CONFIG)
        found.append((torn, files(here)))
        assert book.captions == CaptionEditor(here, CONFIG).captions
        while book.undo():
            pass
        assert files(here) == {f"{name}.txt": data for name, data in FILES.items() if data is not None}
    new = found[-1][0]
    assert len(found) > (2 if what == "elsewhere" else 10)
    for torn, finished in found:
        assert all(torn.get(name) in (old.get(name), new.get(name)) for name in {*old, *new, *torn})
        assert finished in (old, new)


def test_what_was_changed_by_hand_in_the_middle_of_a_cut_change_stays(project):
    CaptionEditor(project, CONFIG)
    assert fork(lambda: (die_at(2), CaptionEditor(project, CONFIG).change("add", {"a.png": "new", "b.png": "new"}))) < 0
    history = (project.folder / "tags" / "history.jsonl").read_text()
    assert '"what": "add"' in history and '"done"' not in history
    (project.dataset / "a.txt").write_text("by hand")
    book = CaptionEditor(project, CONFIG)
    assert (book.captions["a.png"], book.captions["b.png"]) == ("by hand", "new")
    assert [(change.by, set(change.new)) for change in book.history()] == [("person", {"b.png"}), ("person", {"a.png"})]


def test_two_books_at_once_lose_no_change(project):
    one, other = CaptionEditor(project, CONFIG), CaptionEditor(project, CONFIG)
    other.change("theirs", {"a.png": "girl, smile, theirs"})
    one.change("mine", everywhere(one, Add("mine")))
    assert one.captions["a.png"] == "girl, smile, theirs, mine"
    assert other.refresh() is None and other.captions == one.captions


def test_two_processes_at_once_lose_no_change(project):
    CaptionEditor(project, CONFIG)

    def work(who):
        book = CaptionEditor(project, CONFIG)
        for number in range(8):  # each from what this book saw last
            book.change("add", everywhere(book, Add(f"{who}{number}")))

    child = os.fork()
    if child == 0:
        os._exit(fork(lambda: work("a")))
    assert fork(lambda: work("b")) == 0
    assert os.waitpid(child, 0)[1] == 0
    book = CaptionEditor(project, CONFIG)
    wanted = {f"{who}{number}" for who in "ab" for number in range(8)}
    assert all(wanted <= set(tags_of(caption)) for caption in book.captions.values())
    assert all("girl" in book.captions[name] for name in ("a.png", "b.png", "h.png"))
    assert len(book.history()) == 16


def test_what_was_changed_elsewhere_becomes_a_persons_and_no_undo_overwrites_it(project):
    book = CaptionEditor(project, CONFIG)
    book.change("add", everywhere(book, Add("x")))
    (project.dataset / "a.txt").write_text("by hand")
    undone = book.undo()
    assert (undone.what, undone.skipped, book.captions["a.png"]) == ("add", ("a.png",), "by hand")
    assert (project.dataset / "a.txt").read_text() == "by hand" and (project.dataset / "b.txt").read_bytes() == FILES[
        "b"
    ]
    last = book.history()[-1]
    assert (last.by, set(last.new)) == ("person", {"a.png"})
    book.undo()
    assert book.captions["a.png"] == "girl, boots, smile, x"


def test_redo_overwrites_nothing_that_was_changed_elsewhere(project):
    book, other = CaptionEditor(project, CONFIG), CaptionEditor(project, CONFIG)
    book.change("add", everywhere(book, Add("x")))
    book.lock(book.samples)
    book.undo(), book.undo()
    other.refresh()
    other.change("more", {"a.png": "other"})
    assert book.redo().skipped == ("a.png",) and book.captions["a.png"] == "other" and "x" in book.captions["b.png"]


def test_taggers_leave_alone_what_people_wrote_until_it_is_unlocked(project):
    book = CaptionEditor(project, CONFIG)
    free = {"f.png", "g.png"}  # nobody wrote anything there
    assert {name for name in book.samples if not book.is_locked(name)} == free
    change = book.change("tagged", dict.fromkeys(book.samples, "cat"), by="wd14")
    assert set(change.new) == free and set(change.skipped) == set(book.samples) - free
    book.change("by hand", {"f.png": "cat, dog"})
    assert book.is_locked("f.png") and not book.is_locked("g.png")
    assert book.change("tagged", {"f.png": "bird"}, by="wd14") is None
    book.unlock(["f.png", "a.png"])
    again = CaptionEditor(project, CONFIG)
    assert not again.is_locked("f.png") and not again.is_locked("a.png") and again.is_locked("b.png")
    book.undo()
    assert book.is_locked("f.png") and book.is_locked("a.png")


def test_each_tag_knows_who_set_it(project):
    book = CaptionEditor(project, CONFIG)
    book.change("tagged", {"f.png": "cat, dog, bird"}, by="wd14")
    book.change("by hand", {"f.png": "cat, bird, mouse"})
    assert book.authors("f.png") == {"cat": "wd14", "bird": "wd14", "mouse": "person"}
    assert book.removed_tags("f.png") == {"dog"}
    book.unlock(["f.png"])
    book.change("tagged", {"f.png": "bird, mouse"}, by="wd14")
    assert book.removed_tags("f.png") == {"dog"}
    book.undo(), book.undo()
    assert set(book.authors("a.png").values()) == {"person"}
    book.change("moved", {"f.png": "mouse, bird, cat"})
    assert book.authors("f.png") == {"mouse": "person", "bird": "wd14", "cat": "wd14"}
    book.undo(), book.undo()
    assert book.removed_tags("f.png") == set() and "dog" in CaptionEditor(project, CONFIG).authors("f.png")


def test_images_that_go_or_are_renamed_do_not_break_it(project):
    book = CaptionEditor(project, CONFIG)
    book.change("add", everywhere(book, Add("x")))
    (project.dataset / "a.png").rename(project.dataset / "new.png")
    (project.dataset / "a.txt").rename(project.dataset / "new.txt")
    (project.dataset / "b.png").unlink()
    book = CaptionEditor(project, CONFIG)
    assert book.captions["new.png"] == "girl, boots, smile, x" and "b.png" not in book.captions
    assert set(book.undo().skipped) == {"a.png", "b.png"}
    assert (
        book.captions["new.png"] == "girl, boots, smile, x" and (project.dataset / "c.txt").read_bytes() == FILES["c"]
    )


@pytest.mark.parametrize(
    "tail", [b'{"number": 2, "at": "2', b"\xff\xfe\n", b'{"number": 2}\n[]\n', b'{"done": 7, "of": 1}']
)
def test_a_torn_line_of_the_history_is_passed_over(project, tail):
    book = CaptionEditor(project, CONFIG)
    book.change("add", everywhere(book, Add("x")))
    with open(project.folder / "tags" / "history.jsonl", "ab") as file:
        file.write(tail)
    book = CaptionEditor(project, CONFIG)
    book.change("more", everywhere(book, Add("y")))
    assert [change.what for change in CaptionEditor(project, CONFIG).history()] == ["add", "more"]
    assert CaptionEditor(project, CONFIG).undo().what == "more"


def test_a_caption_of_a_json_file_gets_its_own_file_and_undo_takes_that_away(project):
    book = CaptionEditor(project, CONFIG)
    book.change("add", {"h.png": "girl, from me"})
    assert (project.dataset / "h.txt").read_text() == "girl, from me\n"
    assert CaptionEditor(project, CONFIG).undo() is not None
    assert (
        not (project.dataset / "h.txt").exists()
        and CaptionEditor(project, CONFIG).captions["h.png"] == "girl, from json"
    )


def test_images_that_share_a_caption_file_change_together(project):
    shutil.copy(project.dataset / "a.png", project.dataset / "a.jpg")
    Image.new("RGB", (16, 16), "red").save(project.dataset / "a.jpg")
    book = CaptionEditor(project, CONFIG)
    change = book.change("tagged", {"a.jpg": "one", "a.png": "two"})
    assert change.skipped == ("a.png",) and book.captions["a.png"] == book.captions["a.jpg"] == "one"
    assert (
        CaptionEditor(project, CONFIG).captions == book.captions and len(CaptionEditor(project, CONFIG).history()) == 1
    )


def test_a_caption_file_that_cannot_be_read_is_never_written(project):
    (project.dataset / "f.txt").mkdir()
    book = CaptionEditor(project, CONFIG)
    if "f.png" in book.samples:
        assert book.is_locked("f.png") and book.change("add", {"f.png": "x"}) is None
    (project.dataset / "a.txt").write_bytes(b"gar\xe7on, gar\xe7on")
    book = CaptionEditor(project, CONFIG)
    assert "a.png" not in book.samples or book.is_locked("a.png")
    book.change("add", everywhere(book, Add("x")))
    assert (project.dataset / "a.txt").read_bytes() == b"gar\xe7on, gar\xe7on" and (project.dataset / "f.txt").is_dir()


def test_a_full_disk_is_told_and_what_was_not_written_is_as_it_was(project, monkeypatch):
    book, real = CaptionEditor(project, CONFIG), os.replace

    def full(part, file):
        if Path(file).name == "b.txt":
            raise OSError(28, "No space left on device", str(file))
        real(part, file)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CaptionEditError, match="1 caption.*No space left"):
        book.change("add", everywhere(book, Add("x")))
    monkeypatch.undo()
    assert not list(project.dataset.glob(".*.part")), "what was begun is gone"
    assert book.captions["b.png"] == "girl, boots, röd" and book.captions["a.png"].endswith(", x")
    other = CaptionEditor(project, CONFIG)
    assert other.captions == book.captions and len(other.history()) == 1
    other.undo()
    assert files(project) == {f"{name}.txt": data for name, data in FILES.items() if data is not None}


def test_a_line_that_a_full_disk_cut_is_not_in_the_way_of_reading(project, monkeypatch):
    book = CaptionEditor(project, CONFIG)
    book.change("add", everywhere(book, Add("x")))
    history = project.folder / "tags" / "history.jsonl"
    before = history.read_bytes()

    def full(handle):
        os.ftruncate(handle, len(before) + 5)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CaptionEditError, match="free some space"):
        book.change("more", everywhere(book, Add("y")))
    assert history.read_bytes() == before
    assert CaptionEditor(project, CONFIG).captions["a.png"] == "girl, boots, smile, x", "with a disk that is full still"


def test_a_disk_that_cannot_sync_folders_does_and_one_that_fails_is_told(project, monkeypatch):
    real = os.fsync

    def fsync(handle, error=22):
        if error == 5 or os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(error, os.strerror(error))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    book = CaptionEditor(project, CONFIG)
    assert len(book.change("add", everywhere(book, Add("x"))).new) == len(FILES)
    monkeypatch.setattr("lorakit.tags.files.fsync", lambda path: fsync(None, 5))
    with pytest.raises(CaptionEditError, match="Input/output error"):
        book.change("more", everywhere(book, Add("y")))
    monkeypatch.undo()
    assert len(CaptionEditor(project, CONFIG).history()) == 2 and b"y" in files(project)["a.txt"]


def test_a_change_that_was_interrupted_is_finished_by_the_next_call(project, monkeypatch):
    book, real, left = CaptionEditor(project, CONFIG), os.replace, iter([True, True, False])

    def replace(part, file):
        if not next(left):
            raise KeyboardInterrupt
        real(part, file)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        book.change("add", everywhere(book, Add("x")))
    monkeypatch.undo()
    book.change("more", {"a.png": book.captions["a.png"] + ", y"})
    assert set(tags_of(book.captions["a.png"])) == {"girl", "boots", "smile", "x", "y"}
    assert all("x" in tags_of(caption) for caption in book.captions.values())
    assert [change.what for change in book.history()] == ["add", "more"] and CaptionEditor(
        project, CONFIG
    ).refresh() is None
    book.undo(), book.undo()
    assert files(project) == {f"{name}.txt": data for name, data in FILES.items() if data is not None}


def test_a_caption_can_be_emptied_and_comes_back(project):
    book = CaptionEditor(project, CONFIG)
    book.change("nothing left", dict.fromkeys(["a.png", "h.png"], ""))
    again = CaptionEditor(project, CONFIG)
    assert again.captions["a.png"] == again.captions["h.png"] == "" and len(again.history()) == 1
    assert again.is_locked("a.png") and not again.tag_counts().get("smile")
    again.undo()
    assert files(project) == {f"{name}.txt": data for name, data in FILES.items() if data is not None}


def test_regularization_images_are_no_taggers_and_not_edited(project):
    reg = project.dataset / "reg/1_girl"
    reg.mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(reg / "r.png")
    (reg / "r.txt").write_bytes(b"girl")
    book = CaptionEditor(project, CONFIG)
    assert {Path(name).stem for name in book.captions} == {*FILES}
    book.change("add x", everywhere(book, Add("x")), "wd")
    assert (reg / "r.txt").read_bytes() == b"girl"


def test_two_data_folders_have_a_history_each(project):
    shutil.copytree(project.dataset, project.folder / "prepared")
    book, other = CaptionEditor(project, CONFIG), CaptionEditor(project, DataConfig(folder="prepared"))
    book.change("add", everywhere(book, Add("x")))
    assert other.undo() is None and other.change("add", {"a.png": "y"}).number == 2
    assert book.undo().what == "add" and book.captions["a.png"] == "girl, boots, smile"
    assert CaptionEditor(project, DataConfig(folder="prepared")).captions["a.png"] == "y"


def test_the_difference_reads_as_a_diff_and_counts_begin_with_the_rarest(project):
    book = CaptionEditor(project, CONFIG)
    book.change("rename", {"a.png": "girl, red boots, smile", "f.png": "new"})
    assert book.diff().splitlines() == [
        *("--- a.png", "+++ a.png", "@@ -1 +1 @@", "-girl, boots, smile", "+girl, red boots, smile"),
        *("--- f.png", "+++ f.png", "@@ -0,0 +1 @@", "+new"),
    ]
    assert list(book.tag_counts().items())[-1] == ("girl", 5) and book.tag_counts()["red boots"] == 1
    assert {name: (change.old[name], change.new[name]) for change in book.history() for name in change.new} == {
        "a.png": ("boots", "red boots"),
        "f.png": ("", "new"),
    }


def test_names_of_no_image_and_texts_of_no_encoding_are_refused(project):
    book = CaptionEditor(project, CONFIG)
    with pytest.raises(CaptionEditError, match="no training image"):
        book.change("x", {"nobody.png": "x"})
    with pytest.raises(CaptionEditError, match="UTF-8"):
        book.change("x", {"a.png": "\ud800"})
    book.change("lines", {"a.png": "\ufeffgirl,\nboots, ,\n\n"})
    assert book.captions["a.png"] == "girl, boots" and CaptionEditor(project, CONFIG).refresh() is None
    assert len(CaptionEditor(project, CONFIG).history()) == 1


@pytest.mark.parametrize("text", ["una ragazza è seduta", "é", "1girl, α", "да", "猫", "帽子, 微笑", "ó, ñ"])
def test_what_is_written_is_read_again_in_every_language_also_beside_captions_in_gbk(project, text):
    (project.dataset / "b.txt").write_bytes("帽子, 红色头发, 蓝色眼睛, 白色背景, 连衣裙, 室外, 天空".encode("gbk"))
    book = CaptionEditor(project, CONFIG)
    book.change("written", {"a.png": text})
    again = CaptionEditor(project, CONFIG)
    assert again.captions["a.png"] == text and len(again.history()) == 1
    again.undo()
    assert files(project)["a.txt"] == FILES["a"]


def test_a_caption_that_would_be_too_long_to_be_read_again_is_refused(project):
    book = CaptionEditor(project, CONFIG)
    with pytest.raises(CaptionEditError, match="longer than any that is read again"):
        book.change("pasted", {"a.png": "x" * 1_000_000})
    assert book.captions == CaptionEditor(project, CONFIG).captions


@pytest.mark.parametrize("seed", range(20))
def test_an_edit_leads_from_any_text_to_any_other_and_back(seed):
    rng = random.Random(seed)
    old, new = (", ".join(rng.choices(["a", "b", "", "a,b", " c"], k=rng.randrange(5))) for _ in range(2))
    edit = Edit.between(old, new)
    assert edit.apply(old) == new and edit.reversed().apply(new) == old and edit.is_empty == (old == new)
