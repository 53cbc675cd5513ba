"""Prepared images: copies of the originals, cropped, padded and resized; outdated ones are rebuilt."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from PIL import Image, ImageColor

from lorakit.config import Config, Field, Slider, from_dict, read_yaml, setting, to_dict, to_yaml
from lorakit.data import DataConfig, measures
from lorakit.data.image_stats import ImageStats, StatsCache
from lorakit.data.images import ImageError, alpha_of, open_rgb
from lorakit.data.listing import Note, folder_of
from lorakit.data.masks import CERTAIN
from lorakit.data.scan import Sample, scan
from lorakit.errors import UserError
from lorakit.events import Progress
from lorakit.files import try_lock, write_atomic
from lorakit.files.disk import DiskFull, is_full, raise_if_failing, reason_of
from lorakit.prepare.boxes import Box, BoxError, Boxes
from lorakit.prepare.copies import Copies
from lorakit.project import Project

# Folder inside the project; trained on with data.folder.
FOLDER = "prepared"
SETTINGS, RECORD = "prepare.yaml", "prepared.jsonl"
# width x height. Not "2:3" and "no", which YAML reads as 123 and false.
SHAPES = (
    "none",
    "1x1",
    "4x5",
    "3x4",
    "2x3",
    "9x16",
    "5x4",
    "4x3",
    "3x2",
    "16x9",
)
# Images in memory at once.
AHEAD = 8
# The settings that decide the pixels of a copy.
PIXELS = ("pad", "background", "transparency", "resize", "size", "enlarge")
# Version of the processing; with another one all copies are rebuilt.
VERSION = 1


class PrepareError(UserError):
    """Images cannot be prepared with these settings."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(Config):
    """How images are prepared, in this order: duplicates skipped, cropped, padded, resized."""

    folder: str = setting(
        "dataset", help="folder with the originals, while prepared images are trained", ui=Field(hidden=True)
    )
    crop: bool = setting(True, help="crop to the boxes that were drawn; one image per box", ui=Field(label="crop"))
    pad: str = setting(
        "none",
        help="pad to this aspect ratio (width x height), so that buckets crop nothing; none: no padding",
        choices=SHAPES,
        ui=Field(label="pad to"),
    )
    background: str = setting(
        "white",
        help="colour of padding and behind transparent pixels, by name or as #rrggbb",
        ui=Field(label="background"),
    )
    transparency: str = setting(
        "background",
        help="what happens to transparent parts: filled with the background colour, or kept for use as a loss mask",
        choices=("background", "keep"),
    )
    resize: str = setting(
        "area",
        help="what is resized to the size: longest side, shortest side, or the area (of a square with that side)",
        choices=("none", "longest", "shortest", "area"),
    )
    size: int = setting(
        1024,
        help="length of that side, or of a side of that square; smaller images are not enlarged",
        unit="px",
        range=(64, 8192),
        ui=Slider(512, 2048, 64, when=("resize", ("longest", "shortest", "area"))),
    )
    enlarge: bool = setting(
        False,
        help="enlarge smaller images as well; that adds no detail",
        ui=Field(when=("resize", ("longest", "shortest", "area"))),
    )
    duplicates: str = setting(
        "exact",
        help="duplicates that are skipped: none, identical files, or near duplicates as well (the largest is used)",
        choices=("keep", "exact", "near"),
    )
    difference: int = setting(
        4,
        help="number of bits, of 64 in the perceptual hash, that may differ between near duplicates",
        range=(0, 16),
        ui=Slider(0, 16, 1, when=("duplicates", ("near",))),
    )

    def conflicts(self) -> list[str]:
        try:
            ImageColor.getrgb(self.background)
        except ValueError:
            return [f"background is {self.background!r}, which is no colour: write white, black or #rrggbb."]
        return []


