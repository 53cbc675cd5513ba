"""Automatic captions: hand-written ones are kept, no image is scored twice, and settings decide what is written."""

import json
import shutil

import numpy as np
import pytest

from lorakit import taggers
from lorakit.cli import tags as _tag_verbs
from lorakit.config import ConfigError
from lorakit.data import DataConfig
from lorakit.data.caption_parts import tags_of
from lorakit.data.scan import scan
from lorakit.demo import DATASET, TRIGGER
from lorakit.errors import UserError
from lorakit.examine import examine
from lorakit.examine.fixes import apply_fix
from lorakit.project import Project
from lorakit.taggers import ImagesRefused
from lorakit.tags.editor import CaptionEditor
from lorakit.tags.scores import ScoreFile, SentenceFile, taggers_with_scores, taggers_with_sentences
from lorakit.tags.tagging import TaggingConfig, compose, read_tagging, score, tag, tags_from, write_tagging

CONFIG = DataConfig(trigger=TRIGGER)
CATEGORIES = {
    **dict.fromkeys(
        ["1girl", "solo", "red_boots", "boots", "red_footwear", "^_^", "smile", "red_background"], "general"
    ),
    **{"hatsune_miku": "character", "vocaloid": "copyright", "someone": "artist", "highres": "meta"},
    **{"general": "rating", "explicit": "rating", "masterpiece": "quality"},
}
SCORES = {
    **{"1girl": 0.9, "solo": 0.5, "red_boots": 0.7, "boots": 0.95, "red_footwear": 0.94, "^_^": 0.4, "smile": 0.3},
    **{"hatsune_miku": 0.86, "vocaloid": 0.5, "someone": 0.6, "highres": 0.99, "red_background": 0.36},
    **{"general": 0.8, "explicit": 0.2, "masterpiece": 0.9},
}


class Writer:
    """A captioner that counts its images."""

    name, output, batch_size, runs_on, prompt, categories = "writer", "sentence", 2, "here", "Describe.", {}

    def __init__(self):
        self.count = 0

    def run(self, images):
        self.count += len(images)
        return [f"An image, {image.width} pixels\nwide." for image in images]


class Broken:
    """A tagger that fails after so many images."""

    def __init__(self, tagger, after):
        self._tagger, self._left = tagger, after
        self.name, self.output, self.batch_size, self.prompt = tagger.name, tagger.output, 1, tagger.prompt
        self.categories = tagger.categories
        self.count = 0

    def run(self, images):
        if self.count == self._left:
            raise KeyboardInterrupt
        self.count += 1
        return self._tagger.run(images)


@pytest.fixture(scope="module")
def demo():
    pytest.importorskip("onnxruntime")
    return taggers.load("wd14", {"source": "demo"})


@pytest.fixture
def project(tmp_path):
    """The demo's images; four have lost their captions, and one has an empty one."""
    shutil.copytree(DATASET, tmp_path / "dataset")
    files = sorted((tmp_path / "dataset").rglob("*.txt"))
    for file in files[:4]:
        file.unlink()
    files[4].write_text(" \n")
    return Project(tmp_path)


def written(project):
    return {sample.name: sample.written for sample in scan(CONFIG, project.folder).samples}


def test_only_images_without_a_caption_get_one_and_it_begins_with_the_trigger(project, demo):
    before = {name: text for name, text in written(project).items() if text}
    events = list(tag(project, CONFIG, demo, TaggingConfig()))
    after = written(project)
    assert (events[-1].what, events[-1].done, events[-1].total) == ("captions", 5, 5)
    assert after.items() >= before.items() and len(after) == len(before) + 5
    for name in after.keys() - before.keys():
        assert tags_of(after[name])[:2] == [TRIGGER, "1girl"]
    assert [event.done for event in tag(project, CONFIG, demo, TaggingConfig())] == [0]
    editor = CaptionEditor(project, CONFIG)
    editor.undo()
    assert {name: text for name, text in written(project).items() if text} == before


