"""What training guides advise, as data with its source: presets by family, purpose and size, and their tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PURPOSES = ("character", "style", "concept")
SIZES = ("small", "middle", "large")  # of a data set
TOPICS = ("pictures", "tags", "settings")  # of a guide's table
SNAPSHOTS = 10  # how many LoRA files and rounds of samples a preset's run leaves

ANIMA = "Anima LoRA training tips"
LORA = "LoRA training guide (rentry.org/59xed3)"
YUI = "k-on-lora"
FAQ = "FAQ of a LoRA training system"


@dataclass(frozen=True)
class Preset:
    """One row: settings for a purpose with so many pictures, in one family.

    images      least and most pictures it is for; most None: no end
    seen        pictures seen over the whole run, repeats and epochs counted: the guides' steps times two a batch
    settings    part -> settings; epochs are not among them, as they follow from `seen`
    source      the guide that says so
    why         what it says, in a sentence
    """

    family: str
    purpose: str
    size: str
    images: tuple[int, int | None]
    seen: int
    settings: dict[str, dict[str, Any]]
    source: str
    why: str


@dataclass(frozen=True)
class Table:
    """A table of a guide as it stands there; `note` says what of it does not hold here. `family` "" is any."""

    title: str
    source: str
    family: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    topic: str = "settings"  # one of TOPICS


def _plain(rank: int, rate: float, text: float = 0.0, **more: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rank with alpha = rank, so that moving the rank keeps the strength; learning rates; further parts."""
    optimizer = {"learning_rate": rate} | ({"text_encoder_lr": text} if text else {})
    return {"adapter": {"rank": rank, "alpha": 0.0}, "optimizer": optimizer, **more}


SHUFFLED = {"shuffle_caption": True, "keep_tokens": 1}
STEADY = {"weighting": "min_snr", "min_snr_gamma": 5.0}

