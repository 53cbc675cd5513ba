"""What an image's caption becomes in training: trigger, shuffle, dropout."""

from __future__ import annotations

import re

from lorakit.data import DataConfig
from lorakit.randomness import rng, seed_of

COMMA = re.compile(r",(?!(?<=\d,)\d{3}(?!\w))")


def tags_of(caption: str) -> list[str]:
    """The comma-separated tags of a caption, stripped, empty ones left out; 1,000 in a sentence is one number."""
    return [tag.strip() for tag in COMMA.split(caption) if tag.strip()]


def with_trigger(caption: str, trigger: str) -> str:
    """The caption with the trigger word first; unchanged when it is already one of its tags or there is no trigger."""
    if not trigger or trigger in tags_of(caption):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def variant_count(config: DataConfig) -> int:
    """How many texts one caption stands for (1 when nothing varies), the empty caption of dropout aside."""
    return config.caption_variants if config.shuffle_caption or config.caption_tag_dropout_rate else 1


def variant(caption: str, index: int, config: DataConfig, seed: int) -> str:
    """Variant `index` of a caption: tags dropped and shuffled, the first keep_tokens tags untouched.

    A function of (seed, caption, index), so that each variant is encoded once and chosen when the batch is made.
    """
    if variant_count(config) == 1:
        return caption
    tags, random = tags_of(caption), rng(seed, "variant", caption, index)
    kept, rest = tags[: config.keep_tokens], tags[config.keep_tokens :]
    rest = [tag for tag in rest if random.random() >= config.caption_tag_dropout_rate]
    if config.shuffle_caption:
        random.shuffle(rest)
    return ", ".join(kept + rest)


def training_caption(caption: str, config: DataConfig, seed: int, step: int, place: int) -> str:
    """The text trained at `place` of `step`: one of the caption's variants, or "" with caption_dropout_rate."""
    if config.caption_dropout_rate and rng(seed, step, place, "caption dropout").random() < config.caption_dropout_rate:
        return ""
    return variant(caption, seed_of(seed, step, place, "variant") % variant_count(config), config, seed)


def possible_captions(caption: str, config: DataConfig, seed: int) -> list[str]:
    """Every text that `drawn` can return for a caption, for filling the cache before the first step."""
    found = [variant(caption, index, config, seed) for index in range(variant_count(config))]
    return found + [""] if config.caption_dropout_rate else found