def test_an_interrupted_tagging_continues_where_it_stopped(project, demo):
    cut = Broken(demo, after=3)
    with pytest.raises(KeyboardInterrupt):
        list(tag(project, CONFIG, cut, TaggingConfig()))
    rest = Broken(demo, after=99)
    list(tag(project, CONFIG, rest, TaggingConfig()))
    assert (cut.count, rest.count) == (3, 2) and all(written(project).values())


def test_scores_of_another_tagger_with_the_same_name_are_refused(project, demo):
    ScoreFile(project, demo.name).add({"0" * 64: {"fox": 0.9}}, {"fox": "general"})
    for work in (tag(project, CONFIG, demo, TaggingConfig()), score(project, CONFIG, demo)):
        with pytest.raises(UserError, match=r"another tagger named .* does not know \(fox, …\): give this one"):
            list(work)


class Choosy(Writer):
    """A captioner that refuses some images."""

    batch_size = 1

    def __init__(self, refused):
        super().__init__()
        self._refused = refused

    def run(self, images):
        self.count += 1
        if self.count in self._refused:
            raise ImagesRefused("HTTP 400, not that one")
        return [f"An image, {self.count}."]


def test_one_refused_image_does_not_stop_the_others(project):
    editor = CaptionEditor(project, CONFIG)
    editor.unlock(editor.samples)
    everyone = TaggingConfig(which="unlocked")
    with pytest.raises(UserError, match=r"^2 images got no result, all others did: .*HTTP 400"):
        list(tag(project, CONFIG, Choosy((1, 4)), everyone))
    captions = CaptionEditor(project, CONFIG).captions.values()
    assert sum("An image" in caption for caption in captions) == len(captions) - 2
    again = Choosy(())
    list(tag(project, CONFIG, again, everyone))
    assert again.count == 2


def test_an_image_deleted_meanwhile_does_not_stop_the_others(project, demo):
    work = tag(project, CONFIG, Broken(demo, after=99), TaggingConfig())
    next(work)
    *_, last = [sample for sample in scan(CONFIG, project.folder).samples if not sample.written]
    last.path.unlink()
    with pytest.raises(UserError, match=f"^1 images got no result, all others did: {last.path.name}"):
        list(work)
    assert all(written(project).values())


def test_two_taggings_at_once_write_one_sentence(project):
    first, second = Writer(), Choosy(())
    second.name = first.name
    work = tag(project, CONFIG, first, TaggingConfig())
    next(work)
    list(tag(project, CONFIG, second, TaggingConfig()))
    list(work)
    sentences = [tags_of(caption) for caption in written(project).values() if "An image" in caption]
    assert [len(parts) for parts in sentences] == 5 * [len([TRIGGER, "An image, 512 pixels wide."])]


def test_a_tagger_named_like_a_person_is_refused(project):
    writer = Writer()
    writer.name = "person"
    with pytest.raises(UserError, match="cannot be named"):
        list(tag(project, CONFIG, writer, TaggingConfig(which="unlocked")))


def test_a_tagger_that_refuses_every_image_is_given_up_soon(project):
    editor = CaptionEditor(project, CONFIG)
    editor.unlock(editor.samples)
    always = Choosy(range(1000))
    with pytest.raises(UserError, match="^HTTP 400, not that one$"):
        list(tag(project, CONFIG, always, TaggingConfig(which="unlocked")))
    assert always.count == 4 < len(editor.samples)


def test_new_thresholds_need_no_new_scores_and_keep_hand_written_tags(project, demo):
    list(tag(project, CONFIG, demo, TaggingConfig()))
    loose = CaptionEditor(project, CONFIG)
    first, second, *_ = [name for name in loose.samples if not loose.is_locked(name)]
    loose.change("by hand", {first: loose.captions[first].replace(", 1girl", "") + ", mine"})
    loose.unlock([first])
    loose.change("by hand", {second: "only mine"})
    *scored, done = tag(project, CONFIG, demo, TaggingConfig(which="unlocked", general_threshold=0.999))
    assert done.done > 0 and not scored
    strict = CaptionEditor(project, CONFIG)
    assert strict.captions[second] == "only mine"
    tags = tags_of(strict.captions[first])
    assert tags[0] == TRIGGER and "mine" in tags and "1girl" not in tags
    assert set(tags) < set(tags_of(loose.captions[first])) and strict.authors(first)["mine"] == "person"


