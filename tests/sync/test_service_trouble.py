"""The sync service on a failing disk: no half-written state, every problem reported, everything uploaded later."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import time
from pathlib import Path

import pytest
from remotes import (
    begin,
    is_settled,
    opened,
    plain_remote,
    rotate,
    save_data,
    send,
    served,
    serving,
    state,
    until,
    whole_states,
)
from slow_disk import SlowDisk, mountable

from lorakit.files.copying import CorruptCopy, copy_verified
from lorakit.project import Project
from lorakit.sync import remote_lock, service, workspace
from lorakit.sync.pending import Sent

fuse = pytest.mark.skipif(bool(mountable()), reason=f"no file system can be mounted: {mountable()}")

plain, serve = pytest.fixture(plain_remote), pytest.fixture(served)


@pytest.fixture
def disk(tmp_path):
    """A disk of ours that misbehaves when told."""
    found = SlowDisk(tmp_path)
    yield found
    found.close()


@pytest.fixture
def project(disk, tmp_path):
    """A project whose remote copy is on that disk, with a run that has begun."""
    (disk.backing / "lorakit").mkdir()
    found = opened(disk.at / "lorakit/mofu", tmp_path / "local")
    begin(found)
    return found


@fuse
def test_the_trash_of_a_disk_that_keeps_deleted_files_does_not_fill(disk, project):
    disk.set(trash=True)
    run, sent, size, most = project.run("r"), Sent.of(project), 60_000, 0
    for step in range(1, 101):
        state(run, step, size)
        rotate(run)
        send(project, sent)
        most = max(most, disk.used())
        assert whole_states(disk.backing / "lorakit/mofu") == [max(step - 1, 1), step][2 - min(step, 2) :]
    assert most <= 3 * size, "two states and the one that comes"
    assert disk.trash() < 3000, "marks, at most"


FAULTS = {
    "full": ({"room": 50_000}, "is full"),
    "EIO": ({"error": errno.EIO}, "an input/output error"),
    "EACCES": ({"error": errno.EACCES}, "permission denied"),
    "EROFS": ({"error": errno.EROFS}, "read-only"),
    "lies about sizes": ({"short": 9}, "are there when read back"),
    "hangs": ({"hang": True}, "has not responded for"),
    "dead": ("die", "is no longer connected"),
    "unmounted": ("unmount", "folder is not there"),
}


@fuse
@pytest.mark.parametrize("name", FAULTS)
def test_trouble_is_told_and_caught_up_with_when_the_disk_is_back(name, disk, project, serve):
    fault, words = FAULTS[name]
    run = project.run("r")
    state(run, 1, 60_000)
    process = serve(project)
    until(project, is_settled)
    disk.set(**fault) if isinstance(fault, dict) else getattr(disk, fault)()
    begun = time.time()
    state(run, 2, 60_000)
    found = until(project, lambda found: words in found.trouble)
    assert time.time() - begun < 10 and begun - 1 < found.since < time.time() and found.is_running
    assert str(project.remote) in found.trouble and "not uploaded yet: " in found.trouble
    state(run, 3, 60_000)
    rotate(run)
    assert until(project, lambda found: found.bytes_left >= 60_000).confirmed == {"r": 1}
    if isinstance(fault, dict):
        disk.set()
    else:
        disk.unmount()
        disk.mount()
    found = until(project, is_settled)
    assert found.confirmed == {"r": 3} and found.since == 0.0
    assert whole_states(disk.backing / "lorakit/mofu") in ([1, 3], [2, 3]) and process.poll() is None


@fuse
def test_a_disk_that_hangs_and_is_mounted_again_is_caught_up_with(disk, project, serve):
    serve(project, silence=0.1, patience=0.2)
    until(project, is_settled)
    disk.set(hang=True)
    state(project.run("r"), 1)
    until(project, lambda found: "has not responded" in found.trouble)
    time.sleep(0.4)  # twice the patience: the copier is given up
    disk.unmount()  # the old one hangs for ever, with all who wait for it
    hanging = disk.process
    disk.control = disk.control.with_name("control-2.json")
    disk.set()
    disk.mount()
    try:
        assert until(project, is_settled).confirmed == {"r": 1}
    finally:
        hanging.kill()
        hanging.wait()


@fuse
def test_copiers_that_hang_do_not_pile_up(disk, project, serve):
    process = serve(project, silence=0.05, patience=0.1, retry=0.1)
    until(project, is_settled)
    disk.set(hang=True)
    state(project.run("r"), 1)
    until(project, lambda found: "has not responded" in found.trouble)
    time.sleep(0.5)  # five times the patience
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert 1 <= len(children) <= 2


@fuse
def test_a_slow_disk_is_no_trouble(disk, project, serve):
    disk.set(bandwidth=300_000)
    serve(project, silence=1.5, patience=3.0)
    state(project.run("r"), 1, 150_000)
    end, seen = time.time() + 15, []
    while not seen or seen[-1].confirmed.get("r") != 1:
        assert time.time() < end
        seen += [found for found in [service.standing(project)] if found.seen]
        time.sleep(0.05)
    assert {found.trouble for found in seen} == {""}
    assert whole_states(disk.backing / "lorakit/mofu") == [1]


def kill_often(remote: Path, project: Project, times: int) -> None:
    """Kill a sync service at random moments of its work; look on the remote before and after its copier notices."""
    chance, run = random.Random(0), project.run("r")
    for step in range(1, times + 1):
        state(run, step, 400_000)
        rotate(run)
        process = serving(project, linger=600.0)
        time.sleep(0.15 + chance.uniform(0, 0.35))
        before = whole_states(remote)
        process.kill()
        process.wait()
        assert max(whole_states(remote), default=0) >= max(before, default=0)
        time.sleep(0.1)
        assert len(whole_states(remote)) >= min(2, len(before))
    process = serving(project, linger=600.0)
    try:
        # Not `is_settled` alone: the last word of the killed service may say so, too.
        until(project, lambda found: found.confirmed.get("r") == times and is_settled(found))
        assert whole_states(remote)[-1] == times
        state(run, times + 1)  # with which goes what a killed copier wrote to its end
        until(project, lambda found: found.confirmed["r"] == times + 1 and is_settled(found))
    finally:
        process.kill()
        process.wait()
    assert not list(remote.rglob("*.part"))


@fuse
def test_a_mirror_killed_at_any_moment_leaves_no_half_state(disk, project):
    disk.set(bandwidth=3_000_000)
    kill_often(disk.backing / "lorakit/mofu", project, 6)


def test_a_mirror_killed_at_any_moment_leaves_no_half_state_in_a_plain_folder(plain):
    kill_often(plain.remote, plain, 4)


def test_a_plain_folder_that_cannot_be_written_is_told_and_caught_up_with(plain, serve):
    serve(plain)
    until(plain, is_settled)
    states = plain.remote / "runs/r/states"
    states.write_text("in the way")
    state(plain.run("r"), 1)
    found = until(plain, lambda found: "a file, not a folder" in found.trouble)
    assert found.confirmed == {"r": 0} and "not uploaded yet: " in found.trouble
    states.unlink()
    assert until(plain, is_settled).confirmed == {"r": 1}


@fuse
@pytest.mark.slow
def test_a_mirror_killed_at_many_moments_leaves_no_half_state(disk, project):
    disk.set(bandwidth=3_000_000)
    kill_often(disk.backing / "lorakit/mofu", project, 80)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting wants root")
def test_a_real_disk_that_is_full_is_told_and_caught_up_with(tmp_path, serve):
    disk = tmp_path / "small"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", disk], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        project = opened(disk / "mofu", tmp_path / "local")
        begin(project)
        (disk / "else").write_bytes(bytes(200_000))
        serve(project)
        state(project.run("r"), 1, 150_000)
        until(project, lambda found: found.confirmed.get("r") == 1)
        state(project.run("r"), 2, 150_000)
        until(project, lambda found: "is full" in found.trouble)
        assert whole_states(project.remote) == [1]
        (disk / "else").unlink()
        assert until(project, is_settled).confirmed == {"r": 2}
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_plain_folder_that_is_gone_is_told_never_made_again(plain, serve):
    serve(plain)
    until(plain, is_settled)
    plain.remote.rename(plain.remote.with_name("away"))
    state(plain.run("r"), 1)
    until(plain, lambda found: "folder is not there" in found.trouble)
    assert not plain.remote.exists()
    plain.remote.with_name("away").rename(plain.remote)
    assert until(plain, is_settled).confirmed == {"r": 1}


@fuse
def test_whoever_asks_a_hanging_disk_who_trains_does_not_hang(disk, project, monkeypatch):
    monkeypatch.setattr(remote_lock, "ANSWERS", 0.5)
    disk.set(hang=True)
    begun = time.time()
    assert service.elsewhere(project.run("r")) == "" and service.standing(project) is not None
    assert time.time() - begun < 3
    disk.set()


@fuse
def test_opening_many_small_images_on_a_slow_disk(disk, tmp_path):
    """Once from the folder, many at a time; from then on from two archives."""
    remote = disk.at / "mofu"
    save_data(disk.backing / "mofu/dataset", 40)
    disk.set(delay=0.02, lookup=0.005)
    project = opened(remote, tmp_path / "one")
    disk.calls()
    disk.set()
    assert serving(project).wait(30) == 0
    disk.calls()
    opened(remote, tmp_path / "two")
    assert not [call for call in disk.calls() if call.startswith(("open /mofu/dataset/", "read /mofu/dataset/"))]
    assert workspace.notes(Project(tmp_path / "two/mofu")) == ()


@fuse
def test_an_image_that_cannot_be_read_is_named_and_taken_when_it_can(disk, tmp_path):
    files = save_data(disk.backing / "mofu/dataset")
    disk.set(broken=["000.png"])
    project = opened(disk.at / "mofu", tmp_path / "local")
    assert len(list(project.dataset.rglob("*.*"))) == len(files) - 1
    (note,) = workspace.notes(project)
    assert note.startswith("dataset/2_mofu/000.png is left out for now: it cannot be copied (Input/output error)")
    disk.set()
    project = opened(disk.at / "mofu", tmp_path / "local")
    assert (project.dataset / "2_mofu/000.png").read_bytes() == files["2_mofu/000.png"] and not workspace.notes(project)


@fuse
def test_a_copy_that_reads_back_differently_never_gets_its_name(disk, tmp_path):
    source, target = tmp_path / "x", disk.at / "y"
    for old in (None, b"old"):
        if old:
            (disk.backing / "y").write_bytes(old)
        source.write_bytes(random.Random(0).randbytes(400_000))
        disk.set(short=1)
        with pytest.raises(CorruptCopy, match="399999 of 400000 bytes are there when read back"):
            list(copy_verified(source, target))
        disk.set()
        assert os.listdir(disk.backing) == (["y"] if old else []) and (not old or target.read_bytes() == old)