@dataclass(frozen=True)
class _Copy:
    """One prepared image to write, or the mask of one; `name` is its path inside the folder."""

    name: str
    sample: Sample
    box: Box | None
    is_mask: bool = False

    def key(self, how: PrepareConfig) -> str:
        """Hash of everything that decides its pixels."""
        settings = {name: value for name, value in to_dict(how).items() if name in PIXELS}
        # Not the name: a renamed original gives the same pixels.
        digest = self.sample.mask_digest if self.is_mask else self.sample.digest
        inputs = [VERSION, digest, self.box and self.box.edges, settings]
        return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def read_prepare_config(project: Project) -> PrepareConfig:
    """How the project's images are prepared. Raises ConfigError for invalid settings."""
    file = project.folder / SETTINGS
    return from_dict(PrepareConfig, read_yaml(file) if file.exists() else {}, f"{file}: ")


def write_prepare_config(project: Project, how: PrepareConfig) -> None:
    """Store how the project's images are prepared."""
    project.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(project.folder / SETTINGS, to_yaml(how))


def config_of_originals(project: Project, config: DataConfig) -> DataConfig:
    """The settings with the folder of the originals, if they name the folder of prepared images."""
    is_prepared = folder_of(config, project.folder) == project.folder / FOLDER
    return replace(config, folder=read_prepare_config(project).folder) if is_prepared else config


def prepare(project: Project, config: DataConfig, how: PrepareConfig) -> Iterator[Progress | Note]:
    """Write a copy of every usable image as PNG into `<project>/prepared/`, with its caption, in the same folders.

    Another call, also after an interrupted one, writes only what changed and removes what is no longer needed.
    Captions and images that were edited there are kept; the originals are only read. An image that fails is skipped.
    Yields progress, and a note for everything that is skipped or kept. If `config` names the prepared images, their
    originals are used. Raises DataError without images, BoxError, PrepareError, DiskFull.
    """
    root, boxes = project.folder / FOLDER, Boxes(project)
    config = config_of_originals(project, config)
    dataset = scan(config, project.folder)
    yield from dataset.left_out
    samples = {sample.name: sample for sample in dataset.samples}
    for name in sorted({*boxes.names()} - {*samples}):
        yield Note("box", name, "has a box, but there is no such image.")
    for name, kept in find_duplicates(project, dataset.samples, how, boxes).items():
        yield Note("duplicate", name, f"skipped, it is the same image as {kept}.")
        del samples[name]
    try:
        # A hidden file in cache/, which is neither listed nor uploaded.
        with try_lock(project.cache / ".prepare.lock") as is_alone:
            if not is_alone:
                raise PrepareError("Another process or cell is preparing the images: wait until it has finished.")
            copies = Copies(root, project.folder / RECORD)
            planned = _planned([*samples.values()], boxes, how)
            yield from _write_copies(copies, [*planned, *_masks(planned)], config, how)
            # Only after all copies: until then the record also has the digests of before.
            copies.close()
    except OSError as error:
        advice = "What was prepared so far is complete and the originals are untouched: prepare again to resume."
        if is_full(error):
            raise DiskFull(f"The disk that {root} is on is full; free some space. {advice}") from error
        raise PrepareError(f"Preparing stopped: {reason_of(error, root)}. {advice}") from error


def find_duplicates(project: Project, samples: tuple[Sample, ...], how: PrepareConfig, boxes: Boxes) -> dict[str, str]:
    """Duplicate -> the image that is used instead: one with a box, else the larger, else a captioned one.

    Raises PrepareError when similarity is needed and cannot be measured.
    """
    if how.duplicates == "keep":
        return {}
    stats: dict[str, ImageStats] = {}
    if how.duplicates == "near":
        by_path = dict(StatsCache.of(project.folder).measure(sample.path for sample in samples))
        if not all(measured.phash for measured in by_path.values()):
            raise PrepareError(
                "Near duplicates need the package ImageHash, which is missing: pip install ImageHash, or set "
                "duplicates to exact."
            )
        stats = {sample.name: by_path[sample.path] for sample in samples}

    def is_same(one: Sample, other: Sample) -> bool:
        return one.is_reg == other.is_reg and (
            one.digest == other.digest or (stats and _is_alike(stats[one.name], stats[other.name], how.difference))
        )

    kept: list[Sample] = []
    duplicates = {}
    # The first of equal images is used, so sort by preference; False sorts before True.
    for sample in sorted(samples, key=lambda s: (not boxes.of(s.name), -s.width * s.height, not s.is_captioned)):
        if twin := next((one for one in kept if is_same(one, sample)), None):
            duplicates[sample.name] = twin.name
        else:
            kept.append(sample)
    return dict(sorted(duplicates.items()))