def test_scoring_covers_all_images_and_writes_no_caption(project, demo):
    before = written(project)
    list(score(project, CONFIG, demo))
    scores = ScoreFile(project, demo.name)
    assert (
        written(project) == before
        and scores.categories == demo.categories
        and taggers_with_scores(project) == [demo.name]
    )
    assert all(scores.get(sample.digest) is not None for sample in scan(CONFIG, project.folder).samples)
    assert min(score for s in scan(CONFIG, project.folder).samples for score in scores.get(s.digest).values()) >= 0.05


def test_tags_and_a_sentence_are_mixed_as_set(project, demo):
    list(tag(project, CONFIG, demo, TaggingConfig()))
    editor, writer = CaptionEditor(project, CONFIG), Writer()
    names = [name for name in editor.samples if not editor.is_locked(name)]
    list(tag(project, CONFIG, writer, TaggingConfig()))
    sentence = "An image, 512 pixels wide."
    sentence = sentence.replace("512", str(editor.samples[names[0]].width))
    mixed = CaptionEditor(project, CONFIG)
    assert mixed.captions[names[0]] == f"{editor.captions[names[0]]}, {sentence}" and writer.count == len(names)
    assert taggers_with_sentences(project) == ["writer"] and mixed.authors(names[0])[sentence] == "writer"
    list(tag(project, CONFIG, writer, TaggingConfig(which="unlocked", mix="sentence, tags")))
    begin = CaptionEditor(project, CONFIG).captions[names[0]]
    assert begin.startswith(f"{TRIGGER}, {sentence}, 1girl")
    list(tag(project, CONFIG, demo, TaggingConfig(which="unlocked", mix="tags")))
    assert CaptionEditor(project, CONFIG).captions == editor.captions
    with pytest.raises(ConfigError, match="mix is 'tags', but writer gives sentence"):
        next(tag(project, CONFIG, writer, TaggingConfig(mix="tags")))


def test_thresholds_categories_blacklist_and_replacements_choose_the_tags():
    plain = tags_from(SCORES, CATEGORIES, TaggingConfig())
    assert list(plain) == [
        *("boots", "red footwear", "1girl", "hatsune miku", "red boots", "solo", "vocaloid", "^_^", "red background")
    ]
    assert plain["hatsune miku"] == "character" and plain["1girl"] == "count" and plain["vocaloid"] == "series"
    assert "hatsune miku" not in tags_from(SCORES, CATEGORIES, TaggingConfig(character_threshold=0.9))
    everything = TaggingConfig(artists=True, rating=True, meta=True, quality=True)
    more = set(tags_from(SCORES, CATEGORIES, everything)) - set(plain)
    assert more == {"someone", "highres", "general", "masterpiece"}
    chosen = TaggingConfig(
        blacklist=("* background", "solo"),
        replacements={"* footwear": "red boots, shoes", "^_^": "", "vocaloid": "solo"},
    )
    assert list(tags_from(SCORES, CATEGORIES, chosen)) == ["boots", "red boots", "shoes", "1girl", "hatsune miku"]


def test_profiles_order_tags_and_leave_out_implied_ones():
    tags = tags_from(SCORES, CATEGORIES, TaggingConfig())
    assert compose({}, set(), tags, TaggingConfig(), "Miku") == (
        "Miku, 1girl, solo, hatsune miku, red boots, vocaloid, ^_^, red background"
    )
    anima = TaggingConfig(profile="anima", artists=True, rating=True, meta=True, quality=True)
    assert compose({}, set(), tags_from(SCORES, CATEGORIES, anima), anima, "Miku") == (
        "Miku, masterpiece, highres, safe, 1girl, solo, hatsune miku, vocaloid, @someone, red boots, ^_^, "
        "red background"
    )
    few = TaggingConfig(most_tags=3, without_implied=False)
    assert compose({}, set(), tags, few, "Miku") == "Miku, 1girl, solo, hatsune miku"


