"""Over the corpus of odd and broken files: each is used or explained, in bounded time and memory, none is changed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from corpus import CALM, EITHER, SMALL, UNREADABLE, USED, make

from lorakit.data import DataConfig, image_stats
from lorakit.data.images import ImageError, alpha_of, open_rgb
from lorakit.data.listing import NOTE_KINDS
from lorakit.data.scan import scan

MEMORY = 2**30  # bytes of address space that a scan may have, Python, NumPy and its threads' stacks among them
SECONDS = 60  # for all of it, on a machine that is busy with something else; it is one second on one that is not


@pytest.fixture(scope="module")
def odds(tmp_path_factory):
    """What is expected of each name, below a project's folder."""
    project = tmp_path_factory.mktemp("corpus")
    return project, make(project / "dataset")


@pytest.fixture(scope="module")
def found(odds):
    return scan(DataConfig(), odds[0])


def plain_files(root: Path) -> list[Path]:
    return [Path(at, name) for at, _, names in os.walk(root) for name in names]


def test_the_corpus_has_more_than_three_hundred_files_and_is_the_same_each_time(odds, tmp_path):
    project, expected = odds
    assert len(expected) > 450 and len({odd.name for odd in expected}) == len(expected)
    assert make(tmp_path / "again") == expected
    for path in plain_files(tmp_path / "again"):
        # an animated AVIF has the time of day in it
        if path.is_file() and not path.is_symlink() and path.name != "f.avif":
            assert path.read_bytes() == (project / "dataset" / path.relative_to(tmp_path / "again")).read_bytes()


def test_every_file_is_used_or_explained_as_it_should_be(odds, found):
    samples = {sample.name: sample for sample in found.samples}
    wrong = []
    for odd in odds[1]:
        kinds = tuple(sorted(n.kind for n in found.notes if n.name == odd.name and n.kind not in CALM))
        if odd.fate == EITHER:
            is_right = odd.name in samples or kinds == (UNREADABLE,)
        else:
            is_right = (odd.name in samples) == (odd.fate == USED) and kinds == odd.kinds
        if is_right and odd.caption:
            is_right = samples[odd.name].written == odd.caption
        wrong += [] if is_right else [(odd, odd.name in samples, kinds)]
    assert not wrong, "\n".join(map(str, wrong))


def test_no_file_is_passed_over_in_silence(odds, found):
    root = odds[0] / "dataset"
    shown = {sample.path for sample in found.samples} | {root / note.name for note in found.notes}
    shown |= {sample.caption_file.with_suffix(ending) for sample in found.samples for ending in (".txt", ".TXT")}
    shown |= {root / Path(note.name).with_suffix(".txt") for note in found.notes if note.kind == "caption encoding"}
    shown |= {root / "json/ours/captions.json", root / os.fsdecode(b"names/\xb0\xa1\xff.png")}
    hidden = [path for path in plain_files(root) if any(part.startswith(".") for part in path.relative_to(root).parts)]
    assert sorted({*plain_files(root)} - shown - {*hidden}) == [] and hidden
    assert any(note.kind == "hidden" and ".hidden" in note.text for note in found.notes)
    assert {note.kind for note in found.notes} <= {*NOTE_KINDS}


def test_every_note_is_a_sentence_that_names_what_to_look_at(found):
    for note in found.notes:
        assert note.name and note.text.endswith((".", "…")) and len(note.text) < 400, note
        assert "0x" not in note.text and "Errno" not in note.text and "object at" not in note.text, note
        assert "\ufffd" not in str(note) and str(note).encode("utf-8") == f"{note.name}: {note.text}".encode()


def test_a_used_image_can_be_opened_on_any_colour_and_its_alpha_has_its_size(found):
    for sample in found.samples:
        image, alpha = open_rgb(sample.path, "#123456"), alpha_of(sample.path)
        assert (image.mode, image.size) == ("RGB", (sample.width, sample.height))
        assert alpha is None or (alpha.mode, alpha.size) == ("L", image.size)


def test_an_unreadable_image_is_refused_with_a_sentence_wherever_it_is_opened(odds, found):
    for note in (note for note in found.notes if note.kind == UNREADABLE):
        with pytest.raises(ImageError):
            open_rgb(odds[0] / "dataset" / note.name)


def test_nothing_in_the_data_folder_is_changed(odds):
    def state():
        plain = [path for path in plain_files(odds[0] / "dataset") if path.is_file() and not path.is_symlink()]
        return {path: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).digest()) for path in plain}

    before = state()
    scan(DataConfig(), odds[0])
    assert state() == before


SCAN = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
from pathlib import Path
from lorakit.data import DataConfig, image_stats
from lorakit.data.scan import scan
found = scan(DataConfig(), Path(sys.argv[1]))
unread = sum(note.kind == "unreadable" for note in found.notes)
status = Path("/proc/self/status").read_text()  # the kernel's ru_maxrss is at least what the parent's was
print(len(found.samples), unread, int(status.partition("VmHWM:")[2].split()[0]) * 1024)
"""


def test_time_and_memory_are_bounded(odds, found, tmp_path):
    (tmp_path / "dataset").symlink_to(odds[0] / "dataset")  # a project without a memory of looks
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCAN.format(memory=MEMORY), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "MALLOC_ARENA_MAX": "2"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    samples, unread, peak = map(int, done.stdout.split())
    assert samples == len(found.samples), "with that memory no file is refused that is used with more"
    assert unread == sum(note.kind == UNREADABLE for note in found.notes)
    assert peak < 400e6 and time.monotonic() - begun < SECONDS


@pytest.fixture
def project_of_nobody():
    """A project's folder, all of it readable, and a process that is not root while it is looked at."""
    with tempfile.TemporaryDirectory() as name:
        project, user = Path(name), os.geteuid()
        for file, data in {"a.png": SMALL, "b.png": SMALL, "in/c.png": SMALL, "b.txt": b"hat", "m.json": b"{}"}.items():
            (project / "dataset" / file).parent.mkdir(parents=True, exist_ok=True)
            (project / "dataset" / file).write_bytes(data)
        scan(DataConfig(), project)  # as root once, for what is imported late from folders that only root may see
        if user == 0:
            for path in (project, *project.rglob("*")):
                os.chown(path, 65534, 65534)
            os.seteuid(65534)
        yield project
        os.seteuid(user)


def test_what_may_not_be_read_or_written_is_told(project_of_nobody, monkeypatch):
    monkeypatch.setattr(image_stats, "SETTLED", -60)  # files that were written just now are worth remembering
    data = project_of_nobody / "dataset"
    (data / "d.png").write_bytes(SMALL)
    for path in (data / "a.png", data / "b.txt", data / "m.json", data / "in"):
        path.chmod(0)
    project_of_nobody.chmod(0o500)
    with pytest.raises(ImageError):
        open_rgb(data / "a.png")
    found = scan(DataConfig(), project_of_nobody)
    notes = {note.name: note for note in found.notes if note.kind not in CALM}
    assert [sample.name for sample in found.samples] == ["d.png"]
    assert {name: note.kind for name, note in notes.items()} == {
        "a.png": "unreadable",
        "b.png": "caption encoding",
        "in": "unreadable",
        "m.json": "caption json",
        "cache/.looks.json": "memory",
    }
    assert all("Permission denied" in note.text for note in notes.values())
    project_of_nobody.chmod(0o700)
