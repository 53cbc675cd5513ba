"""The data set's doctor: every check sees what it is for and nothing else, every fix can be taken back."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import random
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from lorakit import _examine_verbs, models
from lorakit.boxes import Boxes
from lorakit.data import DataConfig
from lorakit.data.looks import Looks
from lorakit.demo import DATASET
from lorakit.errors import UserError
from lorakit.examine import Report, aside, examine, measure
from lorakit.examine.checks import CHECKS
from lorakit.examine.finding import SEVERITIES
from lorakit.examine.fixes import FIXES, mend
from lorakit.project import Project
from lorakit.run import LoopConfig
from lorakit.tagbook import TagBook

SIDE, COUNT = 64, 16
WORDS = ("smile", "sitting", "forest", "night", "hat", "running")
DATA = {"trigger": "mofu", "resolution": SIDE, "min_bucket_reso": SIDE, "max_bucket_reso": 2 * SIDE}
DATA |= {"bucket_reso_steps": 16, "min_bucket_reso": 32}
MODEL = models.config_class("sd15")(source="demo")


def picture(seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    """Blocks of random colours: sharp, without a border, like no other."""
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


class Healthy:
    """A project in which the doctor finds nothing, for spoiling; `data` are its settings."""

    def __init__(self, folder: Path):
        self.project, self.data = Project(folder), dict(DATA)
        self.model, self.loop = MODEL, LoopConfig()
        self.folder = self.project.dataset
        self.folder.mkdir(parents=True)
        for i in range(COUNT):
            self.add(f"{i:02d}.png", picture(i), f"mofu, 1girl, {WORDS[i % 6]}, {WORDS[(i + 1) % 6]}")

    def add(self, name: str, image: Image.Image, caption: str | None = None, **options) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **options)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
        return path

    def caption(self, number: int, text: str) -> None:
        (self.folder / f"{number:02d}.txt").write_text(text, encoding="utf-8")

    def examine(self) -> Report:
        return examine(self.project, DataConfig(**self.data), self.model, self.loop)


@pytest.fixture
def healthy(tmp_path):
    return Healthy(tmp_path / "project")


# ---- kind -> what spoils the healthy set so; it returns the pictures that the finding names --------------------------


def unusable(set: Healthy, _) -> list[str]:
    shutil.rmtree(set.folder)
    return []


def unreadable(set: Healthy, _) -> list[str]:
    (set.folder / "03.png").write_bytes(b"no picture")
    (set.folder / "04.png").write_bytes(b"")
    return ["03.png", "04.png"]


def truncated(set: Healthy, _) -> list[str]:
    set.add("a.bmp", picture(99), "mofu, smile")
    data = (set.folder / "a.bmp").read_bytes()
    (set.folder / "a.bmp").write_bytes(data[: len(data) // 2])
    return ["a.bmp"]


def shared_caption(set: Healthy, _) -> list[str]:
    set.add("03.jpg", picture(99))
    return ["03.jpg", "03.png"]


def caption_encoding(set: Healthy, _) -> list[str]:
    (set.folder / "03.txt").write_bytes("mofu, caf\u00e9".encode("latin-1"))
    return ["03.png"]


def overlooked(set: Healthy, _) -> list[str]:
    shutil.copytree(set.folder, set.folder / "1_mofu")
    return ["the data folder"]


def too_long(set: Healthy, _) -> list[str]:
    set.caption(3, "mofu, 1girl, " + ", ".join(["smile", "sitting"] * 90))
    return ["03.png"]


def no_caption(set: Healthy, _) -> list[str]:
    (set.folder / "03.txt").unlink()
    return ["03.png"]


def empty_caption(set: Healthy, _) -> list[str]:
    set.caption(3, " \n")
    return ["03.png"]


def chinese_commas(set: Healthy, _) -> list[str]:
    set.caption(3, "mofu, smile，forest、night")
    return ["03.png"]


def trigger_missing(set: Healthy, _) -> list[str]:
    set.caption(3, "1girl, smile")
    return ["03.png"]


def trigger_late(set: Healthy, _) -> list[str]:
    set.caption(3, "1girl, mofu, smile")
    return ["03.png"]


def trigger_unset(set: Healthy, _) -> list[str]:
    set.data["trigger"] = ""
    return []


def two_colours(set: Healthy, _) -> list[str]:
    set.caption(3, "mofu, 1girl, dark blue hair, red hair")
    set.caption(4, "mofu, 1girl, two-tone hair, blue hair, red hair")
    set.caption(5, "mofu, 2girls, blue hair, red hair")
    set.caption(6, "mofu, 1girl, 1boy, blue hair, red hair")
    set.caption(7, "mofu, 1girl, dark blue hair, blue hair, red eyes")
    return ["03.png"]


def other_colour(set: Healthy, _) -> list[str]:
    set.add("03.png", Image.merge("RGB", [picture(3).split()[0]] * 3), "mofu, 1girl, red hair")
    set.caption(4, "mofu, 1girl, red hair")
    set.add("04.png", Image.blend(picture(4), Image.new("RGB", (SIDE, SIDE), "red"), 0.7))
    return ["03.png"]


def in_nearly_all(set: Healthy, _) -> list[str]:
    for i in range(COUNT):
        set.caption(i, f"mofu, 1girl, odd ears, {WORDS[i % 6]}, {WORDS[(i + 1) % 6]}")
    return []


def in_one_only(set: Healthy, _) -> list[str]:
    set.caption(3, "mofu, smile, smle")
    return ["03.png"]


def unmeasured(set: Healthy, _) -> list[str]:
    set.model = None
    return []


def duplicates(set: Healthy, _) -> list[str]:
    set.add("x.jpg", picture(3).resize((96, 96)), "mofu, smile", quality=60)
    shutil.copy(set.folder / "05.png", set.folder / "!y.png")
    return ["x.jpg", "03.png", "05.png", "!y.png"]


def small(set: Healthy, _) -> list[str]:
    set.add("03.png", picture(3, (30, 30)))
    return ["03.png"]


def enlarged(set: Healthy, _) -> list[str]:
    set.data["bucket_no_upscale"] = False
    set.add("03.png", picture(3, (40, 40)))
    return ["03.png"]


def blurred(set: Healthy, _) -> list[str]:
    set.add("03.png", picture(3).filter(ImageFilter.GaussianBlur(8)))
    return ["03.png"]


def borders(set: Healthy, _) -> list[str]:
    def on(colour: str, seed: int, left: int, top: int) -> Image.Image:
        page = Image.new("RGB", (SIDE + 2 * left, SIDE + 2 * top), colour)
        page.paste(picture(seed), (left, top))
        return page

    set.add("03.png", on("black", 3, 0, 8))
    set.add("04.png", on("#203040", 4, 6, 6))
    set.add("05.png", on("white", 5, 9, 7))  # as a figure on white ground has it
    return ["03.png", "04.png"]


def alpha(set: Healthy, _) -> list[str]:
    image = picture(3).convert("RGBA")
    image.paste((0, 0, 0, 0), (20, 20, 30, 30))
    set.add("03.png", image)
    return ["03.png"]


def animated(set: Healthy, _) -> list[str]:
    set.add("03.png", picture(3), save_all=True, append_images=[picture(98)])
    return ["03.png"]


def not_compared(set: Healthy, monkeypatch) -> list[str]:
    monkeypatch.setitem(sys.modules, "imagehash", None)  # as if it were not installed
    return []


def unequal_concepts(set: Healthy, _) -> list[str]:
    for i in range(COUNT):
        into = set.folder / ("3_many" if i < 12 else "1_few")
        into.mkdir(exist_ok=True)
        for ending in (".png", ".txt"):
            (set.folder / f"{i:02d}{ending}").rename(into / f"{i:02d}{ending}")
    return []


def backgrounds(set: Healthy, _) -> list[str]:
    for i in range(9):
        set.caption(i, f"mofu, no humans, {WORDS[i % 3]}")
    return [f"{i:02d}.png" for i in range(9)]


def few(set: Healthy, _) -> list[str]:
    for i in range(4):
        (set.folder / f"{i:02d}.png").unlink()
        (set.folder / f"{i:02d}.txt").unlink()
    return []


def shapes(set: Healthy, _) -> list[str]:
    sizes = ((128, 32), (112, 32), (96, 32), (80, 48), (48, 80), (32, 96), (32, 112), (32, 128))
    for i, size in enumerate(sizes):
        set.add(f"{i:02d}.png", picture(i, size))
    return [f"{i:02d}.png" for i in range(8)]


def foreign(set: Healthy, _) -> list[str]:
    (set.folder / "notes.psd").write_bytes(b"8BPS")
    return ["notes.psd"]


def others(set: Healthy, _) -> list[str]:
    (set.folder / "stray.txt").write_text("of no picture")
    return ["stray.txt"]


EXAMPLES = {
    name.replace("_", "-"): example
    for name, example in list(globals().items())
    if callable(example) and "-".join(name.split("_")) in CHECKS
}

# ---- checks ----------------------------------------------------------------------------------------------------------


def test_a_healthy_set_has_no_findings_and_its_numbers_are_right(healthy):
    report = healthy.examine()
    assert [finding.title for finding in report.findings] == [] and report.is_fine()
    numbers = {"pictures": 16, "regularization": 0, "seen": 16, "steps": 16, "buckets": 1, "tags": 8}
    assert report.numbers == numbers
    healthy.loop = LoopConfig(batch_size=3, gradient_accumulation_steps=2)
    healthy.data["repeats"] = 2
    assert healthy.examine().numbers == numbers | {"seen": 32, "steps": 6}


def test_pictures_that_were_measured_are_not_read_again(healthy, monkeypatch):
    monkeypatch.setattr("lorakit.data.looks.SETTLED", -1.0)  # these were written just now
    told = [(progress.done, progress.total) for progress in measure(healthy.project, DataConfig(**healthy.data))]
    assert told == [(i, COUNT) for i in range(1, COUNT + 1)]
    assert list(measure(Project(healthy.folder / "nowhere"), DataConfig())) == []
    monkeypatch.setattr(Looks, "_measured", None)
    assert not healthy.examine().findings


def test_every_check_has_an_example():
    assert set(CHECKS) == set(EXAMPLES)


@pytest.mark.parametrize("kind", CHECKS)
def test_a_check_sees_what_it_is_for(kind, healthy, monkeypatch):
    names = EXAMPLES[kind](healthy, monkeypatch)
    report = healthy.examine()
    finding = report.find(kind)
    assert finding, [f.kind for f in report.findings]
    assert sorted(finding.pictures) == sorted(names)
    assert finding.severity in SEVERITIES and (not finding.fix or finding.fix in FIXES)
    assert finding.title and finding.why and "{" not in finding.title + finding.why
    assert json.loads(json.dumps(report.as_data()))["findings"]


def test_the_part_of_a_caption_that_is_cut_is_shown(healthy):
    too_long(healthy, None)
    cut = healthy.examine().find("too-long").details["03.png"].removeprefix("… ").removesuffix(" …")
    assert cut in (healthy.folder / "03.txt").read_text() and len(cut) > 100


def test_of_likenesses_the_best_stays(healthy):
    duplicates(healthy, None)
    assert set(healthy.examine().find("duplicates").targets) == {"03.png", "!y.png"}, "small; without a caption"


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


def test_any_bytes_under_a_pictures_name_are_a_finding(healthy):
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
    told = {name for kind in ("unreadable", "truncated") for name in report.find(kind).pictures}
    whole = {name for name in report.samples if name in names}  # those that were cut behind the last pixel
    assert told | whole | set(report.find("caption-encoding").pictures) == set(names) and len(told) > 50


def test_captions_that_are_no_text_at_all_are_read_or_told(healthy):
    (healthy.folder / "captions.json").write_text(
        json.dumps({"03": "mofu, \ud800 \u0000", "04": "x" * 50_000, "05": ""})
    )
    for i in (3, 4, 5):
        (healthy.folder / f"{i:02d}.txt").unlink()
    (healthy.folder / "06.txt").write_bytes(b"mofu, \x00\x01\x7f, " + "\u202e, \U0001f600".encode())
    report = healthy.examine()
    assert report.find("too-long").pictures == ("04.png",) and report.find("caption-encoding").pictures == ("06.png",)


def test_a_folder_of_nothing_but_broken_files_is_a_finding(healthy):
    for file in healthy.folder.glob("*.png"):
        file.write_bytes(b"\x89PNG broken")
    report = healthy.examine()
    assert [f.kind for f in report.findings] == ["unusable"] and "No usable picture" in str(report.findings[0].details)
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
    assert [f.kind for f in report.findings] == ["in-one-only"] and len(report.findings[0].pictures) == 4
    assert report.numbers["seen"] == 300


# ---- fixes -----------------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, str]:
    """Path -> digest of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("kind", [kind for kind, check in CHECKS.items() if check.fix])