def _is_alike(one: ImageStats, other: ImageStats, bits: int) -> bool:
    """Whether two images look the same: by perceptual hash, which ignores colour, and by the colours of cells."""
    # The number of differing bits (Hamming distance) of two 64-bit hashes.
    if (int(one.phash, 16) ^ int(other.phash, 16)).bit_count() > bits:
        return False
    [apart] = measures.colour_distance(measures.with_neighbours(one.cells), measures.with_neighbours(other.cells)[None])
    return bool(apart <= measures.MAX_COLOUR_DISTANCE)


def _planned(samples: list[Sample], boxes: Boxes, how: PrepareConfig) -> list[_Copy]:
    """The images to write. No two share a stem, as they would share a caption file."""
    by_name: dict[str, _Copy] = {}
    # By name: "-" sorts before ".", so a-2.png gets its name before a second box of a.png could.
    for sample in sorted(samples, key=lambda sample: sample.name):
        plain = str(PurePosixPath(sample.name).with_suffix(""))
        own = boxes.of(sample.name) if how.crop else ()
        for number, box in enumerate(own or (None,), start=1):
            # A box's name becomes part of a file name.
            called = re.sub(r"[^\w.-]+", "-", box.name).strip("-.") if box else ""
            stem = f"{plain}-{called}" if called else plain if number == 1 else f"{plain}-{number}"
            spellings = itertools.chain([stem], (f"{stem}-{again}" for again in itertools.count(2)))
            spelled = next(one for one in spellings if one not in by_name)
            by_name[spelled] = _Copy(f"{spelled}.png", sample, box)
    return list(by_name.values())


def _masks(planned: list[_Copy]) -> list[_Copy]:
    """The masks that go with images, each beside its image."""
    names = {one.name: str(PurePosixPath(one.name).with_suffix("")) for one in planned if one.sample.mask}
    masked = (one for one in planned if one.name in names)
    return [replace(one, name=f"{names[one.name]}{CERTAIN[0]}.png", is_mask=True) for one in masked]


# ---- one image -----------------------------------------------------------------------------------------------------


def prepare_image(path: Path, box: Box | None, how: PrepareConfig) -> Image.Image:
    """A prepared image: RGB, or RGBA if transparency is kept. Raises ImageError, BoxError."""
    image = open_rgb(path, how.background)
    mask = alpha_of(path) if how.transparency == "keep" else None
    if mask is not None:
        image.putalpha(mask)
    return _fitted(image, box, how)


def _fitted(image: Image.Image, box: Box | None, how: PrepareConfig) -> Image.Image:
    """Cropped to its box, padded and resized."""
    if box is not None:
        image = image.crop(box.within(*image.size).edges)
    return _resized(_padded(image, how), how)


def _prepared_mask(copy: _Copy, how: PrepareConfig) -> Image.Image:
    """The mask of a prepared image, of the same size; what is added at the sides is not learned."""
    mask, size = open_rgb(copy.sample.mask, by_profile=False), (copy.sample.width, copy.sample.height)
    mask = mask.resize(size, Image.Resampling.BILINEAR)
    return _fitted(mask, copy.box, replace(how, background="black")).convert("L")


