"""Training with a remote on a disk that hangs, fails or is gone: it neither waits nor loses a bit."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from remotes import opened, serving
from remotes import until as until_standing
from sessions import HARD, assert_same_end, at, copy_of, new_run, until
from slow_disk import SlowDisk, mountable
from tiny import save_images, save_sd15, settings

from lorakit import events
from lorakit.events import Failed, Finished, Saved, Stepped
from lorakit.files.disk import DiskFull
from lorakit.project import Project, Run
from lorakit.run.config import configure
from lorakit.run.create import save_config
from lorakit.training.loop import train

fuse = pytest.mark.skipif(bool(mountable()), reason=f"no file system can be mounted: {mountable()}")


pytestmark = pytest.mark.usefixtures("forked")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A base that is on every machine."""
    return save_sd15(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture
def disk(tmp_path):
    found = SlowDisk(tmp_path)
    yield found
    found.close()


def run_in(project: Project, base) -> Run:
    run = project.run("r")
    save_config(run, configure(settings(base, **HARD)))
    return run


def seconds_waited(run: Run) -> float:
    """How long this thread slept while it trained a run: neither at work nor kept from it by what else runs here."""

    def awake() -> int:
        return sum(map(int, Path("/proc/thread-self/schedstat").read_text().split()[:2]))

    begun, before = time.perf_counter(), awake()
    list(train(run))
    return time.perf_counter() - begun - (awake() - before) / 1e9


@fuse
def test_a_run_that_is_cut_goes_on_elsewhere_and_ends_as_if_it_never_was(disk, tiny, tmp_path):
    """The remote hangs until the first machine has saved its last state. Then the disk is back, that machine is lost
    with all its files, and another one continues from the remote."""
    save_images(disk.backing / "lorakit/mofu/dataset")
    remote = disk.at / "lorakit/mofu"
    project = opened(remote, tmp_path / "first")
    run = run_in(project, tiny)
    uncut = copy_of(run, tmp_path / "uncut")
    uploading = serving(project, linger=600.0)
    try:
        until_standing(project, lambda found: found.files_left == 0)
        disk.set(hang=True)
        trainer = threading.Thread(target=until, args=(run, at(Saved, 4)), daemon=True)
        trainer.start()
        trainer.join(120)
        assert not trainer.is_alive(), "training waits for a disk that hangs"
        found = until_standing(project, lambda found: "has not responded" in found.trouble)
        assert found.confirmed == {"r": 0} and found.bytes_left > 0
        disk.set()
        assert until_standing(project, lambda found: found.files_left == 0, 60).confirmed == {"r": 4}
    finally:
        uploading.kill()
        uploading.wait()
    shutil.rmtree(tmp_path / "first")

    second = opened(remote, tmp_path / "second").run("r")
    disk.unmount()  # what is not here cannot be read
    again = list(train(second))
    assert [event.step for event in again if isinstance(event, Stepped)] == [5, 6]
    assert isinstance(again[-1], Finished)
    assert not [event for event in again if type(event).__name__ == "Progress"], "the cache was restored"
    list(train(uncut))
    for step in set(uncut.lora_steps()) - set(second.lora_steps()):  # those of before wait on the remote
        uncut.lora_file(step).unlink()
    assert_same_end(second, uncut)


@fuse
@pytest.mark.parametrize("room", [3_000, 20_000, 230_000])  # while steps are logged, a LoRA file or a state is written
def test_a_full_disk_ends_the_training_with_a_word_and_nothing_is_lost(room, disk, tiny, tmp_path):
    run = new_run(disk.at / "p", tiny, HARD)
    uncut = copy_of(run, tmp_path / "uncut")
    until(run, at(Saved, 2))
    disk.set(room=room)
    with pytest.raises(DiskFull, match="is full.*Free some space there"):
        list(train(run))
    disk.set()
    assert isinstance(list(events.read(run.log))[-1][1], Failed)
    assert not [*run.states.glob(".*"), *run.loras.glob("*.part")]
    list(train(run))
    list(train(uncut))
    assert_same_end(run, uncut)


@fuse
@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/thread-self/schedstat"), reason="the kernel does not tell who waits")
@pytest.mark.parametrize("fault", [{"hang": True}, {"error": 5}, {"room": 0}, {"delay": 0.5, "bandwidth": 20_000}, {}])
def test_training_waits_no_longer_than_without_a_remote_copy(fault, disk, tiny, tmp_path):
    longer = {"loop": {"epochs": 20, "gradient_accumulation_steps": 1}, "save": {"every_epochs": 0, "every_steps": 5}}
    alone = new_run(tmp_path / "alone", tiny, longer)
    (disk.backing / "lorakit").mkdir()
    project = opened(disk.at / "lorakit/mofu", tmp_path / "local")
    run = new_run(project.folder, tiny, longer)
    without = seconds_waited(alone)
    uploading = serving(project, look=3.0, logs=1.0, linger=600.0)
    try:
        time.sleep(0.3)
        disk.set(**fault)
        waited = seconds_waited(run)
    finally:
        uploading.kill()
        uploading.wait()
    steps = len(events.steps(run.log))
    print(f"{fault}: slept {1000 * waited / steps:.1f} ms a step, {1000 * without / steps:.1f} ms without a home")
    assert waited < 2 * without + 0.005 * steps
    assert_same_end(run, alone)
