"""What the data tools leave in a project is safe on the remote and comes back on a new machine."""

from __future__ import annotations

import json
import shutil
import time

import pytest
from remotes import QUICK, content, opened, save_data, serving, until

from lorakit.sync import packs, service
from lorakit.sync.pending import Due, Pass, Sent

LEFT = {
    "tags/history.jsonl": b'{"number": 1}\n',
    "tags/captions.v1.json": b"{}",
    "tags/scores/wd.jsonl": b'{"categories": {}}\n',
    "prepared/2_mofu/000.png": b"prepared image",
    "prepared/2_mofu/000.txt": b"mofu, prepared",
    "dataset/reg/1_girl/000.png": b"regularization image",
    "boxes.yaml": b"000.png: []\n",
    "tagging.yaml": b"tagger: wd14\n",
    "prepare.yaml": b"size: 512\n",
    "prepared.jsonl": b'{"name": "000"}\n',
}


@pytest.fixture
def project(tmp_path):
    """A project of a remote, its images already there."""
    save_data(tmp_path / "drive/mofu/dataset")
    made = opened(tmp_path / "drive/mofu", tmp_path / "machine")
    mirrored(made)
    return made


def mirrored(project) -> None:
    """Copy until all is on the remote."""
    assert serving(project).wait(30) == 0
    standing = service.standing(project)
    assert (standing.files_left, standing.trouble) == (0, ""), standing


def elsewhere(project, root):
    """The same project on another machine, which has nothing yet."""
    return opened(project.remote, root)


def set_aside(project, name: str) -> None:
    """As fixes move images out of the dataset."""
    target = project.folder / "set-aside/001-duplicates" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    (project.dataset / name).rename(target)


def contents(record: dict) -> set[str]:
    """The digests that a list of archives on the remote has."""
    return set(record["files"].values())


def on_remote(project) -> set[str]:
    """The content of all files that the remote's archives have."""
    lists = [json.loads(file.read_bytes()) for file in (project.remote / packs.ARCHIVES).glob("*.json")]
    return set().union(*map(contents, lists))


def test_all_that_the_data_tools_leave_comes_back_on_a_new_machine(project, tmp_path):
    for name, data in LEFT.items():
        (project.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (project.folder / name).write_bytes(data)
    (project.dataset / "2_mofu/000.txt").write_bytes(b"mofu, edited")
    set_aside(project, "2_mofu/001.png")
    lock = project.folder / "tags/book.lock"
    lock.touch()
    mirrored(project)
    assert not any((project.remote / name).exists() for name in ("tags", "prepared", "set-aside")), "packed"
    assert lock.exists()
    lock.unlink()
    assert content(elsewhere(project, tmp_path / "new").folder) == content(project.folder)


def test_what_is_removed_here_does_not_come_back(project, tmp_path):
    for name in ("prepared/000.png", "prepared/001.png"):
        (project.folder / name).parent.mkdir(exist_ok=True)
        (project.folder / name).write_bytes(name.encode())
    mirrored(project)
    (project.folder / "prepared/000.png").unlink()
    mirrored(project)
    assert sorted(content(elsewhere(project, tmp_path / "new").folder / "prepared")) == ["001.png"]


def test_a_log_that_grew_on_one_machine_is_whole_on_the_other(project, tmp_path):
    history = project.folder / "tags/history.jsonl"
    history.parent.mkdir()
    for line in ("one\n", "two\n"):
        with history.open("a") as file:
            file.write(line)
        mirrored(project)
        other = elsewhere(project, tmp_path / "other")
        assert (other.folder / "tags/history.jsonl").read_text() == history.read_text()


def test_captions_edited_on_two_machines_are_told_and_joined_by_opening_again(project, tmp_path):
    other = elsewhere(project, tmp_path / "other")
    (project.dataset / "2_mofu/000.txt").write_text("edited here")
    mirrored(project)
    (other.dataset / "2_mofu/001.txt").write_text("edited there")
    watching = serving(other)
    shown = until(other, lambda standing: standing.trouble).trouble
    watching.terminate()
    watching.wait()
    assert shown.startswith("The folder dataset was changed in the remote copy by another machine. Training continues")
    assert "Open the project again to merge both versions" in shown
    mirrored(elsewhere(project, tmp_path / "other"))
    texts = elsewhere(project, tmp_path / "third").dataset / "2_mofu"
    assert [(texts / f"00{i}.txt").read_text() for i in range(2)] == ["edited here", "edited there"]


@pytest.mark.parametrize("way", ["set aside", "restored"])
def test_an_image_that_moves_is_at_home_at_every_moment(project, way):
    """However early the machine is lost: nothing of the dataset is missing from all archives on the remote."""
    set_aside(project, "2_mofu/000.png")
    if way == "restored":
        mirrored(project)
        shutil.move(project.folder / "set-aside/001-duplicates/2_mofu/000.png", project.dataset / "2_mofu/000.png")
    before = on_remote(project)
    due = Due(
        logs=True,
        packs=("dataset", "set-aside")[:: 1 if way == "set aside" else -1],
        training={},
        announced=frozenset(),
    )
    for _ in Pass(project, Sent.of(project), due).lines():
        assert before <= on_remote(project)
    assert (project.remote / packs.ARCHIVES / "set-aside.json").exists()


def test_an_image_set_aside_stays_in_homes_data_set_while_its_new_place_cannot_get_there(project):
    set_aside(project, "2_mofu/000.png")
    before = on_remote(project)
    packs.manifest(project.remote, "set-aside").mkdir()  # where no list can be written
    due = Due(logs=True, packs=("dataset", "set-aside"), training={}, announced=frozenset())
    with pytest.raises(OSError):
        list(Pass(project, Sent.of(project), due).lines())
    packs.manifest(project.remote, "set-aside").rmdir()
    assert before <= on_remote(project)


def test_what_comes_image_by_image_does_not_send_all_others_again_for_each(project, monkeypatch):
    monkeypatch.setattr(packs, "LARGE", 1000)  # bytes; the four images there have 400 each

    def is_due(quiet: float, folder: str = "dataset", **hurry) -> bool:
        watching = service.SyncService(project, QUICK, 0)
        watching._look()
        return watching._is_quiet(folder, hurry.get("hurry", False), time.monotonic() + quiet * QUICK.quiet)

    assert not is_due(100)
    painted = project.dataset / "reg/2_girl/000.png"
    painted.parent.mkdir(parents=True)
    painted.write_bytes(bytes(100))
    assert not is_due(8) and is_due(10) and is_due(0, hurry=True)
    set_aside(project, "2_mofu/000.png")
    assert not is_due(8, "set-aside"), "before it is in no archive at home"
    shutil.move(project.folder / "set-aside/001-duplicates/2_mofu/000.png", project.dataset / "2_mofu/000.png")
    painted.write_bytes(bytes(600))
    assert is_due(1.1), "enough has come together"
    painted.unlink()
    (project.dataset / "2_mofu/000.txt").write_text("edited")
    assert is_due(1.1), "captions are in an archive of their own"
