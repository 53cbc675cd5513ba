"""Importing images, boxes, preparing and buckets as widgets: clicks are on disk at once, errors are shown."""

import io
import json
import shutil
import zipfile
from datetime import datetime
from pathlib import Path

import pytest
from PIL import Image

from lorakit.demo import DATASET
from lorakit.prepare.boxes import Box, Boxes
from lorakit.prepare.crop import FOLDER, read_prepare_config
from lorakit.project import Project
from lorakit.sync import service
from widgets import i18n
from widgets.data.boxes import BoxForm, draw_boxes
from widgets.data.intake import IntakeForm, add_images, uploaded
from widgets.data.prepare import PrepareForm, buckets_preview
from widgets.project.draft import Draft

FIRST, SECOND = "10_mofurin/01.png", "10_mofurin/02.png"


@pytest.fixture(autouse=True)
def no_mirror(monkeypatch):
    monkeypatch.setattr(service, "start", lambda project: False)


@pytest.fixture
def project(tmp_path):
    """Four images of the demo, of 128 px."""
    result = Project(tmp_path / "project")
    for name in ("01", "02", "03", "04"):
        for end in (".png", ".txt"):
            file = result.dataset / "10_mofurin" / f"{name}{end}"
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(DATASET / "10_mofurin" / file.name, file)
    return result


@pytest.fixture
def displayed(monkeypatch):
    """Everything that cells display, as HTML."""
    outputs = []
    monkeypatch.setattr("IPython.display.display", lambda thing, **_: outputs.append(getattr(thing, "data", thing)))
    return outputs


# ---- importing images ----------------------------------------------------------------------------------------------


def test_an_upload_is_the_same_in_ipywidgets_7_and_8():
    seven = {"a.png": {"metadata": {"name": "a.png", "size": 1}, "content": b"a"}}
    eight = ({"name": "a.png", "type": "image/png", "size": 1, "content": memoryview(b"a"), "last_modified": None},)
    assert uploaded(seven) == uploaded(eight) == {"a.png": b"a"}
    assert uploaded({}) == uploaded(()) == {}


def upload(form: IntakeForm, files: dict[str, bytes]) -> None:
    """What the browser does, for the ipywidgets that are installed."""
    if hasattr(form.upload, "_counter"):
        form.upload.metadata, form.upload.data = [{"name": name} for name in files], list(files.values())
        form.upload._counter = len(files)
    else:
        details = {"type": "", "last_modified": datetime(2026, 1, 1)}
        form.upload.value = tuple({"name": n, "size": len(d), "content": d, **details} for n, d in files.items())


def test_uploaded_images_are_in_the_dataset_and_no_longer_in_the_kernel(tmp_path):
    form = IntakeForm(Project(tmp_path))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("pics/b.png", b"b")
    form.into.value, form.repeats.value = "mofu", 5
    upload(form, {"a.png": b"a", "a.txt": b"mofu", "more.zip": packed.getvalue()})
    assert sorted(p.name for p in (tmp_path / "dataset/5_mofu").iterdir()) == ["a.png", "a.txt", "b.png"]
    assert not form.upload.value and "2 images added" not in form.status.value and "added" in form.status.value
    upload(form, {"c.png": b"c"})
    assert (tmp_path / "dataset/5_mofu/c.png").read_bytes() == b"c"


def test_a_path_is_added_by_the_button_and_errors_are_shown(tmp_path, project):
    form = IntakeForm(Project(tmp_path / "other"))
    form.button.click()
    assert "Enter a path" in form.status.value
    form.source.value = str(tmp_path / "nowhere.zip")
    form.button.click()
    assert "does not exist" in form.status.value
    (project.dataset / "<b>.md").write_text("x")
    form.source.value = f'"{project.dataset}"'  # as some systems copy a path
    form.button.click()
    assert "4 images added" in form.status.value and "&lt;b&gt;.md" in form.status.value
    form.button.click()
    assert "8 files were there already" in form.status.value


