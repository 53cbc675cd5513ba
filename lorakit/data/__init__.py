"""The training data: what it is, as settings."""

from __future__ import annotations

import re
from dataclasses import dataclass

from PIL import ImageColor

from lorakit.config import Config, Field, Slider, setting


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """Everything about the dataset that affects a run's result."""

    folder: str = setting(
        "dataset",
        help="folder with the images, inside the project or anywhere; "
        "kohya's <repeats>_<name>/ and reg/ folders are understood",
    )
    # Put in front of every caption, where `keep_tokens` protects it from shuffling and dropout.
    trigger: str = setting(
        "",
        help="trigger word (activation tag) of the character or style; put first in every caption that lacks it",
        ui=Field(label="trigger word", basic=True),
    )
    triggers: dict[str, str] = setting(
        {},
        help="trigger words of single concept folders, e.g. 10_miku: miku; the others have the trigger word above",
        ui=Field(label="trigger words by folder"),
    )
    repeats: int = setting(1, help="how often each image of a plain folder is used per epoch", range=(1, 10_000))
    caption_extension: str = setting(".txt", help="file extension of captions", choices=(".txt", ".caption"))
    caption_lines: str = setting(
        "one",
        help="what several lines in a caption file are: one caption, or alternatives, of which each step takes one",
        choices=("one", "alternatives"),
        ui=Field(label="caption lines"),
    )
    # Only the area counts for buckets: with 1024 px, 832 x 1216 is one (within max_bucket_reso).
    resolution: int = setting(
        512,
        help="training resolution: an image's area is at most this squared",
        unit="px",
        range=(64, 4096),
        ui=Slider(256, 1536, 64),
    )
    enable_bucket: bool = setting(
        True, help="keep aspect ratios by buckets; off: crop every image to a square", ui=Field(label="buckets")
    )
    min_bucket_reso: int = setting(
        256, help="shortest side of a bucket", unit="px", range=(32, 4096), ui=Field(label="min bucket side")
    )
    max_bucket_reso: int = setting(
        1024, help="longest side of a bucket", unit="px", range=(32, 8192), ui=Field(label="max bucket side")
    )
    bucket_reso_steps: int = setting(
        64, help="bucket sides are multiples of this", unit="px", range=(8, 512), ui=Field(label="bucket step")
    )
    # True here, False in kohya's scripts: an enlarged image teaches blur.
    bucket_no_upscale: bool = setting(
        True, help="never enlarge an image: small ones get a smaller bucket", ui=Field(label="no upscaling")
    )
    flip_aug: bool = setting(
        False,
        help="flip half of the images at random; not for characters with asymmetric details",
        ui=Field(label="flip augmentation"),
    )
    background: str = setting(
        "white",
        help="colour behind transparent parts: a name or #rrggbb",
        ui=Field(label="background colour"),
    )
    alpha_mask: bool = setting(
        False,
        help="use transparency and mask files (a-masklabel.png) as loss mask: transparent and black parts are not "
        "learned",
        ui=Field(label="alpha mask"),
    )
    shuffle_caption: bool = setting(
        False, help="shuffle tags, so that their order is not learned", ui=Field(label="shuffle caption")
    )
    keep_tokens: int = setting(
        1,
        help="number of first tags that stay in place and are never dropped",
        range=(0, 64),
        ui=Field(label="keep tokens"),
    )
    keep_tokens_separator: str = setting(
        "|||",
        help="tags before this in a caption stay in place, whatever “keep tokens” says; tags after a second one stay "
        "last",
        ui=Field(label="keep tokens separator"),
    )
    secondary_separator: str = setting(
        ";;;",
        help="tags that this separates instead of a comma are shuffled and dropped together",
        ui=Field(label="secondary separator"),
    )
    # A limit: with text caching each variant is one more encoding on disk.
    caption_variants: int = setting(
        8,
        help="number of shuffled variants of each caption; each is encoded once",
        range=(1, 256),
        ui=Field(label="caption variants (shuffled)"),
    )
    caption_dropout_rate: float = setting(
        0.0,
        help="probability of training an image without its caption",
        range=(0, 1),
        ui=Slider(0, 0.5, 0.01, label="caption dropout"),
    )
    caption_tag_dropout_rate: float = setting(
        0.0,
        help="probability of leaving out each tag of a caption variant",
        range=(0, 1),
        ui=Slider(0, 0.5, 0.01, label="tag dropout"),
    )
    cache_latents: bool = setting(
        True, help="encode each image once and keep its latents on disk; frees the VAE", ui=Field(label="cache latents")
    )
    cache_text: bool = setting(
        True,
        help="encode each caption once while the text encoder is not trained; frees the text encoder",
        ui=Field(label="cache text"),
    )
    reading: int = setting(
        2,
        help="how images and captions are read: 1 as version 0.2 did, for runs that began with it; set by the run",
        range=(1, 2),
        ui=Field(hidden=True),
    )

    def conflicts(self) -> list[str]:
        problems = []
        # Not ImageColor.getrgb, which also takes hsl(...) and transparent colours.
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", self.background) and self.background not in ImageColor.colormap:
            problems.append(
                f"background is {self.background!r}, which is no colour. Use a name such as white, or #rrggbb."
            )
        if self.min_bucket_reso > self.max_bucket_reso:
            problems.append(
                f"min_bucket_reso is {self.min_bucket_reso} and max_bucket_reso {self.max_bucket_reso}; swap them."
            )
        # Buckets are built in whole steps, so a side between two steps would never occur.
        for name in ("resolution", "min_bucket_reso", "max_bucket_reso"):
            if getattr(self, name) % self.bucket_reso_steps and self.enable_bucket:
                problems.append(
                    f"{name} is {getattr(self, name)}; it must be a multiple of bucket_reso_steps "
                    f"({self.bucket_reso_steps})."
                )
        if self.enable_bucket and self.resolution < self.min_bucket_reso:
            problems.append(
                f"resolution is {self.resolution}, below min_bucket_reso ({self.min_bucket_reso}): lower "
                f"min_bucket_reso to {self.resolution} or less."
            )
        if self.enable_bucket and self.resolution > self.max_bucket_reso:
            problems.append(
                f"resolution is {self.resolution}, above max_bucket_reso ({self.max_bucket_reso}): raise "
                f"max_bucket_reso to {self.resolution} or more."
            )
        if self.resolution % 8:
            problems.append(f"resolution is {self.resolution}; it must be a multiple of 8 px, one latent.")
        if self.bucket_reso_steps % 8:
            problems.append(
                f"bucket_reso_steps is {self.bucket_reso_steps}; it must be a multiple of 8 px, one latent."
            )
        return problems
