"""Sampling settings, and the sample images that a run generates while it trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.config import Config, Field, Slider, setting
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
        (), help="one sample image per prompt; empty = no samples", ui=Field(label="sample prompts", basic=True)
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


def generate_image(model: Any, prompt: dict, negative: dict, config: SamplingConfig, seed: int) -> Image.Image:
    """One image from encoded captions (`model.encode_text`) with the model's current weights."""
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
