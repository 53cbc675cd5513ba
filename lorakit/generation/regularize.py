"""Regularization images: one for each training image, painted by the base model alone, in kohya's layout."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.config import Config, Field, choices_of, setting, to_dict
from lorakit.data import buckets
from lorakit.data.cache import Cache, Tensors
from lorakit.data.captions import tags_of
from lorakit.data.images import ImageError, header
from lorakit.data.listing import Note, folder_of
from lorakit.data.scan import Sample, scan
from lorakit.files import write_atomic
from lorakit.machine.device import choose_precision
from lorakit.models import family
from lorakit.project import Project
from lorakit.randomness import seed_of
from lorakit.run.config import RunConfig
from lorakit.run.memory import explained
from lorakit.run.sampling import SamplingConfig, generate_image, save_image

if TYPE_CHECKING:
    from PIL import Image

MARK = "regularization of"  # among an image's parameters: it is one of ours, and for which training image
KIND = "regularization"  # of notes


@dataclass(frozen=True, kw_only=True)
class RegularizeConfig(Config):
    """How regularization images are made; their size is the training's, the rest of their sampling that of samples."""

    class_name: str = setting(
        "1girl",
        help="what the subject is one of; names the folder, and is the prompt of images without caption",
        ui=Field(label="class"),
    )
    use_captions: bool = setting(
        True,
        help="each from its image's caption, without the trigger; off: all from the class",
        ui=Field(label="captions"),
    )
    seed: int = setting(420, help="the noise that images start from", range=(0, 2**32 - 1))

    def conflicts(self) -> list[str]:
        if re.fullmatch(r"\w[^/\\:*?\"<>|\x00-\x1f]{0,99}", self.class_name):
            return []
        return [f"class_name is {self.class_name!r}; write a word or tag that can also name a folder, such as 1girl."]


@dataclass(frozen=True)
class Wanted:
    """One regularization image: for which training image, where, from which prompt and how it is painted."""

    sample: Sample
    file: Path
    prompt: str
    sampling: SamplingConfig


@dataclass(frozen=True)
class Made:
    """An image is on disk with its caption; `done` of `total` are. `is_new`: it was painted just now."""

    wanted: Wanted
    done: int
    total: int
    is_new: bool


def wanted(project: Project, config: RunConfig, how: RegularizeConfig) -> list[Wanted]:
    """Every regularization image of a project's dataset, in the order of its training images. Raises DataError.

    Each is in `<data folder>/reg/<repeats>_<class>/` under its training image's name, where it is repeated as often
    as that: so both count alike. Several concept folders have a folder each (`<repeats>_<class>_<concept>`).
    """
    samples = [sample for sample in scan(config.data, project.folder).samples if not sample.is_reg]
    root = folder_of(config.data, project.folder)
    concepts = {sample.name: _concept(sample, root) for sample in samples}
    files: dict[Path, Sample] = {}
    asked: set[tuple] = set()
    found = []
    for sample in samples:
        several = "" if len(set(concepts.values())) == 1 else f"_{concepts[sample.name]}"
        folder = root / "reg" / f"{sample.repeats}_{how.class_name}{several}"
        inside = sample.path.relative_to(root).parts[1 if concepts[sample.name] else 0 :]
        file = folder / Path("-".join(inside)).with_suffix(".png")
        if file in files:  # 001.png and 001.jpg
            file = file.with_stem(f"{file.stem}-{sample.digest[:6]}")
        files[file] = sample
        prompt = prompt_of(sample, config.data.trigger, how)
        width, height = buckets.fit(sample.width, sample.height, config.data).size
        # equal prompts on equal noise would be equal images
        seed = seed_of(how.seed, file.name) % 2**32 if (prompt, width, height) in asked else how.seed
        asked.add((prompt, width, height))
        found.append(Wanted(sample, file, prompt, _look(config, width, height, seed)))
    return found


def prompt_of(sample: Sample, trigger: str, how: RegularizeConfig) -> str:
    """The caption without the trigger; in a sentence the class stands for it. The class for an image without one."""
    if not how.use_captions or not sample.is_captioned:
        return how.class_name
    tags = [tag for tag in tags_of(sample.caption) if tag != trigger]
    if trigger:
        tags = [re.sub(rf"(?<!\w){re.escape(trigger)}(?!\w)", lambda _: how.class_name, tag) for tag in tags]
    return ", ".join(tags) or how.class_name


def regularize(project: Project, config: RunConfig, how: RegularizeConfig) -> Iterator[Made | Note]:
    """Paint the regularization images that are missing, or were made of another caption, base or sampling.

    `config` says the base, the dataset, the size (as it is trained), steps, guidance and negative prompt (as samples
    have them). SD 1.5 and SDXL paint by DDIM, Anima by its own sampler. Stopped anywhere, it goes on when called again:
    what is there is whole. A file that was not made here is never written over, nor a caption that was edited.
    Raises DataError, ConfigError, SourceError, ModelFileError and OutOfMemory.
    """
    all_wanted = wanted(project, config, how)
    yield from _renamed(all_wanted)
    yield from _leftover(all_wanted)
    generator = _Base(project, config)
    before = {one.file: parameters(one.file) for one in all_wanted}
    there, missing = [], []
    for one in all_wanted:
        if before[one.file] == generator.parameters(one):
            there.append(one)
        elif MARK in before[one.file] or not one.file.exists():
            missing.append(one)
        else:
            yield Note(KIND, _name(one.file), "was not made here and stays; no other is made in its place.")
    generator.read(missing)
    for done, one in enumerate([*there, *missing], 1):
        if is_new := done > len(there):
            image = generator.generate(one)
            one.file.parent.mkdir(parents=True, exist_ok=True)
            save_image(image, one.file, generator.parameters(one))
        _caption(one, config, before[one.file])
        yield Made(one, done, len(there) + len(missing), is_new)


