"""Platforms are detected, projects are where each keeps them, and slow disks are told apart from local ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lorakit.project import platforms
from lorakit.project.platforms import FOLDER, MACHINES, Place, find, is_slow, network_switch

MOUNTS = r"""
overlay / overlay rw,relatime 0 0
proc /proc proc rw 0 0
drive /content/drive fuse.drive rw,user_id=0 0 0
/dev/sda1 /content/drive/disk ext4 rw 0 0
nas:/share /mnt/my\040nas nfs4 rw 0 0
C:\134 /mnt/c 9p rw,aname=drvfs 0 0
/dev/sdb1 /media/usb fuseblk rw 0 0
//box/x /mnt/box cifs rw 0 0
"""


def machine(root: Path, *folders: str) -> Path:
    for folder in folders:
        (root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
    return root


@pytest.mark.parametrize(
    ("name", "variables", "folders", "where", "is_lost"),
    [
        ("Colab", {"COLAB_RELEASE_TAG": "x"}, ["/content", "/content/drive/MyDrive"], "content/drive/MyDrive", False),
        ("Colab", {"COLAB_RELEASE_TAG": "x"}, ["/content"], "content", True),
        ("Kaggle", {"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}, ["/kaggle/working", "/tmp"], "kaggle/working", False),
        ("Kaggle", {"COLAB_RELEASE_TAG": "x"}, ["/kaggle/working", "/content"], "kaggle/working", False),
        ("AutoDL", {}, ["/root/autodl-tmp", "/root/autodl-fs"], "root/autodl-tmp", False),
    ],
)
def test_a_platform_is_detected_and_keeps_projects_where_they_last(name, variables, folders, where, is_lost, tmp_path):
    place = find(variables, machine(tmp_path, *folders))
    assert (place.name, place.is_lost) == (name, is_lost)
    assert place.folders[0] == tmp_path / where / FOLDER


def test_elsewhere_projects_are_in_the_current_folder_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = find({"XDG_CACHE_HOME": str(tmp_path / "cache")}, tmp_path)
    assert (place.name, place.keeps, place.folders) == ("", "", (tmp_path / FOLDER,))
    assert place.fast == tmp_path / "cache" / FOLDER


def test_the_row_of_each_machine_is_complete():
    assert len({row.name for row in MACHINES}) == len(MACHINES)
    for row in MACHINES:
        assert row.signs and row.keeps and all(path.startswith("/") for path in (*row.folders, *row.fast))


@pytest.mark.parametrize(
    ("path", "slow"),
    [
        ("/home/me", False),
        ("/content/drive/MyDrive/lora", True),
        ("/content/drive/disk/x", False),
        ("/content/driver", False),
        ("/mnt/my nas/x", True),
        ("/mnt/c/x", True),
        ("/media/usb/x", False),
        ("/mnt/box", True),
    ],
)
def test_a_disk_is_slow_by_the_kind_of_the_innermost_mount(path, slow, tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS.lstrip())
    assert is_slow(Path(path), mounts) == slow


def test_where_the_kernel_tells_nothing_no_disk_is_slow(tmp_path):
    assert not is_slow(tmp_path, tmp_path / "no-such-file")


def test_a_link_is_as_slow_as_what_it_leads_to(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far")
    mounts = tmp_path / "mounts"
    mounts.write_text(f"overlay / overlay rw 0 0\nx {tmp_path / 'far'} nfs rw 0 0\n")
    assert is_slow(tmp_path / "link" / "project", mounts) and not is_slow(tmp_path, mounts)


def test_a_project_is_copied_only_where_that_makes_it_faster(tmp_path, monkeypatch):
    place = Place("", (tmp_path / "drive",), tmp_path / "disk", "")
    for slow, copied in (({"drive"}, True), (set(), False), ({"drive", "disk"}, False)):
        monkeypatch.setattr(platforms, "is_slow", lambda path, slow=slow: path.name in slow)
        assert place.is_copied(tmp_path / "drive") == copied


def project(folder: Path, remote: Path | None = None) -> Path:
    folder.mkdir(parents=True)
    if remote:
        (folder / "home.json").write_text(json.dumps({"home": str(remote)}))
    return folder


def test_projects_of_all_folders_are_listed_once_and_working_copies_are_none(tmp_path):
    drive, disk = tmp_path / "drive", tmp_path / "disk"
    place = Place("Colab", (drive, disk), disk, "kept")
    assert (place.projects(), place.last()) == ([], "")
    project(drive / "a")
    project(disk / "a-123456", remote=drive / "a")
    project(disk / "b")
    project(drive / ".Trash")
    (drive / "notes.txt").write_text("")
    assert place.projects() == ["a", "b"]
    assert [place.find(name) for name in "abc"] == [drive / "a", disk / "b", drive / "c"]


def test_the_project_that_was_opened_last_is_remembered_beside_the_projects(tmp_path):
    place = Place("", (tmp_path / "projects",), tmp_path / "disk", "")
    place.remember("小狐狸")
    assert place.last() == "", "it was never made"
    for i, name in enumerate(("a", "小狐狸", "b")):
        os.utime(project(place.folders[0] / name), (i, i))
    assert place.last() == "小狐狸"
    (place.folders[0] / platforms.LAST).unlink()
    assert place.last() == "b", "without a note the one that changed last"


def test_of_two_folders_the_newer_note_counts(tmp_path):
    drive, disk = tmp_path / "drive", tmp_path / "disk"
    for i, (folder, name) in enumerate(((drive, "a"), (disk, "b"))):
        project(folder / name)
        (folder / platforms.LAST).write_text(name)
        os.utime(folder / platforms.LAST, (i, i))
    assert Place("Colab", (drive, disk), disk, "kept").last() == "b"


def test_a_folder_that_takes_no_note_stops_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    Place("", (tmp_path / "file" / "projects",), tmp_path, "").remember("a")


def test_a_disk_that_was_lost_is_not_there(monkeypatch):
    def lost(self, **_):
        raise OSError(107, "Transport endpoint is not connected")

    monkeypatch.setattr(Path, "stat", lost)
    assert not platforms.is_there(Path("/content/drive/MyDrive"))


def test_the_network_switch_gives_its_proxies_and_nothing_else(tmp_path):
    script = tmp_path / "network_turbo"
    assert network_switch(script) == {}
    script.write_text(
        "export no_proxy=localhost,127.0.0.1\nexport http_proxy=http://10.0.0.1:12 && export https_proxy=$http_proxy\n"
        "export OTHER=1\necho 设置成功\nfalse\n"
    )
    assert network_switch(script) == {
        "no_proxy": "localhost,127.0.0.1",
        "http_proxy": "http://10.0.0.1:12",
        "https_proxy": "http://10.0.0.1:12",
    }


def test_what_is_said_of_machines_has_its_chinese():
    from widgets.i18n import translations

    assert set(translations()["places"]) == {*(row.keeps for row in MACHINES), platforms.LOST}
