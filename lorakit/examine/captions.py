"""Checks of captions: missing, cut, in another order than training wants, at odds with themselves or the pixels."""

from __future__ import annotations

import re
from collections import Counter

from lorakit.examine.facts import Facts
from lorakit.examine.finding import CheckResult
from lorakit.tags import suspects

FEW = 10  # below so many captions, what is in one, or in nearly all of them, says nothing
SHOWN_CUT = 160  # characters of what is cut that are shown
PERSON = re.compile(r"solo|(\d+\+?|multiple )(girl|boy|other)s?")
SEVERAL = re.compile(r"([2-9]|\d\d)\+?(girl|boy|other)s|multiple (girls|boys|others)")
# What one person has one of, and what says that it has two colours all the same.
SINGLE = ("hair", "eyes", "skin", "dress", "skirt", "shirt", "hoodie", "jacket", "coat", "pants", "hat", "background")
MIXED = re.compile(
    r"(multicolored|two-tone|gradient|streaked|split-color|colored inner|rainbow|striped|plaid) .+|.*heterochromia"
)


def without(facts: Facts) -> CheckResult:
    """Images that have neither a caption file nor an entry elsewhere."""
    return _untold(facts, "no caption")


def empty(facts: Facts) -> CheckResult:
    """Images whose caption file holds nothing."""
    return _untold(facts, "empty caption")


def _untold(facts: Facts, kind: str) -> CheckResult:
    """Training images that a note of this kind is on, and what they are trained as."""
    names = {note.name for note in facts.notes(kind)}
    found = [sample for sample in facts.samples if sample.name in names]
    return CheckResult(tuple(s.name for s in found), {s.name: f"→ {s.caption}" for s in found if s.caption})


def trigger_missing(facts: Facts) -> CheckResult | None:
    """Captions without the trigger word, which training puts first by itself."""
    trigger = facts.config.trigger
    found = {name: facts.captions[name] for name, tags in facts.tags.items() if trigger and trigger not in tags}
    return CheckResult(tuple(found), found, fields={"trigger": trigger})


def trigger_late(facts: Facts) -> CheckResult | None:
    """Captions with the trigger word behind other tags."""
    trigger = facts.config.trigger
    found = {name: facts.captions[name] for name, tags in facts.tags.items() if trigger in tags[1:]}
    return CheckResult(tuple(found), found, fields={"trigger": trigger})


def trigger_unset(facts: Facts) -> CheckResult | None:
    """All captions begin with the same tag, but no trigger is set."""
    first = {tags[0] for tags in facts.tags.values() if tags}
    if facts.config.trigger or len(first) != 1 or len(facts.captions) < len(facts.samples) or len(facts.samples) < 2:
        return None
    return CheckResult(details={first.pop(): ""}) if not PERSON.fullmatch(min(first)) else None


def too_long(facts: Facts) -> CheckResult | None:
    """Captions with a part that the model never reads; the details are that part."""
    if facts.excess is None:
        return None
    cut = {sample.name: facts.excess(sample.caption).strip(" ,") for sample in facts.samples}
    cut = {name: text for name, text in cut.items() if text}
    details = {name: "… " + (text if len(text) <= SHOWN_CUT else f"{text[:SHOWN_CUT]} …") for name, text in cut.items()}
    return CheckResult(tuple(cut), details, fields={"limit": facts.model.max_token_length})


def unmeasured(facts: Facts) -> CheckResult | None:
    """It is not known what of the captions is read."""
    return CheckResult(details={facts.unmeasured: ""}) if facts.unmeasured and facts.captions else None


def once(facts: Facts) -> CheckResult | None:
    """Tags that a single image has."""
    if len(facts.tags) < FEW:
        return None
    counts = _counts(facts)
    mine = {name: [tag for tag in tags if counts[tag] == 1] for name, tags in facts.tags.items()}
    mine = {name: tags for name, tags in mine.items() if tags}
    details = {name: ", ".join(tags) for name, tags in mine.items()}
    return CheckResult(tuple(mine), details, fields={"tags": sum(map(len, mine.values()))})


def always(facts: Facts) -> CheckResult | None:
    """Tags of nearly all images that the trigger could stand for."""
    if len(facts.tags) < FEW or not facts.config.trigger:
        return None
    found = suspects.tags_for_trigger(facts.captions, facts.config.trigger)
    details = {suggestion.tag: f"{suggestion.count} / {suggestion.total}" for suggestion in found}
    return CheckResult(details=details, fields={"tags": len(found)})


def two_colours(facts: Facts) -> CheckResult | None:
    """Captions that give one thing two colours, such as "blue hair, red hair"."""
    found = {name: _contradiction(tags) for name, tags in facts.tags.items()}
    found = {name: text for name, text in found.items() if text}
    return CheckResult(tuple(found), found)


def other_colour(facts: Facts) -> CheckResult | None:
    """Captions with a colour that hardly a pixel has."""
    colours = {name: look.colours for name, look in facts.looks.items() if look.colours}
    found: dict[str, list[str]] = {}
    for suspect in suspects.suspicious_tags(facts.captions, None, colours, facts.config.trigger):
        if suspect.kind == "colour":
            found.setdefault(suspect.image, []).append(suspect.tag)
    return CheckResult(tuple(found), {name: ", ".join(tags) for name, tags in found.items()})


def chinese_commas(facts: Facts) -> CheckResult | None:
    """Captions whose tags are parted by commas that training does not know."""
    found = {note.name: facts.captions.get(note.name, "") for note in facts.notes("chinese commas")}
    return CheckResult(tuple(found), found)


def people(tags: list[str]) -> bool:
    """Whether a caption says that somebody is in the image."""
    return any(PERSON.fullmatch(tag) for tag in tags)


def _counts(facts: Facts) -> Counter[str]:
    """Tag -> how many images have it."""
    return Counter(tag for tags in facts.tags.values() for tag in set(tags))


def _contradiction(tags: list[str]) -> str:
    """The tags that give one thing of one person different colours, "" when there are none."""
    persons = {tag for tag in tags if PERSON.fullmatch(tag)} - {"solo"}
    if len(persons) > 1 or any(SEVERAL.fullmatch(tag) or MIXED.fullmatch(tag) for tag in tags):
        return ""
    said: dict[str, dict[str, str]] = {}  # thing -> colour -> tag
    for tag in tags:
        *_, colour, thing = ["", "", *tag.lower().split()]
        if thing in SINGLE and colour in suspects.SHADES:
            said.setdefault(thing, {})[colour] = tag
    return "; ".join(", ".join(colours.values()) for colours in said.values() if len(colours) > 1)
