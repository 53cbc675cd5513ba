"""Checks of captions: missing, too long, trigger word misplaced, contradicting themselves or the image."""

from __future__ import annotations

import re
from collections import Counter

from lorakit.data.captions import too_long_captions
from lorakit.examine.facts import Facts
from lorakit.examine.finding import CheckResult
from lorakit.tags import suspects

# With fewer captions, tags in just one or in nearly all of them mean nothing.
FEW = 10
SHOWN_EXCESS = 160  # characters
# Danbooru's tags that count persons: 1girl, 2boys, 6+girls, multiple girls.
PERSON = re.compile(r"solo|(\d+\+?|multiple )(girl|boy|other)s?")
SEVERAL = re.compile(r"([2-9]|\d\d)\+?(girl|boy|other)s|multiple (girls|boys|others)")
# Things of which one person has one, and tags which explain that it has two colours nevertheless.
SINGLE = ("hair", "eyes", "skin", "dress", "skirt", "shirt", "hoodie", "jacket", "coat", "pants", "hat", "background")
MIXED = re.compile(
    r"(multicolored|two-tone|gradient|streaked|split-color|colored inner|rainbow|striped|plaid) .+|.*heterochromia"
)


def without(facts: Facts) -> CheckResult:
    """Images with neither a caption file nor an entry in a JSON file."""
    return _trained_as(facts, "no caption")


def empty(facts: Facts) -> CheckResult:
    """Images whose caption file is empty."""
    return _trained_as(facts, "empty caption")


def _trained_as(facts: Facts, kind: str) -> CheckResult:
    """Training images with a note of this kind, and the caption they are trained with instead."""
    names = {note.name for note in facts.notes(kind)}
    samples = [sample for sample in facts.samples if sample.name in names]
    return CheckResult(tuple(s.name for s in samples), {s.name: f"→ {s.caption}" for s in samples if s.caption})


def trigger_missing(facts: Facts) -> CheckResult:
    """Captions without the trigger word (training adds it by itself)."""
    trigger = facts.config.trigger
    captions = {name: facts.captions[name] for name, tags in facts.tags.items() if trigger and trigger not in tags}
    return CheckResult(tuple(captions), captions, fields={"trigger": trigger})


def trigger_late(facts: Facts) -> CheckResult:
    """Captions with other tags before the trigger word."""
    trigger = facts.config.trigger
    captions = {name: facts.captions[name] for name, tags in facts.tags.items() if trigger in tags[1:]}
    return CheckResult(tuple(captions), captions, fields={"trigger": trigger})


def trigger_unset(facts: Facts) -> CheckResult | None:
    """All captions start with the same tag, but no trigger word is set."""
    first = {tags[0] for tags in facts.tags.values() if tags}
    # At least two captioned images: one alone always has one first tag.
    if facts.config.trigger or len(first) != 1 or len(facts.captions) < len(facts.samples) or len(facts.samples) < 2:
        return None
    # "1girl" in front of all captions is common and no trigger word.
    return CheckResult(details={first.pop(): ""}) if not PERSON.fullmatch(min(first)) else None


def too_long(facts: Facts) -> CheckResult | None:
    """Captions with an end that the model does not read; the details are that end."""
    if facts.excess is None:
        return None
    captions = ((sample.name, sample.caption) for sample in facts.samples)
    ends = dict(too_long_captions(captions, facts.excess))
    details = {
        name: "… " + (end if len(end) <= SHOWN_EXCESS else f"{end[:SHOWN_EXCESS]} …") for name, end in ends.items()
    }
    return CheckResult(tuple(ends), details, fields={"limit": facts.model.max_token_length})


def unmeasured(facts: Facts) -> CheckResult | None:
    """There is no tokenizer to measure the captions with."""
    return CheckResult(details={facts.unmeasured: ""}) if facts.unmeasured and facts.captions else None


def once(facts: Facts) -> CheckResult | None:
    """Tags that only one image has."""
    if len(facts.tags) < FEW:
        return None
    # set(): a tag that one caption repeats still counts once.
    counts = Counter(tag for tags in facts.tags.values() for tag in set(tags))
    rare = {name: [tag for tag in tags if counts[tag] == 1] for name, tags in facts.tags.items()}
    rare = {name: tags for name, tags in rare.items() if tags}
    details = {name: ", ".join(tags) for name, tags in rare.items()}
    return CheckResult(tuple(rare), details, fields={"tags": sum(map(len, rare.values()))})


def always(facts: Facts) -> CheckResult | None:
    """Tags of nearly all images, which the trigger word could stand for."""
    if len(facts.tags) < FEW or not facts.config.trigger:
        return None
    suggestions = suspects.tags_for_trigger(facts.captions, facts.config.trigger)
    details = {suggestion.tag: f"{suggestion.count} / {suggestion.total}" for suggestion in suggestions}
    return CheckResult(details=details, fields={"tags": len(suggestions)})


def two_colours(facts: Facts) -> CheckResult:
    """Captions that give one thing two colours, such as "blue hair, red hair"."""
    details = {name: _contradiction(tags) for name, tags in facts.tags.items()}
    details = {name: text for name, text in details.items() if text}
    return CheckResult(tuple(details), details)


def other_colour(facts: Facts) -> CheckResult:
    """Captions with a colour that hardly any pixel has."""
    colours = {name: stats.colours for name, stats in facts.stats.items() if stats.colours}
    tags: dict[str, list[str]] = {}
    for suspect in suspects.suspicious_tags(facts.captions, None, colours, facts.config.trigger):
        if suspect.kind == "colour":
            tags.setdefault(suspect.image, []).append(suspect.tag)
    return CheckResult(tuple(tags), {name: ", ".join(own) for name, own in tags.items()})


def chinese_commas(facts: Facts) -> CheckResult:
    """Captions whose tags are separated by commas that training does not split at."""
    captions = {note.name: facts.captions.get(note.name, "") for note in facts.notes("chinese commas")}
    return CheckResult(tuple(captions), captions)


def shows_people(tags: list[str]) -> bool:
    """Whether some tag counts persons, such as "1girl" or "solo"."""
    return any(PERSON.fullmatch(tag) for tag in tags)


def _contradiction(tags: list[str]) -> str:
    """The tags that give one thing of one person different colours, "" if there are none."""
    # Two persons may have different hair, so only captions of one person can contradict themselves.
    persons = {tag for tag in tags if PERSON.fullmatch(tag)} - {"solo"}
    if len(persons) > 1 or any(SEVERAL.fullmatch(tag) or MIXED.fullmatch(tag) for tag in tags):
        return ""
    colours_of: dict[str, dict[str, str]] = {}  # thing -> colour -> tag
    for tag in tags:
        # The last two words: "long blue hair" gives (blue, hair); the blanks are for tags of one word.
        *_, colour, thing = ["", "", *tag.lower().split()]
        if thing in SINGLE and colour in suspects.SHADES:
            colours_of.setdefault(thing, {})[colour] = tag
    return "; ".join(", ".join(colours.values()) for colours in colours_of.values() if len(colours) > 1)