def test_a_fix_mends_changes_no_picture_and_can_be_taken_back(kind, healthy, monkeypatch):
    EXAMPLES[kind](healthy, monkeypatch)
    before, config = contents(healthy.folder), DataConfig(**healthy.data)
    finding = healthy.examine().find(kind)
    answers = FIXES[finding.fix].answers
    done = mend(healthy.project, config, finding, "cp1252" if answers else "")
    assert done.changed and not done.kept
    assert not healthy.examine().find(kind), "what was mended is found no more"
    held = Counter([*contents(healthy.folder).values(), *contents(healthy.project.folder / "set-aside").values()])
    pictures = Counter(digest for name, digest in before.items() if not name.endswith(".txt"))
    assert not pictures - held, "every picture is still there, byte for byte"
    if aside.batches(healthy.project):
        assert aside.restore(healthy.project, aside.batches(healthy.project)[-1]) == []
        assert not aside.batches(healthy.project)
    elif finding.fix == "crop_borders":
        assert Boxes(healthy.project).undo()
    else:
        assert TagBook(healthy.project, config).undo()
    after = contents(healthy.folder)
    if finding.fix != "write_captions":  # which leaves a caption file where none was
        assert {name: after[name] for name in before if not name.endswith(".txt")} == {
            name: digest for name, digest in before.items() if not name.endswith(".txt")
        }
    assert healthy.examine().find(kind)


