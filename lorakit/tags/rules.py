"""Rules that change captions: small frozen data, each from a caption to a caption."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from lorakit.data.captions import tags_of

PLACES = ("end", "start")


@dataclass(frozen=True)
class Add:
    """Put a tag where it is missing, last or first; first is after `trigger`, where the caption begins with that."""

    tag: str
    place: str = "end"
    trigger: str = ""

    def apply(self, caption: str) -> str:
        tags = tags_of(caption)
        if not self.tag.strip() or self.tag.strip() in tags:
            return caption
        first = 1 if self.place == "start" and tags and tags[0] == self.trigger else 0
        return _joined([*tags, self.tag] if self.place == "end" else [*tags[:first], self.tag, *tags[first:]])


@dataclass(frozen=True)
class Remove:
    """Take a tag, or all that a pattern such as `* footwear` names, out; `trigger` only when it is named exactly."""

    tag: str
    trigger: str = ""

    def apply(self, caption: str) -> str:
        named = matcher(self.tag, self.trigger)
        return _changed(caption, lambda tag: None if named(tag) else tag)


@dataclass(frozen=True)
class Rename:
    """Write `new` where `old` stands (one tag, or a pattern such as `* footwear`), once in a caption."""

    old: str
    new: str
    trigger: str = ""

    def apply(self, caption: str) -> str:
        named = matcher(self.old, self.trigger)
        return _changed(caption, lambda tag: self.new if named(tag) else tag)


@dataclass(frozen=True)
class Merge:
    """Write `into` once, where the first of `tags` (or patterns) stands, in place of all of them."""

    tags: tuple[str, ...]
    into: str
    trigger: str = ""

    def apply(self, caption: str) -> str:
        named = [matcher(tag, self.trigger) for tag in self.tags]
        return _changed(caption, lambda tag: self.into if any(is_it(tag) for is_it in named) else tag)


Rule = Add | Remove | Rename | Merge


def matcher(pattern: str, trigger: str = "") -> Callable[[str], bool]:
    """Whether a tag is what `pattern` names: the tag itself or, where that has `*`, any text in the place of it.
    A pattern never names the trigger, the exact word does."""
    pattern = pattern.strip()
    if "*" not in pattern:
        return lambda tag: tag == pattern
    shape = re.compile(".*".join(map(re.escape, pattern.split("*"))), re.DOTALL)
    return lambda tag: tag != trigger and shape.fullmatch(tag) is not None


def merged(seen: str, wanted: str, now: str) -> str:
    """`wanted`, which somebody made of `seen`, made of `now`: the same tags go and come."""
    if seen == now:
        return wanted
    before, after, there = tags_of(seen), tags_of(wanted), tags_of(now)
    gone = set(before) - set(after)
    come = [tag for tag in after if tag not in before and tag not in there]
    first = [tag for tag, position in zip(come, after, strict=False) if tag == position]  # put before all others
    return ", ".join(first + [tag for tag in there if tag not in gone] + come[len(first) :])


def _changed(caption: str, change: Callable[[str], str | None]) -> str:
    """The caption with each tag as `change` has it (None: without it); as it was, spaces and all, if that is the same.
    What is changed into a tag that stands elsewhere already goes."""
    tags = tags_of(caption)
    new: list[str] = []
    for tag, changed in zip(tags, map(change, tags), strict=True):
        if changed is None or (changed != tag and (changed in tags or changed in new)):
            continue
        new.append(changed)
    return caption if new == tags else _joined(new)


def _joined(tags: list[str]) -> str:
    return ", ".join(tag for tag in map(str.strip, tags) if tag)