POOR = "15 to 30 pictures: rank 32 to 64, 1600 steps or more; regularization pictures help."
GOOD = "35 to 100 good pictures: rank 32 to 96, learning rate 1e-4 and 5e-5, from 1000 steps."
YUI_WHY = "188 pictures of one character: rank 32 with alpha 16, 1e-4 and 1e-5, cosine with warm-up, 2000 steps of 4."
FAQ_STYLE = "20 to 30 pictures show a style: learning rate 1e-4, rank from 32 for what is simple, alpha half of it."
STYLE = "100 pictures and more: rank from 96, learning rate 1e-4 and 4e-5, 3000 steps or more, 576 px or more."
CONCEPT = "50 to 2000 pictures: rank 8 to 128, learning rate 1e-4 and 4.5e-5."
SDXL = (
    "SDXL at rank 16 holds what SD 1.5 does at 64; try 16, 24 and 32. Steps as for SD 1.5; text encoders stay frozen."
)
ANIMA_FEW = "Under 100 pictures the learning rate is 5e-5 to 1e-4, so that nothing is learned by heart."
ANIMA_SOME = "100 to 500 pictures stand a learning rate of 1e-4 to 2e-4; this begins at its lower end."
ANIMA_MANY = "500 pictures and more stand a learning rate of 1e-4 to 3e-4; this begins at its lower end."
ANIMA_MORE = (
    "The guide has no row for this; a complex subject has rank 64 there, and the learning rate goes by the pictures."
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
    """All presets of a family; none for a family that no guide speaks of."""
    return tuple(row for row in PRESETS if row.family == family)


def find(family: str, purpose: str, size: str) -> Preset | None:
    """The preset of a family for a purpose and a size of data set, None when no guide has one."""
    return next((row for row in presets(family) if (row.purpose, row.size) == (purpose, size)), None)


def size_for(family: str, purpose: str, images: int) -> str:
    """ "small", "middle" or "large": what so many pictures (without repeats) are for a purpose; "" when nobody says."""
    rows = [row for row in presets(family) if row.purpose == purpose and images >= row.images[0]]
    return rows[-1].size if rows else ""


def settings_for(row: Preset, pictures: int) -> dict[str, dict[str, Any]]:
    """The settings of a preset with `pictures` seen in an epoch (repeats counted; 0: as many as the row is made for).

    Epochs so many that `row.seen` is reached; a file and samples after about a tenth of them.
    """
    low, high = row.images
    epochs = max(1, -(-row.seen // (pictures or high or low)))
    every = max(1, round(epochs / SNAPSHOTS))
    more = {"loop": {"epochs": epochs}, "save": {"every_epochs": every}, "sample": {"every_epochs": every}}
    return {part: dict(values) for part, values in {**row.settings, **more}.items()}


def preset(family: str, purpose: str, images: int, repeats: int = 1) -> dict[str, dict[str, Any]]:
    """Settings by part for so many pictures, each seen `repeats` times an epoch; {} for a family without presets."""
    row = find(family, purpose, size_for(family, purpose, images))
    return settings_for(row, images * repeats) if row else {}


def tables(family: str, topic: str = "settings") -> tuple[Table, ...]:
    """The guides' tables that speak of a family, about one of TOPICS."""
    return tuple(table for table in TABLES if table.family in ("", family) and table.topic == topic)


OTHER_SIZES = "The guides differ: each table speaks of its own models."

TABLES = (
    Table(
        "How many pictures",
        ANIMA,
        "anima",
        ("purpose", "at least", "recommended", "repeats"),
        (
            ("one character", "30", "50-100", "10-20"),
            ("style", "50", "100-300", "5-10"),
            ("several characters (LoKr)", "200", "500+", "1-3"),
        ),
        OTHER_SIZES,
        "pictures",
    ),
    Table(
        "Which pictures",
        LORA,
        "",
        ("pictures", "why"),
        (
            ("many angles, expressions, clothes, lights", "what is always the same is learned as part of the subject"),
            ("close-ups of head, eyes and details", "small things in a large picture are lost"),
            ("pairs with and without a thing", "they teach what its tag means"),
            ("not: wrong design, hidden parts, odd poses", "mistakes are learned, too"),
            ("not: other people's hands and faces at the border", "cut them off, or paint them over with white"),
            ("not: blurred", "the LoRA paints blurred pictures then"),
        ),
        "30 to 100 good pictures are usually enough; a few less are better than bad ones.",
        "pictures",
    ),
    Table(
        "Pictures for Anima",
        ANIMA,
        "anima",
        ("pictures", "why"),
        (
            ("1024 x 1024 px and more", "what the base was trained at"),
            ("the whole composition", "do not crop away what matters"),
            ("one character looks the same in all", "or it falls apart: same tags, more pictures, keep_tokens"),
        ),
        topic="pictures",
    ),
    Table(
        "Regularization pictures",
        LORA,
        "",
        ("way", "how"),
        (
            ("for", "a character or thing that is to leave the style of the base alone; not for styles"),
            ("how many", "as many as pictures times repeats; the folder's own repeats balance them"),
            ("plain", "any pictures of the class, such as 1girl; captions are not necessary"),
            (
                "better",
                "one for each picture: its caption and name, the same base and size, DDIM, seed 420",
            ),
        ),
        "They double the steps of an epoch.",
        "pictures",
    ),
    Table(
        "What to tag",
        LORA,
        "",
        ("tag", "why"),
        (
            ("the trigger: first, in every caption", "it takes in whatever no other tag explains"),
            ("what is to change later: clothes, hair, pose, expression, background", "a tag makes it switchable"),
            ("what is uncommon, or wrong, in one picture", "its tag can stand in the negative prompt later"),
            ("not: what always belongs to the subject", "the trigger should take that in"),
            ("not: what goes without saying, such as a face; artists' names", "they take from the trigger"),
            ("careful: simple background", "the LoRA may paint nothing else without it"),
        ),
        "Right tags matter more than beautiful pictures: take out wrong ones, add missing ones, write one word for one "
        "thing (red boots, not boots and red footwear).",
        "tags",
    ),
    Table(
        "Captions for Anima",
        ANIMA,
        "anima",
        ("captions", "how"),
        (
            ("by a vision-language model, then checked", "delete what is not in the picture"),
            ("spelling", "lower case, spaces for underscores, in all of them"),
            ("order", "quality, safety, 1girl, character, series, @artist, looks, action, surroundings"),
        ),
        topic="tags",
    ),
    Table(
        "Learning rate by pictures",
        ANIMA,
        "anima",
        ("pictures", "learning rate"),
        (("under 100", "5e-5 to 1e-4"), ("100-500", "1e-4 to 2e-4"), ("500+", "1e-4 to 3e-4")),
        "Slow: raise it. Jumping about: lower it. Learned by heart: lower it, or fewer epochs.",
    ),
    Table(
        "Rank",
        ANIMA,
        "anima",
        ("rank", "for"),
        (
            ("8", "a simple style"),
            ("16", "a style"),
            ("32", "one character"),
            ("64", "complex, or several characters"),
            ("128", "rarely"),
        ),
        "Begin low. The guide's file sizes do not hold here: they depend on what is trained.",
    ),
    Table(
        "Settings by card",
        ANIMA,
        "anima",
        ("card", "pictures at once", "batches a step", "resolution", "precision"),
        (("24 GB", "1", "4", "1024", "bf16"), ("32 GB", "2", "2", "1024", "bf16")),
        "With gradient checkpointing and caches; caching frees memory of the GPU.",
    ),
    Table(
        "Difficulty of a character and rank",
        LORA,
        "sd15",
        ("class", "subject", "rank"),
        (
            ("A", "plain realistic woman", "4-8"),
            ("B", "distinct face, hair, clothes", "4-16"),
            ("C", "fine details, wings, armour, tail", "8-32"),
            ("D", "furry or humanoid, real people", "32-64"),
            ("E", "odd proportions with two hands and feet", "64"),
            ("F", "animals, dragons, very complex clothes", "64-128"),
            ("G", "mecha, many limbs", "128"),
            ("H", "machines, monsters, insects", "128-192"),
            ("I", "beyond description", "192-256"),
        ),
        "Male characters half a class up, until D; less where the base knows the subject.",
    ),
    Table(
        "Where to begin",
        LORA,
        "sd15",
        ("purpose", "pictures", "rank", "UNet", "text encoder", "regularization", "steps", "resolution"),
        (
            ("character, good pictures", "35-100", "32-96", "1e-4", "5e-5", "none", "1000+", "512-768"),
            ("character, poor pictures", "15-30", "32-64", "1e-4", "4.5e-5", "yes", "1600+", "512-768"),
            ("style", "100-10000+", "96-192", "1e-4", "4e-5", "none", "3000+", "576-768"),
            ("concept", "50-2000", "8-128", "1e-4", "4.5e-5", "-", "-", "-"),
        ),
        OTHER_SIZES,
    ),
    Table(
        "One simple way",
        LORA,
        "sd15",
        ("setting", "value"),
        (
            ("optimizer", "DAdaptAdam or Prodigy, learning rate 1"),
            ("schedule", "constant"),
            ("rank, alpha", "64 (32), 1"),
            ("steps", "about 1000"),
            ("resolution", "512 (576)"),
            ("min_snr_gamma", "5"),
            ("tokens", "225"),
            ("optimizer arguments", "decouple: true, weight_decay: 0.01, betas: [0.9, 0.999]"),
        ),
        "Repeats 1 and enough epochs, unless folders are to be balanced; keep a file of every few epochs.",
    ),
    Table(
        "What each optimizer needs",
        LORA,
        "",
        ("optimizer", "arguments", "learning rate"),
        (
            ("adamw, adamw8bit", "-", "1e-4"),
            ("DAdaptAdam", "decouple: true, weight_decay: 0.01, betas: [0.9, 0.999]", "0.1 to 1, constant"),
            ("AdaFactor", "relative_step: true, scale_parameter: true, warmup_init: true", "its own"),
            (
                "prodigy",
                "decouple: true, weight_decay: 0.01, d_coef: 2, use_bias_correction: true, safeguard_warmup: true",
                "1",
            ),
        ),
        "Not all of them are here; no full fp16 with Prodigy.",
    ),
    Table(
        "SDXL",
        LORA,
        "sdxl",
        ("setting", "value"),
        (
            ("precision", "bf16 before fp16"),
            ("rank", "16 is as 64 in SD 1.5; try 16, 24, 32"),
            ("time", "about four times that of SD 1.5"),
        ),
        "The guide sets the text encoders' learning rates to 0; both can be trained by now.",
    ),
    Table(
        "What slows learning down",
        LORA,
        "",
        ("setting", "range", "slower by"),
        (
            ("resolution", "512-768", "much, for every 64 px more"),
            ("noise_offset", "0-1", "much, for every 0.1"),
            ("rank", "1-768", "a little, for every 16 less"),
            ("alpha", "1 to rank", "for every 16 less"),
            ("min_snr_gamma", "1-20, 5", "a little, for every 1 more"),
        ),
        "Alpha at most the rank; 0 or the rank itself scales by 1. Low rank and alpha want a higher learning rate.",
    ),
    Table(
        "One character, 188 pictures",
        YUI,
        "sd15",
        ("setting", "value"),
        (
            ("rank, alpha", "32, 16 (16 to 32, alpha up to rank)"),
            ("learning rate", "1e-4 (to 2e-4); text encoder 1e-5"),
            ("optimizer", "AdamW8bit, betas 0.9 and 0.999"),
            ("schedule", "cosine, warmup 0.1"),
            ("pictures a step", "4"),
            ("epochs", "2 (1-3), 2000 to 3000 steps"),
            ("resolution", "512 with buckets"),
        ),
        "Its folder repeats every picture ten times. Stop when samples are good. Random crops exclude its cache.",
    ),
    Table(
        "Pictures, learning rate, rank",
        FAQ,
        "",
        ("setting", "value"),
        (
            ("pictures", "15-20 at least, 30-50 is ideal; style 20-30, character 30-50"),
            ("learning rate", "1e-4 to 1e-3, first 1e-4"),
            ("rank", "8-32 for simple, 64-128 for complex"),
            ("alpha", "half the rank, or the rank"),
        ),
        OTHER_SIZES,
    ),
)