def parameters(file: Path) -> dict[str, Any]:
    """What an image was made from, as it says itself; {} for one that says nothing, or is not there."""
    try:
        with header(file) as image:
            told = json.loads(image.info["parameters"])
    except (ImageError, ValueError, LookupError, TypeError):
        return {}
    return told if isinstance(told, dict) else {}


class _Base:
    """The base model without any adapter."""

    def __init__(self, project: Project, config: RunConfig):
        precision = choose_precision(config.loop.precision)
        self.config, self.device = config, precision.device
        self.model = family(config.model.family).Model(config.model, precision.device, precision.dtype)
        self.model.offload = config.memory.offload
        self.texts = Cache(project.cache / "text")  # as training has it
        files = [self.model.fingerprint(part) for part in self.model.parts]
        # paths and addresses differ between machines, while the files behind them are the same
        used = {
            f.name: value
            for f in fields(config.model)
            if not isinstance(value := getattr(config.model, f.name), str) or choices_of(f)
        }
        self.base = hashlib.sha256(json.dumps([files, used]).encode()).hexdigest()[:16]

    def parameters(self, one: Wanted) -> dict[str, Any]:
        """What is written into an image: all that decides it, but the machine's precision."""
        return {"prompt": one.prompt, **to_dict(one.sampling), "base": self.base, MARK: one.sample.path.name}

    def read(self, wanted_images: list[Wanted]) -> None:
        """Encode all prompts, then let go of what encodes them."""
        prompts = dict.fromkeys(
            [prompt for one in wanted_images for prompt in (one.prompt, one.sampling.negative_prompt)]
        )
        with self._explained("while reading prompts"):
            for prompt in prompts:
                self._text(prompt)
        self.model.release(*self.model.text_parts)

    def generate(self, one: Wanted) -> Image.Image:
        """The image."""
        import torch

        with self._explained("while painting"), torch.no_grad(), self.model.eval_mode():
            prompt, negative = self._text(one.prompt), self._text(one.sampling.negative_prompt)
            return generate_image(self.model, prompt, negative, one.sampling, one.sampling.seed)

    def _explained(self, doing: str):
        return explained(
            self.config, self.device, doing, otherwise="Or train, and paint, at a smaller data.resolution."
        )

    def _text(self, prompt: str) -> Tensors:
        file = self.texts.path(*self.model.text_key(), prompt)
        return self.texts.get(file, lambda: self.model.encode_text(prompt))


# ---- places ----------------------------------------------------------------------------------------------------------


def _concept(sample: Sample, root: Path) -> str:
    """The name of an image's concept folder, without its repeats; "" in a plain data folder."""
    match = re.fullmatch(r"0*([1-9]\d*)_(.+)", sample.path.relative_to(root).parts[0])
    return match[2] if match and sample.path.parent.parent == root else ""


def _look(config: RunConfig, width: int, height: int, seed: int) -> SamplingConfig:
    as_samples = {f.name: getattr(config.sample, f.name) for f in fields(SamplingConfig)}
    samplers = config.model.samplers
    sampler = "ddim" if "ddim" in samplers else samplers[0]
    return SamplingConfig(**{**as_samples, "width": width, "height": height, "seed": seed, "sampler": sampler})


def _renamed(all_wanted: list[Wanted]) -> Iterator[Note]:
    """Folders of other repeats take their new name, when the training images' folder has got another one; a note on
    every other folder, as of an earlier class, that is trained on as well.
    """
    folders = list(dict.fromkeys(one.file.parent for one in all_wanted))
    for old in sorted({*folders[0].parent.glob("*_*")} - {*folders}):
        if not (re.fullmatch(r"0*[1-9]\d*_.+", old.name) and old.is_dir() and any(old.iterdir())):
            continue
        new = next((folder for folder in folders if _class(folder) == _class(old)), None)
        if new and not new.exists() and all(MARK in parameters(file) for file in old.glob("*.png")):
            os.replace(old, new)
        else:
            yield Note(KIND, _name(old), "is trained on as well: regularization images count more than others.")


def _class(folder: Path) -> str:
    return folder.name.partition("_")[2]


def _leftover(all_wanted: list[Wanted]) -> Iterator[Note]:
    """Images of ours whose training image is gone."""
    known = {one.file for one in all_wanted}
    for folder in dict.fromkeys(one.file.parent for one in all_wanted):
        for file in sorted(folder.glob("*.png")):
            if file not in known and MARK in parameters(file):
                yield Note(KIND, _name(file), "is left over, as its training image is gone; delete it.")


def _caption(one: Wanted, config: RunConfig, before: dict[str, Any]) -> None:
    """Write the prompt beside the image, unless somebody else wrote a caption there."""
    file = one.file.with_suffix(config.data.caption_extension)
    try:
        there = file.read_bytes()
    except FileNotFoundError:
        there = None
    if there is None or (there == before.get("prompt", "").encode() and there != one.prompt.encode()):
        write_atomic(file, one.prompt)


def _name(path: Path) -> str:
    return f"reg/{path.name}" if path.parent.name == "reg" else f"reg/{path.parent.name}/{path.name}"
