"""Checks of captions: missing, too long, trigger word misplaced, contradicting themselves or the image."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container
from pathlib import PurePosixPath

from lorakit.data.caption_parts import KEEP_SEPARATOR, is_sentence, tags_of
from lorakit.data.captions import has_word, spelled_out, too_long_captions
from lorakit.data.listing import repeats_of
from lorakit.data.scan import Sample
from lorakit.examine.facts import Facts
from lorakit.examine.finding import CheckResult
from lorakit.examine.spelling import QUALITY, same_tag, without_syntax
from lorakit.tags import suspects

# With fewer captions, tags in just one or in nearly all of them mean nothing.
FEW = 10
# Captions that must have a tag before it is taken for the trigger word.
MIN_CAPTIONS = 4
# Signs in a row that part tags for other trainers: |||, ;;;, &&&, ###
SEPARATOR = re.compile(r"(?<![^\s,\w])(?<!_)(?:\|{2,}|;{2,}|&{2,}|#{2,}|\${2,}|%{2,}|~{2,})(?![^\s,\w]|_)")
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
    """Captions without the trigger word (training adds it by itself), but for folders that have another one."""
    others = {name for names in _foreign_folders(facts).values() for name in names}
    captions = {}
    for sample in facts.samples:
        text = ", ".join(facts.tags.get(sample.name, []))
        if text and sample.name not in others and not all(has_word(text, tag) for tag in tags_of(sample.trigger)):
            captions[sample.name] = sample.written
    return CheckResult(tuple(captions), captions, fields={"trigger": _triggers(facts, captions)})


def trigger_late(facts: Facts) -> CheckResult:
    """Captions with other tags before those of the trigger word."""
    captions = {}
    for sample in facts.samples:
        triggers, tags = tags_of(sample.trigger), facts.tags.get(sample.name, [])
        first = len(triggers)
        if KEEP_SEPARATOR in (text := spelled_out(sample.written, sample.trigger, facts.config)):
            first = len(tags_of(text.partition(KEEP_SEPARATOR)[0]))
        if set(triggers) & set(tags[first:]) and sample.name not in facts.alternatives:
            captions[sample.name] = sample.written
    return CheckResult(tuple(captions), captions, fields={"trigger": _triggers(facts, captions)})


def _triggers(facts: Facts, names: Container[str]) -> str:
    """The trigger words of some images, to be shown."""
    return " / ".join(dict.fromkeys(sample.trigger for sample in facts.samples if sample.name in names))


def trigger_shared(facts: Facts) -> CheckResult | None:
    """Concept folders that get the trigger word although it is another's."""
    folders = _foreign_folders(facts)
    details = {folder: f"→ {_own_tag(facts, names)}" for folder, names in folders.items()}
    return CheckResult(details=details, fields={"folders": len(folders), "trigger": facts.config.trigger})


def _foreign_folders(facts: Facts) -> dict[str, list[str]]:
    """Concept folder -> its images, of folders whose captions lack the trigger word that they get: they all begin with
    another tag, or there are none, and the trigger word is the name of another folder.
    """
    by_folder: dict[str, list[Sample]] = {}
    for sample in facts.samples:
        if repeats_of(folder := PurePosixPath(sample.name).parent.name):
            by_folder.setdefault(folder, []).append(sample)
    foreign = {}
    for folder, samples in by_folder.items():
        names, trigger = [sample.name for sample in samples], samples[0].trigger
        own = _own_tag(facts, names)
        is_given = not trigger or folder in facts.config.triggers or trigger in (own, _concept(folder))
        is_captioned = sum(name in facts.tags for name in names) > 1
        is_elsewhere = any(_concept(other) == trigger for other in by_folder if other != folder)
        if not is_given and own and (is_captioned or is_elsewhere):
            if not any(has_word(sample.written, trigger) for sample in samples):
                foreign[folder] = names
    own_tags = {_own_tag(facts, names) for names in foreign.values()}
    return foreign if len(foreign) < len(by_folder) or len(own_tags) > 1 else {}


