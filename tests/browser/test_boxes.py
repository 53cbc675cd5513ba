"""Boxes drawn on an image in a real browser, with the mouse and with a finger, are on disk and sliders at once."""

from __future__ import annotations

import json
import shutil
import zipfile

import lab
import pytest
from PIL import Image

from lorakit.demo import DATASET
from lorakit.prepare.boxes import Boxes
from lorakit.project import Project
from widgets.project.draft import Draft

pytestmark = pytest.mark.browser
FIRST, SECOND = "10_mofurin/01.png", "10_mofurin/02.png"
IMAGE = "[onpointerdown]"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("boxes")
    shutil.copytree(DATASET, folder / "dataset")
    return Project(folder)


@pytest.fixture(scope="module")
def site(project, tmp_path_factory):
    """JupyterLab on a notebook with the box form, preparation, buckets and import of a project."""
    folder = tmp_path_factory.mktemp("lab")
    open_it = f"from lorakit.project import Project\nproject = Project({str(project.folder)!r})\n"
    sources = [
        open_it + "from widgets import draw_boxes\ndraw_boxes(project)",
        open_it + "from widgets.data.prepare import buckets_preview, prepare\nprepare(project)",
        "buckets_preview(project)",
        open_it + "from widgets.data.intake import add_images\nadd_images(project)",
    ]
    cell = {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": []}
    cells = [{**cell, "id": f"c{i}", "source": source} for i, source in enumerate(sources)]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    book = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (folder / "boxes.ipynb").write_text(json.dumps(book))
    with lab.server(folder) as address:
        yield address


def drag(book, start: tuple[float, float], end: tuple[float, float]) -> None:
    """From one place of the image to another (shares of its sides), with the mouse."""
    place = book.page.locator(IMAGE).bounding_box()
    points = [(place["x"] + x * place["width"], place["y"] + y * place["height"]) for x, y in (start, end)]
    book.page.mouse.move(*points[0])
    book.page.mouse.down()
    book.page.mouse.move(*points[1], steps=5)
    book.page.mouse.up()


def touch(book, start: tuple[float, float], end: tuple[float, float]) -> None:
    """The same with a finger: the events that a phone's browser sends."""
    book.page.locator(IMAGE).evaluate(
        """(node, points) => {
            node.setPointerCapture = () => {};  // there is no real finger
            const r = node.getBoundingClientRect();
            ['pointerdown', 'pointermove', 'pointerup'].forEach((kind, i) => {
                const [x, y] = points[Math.min(i, 1)];
                node.dispatchEvent(new PointerEvent(kind, {pointerType: 'touch', bubbles: true,
                    clientX: r.left + x * r.width, clientY: r.top + y * r.height}));
            });
        }""",
        [start, end],
    )


def sliders(book) -> list[str]:
    """What the four sliders show."""
    return book.page.locator(".widget-slider .widget-readout").all_inner_texts()


def boxes_of(project, name: str, count: int) -> list[tuple[int, int, int, int]]:
    """Left, top, width and height of an image's boxes, once there are so many on disk."""
    lab._wait_for(lambda: len(Boxes(project).of(name)) == count, 10, f"{count} boxes of {name} on disk")
    return [(one.left, one.top, one.width, one.height) for one in Boxes(project).of(name)]


def near(actual, expected, by: int = 1) -> bool:
    return all(abs(a - b) <= by for a, b in zip(actual, expected, strict=True))


def test_a_box_is_drawn_moved_undone_and_there_again_after_a_reload(notebook, project):
    book = notebook("boxes")
    book.run(0)
    drag(book, (0.25, 0.25), (0.75, 0.5))
    [box] = boxes_of(project, FIRST, 1)
    assert near(box, (32, 32, 64, 32)), "the images have 128 px"
    book.until(0, "64 × 32 px", 10)
    assert near(map(int, sliders(book)), box), "sliders and drawing show the same box"
    drawn = book.page.locator(".lorakit-box").bounding_box()
    place = book.page.locator(IMAGE).bounding_box()
    share = [(drawn["x"] - place["x"]) / place["width"], drawn["width"] / place["width"]]
    assert near([100 * one for one in share], [25, 50], by=2), "it is shown where it was drawn"

    drag(book, (0.9, 0.9), (0.1, 0.2))  # redraws the chosen box, from its last corner to its first
    book.until(0, "102 × 90 px", 10)
    drag(book, (0.5, 0.5), (0.51, 0.51))  # a slip of the hand
    book.page.get_by_role("button", name="Add box").click()
    assert near(boxes_of(project, FIRST, 2)[1], (32, 32, 64, 64))
    touch(book, (0, 0), (0.5, 0.25))
    book.until(0, "64 × 32 px", 10)
    assert boxes_of(project, FIRST, 2)[1] == (0, 0, 64, 32)
    book.image("drawn", first=0)
    book.image("drawn-narrow", width=390, first=0)

    book.page.get_by_role("button", name="Undo").click()
    book.until(0, "64 × 64 px", 10)
    book.page.get_by_title("delete this box").nth(1).click()
    boxes_of(project, FIRST, 1)
    book.page.get_by_title("next image").click()
    book.until(0, "without one the whole image is used", 10)
    drag(book, (0, 0), (1.2, 0.5))  # beyond the edge
    assert boxes_of(project, SECOND, 1) == [(0, 0, 128, 64)]
    book.open()
    book.run(0)
    assert "2 of 30 images have boxes" in book.text(0)
    assert "102 × 90 px" in book.text(0)


def test_images_are_uploaded_and_prepared_and_their_buckets_shown(notebook, project, tmp_path):
    book = notebook("boxes")
    book.run(3)
    packed = tmp_path / "more.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for number, size in enumerate([(300, 100), (60, 90), (100, 240)]):
            file = tmp_path / f"{number}.png"
            Image.effect_noise(size, 90).save(file)
            archive.write(file, f"more/{number}.png")
    book.page.get_by_placeholder("leave empty to keep").fill("10_mofurin")
    with book.page.expect_file_chooser() as chooser:
        book.page.get_by_role("button", name="Upload").click()
    chooser.value.set_files(packed)
    book.until(3, "3 images added", 20)
    book.image("upload", first=3)

    book.run(1)
    book.page.get_by_role("button", name="Prepare the images").click()
    book.until(1, "33 images are in", 30)
    book.page.get_by_role("button", name="Train on the prepared images").click()
    book.until(1, "Train on the originals again", 10)
    assert Draft(project).data.folder == "prepared"
    book.image("prepare", first=1)
    book.image("prepare-narrow", width=390, first=1)
    assert "33 images" in book.run(2)
    book.image("buckets", first=2)
    book.image("buckets-narrow", width=390, first=2)
    book.theme("JupyterLab Dark")
    book.image("buckets-dark", first=2)
