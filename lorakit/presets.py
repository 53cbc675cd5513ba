"""Presets from training guides, each with its source: by family, purpose and size of the dataset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PURPOSES = ("character", "style", "concept")
SIZES = ("small", "middle", "large")  # of a dataset
SNAPSHOTS = 10  # LoRA files, and rounds of samples, that a run with a preset saves

ANIMA = "Anima LoRA training tips"
LORA = "LoRA training guide (rentry.org/59xed3)"
YUI = "k-on-lora"
FAQ = "FAQ of a LoRA training system"


@dataclass(frozen=True)
class Preset:
    """One row: settings of one family for a purpose and a number of images.

    images      lowest and highest number of images (without repeats); highest None: no limit
    seen        images seen over the whole run, with repeats and epochs: the guide's steps x its batch size of 2
    settings    part -> settings; without epochs, which follow from `seen`
    source      the guide
    why         what the guide says, in a sentence
    """

    family: str
    purpose: str
    size: str
    images: tuple[int, int | None]
    seen: int
    settings: dict[str, dict[str, Any]]
    source: str
    why: str


def _plain(rank: int, rate: float, text: float = 0.0, **more: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings with alpha = rank (stored as 0), so that another rank keeps the strength; `more` are further parts."""
    optimizer = {"learning_rate": rate} | ({"text_encoder_lr": text} if text else {})
    return {"adapter": {"rank": rank, "alpha": 0.0}, "optimizer": optimizer, **more}


# Shuffled tags with the trigger word kept first: booru tags have no order, the trigger has.
SHUFFLED = {"shuffle_caption": True, "keep_tokens": 1}
# Evens out the timesteps; the guides advise 5 for SD 1.5.
STEADY = {"weighting": "min_snr", "min_snr_gamma": 5.0}

POOR = "15 to 30 images: rank 32 to 64, 1600 steps or more; regularization images help."
GOOD = "35 to 100 good images: rank 32 to 96, learning rate 1e-4 and 5e-5, from 1000 steps."
YUI_WHY = (
    "188 images of one character: rank 32 with alpha 16, 1e-4 and 1e-5, cosine with warmup, 2000 steps at batch size 4."
)
FAQ_STYLE = "20 to 30 images are enough for a style: learning rate 1e-4, rank 32 or more, alpha half of it."
STYLE = "100 images or more: rank 96 or more, learning rate 1e-4 and 4e-5, 3000 steps or more, 576 px or more."
CONCEPT = "50 to 2000 images: rank 8 to 128, learning rate 1e-4 and 4.5e-5."
SDXL = (
    "Rank 16 in SDXL equals rank 64 in SD 1.5; try 16, 24 and 32. Steps as for SD 1.5; text encoders are not trained."
)
ANIMA_FEW = "Under 100 images use a learning rate of 5e-5 to 1e-4 to avoid overfitting."
ANIMA_SOME = "100 to 500 images allow a learning rate of 1e-4 to 2e-4; this preset takes the lower end."
ANIMA_MANY = "500 images or more allow a learning rate of 1e-4 to 3e-4; this preset takes the lower end."
ANIMA_MORE = (
    "The guide has no row for this: rank 64 is its value for complex subjects, and the learning rate follows from the "
    "number of images."
)

