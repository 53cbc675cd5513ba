"""The tag editor in a real browser: tag, edit, undo, reload the page, and redo in a new kernel."""

from __future__ import annotations

import time
from pathlib import Path

import lab
import nbformat
import pytest

from lorakit.demo import quickstart
from lorakit.project import Project
from widgets.project.draft import Draft

pytestmark = pytest.mark.browser
CELLS = (
    "from lorakit.project import Project\n\nproject = Project('project')",
    "from lorakit.taggers import load\nfrom lorakit.tags.tagging import TaggingConfig, score, tag\n"
    "from widgets.project.draft import Draft\n\n"
    "data, tagger = Draft(project).data, load('wd14', {'source': 'demo'})\n"
    "*_, progress = tag(project, data, tagger, TaggingConfig())\nprint(progress)\nprint(*score(project, data, tagger))",
    "from widgets import tag_editor\n\ntag_editor(project)",
)
FIRST, TAG, EDITOR = range(3)
MANY = 500  # images


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """The demo's images, half of them without a caption, one with a wrong tag; a notebook beside the project."""
    folder = tmp_path_factory.mktemp("tag_editor")
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "tag_editor.ipynb")
    project = Project(folder / "project")
    quickstart.fill(project)
    Draft(project).set("data.trigger", quickstart.TRIGGER)
    for file in sorted(project.dataset.rglob("*.txt"))[::2]:
        file.unlink()
    file = next(project.dataset.rglob("02.txt"))
    file.write_text(file.read_text(encoding="utf-8").replace("blue sky", "witch hat"), encoding="utf-8")
    return project


@pytest.fixture(scope="module")
def site(project):
    with lab.server(project.folder.parent) as address:
        yield address


@pytest.fixture(scope="module")
def edited() -> dict[str, str]:
    """The captions after the first test, for the second one."""
    return {}


def captions(project: Project) -> dict[str, str]:
    return {file.stem: file.read_text(encoding="utf-8").strip() for file in project.dataset.rglob("*.txt")}


def wait_for(holds, what: str, seconds: float = 60) -> float:
    begun = time.monotonic()
    while not holds():
        assert time.monotonic() < begun + seconds, what
        time.sleep(0.05)
    return time.monotonic() - begun


def having(project: Project, tag: str) -> int:
    return sum(tag in caption.split(", ") for caption in captions(project).values())


def press(page: lab.Notebook, label: str) -> None:
    page.page.locator(f'.jp-OutputArea button:has-text("{label}")').first.click()


def screenshots(page: lab.Notebook, name: str) -> None:
    """Images in both themes and at a phone's width."""
    page.image(name, first=EDITOR)
    page.theme("JupyterLab Dark")
    page.image(f"{name}-dark", first=EDITOR)
    page.image(f"{name}-phone", 390, first=EDITOR)
    page.theme("JupyterLab Light")


def test_tags_are_browsed_edited_and_undone(notebook, project, edited):
    page = notebook("tag_editor")
    page.run(FIRST)
    assert "done=15, total=15" in page.run(TAG), "hand-written captions are kept"
    page.run(EDITOR)
    tagged = captions(project)
    assert len(tagged) == 30 and having(project, "glasses") == 4
    page.page.locator('.jp-OutputArea [data-say*="glasses"]').first.click()
    page.until(EDITOR, "Without it 26", 20)
    for place in range(2):
        page.page.locator("[data-number]").nth(place).click()
        page.until(EDITOR, f"Selected images: {place + 1}", 20)
    screenshots(page, "selected")
    press(page, "Remove")
    wait_for(lambda: having(project, "glasses") == 2, "the tag is removed from the two selected images")
    press(page, "Deselect all")
    page.page.get_by_placeholder("Tag, several with commas").fill("* hoodie")
    page.page.get_by_placeholder("New name").fill("hoodie")
    page.until(EDITOR, "of these 30 images", 20)
    press(page, "Rename / merge")
    wait_for(lambda: having(project, "hoodie") > 5, "a pattern renames in all images")
    edited |= captions(project)
    for n in (1, 2):
        press(page, "Undo")
        page.until(EDITOR, "undone: renamed" if n == 1 else "undone: removed glasses", 20)
    assert captions(project) == tagged
    press(page, "Suspicious tags")
    page.until(EDITOR, "“witch hat”, but the tagger does not see it", 20)
    for panel in ("Suspicious tags", "Advice", "History"):
        press(page, panel)
        page.image(panel.lower().replace(" ", "-"), first=EDITOR)


def test_editing_continues_after_a_reload_and_in_a_new_kernel(notebook, project, edited):
    page = notebook("tag_editor")
    tagged = captions(project)
    page.page.evaluate("jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    page.run(FIRST)
    page.run(EDITOR)
    press(page, "Redo")
    wait_for(lambda: having(project, "glasses") == 2, "a new kernel redoes what another undid")
    press(page, "Redo")
    wait_for(lambda: captions(project) == edited != tagged, "and the next")
    page.command("docmanager:save")
    page.page.wait_for_timeout(1500)
    page.open()
    page.until(EDITOR, "Select all shown", 30)
    page.page.get_by_placeholder("Tag, several with commas").fill("hand made")
    press(page, "Add")
    wait_for(lambda: having(project, "hand made") == 30, "the reloaded page works without running a cell")
    press(page, "History")
    page.until(EDITOR, "added hand made", 20)
    page.image("reloaded", first=EDITOR)


def test_many_images_stay_fluid(notebook, project):
    from PIL import Image

    source = sorted(project.dataset.rglob("*.png"))[0]
    with Image.open(source) as image:
        for i in range(MANY - 30):
            image.putpixel((0, 0), (i % 256, i // 256, 9))
            image.save(source.with_name(f"n{i:03d}.png"), compress_level=1)
            Path(source.with_name(f"n{i:03d}.txt")).write_text(f"mofurin, 1girl, number {i % 60}")
    page = notebook("tag_editor")
    page.run(FIRST)
    page.run(EDITOR)
    begun = time.monotonic()
    press(page, "›")
    page.until(EDITOR, f"25–48 of {MANY}", 20)
    turned = time.monotonic() - begun
    page.page.locator("[data-number]").nth(3).click()
    begun = time.monotonic()
    page.until(EDITOR, "Selected images: 1", 20)
    print(f"{MANY} images: a page after {turned:.2f} s, a selection after {time.monotonic() - begun:.2f} s")
    assert turned < 3, "far more than it takes, far less than a user would wait"
    page.image("many", first=EDITOR)
