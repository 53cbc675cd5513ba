"""The tables of the guides as they stand there, by topic; what of them does not hold here is said beside each."""

from __future__ import annotations

from dataclasses import dataclass

from lorakit.presets import ANIMA, FAQ, LORA, YUI

TOPICS = ("images", "tags", "settings")  # of a guide's table


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


def tables(family: str, topic: str = "settings") -> tuple[Table, ...]:
    """The guides' tables that speak of a family, about one of TOPICS."""
    return tuple(table for table in TABLES if table.family in ("", family) and table.topic == topic)


OTHER_SIZES = "The guides differ: each table speaks of its own models."

TABLES = (
    Table(
        "How many images",
        ANIMA,
        "anima",
        ("purpose", "at least", "recommended", "repeats"),
        (
            ("one character", "30", "50-100", "10-20"),
            ("style", "50", "100-300", "5-10"),
            ("several characters (LoKr)", "200", "500+", "1-3"),
        ),
        OTHER_SIZES,
        "images",
    ),
    Table(
        "Which images",
        LORA,
        "",
        ("images", "why"),
        (
            ("many angles, expressions, clothes, lights", "what is always the same is learned as part of the subject"),
            ("close-ups of head, eyes and details", "small things in a large image are lost"),
            ("pairs with and without a thing", "they teach what its tag means"),
            ("not: wrong design, hidden parts, odd poses", "mistakes are learned, too"),
            ("not: other people's hands and faces at the border", "cut them off, or paint them over with white"),
            ("not: blurred", "the LoRA paints blurred images then"),
        ),
        "30 to 100 good images are usually enough; a few less are better than bad ones.",
        "images",
    ),
    Table(
        "Images for Anima",
        ANIMA,
        "anima",
        ("images", "why"),
        (
            ("1024 x 1024 px and more", "what the base was trained at"),
            ("the whole composition", "do not crop away what matters"),
            ("one character looks the same in all", "or it falls apart: same tags, more images, keep_tokens"),
        ),
        topic="images",
    ),
    Table(
        "Regularization images",
        LORA,
        "",
        ("way", "how"),
        (
            ("for", "a character or thing that is to leave the style of the base alone; not for styles"),
            ("how many", "as many as images times repeats; the folder's own repeats balance them"),
            ("plain", "any images of the class, such as 1girl; captions are not necessary"),
            (
                "better",
                "one for each image: its caption and name, the same base and size, DDIM, seed 420",
            ),
        ),
        "They double the steps of an epoch.",
        "images",
    ),
    Table(
        "What to tag",
        LORA,
        "",
        ("tag", "why"),
        (
            ("the trigger: first, in every caption", "it takes in whatever no other tag explains"),
            ("what is to change later: clothes, hair, pose, expression, background", "a tag makes it switchable"),
            ("what is uncommon, or wrong, in one image", "its tag can stand in the negative prompt later"),
            ("not: what always belongs to the subject", "the trigger should take that in"),
            ("not: what goes without saying, such as a face; artists' names", "they take from the trigger"),
            ("careful: simple background", "the LoRA may paint nothing else without it"),
        ),
        "Right tags matter more than beautiful images: take out wrong ones, add missing ones, write one word for one "
        "thing (red boots, not boots and red footwear).",
        "tags",
    ),
    Table(
        "Captions for Anima",
        ANIMA,
        "anima",
        ("captions", "how"),
        (
            ("by a vision-language model, then checked", "delete what is not in the image"),
            ("spelling", "lower case, spaces for underscores, in all of them"),
            ("order", "quality, safety, 1girl, character, series, @artist, looks, action, surroundings"),
        ),
        topic="tags",
    ),
    Table(
        "Learning rate by images",
        ANIMA,
        "anima",
        ("images", "learning rate"),
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
        ("card", "images at once", "batches a step", "resolution", "precision"),
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
        ("purpose", "images", "rank", "UNet", "text encoder", "regularization", "steps", "resolution"),
        (
            ("character, good images", "35-100", "32-96", "1e-4", "5e-5", "none", "1000+", "512-768"),
            ("character, poor images", "15-30", "32-64", "1e-4", "4.5e-5", "yes", "1600+", "512-768"),
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
        "One character, 188 images",
        YUI,
        "sd15",
        ("setting", "value"),
        (
            ("rank, alpha", "32, 16 (16 to 32, alpha up to rank)"),
            ("learning rate", "1e-4 (to 2e-4); text encoder 1e-5"),
            ("optimizer", "AdamW8bit, betas 0.9 and 0.999"),
            ("schedule", "cosine, warmup 0.1"),
            ("images a step", "4"),
            ("epochs", "2 (1-3), 2000 to 3000 steps"),
            ("resolution", "512 with buckets"),
        ),
        "Its folder repeats every image ten times. Stop when samples are good. Random crops exclude its cache.",
    ),
    Table(
        "Images, learning rate, rank",
        FAQ,
        "",
        ("setting", "value"),
        (
            ("images", "15-20 at least, 30-50 is ideal; style 20-30, character 30-50"),
            ("learning rate", "1e-4 to 1e-3, first 1e-4"),
            ("rank", "8-32 for simple, 64-128 for complex"),
            ("alpha", "half the rank, or the rank"),
        ),
        OTHER_SIZES,
    ),
)