def _concept(folder: str) -> str:
    """The name of a concept folder without its repeats."""
    return folder.partition("_")[2].replace("_", " ")


def _own_tag(facts: Facts, names: list[str]) -> str:
    """The first tag of all captions of a folder's images; without captions the folder's name; "" for no such tag."""
    first = {facts.tags[name][0] for name in names if facts.tags.get(name)}
    if not first:
        return _concept(PurePosixPath(names[0]).parent.name)
    return first.pop() if len(first) == 1 and not PERSON.fullmatch(min(first)) else ""


def trigger_unset(facts: Facts) -> CheckResult | None:
    """No trigger word is set, and one tag or name is most likely meant as one."""
    if facts.triggers or len(facts.samples) < 2:
        return None
    tag = _likely_trigger(facts)
    count = sum(has_word(caption, tag) for caption in facts.captions.values()) if tag else 0
    return CheckResult(details={tag: f"{count} / {len(facts.samples)}"}, fields={"tag": tag}) if tag else None


def _likely_trigger(facts: Facts) -> str:
    """The first tag of all captions; else the name of the only concept folder; else the tag that nearly all have and
    that is neither a number of people, nor praise, nor what changes from image to image; "" for none of these.
    """
    first = {tags[0] for tags in facts.tags.values() if tags}
    if len(first) == 1 and not _is_usual(min(first)) and len(facts.captions) == len(facts.samples):
        return first.pop()
    folders = {PurePosixPath(sample.name).parent.name for sample in facts.samples}
    name = min(folders).partition("_")[2] if len(folders) == 1 and repeats_of(min(folders)) else ""
    if name and not _is_usual(name):
        return name.replace("_", " ")
    counts = Counter(tag for tags in facts.tags.values() for tag in set(tags) if not is_sentence(tag))
    least = max(MIN_CAPTIONS, suspects.ALWAYS * len(facts.samples))
    always = [tag for tag, count in counts.most_common() if count >= least and not _is_usual(tag)]
    # a word that no tagger writes: without spaces, and no colour or thing
    return next((tag for tag in always if " " not in tag), "")


def _is_usual(tag: str) -> bool:
    """Whether a tag stands in captions of many subjects, so that it is hardly a trigger word."""
    plain = same_tag(tag)
    return bool(PERSON.fullmatch(plain) or plain in QUALITY or suspects.group(plain) or is_sentence(plain))


def several_lines(facts: Facts) -> CheckResult:
    """Caption files whose lines look like alternatives, while all of them are read as one caption."""
    lines = {sample.name: " ⏎ ".join(sample.lines) for sample in facts.samples if sample.name in facts.alternatives}
    # a pasted prompt has several lines, too
    lines = {name: text for name, text in lines.items() if without_syntax(facts.captions[name]) == facts.captions[name]}
    return CheckResult(tuple(lines), lines)


def separators(facts: Facts) -> CheckResult:
    """Captions with separators of other trainers that are not the ones that are set."""
    chosen = {facts.config.keep_tokens_separator, facts.config.secondary_separator}
    details = {}
    for name, caption in facts.captions.items():
        marks = {mark for mark in SEPARATOR.findall(caption) if mark not in chosen}
        if marks:
            details[name] = f"{' '.join(sorted(marks))}  in  {caption}"
    return CheckResult(tuple(details), details)


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
    rare = {
        name: [tag for tag in tags if counts[tag] == 1 and not is_sentence(tag)] for name, tags in facts.tags.items()
    }
    rare = {name: tags for name, tags in rare.items() if tags}
    details = {name: ", ".join(tags) for name, tags in rare.items()}
    return CheckResult(tuple(rare), details, fields={"tags": sum(map(len, rare.values()))})


def always(facts: Facts) -> CheckResult | None:
    """Tags of nearly all images, which the trigger word could stand for."""
    if len(facts.tags) < FEW or not facts.triggers:
        return None
    suggestions = suspects.tags_for_trigger(facts.captions, facts.triggers)
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
    for suspect in suspects.suspicious_tags(facts.captions, None, colours, facts.triggers):
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
