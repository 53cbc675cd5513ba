"""The dataset check in a cell: what it shows, what its buttons do, both languages, and the size of its output."""

from __future__ import annotations

import html
import json
import random
import shutil

import ipywidgets
import pytest
from PIL import Image

from lorakit.demo import DATASET
from lorakit.demo.quickstart import settings
from lorakit.examine import excluded
from lorakit.examine.checks import CHECKS
from lorakit.examine.fixes import FIXES
from lorakit.project import Project
from lorakit.run.config import configure
from lorakit.run.create import save_config
from widgets import i18n
from widgets.data.report import Examination, _chosen

MOST = 1_500_000  # bytes that a notebook keeps of a report


@pytest.fixture
def project(tmp_path):
    """The demo's images as the demo trains them, one of them broken, one a copy, one without its trigger."""
    project = Project(tmp_path)
    shutil.copytree(DATASET, project.dataset)
    folder = project.dataset / "10_mofurin"
    (folder / "01.png").write_bytes(b"no <image>")
    shutil.copy(folder / "02.png", folder / "co<i>py.png")
    (folder / "03.txt").write_text("1girl, <b>bold</b>, forest")
    save_config(project.run("r"), configure(settings()))
    return project


def text_of(view: Examination) -> str:
    """All text in the widget, as HTML."""
    return "".join(w.value for w in _all(view.widget) if isinstance(w, ipywidgets.HTML))


def _all(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from _all(child)


def press(view: Examination, label: str) -> None:
    next(w for w in _all(view.widget) if isinstance(w, ipywidgets.Button) and w.description == label).click()


def opened(project: Project) -> Examination:
    view = Examination(project)
    view.examine()
    return view


def test_findings_stand_worst_first_with_their_images_and_the_settings_of_the_next_run(project):
    data, model, loop = _chosen(project)
    assert (data.trigger, data.resolution, model.source, loop.batch_size) == ("mofurin", 128, "demo", 4)
    report = text_of(opened(project))
    titles = ["Unreadable images: 1", "Captions without the trigger word mofurin: 1"]
    titles += ["Duplicates: 2", "Tags used only once"]
    assert sorted(titles, key=report.index) == titles
    assert (
        report.count("data:image/jpeg") >= 4
        and "&lt;b&gt;bold" in report
        and "<b>bold" not in report
        and "co&lt;i&gt;py" in report
        and "co<i>" not in report
    )


def test_a_button_fixes_reports_and_checks_again_and_files_can_be_restored(project):
    view = opened(project)
    press(view, "Exclude from dataset")
    assert "Done: Exclude from dataset, 2." in view.status.value and "Unreadable" not in text_of(view)
    assert "2 files excluded, kept in set-aside/001-unreadable" in text_of(view)
    press(opened(project), "Restore")
    assert not excluded.batches(project) and "Unreadable images" in text_of(opened(project))
    press(view, "Move trigger word to front")
    assert (project.dataset / "10_mofurin" / "03.txt").read_text().startswith("mofurin, 1girl")


def test_a_dataset_that_cannot_be_trained_on_is_a_finding(tmp_path):
    report = text_of(opened(Project(tmp_path)))
    assert "This dataset cannot be trained on" in report and "does not exist" in report


def test_a_report_of_everything_stays_small(project):
    dice = random.Random(1)
    for i in range(60):  # noise is what JPEG packs worst; each image has many findings
        noise = Image.frombytes("RGB", (100, 90), dice.randbytes(27_000))
        frame = Image.new("RGB", (100, 110), "black")
        frame.paste(noise, (0, 10))
        frame.save(project.dataset / "10_mofurin" / f"noise {i}.png")
        (project.dataset / "10_mofurin" / f"noise {i}.txt").write_text(
            f"a，b, blue hair, red hair, t{i}, " + "word, " * 90
        )
    view = opened(project)
    assert len(view.rows.children) > 8
    size = sum(len(json.dumps(widget.get_state(), default=str)) for widget in _all(view.widget))
    assert size / len(view.rows.children) * len(CHECKS) < MOST


def test_every_finding_and_fix_has_its_chinese_and_none_is_left_over():
    translated = i18n.translations()["examine"]
    texts = {text for check in CHECKS.values() for text in (check.text, check.reason)}
    texts |= {text for fix in FIXES.values() for text in (fix.label, fix.help)}
    assert set(translated) == texts


def test_the_report_is_in_the_chosen_language(project):
    i18n.use("zh")
    try:
        report = html.unescape(text_of(opened(project)))
    finally:
        i18n.use("en")
    assert "无法读取的图片：1 张" in report and "缺少触发词 mofurin 的标注：1 条" in report and "移出训练集" in report
