"""Sampling settings, and the sample images that a run generates while it trains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.config import Config, ConfigError, Field, Slider, setting
from lorakit.diffusion.prompts import Prompt, parse
from lorakit.models import Size

if TYPE_CHECKING:
    from PIL import Image

SAMPLERS = ("ddim", "euler", "euler_a", "dpmpp_2m")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Config):
    """How images are generated, in samples and in grids."""

    negative_prompt: str = setting("", help="what the images should not show")
    width: int = setting(512, help="near the training resolution for realistic samples", unit="px", range=(64, 4096))
    height: int = setting(512, help="near the training resolution for realistic samples", unit="px", range=(64, 4096))
    steps: int = setting(
        25,
        help="more steps take longer; 20 to 30 are usual",
        range=(1, 200),
        ui=Slider(10, 60, 1, label="sampling steps"),
    )
    guidance_scale: float = setting(
        7.0,
        help="how closely the prompt is followed; too high burns the image",
        range=(1, 30),
        ui=Slider(1, 15, 0.5, label="CFG (guidance scale)"),
    )
    sampler: str = setting("ddim", help="use the one that you generate with elsewhere", choices=SAMPLERS)
    shift: float = setting(
        0.0,
        help="above 1 more steps at high noise (flow models such as Anima); 0 = as the base model sets it",
        range=(0, 20),
        ui=Slider(0, 10, 0.1, label="sampling shift"),
    )
    seed: int = setting(
        42, help="the same seed gives comparable images", range=(0, 2**32 - 1), ui=Field(label="sampling seed")
    )


@dataclass(frozen=True, kw_only=True)
class SampleConfig(SamplingConfig):
    """Sample images while training; the result of the training does not depend on them."""

    prompts: tuple[str, ...] = setting(
        (),
        help="one sample image per prompt, with weights as in (hat:1.2) and kohya's flags (--n --w --h --d --l --s); "
        "empty = no samples",
        ui=Field(label="sample prompts", basic=True),
    )
    every_epochs: int = setting(
        1,
        help="generate samples every N epochs; 0 = off",
        unit="epochs",
        range=(0, None),
        ui=Field(label="samples every"),
    )
    every_steps: int = setting(
        0,
        help="generate samples every N steps; 0 = off",
        unit="steps",
        range=(0, None),
        ui=Field(label="samples every"),
    )


def sampling_problems(sampling: SamplingConfig, family: Any) -> list[str]:
    """Sentences about sampling settings that a family (its Config) does not have."""
    multiple = family.resolution_multiple
    problems = [
        f"{name} is {getattr(sampling, name)}; with {family.family} it must be a multiple of {multiple}."
        for name in ("width", "height")
        if getattr(sampling, name) % multiple
    ]
    if sampling.sampler not in family.samplers:
        problems.append(f"sampler is {sampling.sampler}; {family.family} has {', '.join(family.samplers)}.")
    if sampling.shift and "sample.shift" in family.unsupported:
        problems.append(f"shift cannot be used with {family.family}: {family.unsupported['sample.shift']}")
    return problems


def requested(prompt: Prompt, sampling: SamplingConfig, family: Any) -> tuple[SamplingConfig, list[str]]:
    """The sampling settings with the flags of a prompt, and a sentence for each flag that was changed or left out.

    Sizes are rounded down to what the family (its Config) can generate, as kohya's scripts do. `sampling` may be of a
    subclass of SamplingConfig.
    """
    notes = []
    for name, value in prompt.flags:
        if name in ("width", "height"):
            rounded = value - value % family.resolution_multiple
            notes += [f"{name} {value} is rounded to {rounded}."] * (rounded != value)
            value = rounded
        try:
            changed = replace(sampling, **{name: value})
        except ConfigError as error:
            problems = str(error).splitlines()
        else:
            problems = sampling_problems(changed, family)
        if problems:
            notes.append(f"the flag for {name} is left out: {problems[0]}")
        else:
            sampling = changed
    return sampling, notes


def prompts_of(texts: Iterable[str], sampling: SamplingConfig, family: Any) -> list[Prompt]:
    """Everything that is encoded to generate images of these prompts: each prompt, and its negative prompt."""
    read = []
    for prompt in map(parse, texts):
        read += [prompt, parse(requested(prompt, sampling, family)[0].negative_prompt)]
    return list(dict.fromkeys(read))


def prompt_notes(texts: Iterable[str], sampling: SamplingConfig, family: Any) -> list[tuple[str, str]]:
    """(prompt, sentence) for everything in prompts, and in the negative prompt, that is not done as it says."""
    notes = [(sampling.negative_prompt, note) for note in parse(sampling.negative_prompt).notes]
    for text in texts:
        prompt = parse(text)
        changed, of_flags = requested(prompt, sampling, family)
        negative = parse(changed.negative_prompt).notes if changed.negative_prompt != sampling.negative_prompt else ()
        notes += [(text, note) for note in (*prompt.notes, *of_flags, *negative)]
    return list(dict.fromkeys(notes))


def generate_image(model: Any, prompt: dict, negative: dict, config: SamplingConfig, seed: int) -> Image.Image:
    """One image from encoded prompts (`model.encode_prompt`) with the model's current weights."""
    size = Size.whole(config.width, config.height)
    return model.sample(model.condition([prompt], [size]), model.condition([negative], [size]), config, seed)


def save_image(image: Image.Image, file: Path, parameters: dict[str, Any]) -> None:
    """Write a PNG with its parameters inside (text chunk `parameters`, JSON), whole or not at all."""
    import json
    import os

    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    # iTXt is UTF-8; tEXt could not hold Chinese prompts.
    info.add_itxt("parameters", json.dumps(parameters, ensure_ascii=False))
    file.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when complete, so that a view never shows half an image.
    part = file.with_suffix(".part")
    image.save(part, "PNG", pnginfo=info)
    os.replace(part, file)