def test_a_caption_in_another_encoding_is_saved_as_utf8_and_a_wrong_choice_changes_nothing(healthy):
    caption_encoding(healthy, None)
    config, finding, file = (
        DataConfig(**healthy.data),
        healthy.examine().find("caption-encoding"),
        healthy.folder / "03.txt",
    )
    before = file.read_bytes()
    with pytest.raises(UserError, match="cp1252"):
        mend(healthy.project, config, finding)
    assert mend(healthy.project, config, finding, "cp932").kept and file.read_bytes() == before
    assert not mend(healthy.project, config, finding, "cp1252").kept
    assert file.read_text(encoding="utf-8") == "mofu, caf\u00e9"


def test_nothing_is_overwritten_when_files_are_brought_back(healthy):
    unreadable(healthy, None)
    mend(healthy.project, DataConfig(**healthy.data), healthy.examine().find("unreadable"))
    (batch,) = aside.batches(healthy.project)
    assert batch.files == ("03.png", "04.png", "03.txt", "04.txt")
    healthy.add("03.png", picture(50))
    now = (healthy.folder / "03.png").read_bytes()
    assert "03.png" in aside.restore(healthy.project, batch)[0]
    assert (healthy.folder / "03.png").read_bytes() == now and batch.held("03.png").read_bytes() == b"no picture"
    assert (healthy.folder / "04.png").read_bytes() == b"" and (healthy.folder / "03.txt").exists()


