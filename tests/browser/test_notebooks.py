"""The notebooks in a real JupyterLab in a real browser, as a user meets them. `make browser` runs it.

Screenshots are left in screenshots/ for people to look at. The tests follow each other: they are one evening.
"""

from __future__ import annotations

import shutil
import time

import lab
import pytest
import yaml

from lorakit import events
from lorakit.demo import quickstart
from lorakit.events import Stopped
from lorakit.project import Project, Run
from lorakit.run.config import configure
from lorakit.run.create import save_config
from lorakit.training import jobs

pytestmark = pytest.mark.browser
LIGHT, DARK, PHONE = "JupyterLab Light", "JupyterLab Dark", 390
ATTACHED = 3.0  # s within which a view shows the whole history


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """The demo's project where the notebooks look for one, with a run of three epochs that has not begun."""
    folder = tmp_path_factory.mktemp("lab")
    for notebook in (lab.ROOT / "notebooks").glob("*.ipynb"):
        shutil.copy(notebook, folder)
    project = Project(folder / "lora-projects" / "my-lora")
    quickstart.fill(project)
    settings = {**quickstart.settings(), "loop": {"epochs": 3, "batch_size": 4}}
    save_config(project.run(quickstart.TRIGGER), configure(settings))
    return project


@pytest.fixture(scope="module")
def site(project):
    """Address of a JupyterLab on the folder with the notebooks."""
    with lab.server(project.folder.parents[1]) as address:
        yield address


def looks(book: lab.Notebook) -> None:
    """Images in both themes and at a phone's width."""
    book.image("light")
    book.theme(DARK)
    book.image("dark")
    book.theme(LIGHT)
    book.image("phone", PHONE)


def chosen(project: Project) -> dict:
    """What the form has written, by part; empty before its first word."""
    file = project.folder / "settings.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8"))["settings"] if file.exists() else {}


@pytest.mark.parametrize("name", ["1_base_model", "2_dataset", "3_tags"])
def test_the_notebooks_before_training_run_from_their_first_to_their_last_cell(name, notebook):
    book = notebook(name)
    book.run_all(180)
    looks(book)


def test_a_slider_that_is_moved_is_on_disk_at_once_and_stays_after_a_reload(notebook, project):
    book = notebook("4_train")
    form = book.cell_with("Form(project)")
    book.run(book.cell_with("open_project"))
    book.run(form)
    handle = book.page.locator(".jp-Cell").nth(form).locator(".noUi-handle").first
    handle.focus()
    handle.press("ArrowRight")
    moved = wait_for(lambda: chosen(project).get("adapter", {}).get("rank"))
    assert moved > 16
    book.open()
    book.run(book.cell_with("open_project"))
    book.run(form)
    fields = book.page.locator(".jp-Cell").nth(form).locator("input")
    assert str(moved) in [fields.nth(i).input_value() for i in range(fields.count())]


def wait_for(found, seconds: float = 10):
    """What `found()` gives once it gives something."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return value


def test_a_run_outlives_its_page_is_found_again_within_seconds_stops_cleanly_and_goes_on(notebook, project):
    book, run = notebook("4_train"), project.run(quickstart.TRIGGER)
    start_cell = book.cell_with("train(run)")
    first = [book.cell_with(text) for text in ("open_project", "Form(project)")]
    for cell in first:
        book.run(cell)
    book.begin(start_cell)
    book.until(start_cell, f"/ {3 * 75}", 120)
    lab.until_step(run, 2, 60)
    book.image("training", first=start_cell)
    book.open()  # in the middle of it
    assert jobs.is_alive(run)
    book.command("notebook:clear-all-cell-outputs")  # as they were saved
    for cell in first:
        book.run(cell)
    book.begin(start_cell)
    attached = book.until(start_cell, f"/ {3 * 75}", 30)
    print(f"attached in {attached:.1f} s")
    assert attached < ATTACHED
    stop(book, start_cell, run)
    book.image("stopped", first=start_cell)
    book.run(start_cell, 400)
    assert "finished" in book.text(start_cell)
    assert max(events.steps(run.log)) == 3 * 75 and len(events.steps(run.log)) == 3 * 75
    print(f"output of {3 * 75} steps: {book.output_bytes(start_cell)} bytes")


def stop(book: lab.Notebook, cell: int, run: Run) -> None:
    """Press the interrupt button in a cell that watches, and see it save and stop."""
    book.interrupt()
    book.wait(cell, 60)
    assert "stopped" in book.text(cell) and not jobs.is_alive(run)
    assert isinstance([event for _, event in events.read(run.log)][-1], Stopped)


def test_everything_after_training_is_seen_in_the_notebooks_that_follow(notebook):
    for name in ("4_train", "5_evaluate", "6_export"):
        book = notebook(name)
        book.run_all(300)
        looks(book)


def test_a_run_that_was_stopped_is_seen_and_gone_on_with_by_the_buttons_of_the_run_list(notebook, project):
    run = project.run("buttons")
    save_config(run, configure({**quickstart.settings(), "loop": {"epochs": 1, "batch_size": 4}}))
    book = notebook("5_evaluate")
    book.run(book.cell_with("open_project"))
    cell = book.cell_with("runs(project)")
    book.run(cell)
    buttons = book.page.locator(".jp-Cell").nth(cell).locator("button:visible")
    buttons.filter(has_text="Start").click()
    lab.until_step(run, 5, 120)
    buttons.filter(has_text="Refresh").click()
    buttons.filter(has_text="Stop").click()
    wait_for(lambda: not jobs.is_alive(run), 60)
    buttons.filter(has_text="Refresh").click()
    buttons.filter(has_text="Continue").click()
    wait_for(lambda: jobs.history(run)[0] == "finished", 120)
    buttons.filter(has_text="Refresh").click()
    buttons.filter(has_text="View").first.click()
    book.until(cell, "Learning rate", 20)
    assert "finished" in book.text(cell) and len(events.steps(run.log)) == 75
    book.image("run-list", first=cell)


def test_it_speaks_chinese(notebook, project):
    (project.folder / "preferences.json").write_text('{"language": "zh", "hf_endpoint": ""}')
    book = notebook("4_train")
    book.run_all(300)
    book.image("chinese")
    assert "已完成" in book.text(book.cell_with("train(run)"))
