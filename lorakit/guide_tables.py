"""Tables of training guides, quoted by topic; each has a note on what does not apply here."""

from __future__ import annotations

from dataclasses import dataclass

from lorakit.presets import ANIMA, FAQ, LORA, YUI

TOPICS = ("images", "tags", "settings")  # of a guide's table


@dataclass(frozen=True)
class Table:
    """A table quoted from a guide; `note`: what does not apply here; `family` "": any."""

    title: str
    source: str
    family: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    topic: str = "settings"  # one of TOPICS


def tables(family: str, topic: str = "settings") -> tuple[Table, ...]:
    """Tables about a family, on one of TOPICS."""
    return tuple(table for table in TABLES if table.family in ("", family) and table.topic == topic)


OTHER_SIZES = "Guides differ: each table is about its own models."

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
            (
                "many angles, expressions, clothes, lights",
                "whatever is the same in all images is learned as part of the subject",
            ),
            ("close-ups of head, eyes and details", "small details of a large image are lost"),
            ("pairs with and without an object", "they teach the meaning of its tag"),
            ("avoid: wrong design, hidden parts, odd poses", "mistakes are learned as well"),
            ("avoid: hands and faces of others at the edges", "crop them, or cover them with white"),
            ("avoid: blurred images", "or the LoRA generates blurred images"),
        ),
        "30 to 100 good images are usually enough; fewer are better than bad ones.",
        "images",
    ),
    Table(
        "Images for Anima",
        ANIMA,
        "anima",
        ("images", "why"),
        (
            ("1024 x 1024 px or more", "the size the base model was trained at"),
            ("the whole composition", "do not crop important parts"),
            ("a character looks the same in all images", "otherwise: consistent tags, more images, keep tokens"),
        ),
        topic="images",
    ),
    Table(
        "Regularization images",
        LORA,
        "",
        ("way", "how"),
        (
            ("for", "a character or object that should not change the base model's style; not for styles"),
            ("how many", "as many as images x repeats; the folder's own repeats balance them"),
            ("plain", "any images of the class, such as 1girl; captions are optional"),
            (
                "better",
                "one per image: its caption and file name, same base model and size, DDIM, seed 420",
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
            ("the trigger word: first in every caption", "it absorbs everything that no other tag explains"),
            ("what should be changeable: clothes, hair, pose, expression, background", "a tag makes it controllable"),
            ("anything unusual or wrong in one image", "its tag can be used in the negative prompt later"),
            ("avoid: fixed features of the subject", "the trigger word should absorb them"),
            ("avoid: the obvious, such as a face; artist names", "they weaken the trigger word"),
            ("careful: simple background", "without it, the LoRA may generate only such backgrounds"),
        ),
        "Correct tags matter more than beautiful images: remove wrong ones, add missing ones, use one word for one "
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
            ("order", "quality, safety, 1girl, character, series, @artist, appearance, action, background"),
        ),
        topic="tags",
    ),
    Table(
        "Learning rate by images",
        ANIMA,
        "anima",
        ("images", "learning rate"),
        (("under 100", "5e-5 to 1e-4"), ("100-500", "1e-4 to 2e-4"), ("500+", "1e-4 to 3e-4")),
        "Too slow: raise it. Unstable: lower it. Overfitting: lower it, or train fewer epochs.",
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
        "Start low. The guide's file sizes do not apply here: they depend on which parts are trained.",
    ),
    Table(
        "Settings by GPU",
        ANIMA,
        "anima",
        ("GPU", "batch size", "gradient accumulation", "resolution", "precision"),
        (("24 GB", "1", "4", "1024", "bf16"), ("32 GB", "2", "2", "1024", "bf16")),
        "With gradient checkpointing and caches; caching frees VRAM.",
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
            ("E", "unusual proportions, two hands and feet", "64"),
            ("F", "animals, dragons, very complex clothes", "64-128"),
            ("G", "mecha, many limbs", "128"),
            ("H", "machines, monsters, insects", "128-192"),
            ("I", "indescribable creatures", "192-256"),
        ),
        "Male characters are half a class higher, up to D; characters that the base model knows are easier.",
    ),
    Table(
        "Where to start",
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
            ("scheduler", "constant"),
            ("rank, alpha", "64 (32), 1"),
            ("steps", "about 1000"),
            ("resolution", "512 (576)"),
            ("min_snr_gamma", "5"),
            ("tokens", "225"),
            ("optimizer arguments", "decouple: true, weight_decay: 0.01, betas: [0.9, 0.999]"),
        ),
        "Use 1 repeat and enough epochs, unless folders need balancing; save a LoRA every few epochs.",
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
        "Not all of them are available here; Prodigy does not work in full fp16.",
    ),
    Table(
        "SDXL",
        LORA,
        "sdxl",
        ("setting", "value"),
        (
            ("precision", "bf16 rather than fp16"),
            ("rank", "16 equals 64 in SD 1.5; try 16, 24, 32"),
            ("time", "about four times that of SD 1.5"),
        ),
        "The guide sets the text encoder learning rates to 0; here both can be trained.",
    ),
    Table(
        "What slows learning",
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
        "Alpha is at most the rank; 0 = rank, a scale of 1. A low rank or alpha needs a higher learning rate.",
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
            ("scheduler", "cosine, warmup 0.1"),
            ("batch size", "4"),
            ("epochs", "2 (1-3), 2000 to 3000 steps"),
            ("resolution", "512 with buckets"),
        ),
        "Its folder has 10 repeats. Stop when the samples are good. Random crops cannot be cached.",
    ),
    Table(
        "Images, learning rate, rank",
        FAQ,
        "",
        ("setting", "value"),
        (
            ("images", "at least 15-20, ideally 30-50; style 20-30, character 30-50"),
            ("learning rate", "1e-4 to 1e-3, start with 1e-4"),
            ("rank", "8-32 for simple subjects, 64-128 for complex ones"),
            ("alpha", "half the rank, or equal to it"),
        ),
        OTHER_SIZES,
    ),
)
