"""From the text of a caption file to the text of a training step: trigger word, tag shuffling, dropout."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from lorakit.data import DataConfig
from lorakit.randomness import rng, seed_of

# A comma between tags, but not the one in a number such as 1,000.
COMMA = re.compile(r",(?!(?<=\d,)\d{3}(?!\w))")


def tags_of(caption: str) -> list[str]:
    """The comma-separated tags of a caption, stripped, without empty ones; "1,000" is not split."""
    return [tag.strip() for tag in COMMA.split(caption) if tag.strip()]


def with_trigger(caption: str, trigger: str) -> str:
    """The caption with the trigger word in front; unchanged if it has that tag, or if there is no trigger word."""
    # Compared as a whole tag: a trigger "mofu" is not found in "mofurin".
    if not trigger or trigger in tags_of(caption):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def variant_count(config: DataConfig) -> int:
    """How many texts one caption can become: 1 without shuffling and tag dropout. Caption dropout is not counted."""
    return config.caption_variants if config.shuffle_caption or config.caption_tag_dropout_rate else 1


def variant(caption: str, index: int, config: DataConfig, seed: int) -> str:
    """Variant `index` of a caption: tags dropped and shuffled, except the first `keep_tokens` tags.

    A function of (seed, caption, index): all variants can be encoded before training, and a step only picks one.
    """
    if variant_count(config) == 1:
        return caption
    # The draws depend on the caption's text and not on the image's name, which may be renamed.
    tags, random = tags_of(caption), rng(seed, "variant", caption, index)
    kept, rest = tags[: config.keep_tokens], tags[config.keep_tokens :]
    # One draw per tag, before shuffling. This order is part of every stored run.
    rest = [tag for tag in rest if random.random() >= config.caption_tag_dropout_rate]
    if config.shuffle_caption:
        random.shuffle(rest)
    return ", ".join(kept + rest)


def training_caption(caption: str, config: DataConfig, seed: int, step: int, place: int) -> str:
    """The text for sample number `place` of step `step`: one of the variants, or "" with caption_dropout_rate."""
    # Drawn per sample and step, so it needs no variants of its own.
    if config.caption_dropout_rate and rng(seed, step, place, "caption dropout").random() < config.caption_dropout_rate:
        return ""
    return variant(caption, seed_of(seed, step, place, "variant") % variant_count(config), config, seed)


def possible_captions(caption: str, config: DataConfig, seed: int) -> list[str]:
    """Every text that `training_caption` can return for a caption, to fill the cache before the first step."""
    variants = [variant(caption, index, config, seed) for index in range(variant_count(config))]
    return variants + [""] if config.caption_dropout_rate else variants


def too_long_captions(captions: Iterable[tuple[str, str]], excess: Callable[[str], str]) -> list[tuple[str, str]]:
    """(image, end of its caption that the model does not read), for those of the (image, caption) that are too long.

    excess    a model family's `excess(config)`: caption -> its end beyond `max_token_length`, "" if it fits
    """
    ends = ((name, excess(caption).strip(" ,")) for name, caption in captions)
    return [(name, end) for name, end in ends if end]