def test_the_trigger_and_hand_written_tags_are_never_lost():
    origin = {"Miku": "wd", "boots": "person", "old": "wd"}
    config = TaggingConfig(blacklist=("Miku", "boots"), most_tags=1)
    tags = tags_from({**SCORES, "Miku": 0.99}, CATEGORIES, config)
    assert compose(origin, {"1girl"}, tags, config, "Miku") == "Miku, solo, boots"
    assert compose(origin, set(), "A girl, in boots.", TaggingConfig(), "Miku") == "Miku, boots, old, A girl, in boots."
    assert compose(origin, set(), "A girl.", TaggingConfig(mix="sentence"), "Miku") == "Miku, boots, A girl."


def test_settings_accept_danbooru_spelling():
    config = TaggingConfig(blacklist=("red_boots", "^_^"), replacements={"red_foot*": "shoes"})
    assert tags_from({"red_boots": 0.9, "red_footwear": 0.8, "^_^": 0.7}, CATEGORIES, config) == {"shoes": "general"}


@pytest.mark.parametrize("profile", ["sd", "anima"])
def test_the_trigger_stands_once_whichever_tagger_ran_first(profile):
    config = TaggingConfig(profile=profile)
    origin = dict.fromkeys(tags_of("Miku, A girl, smiling."), "writer")
    caption = compose(origin, set(), {"1girl": "count", "smiling.": "general"}, config, "Miku", ["writer"])
    assert caption == "Miku, 1girl, smiling., A girl, smiling."
    origin = {tag: "wd" for tag in ("Miku", "1girl", "smile")}
    assert compose(origin, set(), "Miku, smile", config, "Miku", ["writer"]) == "Miku, 1girl, smile"


def test_scores_survive_a_torn_line_and_sentences_belong_to_a_prompt(tmp_path):
    project = Project(tmp_path)
    ScoreFile(project, "owner/wd").add({"d1": {"a": 0.98765, "b": 0.01}}, {"a": "general", "b": "meta"})
    (file,) = (tmp_path / "tags" / "scores").iterdir()
    file.write_bytes(file.read_bytes() + b'{"digest": "d2", "ta')
    ScoreFile(project, "owner/wd").add({"d3": {}}, {"a": "general", "b": "meta"})
    scores = ScoreFile(project, "owner/wd")
    assert scores.get("d1") == {"a": 0.98765} and scores.get("d2") is None and scores.get("d3") == {}
    assert scores.categories == {"a": "general", "b": "meta"} and taggers_with_scores(project) == ["owner/wd"]
    SentenceFile(project, "v", "Describe.").add({"d1": "A girl."})
    assert (
        SentenceFile(project, "v", "Describe.").get("d1") == "A girl."
        and SentenceFile(project, "v", "Tell.").get("d1") is None
    )


def test_a_captioner_whose_first_line_was_torn_is_still_listed(tmp_path):
    project = Project(tmp_path)
    SentenceFile(project, "v", "Describe.").add({"d1": "A girl."})
    (file,) = (tmp_path / "tags" / "sentences").iterdir()
    for torn in (b"", b'{"tagg'):
        file.write_bytes(torn)
        assert taggers_with_sentences(project) == []
        SentenceFile(project, "v", "Describe.").add({"d1": "A girl."})
        SentenceFile(project, "v", "Describe.").add({"d2": "A cat."})
        assert taggers_with_sentences(project) == ["v"] and file.read_bytes().count(b"tagger") == 1


@pytest.mark.parametrize(("score", "is_written"), [(0.349951, False), (0.35, True), (0.5, True), (0.2, False)])
def test_rounding_of_stored_scores_crosses_no_threshold(score, is_written, tmp_path):
    ScoreFile(Project(tmp_path), "wd").add({"d": {"smile": float(np.float32(score))}}, {"smile": "general"})
    kept = ScoreFile(Project(tmp_path), "wd")
    tags = tags_from(kept.get("d"), kept.categories, TaggingConfig(general_threshold=0.35))
    assert (tags == {"smile": "general"}) == is_written


