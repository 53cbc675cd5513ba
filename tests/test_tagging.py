"""A tagger writes captions where there are none, and touches nothing else."""

import shutil

import pytest

from lorakit.data import DataConfig
from lorakit.data.captions import tags_of
from lorakit.data.scan import scan
from lorakit.demo import DATASET, TAGGER, TRIGGER
from lorakit.taggers.wd14 import WD14
from lorakit.tagging import tag_missing

pytest.importorskip("onnxruntime")
CONFIG = DataConfig(trigger=TRIGGER)


@pytest.fixture
def project(tmp_path):
    """The demo's pictures; four have lost their captions, and one has an empty one."""
    shutil.copytree(DATASET, tmp_path / "dataset")
    files = sorted((tmp_path / "dataset").rglob("*.txt"))
    for file in files[:4]:
        file.unlink()
    files[4].write_text(" \n")
    return tmp_path


def test_only_pictures_without_a_caption_get_one_and_it_begins_with_the_trigger(project):
    before = {s.name: s.caption for s in scan(CONFIG, project).samples if s.is_captioned}
    events = list(tag_missing(CONFIG, project, WD14(TAGGER)))
    after = {s.name: s.caption for s in scan(CONFIG, project).samples}
    assert (events[-1].done, events[-1].total) == (5, 5)
    assert after.items() >= before.items() and len(after) == len(before) + 5
    for name in after.keys() - before.keys():
        assert tags_of(after[name])[0] == TRIGGER
        assert "1girl" in tags_of(after[name])


def test_tags_of_ratings_and_below_the_threshold_stay_out(project):
    tagger = WD14(TAGGER)
    list(tag_missing(CONFIG, project, tagger, threshold=0.999))
    strict = {s.name: set(tags_of(s.caption)) for s in scan(CONFIG, project).samples}
    ratings = {tag for tag, category in tagger.categories.items() if category == "rating"}
    assert not any(tags & ratings for tags in strict.values())
    for file in sorted((project / "dataset").rglob("*.txt"))[:4]:
        file.unlink()
    list(tag_missing(CONFIG, project, tagger, threshold=0.01))
    loose = {s.name: set(tags_of(s.caption)) for s in scan(CONFIG, project).samples}
    assert all(strict[name] <= loose[name] for name in strict)
    assert any(strict[name] < loose[name] for name in strict)


def test_a_second_call_has_nothing_to_do(project):
    list(tag_missing(CONFIG, project, WD14(TAGGER)))
    assert list(tag_missing(CONFIG, project, WD14(TAGGER))) == []
