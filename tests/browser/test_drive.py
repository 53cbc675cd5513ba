"""A project whose remote copy is on a slow disk that fails, opened, trained and closed in the browser, then resumed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import lab
import pytest
import slow_disk

from lorakit import events
from lorakit.demo import DATASET, quickstart
from lorakit.project import Project
from lorakit.run.config import configure
from lorakit.run.create import save_config
from lorakit.run.extend import extend_run
from lorakit.sync import service
from lorakit.sync.workspace import local_folder
from lorakit.training import jobs

pytestmark = pytest.mark.browser
# The three cells that resume a run.
CELLS = ("open_project", "Form(project)", "train(run)")


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A disk that answers after 50 ms, with the demo's images as one zip, and a run that has not started."""
    if reason := slow_disk.mountable():
        pytest.skip(f"no file system can be mounted here: {reason}")
    disk = slow_disk.SlowDisk(tmp_path_factory.mktemp("slow"))
    remote = disk.backing / "MyDrive" / "mofurin"
    remote.mkdir(parents=True)
    shutil.make_archive(str(remote / "dataset"), "zip", DATASET)
    save_config(
        Project(remote).run("mofurin"), configure({**quickstart.settings(), "loop": {"epochs": 2, "batch_size": 4}})
    )
    disk.set(delay=0.05)
    yield disk
    disk.close()


@pytest.fixture(scope="module")
def remote(disk):
    return disk.at / "MyDrive" / "mofurin"


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """This machine's folder for local copies of projects."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("machine")))
        yield tmp_path_factory


@pytest.fixture(scope="module")
def site(machine, remote):
    """JupyterLab on notebooks that open this remote copy."""
    folder = machine.mktemp("lab")
    for path in (lab.ROOT / "notebooks").glob("*.ipynb"):
        text = path.read_text(encoding="utf-8").replace("open_project()", f"open_project(remote={str(remote)!r})")
        (folder / path.name).write_text(text, encoding="utf-8")
    with lab.server(folder) as address:
        yield address


def project_at(remote: Path) -> Project:
    """The local copy of the project."""
    return Project(local_folder(remote, Path(os.environ["XDG_CACHE_HOME"]) / "lora-projects"))


def test_disk_trouble_is_shown_while_training_continues_and_all_is_safe_at_the_end(notebook, remote, disk):
    book = notebook("4_train")
    opening, form, training = map(book.cell_with, CELLS)
    book.run(opening)
    book.image("drive-card", first=opening)
    book.run(form)
    book.run(book.cell_with("before_training(form.value"))
    book.image("drive-before", first=book.cell_with("before_training(form.value"))
    book.begin(training)
    book.until(training, "/ 150", 60)
    run = project_at(remote).run("mofurin")
    lab.until_step(run, 5, 120)
    disk.set(error=errno.EIO)
    failed = time.time()
    took = book.until(training, "Not safe on", 60)
    print(f"banner after {took:.0f} s")
    reached = max(events.steps(run.log))
    book.image("drive-trouble", first=training)
    disk.set(delay=0.05)
    book.until(training, "Not safe on", 60, gone=True)
    book.wait(training, 300)
    assert "finished" in book.text(training) and reached < 150
    steps = [at for at, event in events.read(run.log) if isinstance(event, events.Stepped) and at > failed]
    assert max(b - a for a, b in zip(steps, steps[1:], strict=False)) < 15, "training stood still"
    assert "Everything is saved" in book.run(book.cell_with("close_project"), 120)
    book.image("drive-finished")
    marks = sorted((remote / "runs" / "mofurin" / "states").glob("*/COMPLETE.json"))
    assert [json.loads(mark.read_text())["step"] for mark in marks[-2:]] == [75, 150]
    assert len(list((remote / "runs" / "mofurin" / "lora").glob("*.safetensors"))) == 2


def test_a_new_machine_resumes_after_three_cells_with_nothing_entered_again(notebook, remote):
    project = project_at(remote)
    extend_run(project.run("mofurin"), 3, "stretch")
    *_, standing = service.settle(project, 60)
    assert standing.files_left == 0
    subprocess.run(["pkill", "-KILL", "-f", f"lorakit sync {project.folder}"], check=True)
    shutil.rmtree(project.folder)  # the machine is gone
    book = notebook("4_train")
    begun = time.monotonic()
    for text in CELLS[:2]:
        book.run(book.cell_with(text))
    training = book.cell_with(CELLS[2])
    book.begin(training)
    book.until(training, "/ 225", 240)  # up to minutes, as it first makes sure that no other machine trains the run
    run = project_at(remote).run("mofurin")
    lab.until_step(run, 151, 120)
    print(f"a new machine's first step after {time.monotonic() - begun:.1f} s")
    assert "step 75" in book.text(training), "samples of the other machine are shown"
    book.wait(training, 300)
    assert "finished" in book.text(training) and len(events.steps(run.log)) == 225 and not jobs.is_alive(run)