PRESETS = (
    Preset(
        "sd15", "character", "small", (1, 34), 3200, _plain(32, 1e-4, 4.5e-5, data=SHUFFLED, loss=STEADY), LORA, POOR
    ),
    Preset(
        "sd15", "character", "middle", (35, 100), 2000, _plain(32, 1e-4, 5e-5, data=SHUFFLED, loss=STEADY), LORA, GOOD
    ),
    Preset(
        "sd15",
        "character",
        "large",
        (101, None),
        8000,
        {
            "adapter": {"rank": 32, "alpha": 16.0},
            "optimizer": {"learning_rate": 1e-4, "text_encoder_lr": 1e-5},
            "schedule": {"name": "cosine", "warmup": 0.1},
            "data": SHUFFLED,
            "loss": STEADY,
        },
        YUI,
        YUI_WHY,
    ),
    Preset(
        "sd15",
        "style",
        "small",
        (1, 99),
        4000,
        {"adapter": {"rank": 32, "alpha": 16.0}, "optimizer": {"learning_rate": 1e-4}},
        FAQ,
        FAQ_STYLE,
    ),
    Preset("sd15", "style", "middle", (100, 499), 6000, _plain(96, 1e-4, 4e-5, data={"resolution": 576}), LORA, STYLE),
    Preset(
        "sd15", "style", "large", (500, None), 12_000, _plain(128, 1e-4, 4e-5, data={"resolution": 576}), LORA, STYLE
    ),
    Preset("sd15", "concept", "small", (1, 49), 2000, _plain(16, 1e-4, 4.5e-5), LORA, CONCEPT),
    Preset("sd15", "concept", "middle", (50, 499), 3000, _plain(32, 1e-4, 4.5e-5), LORA, CONCEPT),
    Preset("sd15", "concept", "large", (500, None), 8000, _plain(64, 1e-4, 4.5e-5), LORA, CONCEPT),
    Preset("sdxl", "character", "small", (1, 34), 3200, _plain(16, 1e-4, data=SHUFFLED), LORA, SDXL),
    Preset("sdxl", "character", "middle", (35, 100), 2000, _plain(16, 1e-4, data=SHUFFLED), LORA, SDXL),
    Preset("sdxl", "character", "large", (101, None), 8000, _plain(24, 1e-4, data=SHUFFLED), LORA, SDXL),
    Preset("sdxl", "style", "small", (1, 99), 4000, _plain(16, 1e-4), LORA, SDXL),
    Preset("sdxl", "style", "middle", (100, 499), 6000, _plain(24, 1e-4), LORA, SDXL),
    Preset("sdxl", "style", "large", (500, None), 12_000, _plain(32, 1e-4), LORA, SDXL),
    Preset("sdxl", "concept", "small", (1, 49), 2000, _plain(16, 1e-4), LORA, SDXL),
    Preset("sdxl", "concept", "middle", (50, 499), 3000, _plain(16, 1e-4), LORA, SDXL),
    Preset("sdxl", "concept", "large", (500, None), 8000, _plain(24, 1e-4), LORA, SDXL),
    Preset("anima", "character", "small", (1, 49), 6000, _plain(32, 5e-5), ANIMA, ANIMA_FEW),
    Preset("anima", "character", "middle", (50, 99), 10_000, _plain(32, 5e-5), ANIMA, ANIMA_FEW),
    Preset("anima", "character", "large", (100, None), 15_000, _plain(32, 1e-4), ANIMA, ANIMA_SOME),
    Preset("anima", "style", "small", (1, 99), 5000, _plain(16, 5e-5), ANIMA, ANIMA_FEW),
    Preset("anima", "style", "middle", (100, 499), 10_000, _plain(16, 1e-4), ANIMA, ANIMA_SOME),
    Preset("anima", "style", "large", (500, None), 20_000, _plain(16, 1e-4), ANIMA, ANIMA_MANY),
    Preset("anima", "concept", "small", (1, 99), 5000, _plain(32, 5e-5), ANIMA, ANIMA_MORE),
    Preset("anima", "concept", "middle", (100, 499), 10_000, _plain(64, 1e-4), ANIMA, ANIMA_MORE),
    Preset("anima", "concept", "large", (500, None), 20_000, _plain(64, 1e-4), ANIMA, ANIMA_MORE),
)


def presets(family: str) -> tuple[Preset, ...]:
    """All presets of a family; () for a family that no guide covers."""
    return tuple(row for row in PRESETS if row.family == family)


def find(family: str, purpose: str, size: str) -> Preset | None:
    """The preset for a family, purpose and dataset size; None when no guide has one."""
    return next((row for row in presets(family) if (row.purpose, row.size) == (purpose, size)), None)


def size_for(family: str, purpose: str, images: int) -> str:
    """Dataset size for a purpose, from the number of images without repeats: one of SIZES, "" without a preset."""
    rows = [row for row in presets(family) if row.purpose == purpose and images >= row.images[0]]
    return rows[-1].size if rows else ""


def settings_for(row: Preset, count: int) -> dict[str, dict[str, Any]]:
    """The settings of a preset, by part, with epochs and how often to save and sample.

    count       images of an epoch, with repeats; 0: as many as the preset is made for

    There are as many epochs as show `row.seen` images, and about SNAPSHOTS LoRA files and rounds of samples.
    """
    low, high = row.images
    # Rounded up: rather one epoch more than too little training.
    epochs = max(1, -(-row.seen // (count or high or low)))
    every = max(1, round(epochs / SNAPSHOTS))
    more = {"loop": {"epochs": epochs}, "save": {"every_epochs": every}, "sample": {"every_epochs": every}}
    return {part: dict(values) for part, values in {**row.settings, **more}.items()}


def preset(family: str, purpose: str, images: int, repeats: int = 1) -> dict[str, dict[str, Any]]:
    """Settings by part for a number of images, each with `repeats`; {} for a family without presets."""
    row = find(family, purpose, size_for(family, purpose, images))
    return settings_for(row, images * repeats) if row else {}
