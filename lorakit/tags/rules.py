"""Rules for editing captions: add, remove, rename and merge tags; each turns one caption into another."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from lorakit.data.caption_parts import tags_of


@dataclass(frozen=True)
class Add:
    """Add a tag to captions without it, at the "end" or the "start"; the start is after `trigger` if that is first."""

    tag: str
    place: str = "end"
    trigger: str = ""

    def apply(self, caption: str) -> str:
        """The caption with the tag."""
        tags = tags_of(caption)
        if not self.tag.strip() or self.tag.strip() in tags:
            return caption
        if self.place == "end":
            return _joined([*tags, self.tag])
        triggers = tags_of(self.trigger)
        begin = len(triggers) if triggers and tags[: len(triggers)] == triggers else 0
        return _joined([*tags[:begin], self.tag, *tags[begin:]])


@dataclass(frozen=True)
class Remove:
    """Remove a tag, or all that match a pattern such as `* footwear`; a pattern never matches `trigger`."""

    tag: str
    trigger: str = ""

    def apply(self, caption: str) -> str:
        """The caption without the tag."""
        matches = matcher(self.tag, self.trigger)
        return _mapped(caption, lambda tag: None if matches(tag) else tag)


@dataclass(frozen=True)
class Rename:
    """Rename `old` (one tag, or a pattern such as `* footwear`) to `new`, which then stands once in the caption."""

    old: str
    new: str
    trigger: str = ""

    def apply(self, caption: str) -> str:
        """The caption with the new name."""
        matches = matcher(self.old, self.trigger)
        return _mapped(caption, lambda tag: self.new if matches(tag) else tag)


@dataclass(frozen=True)
class Merge:
    """Replace all of `tags` (or patterns) by `into`, which then stands once, at the place of the first of them."""

    tags: tuple[str, ...]
    into: str
    trigger: str = ""

    def apply(self, caption: str) -> str:
        """The caption with the merged tag."""
        matchers = [matcher(tag, self.trigger) for tag in self.tags]
        return _mapped(caption, lambda tag: self.into if any(matches(tag) for matches in matchers) else tag)


Rule = Add | Remove | Rename | Merge


def matcher(pattern: str, trigger: str = "") -> Callable[[str], bool]:
    """A function that returns whether a tag matches `pattern`, in which `*` stands for any text.

    A pattern with `*` never matches the trigger word; only the exact word does.
    """
    pattern = pattern.strip()
    if "*" not in pattern:
        return lambda tag: tag == pattern
    # everything but * is literal: tags are full of brackets, as in (o)_(o)
    regex, triggers = re.compile(".*".join(map(re.escape, pattern.split("*"))), re.DOTALL), tags_of(trigger)
    return lambda tag: tag not in triggers and regex.fullmatch(tag) is not None


def merged(base: str, edited: str, current: str) -> str:
    """A three-way merge of captions: what was added and removed from `base` to `edited` is applied to `current`.

    Tags that were added before all others stay first, the other added ones come last.
    """
    if base == current:
        return edited
    old, new, present = tags_of(base), tags_of(edited), tags_of(current)
    # only additions and removals count; a tag that was merely moved stays where `current` has it
    removed = set(old) - set(new)
    added = [tag for tag in new if tag not in old and tag not in present]
    # as long as `added` and `new` run alike, the tag stands before every old one
    first = [tag for tag, other in zip(added, new, strict=False) if tag == other]
    return ", ".join(first + [tag for tag in present if tag not in removed] + added[len(first) :])


def _mapped(caption: str, rename: Callable[[str], str | None]) -> str:
    """The caption with `rename` applied to each tag (None: without it).

    A caption in which nothing is renamed stays the same to the letter, its spaces too. A tag that is renamed to one
    that stands elsewhere in the caption is dropped.
    """
    # `new in tags`: the tag that is there already keeps its place
    tags = tags_of(caption)
    new_tags: list[str] = []
    for tag, new in zip(tags, map(rename, tags), strict=True):
        # a tag that is there already keeps its place, the renamed one goes
        if new is None or (new != tag and (new in tags or new in new_tags)):
            continue
        new_tags.append(new)
    return caption if new_tags == tags else _joined(new_tags)


def _joined(tags: list[str]) -> str:
    return ", ".join(tag for tag in map(str.strip, tags) if tag)
