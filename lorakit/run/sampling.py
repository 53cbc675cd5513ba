"""Sample images while training: when, of what, and how they are stored."""

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
    """How images are painted, in samples and in grids."""

    negative_prompt: str = setting("", help="what should not be in the images")
    width: int = setting(512, help="width", unit="px", range=(64, 4096))
    height: int = setting(512, help="height", unit="px", range=(64, 4096))
    steps: int = setting(25, help="sampling steps", range=(1, 200), ui=Slider(10, 60, 1))
    guidance_scale: float = setting(
        7.0, help="how strictly the prompt is followed (CFG)", range=(1, 30), ui=Slider(1, 15, 0.5)
    )
    sampler: str = setting("ddim", help="sampler", choices=SAMPLERS)
    shift: float = setting(
        0.0,
        help="sampling shift of flow families (Anima): above 1 more steps at noise; 0: as the base says",
        range=(0, 20),
        ui=Slider(0, 10, 0.1),
    )
    seed: int = setting(42, help="the noise that images start from", range=(0, 2**32 - 1))


@dataclass(frozen=True, kw_only=True)
class SampleConfig(SamplingConfig):
    """Which samples are painted while training; they change nothing in it."""

    prompts: tuple[str, ...] = setting(
        (), help="an image is painted for each; none: no samples", ui=Field(label="sample prompts", basic=True)
    )
    every_epochs: int = setting(
        1,
        help="paint after every so many epochs; 0: not by epochs",
        unit="epochs",
        range=(0, None),
        ui=Field(label="samples every"),
    )
    every_steps: int = setting(
        0,
        help="paint after every so many steps; 0: not by steps",
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
    info.add_itxt("parameters", json.dumps(parameters, ensure_ascii=False))
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    image.save(part, "PNG", pnginfo=info)
    os.replace(part, file)
