"""The dataset's doctor: every check sees what it is for and nothing else, and any bytes at all are a finding."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageOps
from spoiled import COUNT, EXAMPLES, MODEL, Healthy, duplicates, make_image, too_long

from lorakit import models
from lorakit.data import DataConfig, measures
from lorakit.data.image_stats import StatsCache
from lorakit.demo import DATASET
from lorakit.examine import examine, measure_images
from lorakit.examine.checks import CHECKS
from lorakit.examine.finding import SEVERITIES
from lorakit.examine.fixes import FIXES
from lorakit.project import Project
from lorakit.run.config import LoopConfig


@pytest.fixture
def healthy(tmp_path):
    return Healthy(tmp_path / "project")


# ---- checks ----------------------------------------------------------------------------------------------------------


def test_a_healthy_set_has_no_findings_and_its_numbers_are_right(healthy):
    report = healthy.examine()
    assert [finding.title for finding in report.findings] == [] and report.is_fine()
    numbers = {
        "images": 16,
        "regularization": 0,
        "images_per_epoch": 16,
        "steps_per_epoch": 16,
        "buckets": 1,
        "tags": 8,
    }
    assert report.numbers == numbers
    healthy.loop = LoopConfig(batch_size=3, gradient_accumulation_steps=2)
    healthy.data["repeats"] = 2
    assert healthy.examine().numbers == numbers | {"images_per_epoch": 32, "steps_per_epoch": 6}


def test_images_that_were_measured_are_not_read_again(healthy, monkeypatch):
    monkeypatch.setattr("lorakit.data.image_stats.SETTLED", -1.0)  # these were written just now
    reported = [
        (progress.done, progress.total) for progress in measure_images(healthy.project, DataConfig(**healthy.data))
    ]
    assert reported == [(i, COUNT) for i in range(1, COUNT + 1)]
    assert list(measure_images(Project(healthy.folder / "nowhere"), DataConfig())) == []
    monkeypatch.setattr(StatsCache, "_measured", None)
    assert not healthy.examine().findings


def test_every_check_has_an_example():
    assert set(CHECKS) == set(EXAMPLES)


@pytest.mark.parametrize("kind", CHECKS)
def test_a_check_sees_what_it_is_for(kind, healthy, monkeypatch):
    names = EXAMPLES[kind](healthy, monkeypatch)
    report = healthy.examine()
    finding = report.find(kind)
    assert finding, [f.kind for f in report.findings]
    assert sorted(finding.images) == sorted(names)
    assert finding.severity in SEVERITIES and (not finding.fix or finding.fix in FIXES)
    assert finding.title and finding.why and "{" not in finding.title + finding.why
    assert json.loads(json.dumps(report.as_data()))["findings"]


@pytest.mark.parametrize(("family", "least"), [("sd15", ""), ("anima", "16 < 30")])
def test_how_many_images_are_enough_is_what_a_guide_says_of_the_family(healthy, family, least):
    model = models.config_class(family)(source="somewhere")
    finding = examine(healthy.project, DataConfig(**healthy.data), model).find("few")
    assert (finding.details[healthy.data.get("folder", "dataset")] if finding else "") == least


def test_the_part_of_a_caption_that_is_cut_is_shown(healthy):
    too_long(healthy, None)
    cut = healthy.examine().find("too-long").details["03.png"].removeprefix("… ").removesuffix(" …")
    assert cut in (healthy.folder / "03.txt").read_text() and len(cut) > 100


def test_of_likenesses_the_best_stays(healthy):
    duplicates(healthy, None)
    assert set(healthy.examine().find("duplicates").targets) == {"03.png", "!y.png"}, "small; without a caption"


def test_the_same_drawing_in_other_colours_is_another_image(healthy):
    image = make_image(3).convert("L")
    for name, colour in (("red", "red"), ("blue", "blue")):
        healthy.add(f"{name}.png", ImageOps.colorize(image, "black", colour), "mofu, smile")
    report = healthy.examine()
    assert not report.find("duplicates")


def on_white(dress: str = "red", hand: int = 0, eyes: int = 9) -> Image.Image:
    """A figure in the middle of a white ground, where most of every image is the same."""
    made = Image.new("RGB", (200, 200), "white")
    draw = ImageDraw.Draw(made)
    draw.ellipse((72, 24, 128, 84), fill="#fadcc8", outline="black", width=2)
    draw.polygon([(82, 84), (118, 84), (140, 170), (60, 170)], fill=dress, outline="black")
    draw.line((115, 92, 160, 140 - hand), fill="#fadcc8", width=10)
    for x in (88, 112):
        draw.ellipse((x - 5, 58 - eyes // 2, x + 5, 58 + eyes // 2), fill="blue", outline="black")
    return made


@pytest.mark.parametrize(
    "other, is_copy",
    [
        (on_white("blue"), False),
        (on_white(hand=80), False),
        (on_white(eyes=0), False),
        (on_white().resize((120, 120), Image.Resampling.LANCZOS), True),
        (on_white().crop((2, 2, 198, 198)), True),
        (on_white().point(lambda value: min(255, value * 11 // 10)), True),
    ],
    ids=["other dress", "other pose", "eyes closed", "smaller", "cropped", "lightened"],
)
@pytest.mark.skipif(not measures.can_hash(), reason="needs the ImageHash package")
def test_of_a_figure_on_white_ground_copies_are_alike_and_variations_are_not(healthy, other, is_copy):
    healthy.add("a.png", on_white(), "mofu, smile")
    healthy.add("b.jpg", other, "mofu, smile", quality=80)
    assert bool(healthy.examine().find("duplicates")) is is_copy


def test_a_figure_on_white_ground_that_is_cut_off_below_has_no_frame_and_white_bars_are_one(healthy):
    healthy.add("half.png", on_white().crop((0, 0, 200, 150)), "mofu, smile")
    assert not healthy.examine().find("borders")
    bars = Image.new("RGB", (200, 150), "white")
    bars.paste(make_image(70, (140, 150)), (30, 0))
    healthy.add("bars.png", bars, "mofu, smile")
    assert healthy.examine().find("borders").images == ("bars.png",)


@pytest.mark.parametrize("family", models.names())
def test_what_a_family_cuts_is_the_end_of_a_caption_and_no_more_than_needed(family):
    config = models.config_class(family)(source="", max_token_length=75)
    cut = models.family(family).excess(config)
    caption = "mofu, " + ", ".join(f"tag {i}" for i in range(60))
    end = cut(caption)
    assert end and caption.endswith(end) and cut(caption[: -len(end)]) == "" and cut("mofu, smile") == ""
    longer = dataclasses.replace(config, max_token_length=150)
    assert len(models.family(family).excess(longer)(caption)) < len(end)


def test_a_family_cuts_what_its_own_token_count_says(family, base):
    import torch

    model = models.config_class(family)(source=str(base), max_token_length=75)
    cut, count = (
        models.family(family).excess(model),
        models.family(family).Model(model, torch.device("cpu"), torch.float32).token_count,
    )
    for words in range(1, 60):
        caption = " ".join(["word"] * words)
        assert bool(cut(caption)) == (count(caption) > 75), words


# ---- anything at all -------------------------------------------------------------------------------------------------


def test_any_bytes_under_an_images_name_are_a_finding(healthy):
    dice = random.Random(7)
    bodies = [(healthy.folder / f"{i:02d}.png").read_bytes() for i in range(3)]
    names = []
    for i in range(60):
        body = dice.choice(bodies)
        broken = [dice.randbytes(dice.randrange(200)), body[: dice.randrange(len(body) - 1)], b""]
        broken.append(body[:8] + dice.randbytes(40))
        names.append(f"broken {i}{dice.choice(['.png', '.JPG', '.webp', '.bmp', '.avif', '.jpeg'])}")
        (healthy.folder / names[-1]).write_bytes(dice.choice(broken))
        (healthy.folder / f"broken {i}.txt").write_bytes(dice.randbytes(20))
    report = healthy.examine()
    reported = {name for kind in ("unreadable", "truncated") for name in report.find(kind).images}
    whole = {name for name in report.samples if name in names}  # those that were cut behind the last pixel
    assert reported | whole | set(report.find("caption-encoding").images) == set(names) and len(reported) > 50


def test_captions_that_are_no_text_at_all_are_read_or_told(healthy):
    (healthy.folder / "captions.json").write_text(
        json.dumps({"03": "mofu, \ud800 \u0000", "04": "x" * 50_000, "05": ""})
    )
    for i in (3, 4, 5):
        (healthy.folder / f"{i:02d}.txt").unlink()
    (healthy.folder / "06.txt").write_bytes(b"mofu, \x00\x01\x7f, " + "\u202e, \U0001f600".encode())
    report = healthy.examine()
    assert report.find("too-long").images == ("04.png",) and report.find("caption-encoding").images == ("06.png",)


def test_a_folder_of_nothing_but_broken_files_is_a_finding(healthy):
    for file in healthy.folder.glob("*.png"):
        file.write_bytes(b"\x89PNG broken")
    report = healthy.examine()
    assert [f.kind for f in report.findings] == ["unusable", "unreadable"]
    assert "No usable image" in str(report.findings[0].details)
    assert report.numbers == {}


def test_a_base_whose_tokenizer_is_broken_is_a_finding(healthy, tmp_path):
    shutil.copytree(Path(models.__file__).parents[1] / "demo" / "base", tmp_path / "base")
    for file in (tmp_path / "base" / "tokenizer").iterdir():
        file.write_text("{")
    healthy.model = models.config_class("sd15")(source=str(tmp_path / "base"))
    assert healthy.examine().find("unmeasured").details


def test_the_demo_set_is_well_but_for_tags_that_stand_once(tmp_path):
    project = Project(tmp_path)
    shutil.copytree(DATASET, project.dataset)
    square = {"trigger": "mofurin", "resolution": 128, "min_bucket_reso": 128, "max_bucket_reso": 128}
    report = examine(project, DataConfig(**square), MODEL)
    assert [f.kind for f in report.findings] == ["in-one-only"] and len(report.findings[0].images) == 4
    assert report.numbers["images_per_epoch"] == 300
