"""The training data: what it is, as settings."""

from __future__ import annotations

import re
from dataclasses import dataclass

from PIL import ImageColor

from lorakit.config import Config, Field, Slider, setting


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """Everything about the data that decides a run's result."""

    folder: str = setting(
        "dataset",
        help="folder with the images, inside the project or anywhere; "
        "kohya's <repeats>_<name>/ and reg/ folders are understood",
    )
    trigger: str = setting(
        "",
        help="word that calls the character or style; put first in every caption when it is missing there",
        ui=Field(label="trigger word", basic=True),
    )
    repeats: int = setting(1, help="how often each image of a plain folder is seen in an epoch", range=(1, 10_000))
    caption_extension: str = setting(".txt", help="ending of the caption files", choices=(".txt", ".caption"))
    resolution: int = setting(
        512,
        help="an image's area in training is at most this squared",
        unit="px",
        range=(64, 4096),
        ui=Slider(256, 1536, 64),
    )
    enable_bucket: bool = setting(
        True, help="keep each image's shape (buckets); off: crop everything to a square", ui=Field(label="buckets")
    )
    min_bucket_reso: int = setting(
        256, help="shortest side of a bucket", unit="px", range=(32, 4096), ui=Field(label="shortest bucket side")
    )
    max_bucket_reso: int = setting(
        1024, help="longest side of a bucket", unit="px", range=(32, 8192), ui=Field(label="longest bucket side")
    )
    bucket_reso_steps: int = setting(
        64, help="bucket sides are multiples of this", unit="px", range=(8, 512), ui=Field(label="bucket step")
    )
    bucket_no_upscale: bool = setting(
        True, help="never enlarge an image: small ones get a smaller bucket", ui=Field(label="no enlarging")
    )
    flip_aug: bool = setting(
        False,
        help="mirror half of the images at random; not for characters with one-sided details",
        ui=Field(label="mirror images"),
    )
    background: str = setting(
        "white",
        help="colour that transparent parts of images are laid on: a name, or #rrggbb",
        ui=Field(label="behind transparency"),
    )
    alpha_mask: bool = setting(
        False,
        help="learn nothing from transparent parts: each place counts as much as it is opaque",
        ui=Field(label="transparency as mask"),
    )
    shuffle_caption: bool = setting(
        False, help="shuffle the tags, so that none depends on its place", ui=Field(label="shuffle tags")
    )
    keep_tokens: int = setting(
        1,
        help="how many first tags stay in place and are never dropped",
        range=(0, 64),
        ui=Field(label="first tags kept"),
    )
    caption_variants: int = setting(
        8,
        help="how many shuffles of each caption there are; each is encoded once",
        range=(1, 256),
        ui=Field(label="shuffles of a caption"),
    )
    caption_dropout_rate: float = setting(
        0.0,
        help="share of images trained without caption",
        range=(0, 1),
        ui=Slider(0, 0.5, 0.01, label="caption dropout"),
    )
    caption_tag_dropout_rate: float = setting(
        0.0,
        help="share of tags left out of each caption variant",
        range=(0, 1),
        ui=Slider(0, 0.5, 0.01, label="tag dropout"),
    )
    cache_latents: bool = setting(
        True, help="encode each image once and keep the result on disk; frees the VAE", ui=Field(label="cache images")
    )
    cache_text: bool = setting(
        True,
        help="encode each caption once while the text encoder is not trained; frees the text encoder",
        ui=Field(label="cache captions"),
    )

    def conflicts(self) -> list[str]:
        found = []
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", self.background) and self.background not in ImageColor.colormap:
            found.append(
                f"background is {self.background!r}, which is no colour; write a name such as white or #rrggbb."
            )
        if self.min_bucket_reso > self.max_bucket_reso:
            found.append(
                f"min_bucket_reso is {self.min_bucket_reso} and max_bucket_reso {self.max_bucket_reso}; exchange them."
            )
        for name in ("resolution", "min_bucket_reso", "max_bucket_reso"):
            if getattr(self, name) % self.bucket_reso_steps and self.enable_bucket:
                found.append(
                    f"{name} is {getattr(self, name)}; it must be a multiple of bucket_reso_steps "
                    f"({self.bucket_reso_steps})."
                )
        if self.enable_bucket and not self.min_bucket_reso <= self.resolution <= self.max_bucket_reso:
            found.append(
                f"resolution is {self.resolution}; it must lie between min_bucket_reso ({self.min_bucket_reso}) and "
                f"max_bucket_reso ({self.max_bucket_reso})."
            )
        if self.resolution % 8:
            found.append(f"resolution is {self.resolution}; it must be a multiple of 8 px, one latent.")
        if self.bucket_reso_steps % 8:
            found.append(f"bucket_reso_steps is {self.bucket_reso_steps}; it must be a multiple of 8 px, one latent.")
        return found