def _padded(image: Image.Image, how: PrepareConfig) -> Image.Image:
    """Padded equally on both sides; with transparency kept, the padding is transparent."""
    if how.pad == "none":
        return image
    (width, height), (across, down) = image.size, map(int, how.pad.split("x"))
    # -(-a // b) rounds up: the padded image is never smaller than the original.
    size = max(width, -(-height * across // down)), max(height, -(-width * down // across))
    # Without alpha, which #rrggbbaa has.
    colour = ImageColor.getrgb(how.background)[:3]
    padded = Image.new(image.mode, size, colour if image.mode == "RGB" else (*colour, 0))
    padded.paste(image, ((size[0] - width) // 2, (size[1] - height) // 2))
    return padded


def _resized(image: Image.Image, how: PrepareConfig) -> Image.Image:
    if how.resize == "none":
        return image
    width, height = image.size
    # What is compared with `size`, in px.
    side = {"longest": max(width, height), "shortest": min(width, height), "area": math.sqrt(width * height)}
    scale = how.size / side[how.resize]
    if scale == 1 or (scale > 1 and not how.enlarge):
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)


def _png(copy: _Copy, how: PrepareConfig) -> bytes | str:
    """A copy as PNG bytes, or a text with the reason why it failed."""
    packed = io.BytesIO()
    try:
        # Level 3 instead of Pillow's 6: a third of the time.
        image = _prepared_mask(copy, how) if copy.is_mask else prepare_image(copy.sample.path, copy.box, how)
        image.save(packed, "PNG", compress_level=3)
    except (ImageError, BoxError) as error:
        return str(error)
    except OSError as error:
        raise_if_failing(error, copy.sample.path)
        return f"it cannot be read ({error.strerror or error})"
    return packed.getvalue()


# ---- all of them -----------------------------------------------------------------------------------------------------


def _write_copies(
    copies: Copies, planned: list[_Copy], config: DataConfig, how: PrepareConfig
) -> Iterator[Progress | Note]:
    """Write, replace and remove copies until the folder is as configured."""
    captions = {one.name: str(PurePosixPath(one.name).with_suffix(config.caption_extension)) for one in planned}
    yield from copies.remove_all_but({*captions, *captions.values()})
    missing = []
    for one in planned:
        state = copies.state(one.name)
        if state == "changed":
            yield Note("kept", f"{FOLDER}/{one.name}", "was changed there and is kept; delete it to rebuild it.")
        elif state != "made" or copies.keys[one.name] != one.key(how):
            missing.append(one)
        yield from _captioned(copies, captions[one.name], "" if one.is_mask else one.sample.written)
    done = len(planned) - len(missing)
    yield Progress(what="images prepared", done=done, total=len(planned))
    with ThreadPoolExecutor(min(AHEAD, os.cpu_count() or 1)) as makers:
        # In batches: map() of all images would keep every finished PNG in memory.
        for begin in range(0, len(missing), AHEAD):
            batch = missing[begin : begin + AHEAD]
            for one, data in zip(batch, makers.map(lambda one: _png(one, how), batch), strict=True):
                if isinstance(data, str):
                    yield Note("failed", one.sample.name, f"left out, {data}.")
                    yield from copies.remove((one.name, captions[one.name]))
                else:
                    copies.write(one.name, data, one.key(how))
                    done += 1
                yield Progress(what="images prepared", done=done, total=len(planned))


def _captioned(copies: Copies, name: str, text: str) -> Iterator[Note]:
    """Copy a caption, unless it was changed there."""
    data = f"{text}\n".encode() if text else b""
    key, state = hashlib.sha256(data).hexdigest(), copies.state(name)
    if state == "changed":
        if copies.keys.get(name, key) != key:
            yield Note("kept", f"{FOLDER}/{name}", "was changed there, and the original's was, too; this one is kept.")
            # Reported once: from now on the edited caption belongs to this version of the original.
            copies.keys[name] = key
    elif not text:
        yield from copies.remove((name,))
    elif state != "made" or copies.keys[name] != key:
        copies.write(name, data, key)
