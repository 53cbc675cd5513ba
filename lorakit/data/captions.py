"""From the text of a caption file to the text of a training step: trigger word, tag shuffling, dropout."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from lorakit.data import DataConfig
from lorakit.data.caption_parts import KEEP_SEPARATOR, TAG_SEPARATOR, is_sentence, parts_of, pieces_of, tags_of
from lorakit.randomness import rng, seed_of

# What other trainers' captions write for the trigger word.
PLACEHOLDER = re.compile(r"\[(?:trigger|name)\]", re.IGNORECASE)
SEPARATORS = re.compile(r"\|\|\||;;;")


def trigger_of(folder: str, config: DataConfig) -> str:
    """The trigger word of the images in a concept folder, which is named by its path or by its last part."""
    return config.triggers.get(folder, config.triggers.get(folder.rpartition("/")[2], config.trigger))


def trained_caption(lines: Iterable[str], trigger: str, config: DataConfig) -> str:
    """The caption that an image is trained with: the trigger word where it is missing, placeholders filled in.

    lines   what its file says: one caption, or an alternative on each line, which the result has, too
    """
    if config.reading == 1:
        return "\n".join(_with_first_tag(line, trigger) for line in lines)
    return "\n".join(with_trigger(spelled_out(line, trigger, config), trigger) for line in lines)


def spelled_out(caption: str, trigger: str, config: DataConfig) -> str:
    """A caption with `|||` and `;;;` for the separators that are set, and the trigger word for its placeholders."""
    for own, given in ((KEEP_SEPARATOR, config.keep_tokens_separator), (TAG_SEPARATOR, config.secondary_separator)):
        caption = caption.replace(given, own) if given else caption
    return PLACEHOLDER.sub(lambda match: trigger or match[0], caption)


def with_trigger(caption: str, trigger: str) -> str:
    """The caption with the trigger word in front, unless it is there, as a tag or as a word of another one.

    A trigger of several tags is a list of first tags: those that are missing are put first.
    """
    tags = tags_of(trigger)
    missing = [tag for tag in tags if not has_word(caption, tag)]
    if not missing:
        return caption
    present = [tag for tag in tags_of(caption) if tag in tags]
    if not present or KEEP_SEPARATOR in caption:
        return ", ".join([*missing, *([caption] if caption else [])])
    # some are there: all of them together, in their order
    others = [tag for tag in parts_of(caption) if tag not in tags]
    return ", ".join([*(tag for tag in tags if tag in {*missing, *present}), *others])


def has_word(caption: str, word: str) -> bool:
    """Whether a caption has a word or tag anywhere, not as a part of a longer word; upper and lower case are one."""
    # Chinese and Japanese have no spaces between words.
    before, after = ("" if char >= "\u2e80" else r"\w" for char in (word[0], word[-1]))
    pattern = f"(?<!{before}){re.escape(word)}(?!{after})" if before and after else re.escape(word)
    return re.search(pattern, caption, re.IGNORECASE) is not None


def _with_first_tag(caption: str, trigger: str) -> str:
    """As runs were trained that began with an earlier version (`reading` 1)."""
    if not trigger or trigger in pieces_of(caption):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def trigger_first(caption: str, trigger: str) -> str:
    """The caption with the tags of the trigger word in front, each once; what `|||` parts stays parted."""
    tags = tags_of(trigger)
    first, *others = caption.split(KEEP_SEPARATOR)
    first = ", ".join([*tags, *(part for part in parts_of(first) if part not in tags)])
    parts = [", ".join(part for part in parts_of(text) if part not in tags) for text in others]
    return f" {KEEP_SEPARATOR} ".join([first, *parts])


def without_separators(caption: str) -> str:
    """A caption as the model reads it: commas for separators."""
    if not SEPARATORS.search(caption):
        return caption
    return ", ".join(text for part in SEPARATORS.split(caption) if (text := part.strip(" ,\t")))


def variant_count(config: DataConfig) -> int:
    """How many texts one caption can become: 1 without shuffling and tag dropout. Caption dropout is not counted."""
    return config.caption_variants if config.shuffle_caption or config.caption_tag_dropout_rate else 1


def variant(caption: str, index: int, config: DataConfig, seed: int) -> str:
    """Variant `index` of a caption: tags dropped and shuffled, except those that stay in place.

    These are the first `keep_tokens` tags, or all before `|||` and after a second one. A sentence moves as a tag does,
    and is never dropped. A function of (seed, caption, index): all variants can be encoded before training, and a step
    only picks one.
    """
    if variant_count(config) == 1:
        return caption if config.reading == 1 else without_separators(caption)
    first, rest, last = _kept(caption, config)
    # The draws depend on the caption's text and not on the image's name, which may be renamed.
    random = rng(seed, "variant", caption, index)
    # One draw per part, before shuffling, for sentences too. This order is part of every stored run.
    rest = [
        part
        for part in rest
        if random.random() >= config.caption_tag_dropout_rate or (config.reading > 1 and is_sentence(part))
    ]
    if config.shuffle_caption:
        random.shuffle(rest)
    text = ", ".join([*first, *rest, *last])
    return text if config.reading == 1 else without_separators(text)


def _kept(caption: str, config: DataConfig) -> tuple[list[str], list[str], list[str]]:
    """The tags of a caption that stay first, those that move, and those that stay last."""
    if config.reading == 1:
        tags = pieces_of(caption)
    elif KEEP_SEPARATOR in caption:
        first, rest, *last = caption.split(KEEP_SEPARATOR, 2)
        return parts_of(first), parts_of(rest), parts_of(last[0]) if last else []
    else:
        tags = parts_of(caption)
    return tags[: config.keep_tokens], tags[config.keep_tokens :], []


def training_caption(caption: str, config: DataConfig, seed: int, step: int, place: int) -> str:
    """The text for sample number `place` of step `step`: one of the variants, or "" with caption_dropout_rate."""
    # Drawn per sample and step, so it needs no variants of its own.
    if config.caption_dropout_rate and rng(seed, step, place, "caption dropout").random() < config.caption_dropout_rate:
        return ""
    lines = caption.split("\n")
    line = lines[seed_of(seed, step, place, "caption line") % len(lines)] if len(lines) > 1 else caption
    return variant(line, seed_of(seed, step, place, "variant") % variant_count(config), config, seed)


def possible_captions(caption: str, config: DataConfig, seed: int) -> list[str]:
    """Every text that `training_caption` can return for a caption, to fill the cache before the first step."""
    variants = [
        variant(line, index, config, seed) for line in caption.split("\n") for index in range(variant_count(config))
    ]
    return variants + [""] if config.caption_dropout_rate else variants


def too_long_captions(captions: Iterable[tuple[str, str]], excess: Callable[[str], str]) -> list[tuple[str, str]]:
    """(image, end of its caption that the model does not read), for those of the (image, caption) that are too long.

    excess    a model family's `excess(config)`: caption -> its end beyond `max_token_length`, "" if it fits
    """
    texts = ((name, without_separators(line)) for name, caption in captions for line in caption.split("\n"))
    ends = ((name, excess(text).strip(" ,")) for name, text in texts)
    return [(name, end) for name, end in ends if end]