def test_images_added_beside_prepared_ones_are_reported_as_not_trained_yet(project, tmp_path):
    form, hint = IntakeForm(project), "Prepare them again"
    (tmp_path / "more").mkdir()
    for name in ("new1.png", "new2.png"):
        shutil.copy(next(project.dataset.rglob("*.png")), tmp_path / "more" / name)
        form.add(tmp_path / "more")
        assert (hint in form.status.value) == (name == "new2.png")
        Draft(project).set("data.folder", FOLDER)


def test_a_source_in_code_is_added_at_once(project, tmp_path, displayed):
    add_images(Project(tmp_path / "other"), project.dataset / "10_mofurin", "reg/girl")
    assert "4 images added" in displayed[0].value
    assert len(list((tmp_path / "other/dataset/reg/1_girl").glob("*.png"))) == 4


# ---- boxes -----------------------------------------------------------------------------------------------------------


def drag(form: BoxForm, *shares: float, number: int = 1) -> None:
    """What the page sends when a rectangle was drawn."""
    form.canvas.clicks.widget.value = json.dumps([str(number), {"drag": str(number), "box": shares}])


def test_drawing_and_sliders_are_about_the_same_box_which_is_on_disk_at_once(project):
    form = BoxForm(project)
    drag(form, 0.25, 0.5, 0.5, 0.25)
    assert Boxes(project).of(FIRST) == (Box(32, 64, 64, 32),)
    assert [slider.value for slider in form.sliders.values()] == [32, 64, 64, 32]
    form.sliders["left"].value = 8
    assert Boxes(project).of(FIRST) == (Box(8, 64, 64, 32),)
    assert "left:6.250%" in form.canvas.over.value
    form.sliders["width"].value = 128
    assert Boxes(project).of(FIRST) == (Box(8, 64, 120, 32),), "clipped at the image's edge"
    assert form.sliders["width"].value == 120


def test_a_slip_of_the_hand_is_no_box(project):
    form = BoxForm(project)
    drag(form, 0.25, 0.5, 0.01, 0.01, number=7)
    assert Boxes(project).of(FIRST) == () and '[data-drag="7"]' in form.canvas.over.value
    assert not form.problem.value


def test_a_box_that_slides_out_of_the_image_is_refused_and_the_sliders_go_back(project):
    form = BoxForm(project)
    drag(form, 0.25, 0.5, 0.5, 0.25)
    form.sliders["left"].value = 127
    assert "draw it again" in form.problem.value and form.sliders["left"].value == 32
    assert Boxes(project).of(FIRST) == (Box(32, 64, 64, 32),)


def test_several_boxes_are_chosen_named_deleted_and_restored(project):
    form = BoxForm(project)
    form.add()
    form.add()
    drag(form, 0, 0, 0.5, 0.5)
    assert Boxes(project).of(FIRST) == (Box(32, 32, 64, 64), Box(0, 0, 64, 64)), "the newest is the chosen one"
    chooser, name, delete = form.rows.children[0].children
    chooser.click()
    drag(form, 0.5, 0.5, 0.5, 0.5)
    form.rows.children[0].children[1].value = "face"
    assert Boxes(project).of(FIRST) == (Box(64, 64, 64, 64, "face"), Box(0, 0, 64, 64))
    form.rows.children[0].children[2].click()
    assert Boxes(project).of(FIRST) == (Box(0, 0, 64, 64),)
    form.turn(1)
    form.undo()
    assert form.name == FIRST and len(form.boxes) == 2, "it goes where it was changed"


def test_the_images_are_leafed_through_in_a_circle_and_say_which_have_boxes(project):
    Boxes(project).add(SECOND, Box(0, 0, 20, 20))
    form = BoxForm(project)
    form.turn(1)
    assert form.name == SECOND and form.sliders["width"].value == 20
    form.turn(-2)
    assert form.name == "10_mofurin/04.png" and form.sliders["width"].value == 128
    form.names.value = FIRST
    assert form.name == FIRST and "1 of 4" in form.text.value
    assert [label[0] for label, _ in form.names.options] == ["·", "✓", "·", "·"]


def test_a_change_elsewhere_is_kept_by_the_next_one_here(project):
    form = BoxForm(project)
    Boxes(project).add(SECOND, Box(0, 0, 20, 20))
    form.add()
    assert Boxes(project).names() == [FIRST, SECOND]


