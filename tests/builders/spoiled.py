"""A small dataset in which the doctor finds nothing, and for each of its checks a way to spoil it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from lorakit import models
from lorakit.data import DataConfig
from lorakit.examine import Report, examine
from lorakit.examine.checks import CHECKS
from lorakit.project import Project
from lorakit.run.config import LoopConfig

SIDE, COUNT = 64, 16
WORDS = ("smile", "sitting", "forest", "night", "hat", "running")
DATA = {"trigger": "mofu", "resolution": SIDE, "min_bucket_reso": SIDE, "max_bucket_reso": 2 * SIDE}
DATA |= {"bucket_reso_steps": 16, "min_bucket_reso": 32}
MODEL = models.config_class("sd15")(source="demo")


def make_image(seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
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
            self.add(f"{i:02d}.png", make_image(i), f"mofu, 1girl, {WORDS[i % 6]}, {WORDS[(i + 1) % 6]}")

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


# ---- kind -> what spoils the healthy set so; it returns the images that the finding names --------------------------


def unusable(set: Healthy, _) -> list[str]:
    shutil.rmtree(set.folder)
    return []


def unreadable(set: Healthy, _) -> list[str]:
    (set.folder / "03.png").write_bytes(b"no image")
    (set.folder / "04.png").write_bytes(b"")
    return ["03.png", "04.png"]


def truncated(set: Healthy, _) -> list[str]:
    set.add("a.bmp", make_image(99), "mofu, smile")
    data = (set.folder / "a.bmp").read_bytes()
    (set.folder / "a.bmp").write_bytes(data[: len(data) // 2])
    return ["a.bmp"]


def shared_caption(set: Healthy, _) -> list[str]:
    set.add("03.jpg", make_image(99))
    return ["03.jpg", "03.png"]


def caption_encoding(set: Healthy, _) -> list[str]:
    (set.folder / "03.txt").write_bytes("mofu, caf\u00e9".encode("latin-1"))
    return ["03.png"]


def unread_captions(set: Healthy, _) -> list[str]:
    (set.folder / "03.txt").unlink()
    (set.folder / "03.json").write_text('{"count": "1girl", "nl": "She stands."}')
    (set.folder / "metadata.csv").write_text("a;b\n1;2\n")
    return ["03.json", "metadata.csv"]


def unread_format(set: Healthy, _) -> list[str]:
    (set.folder / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (set.folder / "b.jxl").write_bytes(b"\xff\x0a")
    return ["a.HEIC", "b.jxl"]


def deep_folders(set: Healthy, _) -> list[str]:
    set.add("more/of it/5_mofu/a.png", make_image(99), "mofu, smile")
    return ["more/of it/5_mofu"]


def _moved(set: Healthy, numbers: range, folder: str) -> None:
    (set.folder / folder).mkdir()
    for i in numbers:
        for ending in (".png", ".txt"):
            (set.folder / f"{i:02d}{ending}").rename(set.folder / folder / f"{i:02d}{ending}")


def repeats(set: Healthy, _) -> list[str]:
    _moved(set, range(COUNT), "2024_summer")
    return []


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


def trigger_shared(set: Healthy, _) -> list[str]:
    for i in range(8):
        set.caption(i, f"rin, 1girl, {WORDS[i % 6]}, {WORDS[(i + 1) % 6]}")
    _moved(set, range(8), "2_rin")
    _moved(set, range(8, COUNT), "2_mofu")
    return []


def placeholders(set: Healthy, _) -> list[str]:
    set.data["trigger"] = ""
    set.caption(3, "[trigger], 1girl, smile")
    set.caption(4, "A girl called [Name] smiles, and sits.")
    return ["03.png", "04.png"]


def separators(set: Healthy, _) -> list[str]:
    set.data["secondary_separator"] = ""
    set.caption(3, "mofu &&& 1girl, smile")
    set.caption(4, "mofu, 1girl, smile;;;hat")
    set.caption(5, "mofu ||| 1girl, smile, ||_||")
    return ["03.png", "04.png"]


def several_lines(set: Healthy, _) -> list[str]:
    set.caption(3, "mofu, smile, hat\nmofu\na drawing of mofu who wears a hat\n")
    set.caption(4, "A portrait of mofu.\n\nShe smiles. Behind her, it is night.\n")
    set.caption(5, "mofu\n1girl\nsmile\n")
    return ["03.png"]


def prompt_syntax(set: Healthy, _) -> list[str]:
    set.caption(3, "mofu, (smile:1.3), hat <lora:old:0.8>")
    set.caption(4, r"mofu, \(^o^)/, ^_^, (o)_(o), saber (fate), smile")
    return ["03.png"]


def doubled_tags(set: Healthy, _) -> list[str]:
    set.caption(3, "mofu, smile, hat, Smile")
    set.caption(4, "mofu, ^_^, smile, o_o, O_o")
    return ["03.png"]


def mixed_spelling(set: Healthy, _) -> list[str]:
    set.caption(3, "mofu, Smile, hat")
    return ["03.png"]


def quality_tags(set: Healthy, _) -> list[str]:
    set.caption(3, "mofu, masterpiece, Best_Quality, smile")
    return ["03.png"]


def watermarks(set: Healthy, _) -> list[str]:
    set.caption(3, "mofu, artist_name, smile")
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
    set.add("03.png", Image.merge("RGB", [make_image(3).split()[0]] * 3), "mofu, 1girl, red hair")
    set.caption(4, "mofu, 1girl, red hair")
    set.add("04.png", Image.blend(make_image(4), Image.new("RGB", (SIDE, SIDE), "red"), 0.7))
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
    set.add("x.jpg", make_image(3).resize((96, 96)), "mofu, smile", quality=60)
    shutil.copy(set.folder / "05.png", set.folder / "!y.png")
    return ["x.jpg", "03.png", "05.png", "!y.png"]


def small(set: Healthy, _) -> list[str]:
    set.add("03.png", make_image(3, (30, 30)))
    return ["03.png"]


def cropped(set: Healthy, _) -> list[str]:
    set.add("03.png", make_image(3, (20, 200)))
    return ["03.png"]


def masks(set: Healthy, _) -> list[str]:
    for name in ("03-masklabel", "04_mask", "mask/05", "none-masklabel"):
        set.add(f"{name}.png", Image.new("L", (SIDE, SIDE), 255))
    set.add("06_mask.png", make_image(60), "mofu, 1girl, smile, hat")  # an image, as it has a caption
    return ["03-masklabel.png", "04_mask.png", "mask/05.png", "none-masklabel.png"]


def colour_profile(set: Healthy, _) -> list[str]:
    set.add("03.png", make_image(3), icc_profile=b"none")
    return ["03.png"]


def sideways(set: Healthy, _) -> list[str]:
    exif = Image.Exif()
    exif[0x0112] = 6
    set.add("03.png", make_image(3), exif=exif)
    return ["03.png"]


def enlarged(set: Healthy, _) -> list[str]:
    set.data["bucket_no_upscale"] = False
    set.add("03.png", make_image(3, (40, 40)))
    return ["03.png"]


def blurred(set: Healthy, _) -> list[str]:
    set.add("03.png", make_image(3).filter(ImageFilter.GaussianBlur(8)))
    return ["03.png"]


def borders(set: Healthy, _) -> list[str]:
    def on(colour: str, seed: int, left: int, top: int) -> Image.Image:
        page = Image.new("RGB", (SIDE + 2 * left, SIDE + 2 * top), colour)
        page.paste(make_image(seed), (left, top))
        return page

    set.add("03.png", on("black", 3, 0, 8))
    set.add("04.png", on("#203040", 4, 6, 6))
    set.add("05.png", on("white", 5, 9, 7))  # as a figure on white ground has it
    return ["03.png", "04.png"]


def alpha(set: Healthy, _) -> list[str]:
    image = make_image(3).convert("RGBA")
    image.paste((0, 0, 0, 0), (20, 20, 30, 30))
    set.add("03.png", image)
    return ["03.png"]


def animated(set: Healthy, _) -> list[str]:
    set.add("03.png", make_image(3), save_all=True, append_images=[make_image(98)])
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
        set.add(f"{i:02d}.png", make_image(i, size))
    return [f"{i:02d}.png" for i in range(8)]


def foreign(set: Healthy, _) -> list[str]:
    (set.folder / "notes.psd").write_bytes(b"8BPS")
    return ["notes.psd"]


def others(set: Healthy, _) -> list[str]:
    (set.folder / "stray.txt").write_text("of no image")
    return ["stray.txt"]


EXAMPLES = {
    name.replace("_", "-"): example
    for name, example in list(globals().items())
    if callable(example) and "-".join(name.split("_")) in CHECKS
}