def test_what_else_lies_among_the_files_that_were_set_aside_is_not_lost(healthy):
    (healthy.folder / "record.json").write_text("[]")
    foreign(healthy, None)
    mend(healthy.project, DataConfig(**healthy.data), healthy.examine().find("foreign"))
    (batch,) = aside.batches(healthy.project)
    assert set(batch.files) == {"record.json", "notes.psd"}
    batch.held("mine.txt").write_text("a person's own")
    outside = json.loads((batch.folder / "record.json").read_text())
    outside["files"] += ["../escaped.png", str(healthy.project.folder / "x.png")]
    (batch.folder / "record.json").write_text(json.dumps(outside))
    assert aside.batches(healthy.project)[0].files == batch.files
    assert aside.restore(healthy.project, batch) == [] and not aside.batches(healthy.project)
    assert batch.held("mine.txt").exists() and (healthy.folder / "record.json").read_text() == "[]"


def test_a_caption_stays_with_the_picture_that_shares_it(healthy):
    (healthy.folder / "03.webp").write_bytes(b"broken")
    mend(healthy.project, DataConfig(**healthy.data), healthy.examine().find("unreadable"))
    assert (healthy.folder / "03.txt").exists() and not (healthy.folder / "03.webp").exists()


def test_the_last_pictures_and_prepared_copies_are_not_set_aside(healthy):
    healthy.data["resolution"] = 1024
    healthy.data["max_bucket_reso"] = 1024
    finding = healthy.examine().find("small")
    assert len(finding.pictures) == COUNT
    with pytest.raises(UserError, match="nothing would be left"):
        mend(healthy.project, DataConfig(**healthy.data), finding)
    shutil.copytree(healthy.folder, healthy.project.folder / "prepared")
    with pytest.raises(UserError, match="copies"):
        mend(healthy.project, DataConfig(**{**healthy.data, "folder": "prepared"}), finding)


# ---- the terminal ----------------------------------------------------------------------------------------------------


def terminal(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    _examine_verbs.add(parser.add_subparsers())
    options = parser.parse_args(arguments)
    return options.verb(options)


def test_the_terminal_checks_mends_and_brings_back(healthy, capsys):
    unreadable(healthy, None)
    folder = str(healthy.project.folder)
    settings = [part for name, value in DATA.items() for part in ("--set", f"data.{name}={value}")]
    settings += ["--set", "model.source=demo"]
    assert terminal("check", folder, *settings) == 1
    assert "03.png" in (told := capsys.readouterr().out) and f"lorakit data fix {folder} --set" in told
    assert terminal("fix", folder, "unreadable", *settings) == 0
    assert terminal("check", folder, "--json", *settings) == 0
    report = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert [row["kind"] for row in report["findings"]] == ["few"] and report["numbers"]["pictures"] == 14
    with pytest.raises(UserError, match="no finding 'unreadable'.*none"):
        terminal("fix", folder, "unreadable", *settings)
    assert terminal("fix", folder, "restore") == 0 and terminal("fix", folder, "restore") == 0
    assert "Nothing is set aside" in capsys.readouterr().out and (healthy.folder / "03.png").exists()