def test_missing_images_and_a_damaged_list_are_explained(project, tmp_path, displayed):
    draw_boxes(Project(tmp_path / "none"))
    (project.folder / "boxes.yaml").write_text("a.png: [1]")
    draw_boxes(project)
    assert "does not exist" in displayed[0] and "is no box" in displayed[1]


# ---- preparing -------------------------------------------------------------------------------------------------------


def test_choices_are_on_disk_and_the_button_prepares_the_images(project):
    form = PrepareForm(project)
    form.rows["pad"].control.widget.value = "2x3"
    form.rows["resize"].control.widget.value = "none"
    assert form.rows["size"].widget.layout.display == "none"
    assert read_prepare_config(project).pad == "2x3" and PrepareForm(project).config == form.config
    assert form.use.layout.display == "none", "there is nothing to train on yet"
    assert form.button.layout.display != "none"
    form.button.click()
    assert Image.open(project.folder / FOLDER / FIRST).size == (128, 192)
    assert "4 images are in" in form.status.value and form.use.layout.display == ""


def test_the_next_run_trains_on_the_prepared_images_and_on_the_originals_again(project):
    Draft(project).set("data.folder", str(project.dataset))
    form = PrepareForm(project)
    form.button.click()
    form.use.click()
    assert Draft(project).data.folder == FOLDER and f"trains on {FOLDER}" in form.status.value
    form.button.click()
    assert "4 images are in" in form.status.value, "they are made of the originals still"
    PrepareForm(project).use.click()
    assert Draft(project).data.folder == str(project.dataset)


def test_a_wrong_colour_is_shown_beside_its_field_and_the_last_right_one_holds(project):
    form = PrepareForm(project)
    form.rows["background"].control.widget.value = "mauvish"
    assert "mauvish" in form.rows["background"].problem and read_prepare_config(project).background == "white"
    form.rows["background"].control.widget.value = "#000000"
    assert not form.rows["background"].problem and read_prepare_config(project).background == "#000000"


def test_an_image_that_fails_is_not_counted_and_every_problem_is_shown(project, tmp_path):
    Boxes(project).add(FIRST, Box(500, 500, 50, 50))
    form = PrepareForm(project)
    form.button.click()
    assert "3 images are in" in form.status.value and "draw it again" in form.status.value
    other = PrepareForm(Project(tmp_path / "none"))
    other.button.click()
    assert "does not exist" in other.status.value


# ---- buckets ---------------------------------------------------------------------------------------------------------


def test_buckets_show_their_number_of_images_what_is_cropped_and_what_is_upscaled(project, displayed):
    Image.new("RGB", (900, 300), "red").save(project.dataset / "10_mofurin/wide.png")
    Image.new("RGB", (40, 40), "blue").save(project.dataset / "10_mofurin/tiny.png")
    Draft(project).set("data.resolution", 128)
    Draft(project).set("data.min_bucket_reso", 64)
    Draft(project).set("data.max_bucket_reso", 192)
    Draft(project).set("loop.batch_size", 16)
    buckets_preview(project)
    text = displayed[0]
    assert "6 images" in text and "128 × 128 px" in text and "192 × 64 px" in text
    assert "× 1.6" in text, "64 px from 40"
    assert "fewer images than a batch of 16" in text
    assert text.count("<img") == 6 and text.count('src="data:image/jpeg') == 6


def test_of_many_images_some_are_shown_and_the_others_counted(project, displayed):
    buckets_preview(project, shown=2)
    assert displayed[0].count("<img") == 2 and "and 2 more" in displayed[0]


def test_without_images_the_preview_says_so(tmp_path, displayed):
    buckets_preview(Project(tmp_path))
    assert "does not exist" in displayed[0]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_all_of_it_speaks_the_reader_s_language(project, language):
    before = i18n.language()
    i18n.use(language)
    try:
        form, boxes, intake = PrepareForm(project), BoxForm(project), IntakeForm(project)
    finally:
        i18n.use(before)
    text = form.button.description + boxes.text.value + intake.button.description
    assert ("图" in text) == (language == "zh")
    assert Path(project.folder).exists()
