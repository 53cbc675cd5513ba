"""Aspect ratio buckets: which size an image is trained at, and how it gets there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from lorakit.data import DataConfig

if TYPE_CHECKING:
    from lorakit.data.scan import Sample


@dataclass(frozen=True)
class Fit:
    """How an image becomes a training image: resized, then cropped at `crop` to `size` (all width, height)."""

    size: tuple[int, int]
    resized: tuple[int, int]
    crop: tuple[int, int]


@dataclass(frozen=True)
class FittedImage:
    """An image and how it gets into its bucket."""

    sample: Sample
    fit: Fit

    @property
    def scale(self) -> float:
        """px of the training image for one px of the file; above 1 it is enlarged."""
        return max(self.fit.resized[0] / self.sample.width, self.fit.resized[1] / self.sample.height)

    @property
    def kept(self) -> tuple[float, float, float, float]:
        """Left, top, width and height of what is trained, as shares (0 to 1) of the image."""
        (across, down), (left, top), (width, height) = self.fit.resized, self.fit.crop, self.fit.size
        return left / across, top / down, width / across, height / down

    @property
    def lost(self) -> float:
        """Share (0 to 1) of the image's area that cropping loses."""
        return 1 - self.kept[2] * self.kept[3]


@dataclass(frozen=True)
class Bucket:
    """Images that are trained at one size (width, height)."""

    size: tuple[int, int]
    images: tuple[FittedImage, ...]

    @property
    def images_per_epoch(self) -> int:
        """How many images an epoch shows of it (repeats)."""
        return sum(fitted.sample.repeats for fitted in self.images)


def group_by_bucket(samples: Iterable[Sample], config: DataConfig) -> list[Bucket]:
    """All images by the bucket that each falls into, the fullest first."""
    fits: dict[tuple[int, int], Fit] = {}
    by_size: dict[tuple[int, int], list[FittedImage]] = {}
    for sample in samples:
        # Computed once per image size: datasets have many images of equal size.
        size = sample.width, sample.height
        if size not in fits:
            fits[size] = fit(*size, config)
        by_size.setdefault(fits[size].size, []).append(FittedImage(sample, fits[size]))
    buckets = [Bucket(size, tuple(images)) for size, images in by_size.items()]
    return sorted(buckets, key=lambda bucket: (-bucket.images_per_epoch, bucket.size))


def bucket_sizes(config: DataConfig) -> list[tuple[int, int]]:
    """Every bucket (width, height) whose area is at most resolution squared: for each width the tallest that fits."""
    step, area = config.bucket_reso_steps, config.resolution**2
    sizes = {(config.resolution, config.resolution)}
    for side in range(config.min_bucket_reso, config.max_bucket_reso + 1, step):
        # Rounded down to whole steps, so that no bucket exceeds the area.
        other = min(config.max_bucket_reso, area // side // step * step)
        if other >= config.min_bucket_reso:
            sizes |= {(side, other), (other, side)}
    return sorted(sizes)


def fit(width: int, height: int, config: DataConfig) -> Fit:
    """The bucket of an image: the one whose shape is nearest. With bucket_no_upscale no image is enlarged, unless a
    side is shorter than one step.
    """
    if not config.enable_bucket:
        size = (config.resolution, config.resolution)
    else:
        ratio = width / height
        # Nearest aspect ratio; of equally near ones the largest.
        size = min(bucket_sizes(config), key=lambda s: (abs(s[0] / s[1] - ratio), -s[0] * s[1]))
        if config.bucket_no_upscale and (width < size[0] or height < size[1]):
            size = _inside(width, height, config)
    # Cover the bucket, then crop what sticks out on the longer side; max() guards against rounding down.
    scale = max(size[0] / width, size[1] / height)
    resized = (max(size[0], round(width * scale)), max(size[1], round(height * scale)))
    return Fit(size, resized, ((resized[0] - size[0]) // 2, (resized[1] - size[1]) // 2))


def _inside(width: int, height: int, config: DataConfig) -> tuple[int, int]:
    """The size of an image that no bucket fits into: its own in whole steps, within the longest side and the area."""
    step = config.bucket_reso_steps
    # The shorter side decides first: the longer one then gets what the area still allows.
    short = max(step, min(width, height) // step * step)
    longest = min(config.max_bucket_reso, config.resolution**2 // short // step * step)
    long = max(step, min(longest, max(width, height) // step * step))
    return (long, short) if width >= height else (short, long)


def resize_and_crop(image: Image.Image, how: Fit, *, flip: bool = False) -> Image.Image:
    """The training image: resized (Lanczos), cropped, then flipped if `flip`."""
    (left, top), (width, height) = how.crop, how.size
    # Resampling to the same size would still cost time.
    if image.size != how.resized:
        image = image.resize(how.resized, Image.Resampling.LANCZOS)
    image = image.crop((left, top, left + width, top + height))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image