def test_a_disk_that_cannot_be_written_is_reported_with_what_to_do(tmp_path, monkeypatch):
    project = Project(tmp_path)
    project.folder.joinpath("tags").write_text("in the way")
    with pytest.raises(UserError, match="Free some space there, or allow writing"):
        ScoreFile(project, "wd").add({"d": {"smile": 0.5}}, {"smile": "general"})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lorakit.tags.tagging.write_atomic", full)
    with pytest.raises(ConfigError, match=r"tagging\.yaml cannot be written \(No space left"):
        write_tagging(project, "vlm", {}, TaggingConfig())


def test_settings_are_stored_and_a_damaged_file_is_reported(tmp_path):
    project = Project(tmp_path)
    assert read_tagging(project) == ("wd14", {}, TaggingConfig())
    config = TaggingConfig(blacklist=("a",), replacements={"b": "c"}, profile="anima")
    write_tagging(project, "vlm", {"source": "x"}, config)
    assert read_tagging(project) == ("vlm", {"source": "x"}, config)
    (tmp_path / "tagging.yaml").write_text("captions: {most_tags: -1}")
    with pytest.raises(ConfigError, match="captions.most_tags is -1"):
        read_tagging(project)


def lorakit_tag(*words):
    import argparse

    parser = argparse.ArgumentParser()
    _tag_verbs.add(parser.add_subparsers(required=True))
    options = parser.parse_args(list(map(str, words)))
    return options.verb(options)


def test_the_terminal_tags_edits_and_undoes(project, demo, capsys):
    here = project.folder
    trigger = ("--set", f"data.trigger={TRIGGER}")
    lorakit_tag("run", here, "--tagger", "wd14", "--set", "tagger.source=demo", *trigger)
    output = capsys.readouterr().out
    assert "captions: 5 of 5" in output and "captions kept (hand-written or locked): 25" in output
    before = written(project)
    lorakit_tag("edit", here, "--with", "forest", "--rename", "forest", "woods")
    lorakit_tag("edit", here, "--images", "*1.png", "--add-first", "best", *trigger)
    assert all(
        tags_of(text)[:2] == [TRIGGER, "best"] for name, text in written(project).items() if name.endswith("1.png")
    )
    lorakit_tag("show", here)
    counts = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [int(count) for count, _ in counts] == sorted(int(count) for count, _ in counts)
    assert "woods" in {name for _, name in counts} and "forest" not in {name for _, name in counts}
    lorakit_tag("diff", here)
    assert "+mofurin, best" in capsys.readouterr().out
    lorakit_tag("undo", here), lorakit_tag("undo", here)
    assert written(project) == before
    lorakit_tag("redo", here), lorakit_tag("unlock", here, "--with", "woods"), lorakit_tag("history", here)
    assert "rename forest to woods" in capsys.readouterr().out
    with pytest.raises(UserError, match="--with 'nothing'"):
        lorakit_tag("lock", here, "--with", "nothing")
    lorakit_tag("show", here, "--who", "--with", "woods")
    assert "[locked]" not in capsys.readouterr().out
    assert json.loads((here / "tags" / "captions.v1.json").read_text())["dataset/*.txt"]["captions"]


@pytest.mark.parametrize("config", [CONFIG, DataConfig()], ids=["trigger", "no trigger"])
def test_captions_written_by_the_doctor_are_completed_by_a_tagger(project, demo, config):
    (bare,) = [finding for finding in examine(project, config).findings if finding.kind == "no-caption"]
    apply_fix(project, config, bare)
    written = {name: CaptionEditor(project, config).captions[name] for name in bare.images}
    assert all(written.values())
    list(tag(project, config, demo, TaggingConfig()))
    editor = CaptionEditor(project, config)
    assert all(len(tags_of(editor.captions[name])) > len(tags_of(written[name])) for name in bare.images)
