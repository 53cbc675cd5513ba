"""Aspect ratio buckets: which size a picture is trained at, and how it gets there."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from lorakit.data import DataConfig


@dataclass(frozen=True)
class Fit:
    """How a picture becomes a training picture: resized, then cropped at `crop` to `size` (all width, height)."""

    size: tuple[int, int]
    resized: tuple[int, int]
    crop: tuple[int, int]


def sizes(config: DataConfig) -> list[tuple[int, int]]:
    """Every bucket (width, height) whose area is at most resolution squared: for each width the tallest that fits."""
    step, area = config.bucket_reso_steps, config.resolution**2
    found = {(config.resolution, config.resolution)}
    for side in range(config.min_bucket_reso, config.max_bucket_reso + 1, step):
        other = min(config.max_bucket_reso, area // side // step * step)
        if other >= config.min_bucket_reso:
            found |= {(side, other), (other, side)}
    return sorted(found)


def fit(width: int, height: int, config: DataConfig) -> Fit:
    """The bucket of a picture: the one whose shape is nearest. With bucket_no_upscale no picture is enlarged, unless a
    side is shorter than one step.
    """
    if not config.enable_bucket:
        size = (config.resolution, config.resolution)
    else:
        ratio = width / height
        size = min(sizes(config), key=lambda s: (abs(s[0] / s[1] - ratio), -s[0] * s[1]))
        if config.bucket_no_upscale and (width < size[0] or height < size[1]):
            size = _inside(width, height, config)
    scale = max(size[0] / width, size[1] / height)
    resized = (max(size[0], round(width * scale)), max(size[1], round(height * scale)))
    return Fit(size, resized, ((resized[0] - size[0]) // 2, (resized[1] - size[1]) // 2))


def _inside(width: int, height: int, config: DataConfig) -> tuple[int, int]:
    """The size of a picture that no bucket fits into: its own in whole steps, within the longest side and the area."""
    step = config.bucket_reso_steps
    short = max(step, min(width, height) // step * step)
    longest = min(config.max_bucket_reso, config.resolution**2 // short // step * step)
    long = max(step, min(longest, max(width, height) // step * step))
    return (long, short) if width >= height else (short, long)


def apply(image: Image.Image, how: Fit, *, flip: bool = False) -> Image.Image:
    """The training picture: resized (Lanczos), cropped, mirrored when asked."""
    (left, top), (width, height) = how.crop, how.size
    if image.size != how.resized:
        image = image.resize(how.resized, Image.Resampling.LANCZOS)
    image = image.crop((left, top, left + width, top + height))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image
