"""Checks of the dataset as a whole: how many images it has, of what, and in how many shapes."""

from __future__ import annotations

import re
from collections import Counter
from math import ceil
from pathlib import PurePosixPath

from lorakit import guide_tables
from lorakit.data.listing import repeats_of
from lorakit.data.scan import Sample
from lorakit.examine.captions import shows_people
from lorakit.examine.facts import Facts
from lorakit.examine.finding import CheckResult

# One concept may be shown this many times as often as another.
UNEQUAL = 2.0
# Repeats that guides give even to a handful of images; more are a year or another number.
MOST_REPEATS = 500
# A bucket with fewer images than TINY is tiny; it is reported from TINY_BUCKETS tiny buckets on that together hold
# at least TINY_SHARE of the images.
TINY, TINY_BUCKETS, TINY_SHARE = 4, 4, 0.25
PLACE = {"no humans", "scenery", "landscape", "cityscape", "background"}
# Images, from the FAQ's table in `guide_tables`, for families without a table of their own.
FEWEST = 15


def few(facts: Facts) -> CheckResult | None:
    """Fewer images than the guides recommend."""
    least, source = _least(facts)
    # A dataset that cannot be read has 0 images, which is reported as such.
    if len(facts.samples) >= least or facts.error:
        return None
    details = {facts.config.folder: f"{len(facts.samples)} < {least}"}
    return CheckResult(details=details, fields={"images": len(facts.samples), "least": least, "source": source})


def _least(facts: Facts) -> tuple[int, str]:
    """The fewest images that a guide recommends for the family, and that guide."""
    for table in guide_tables.tables(facts.model.family, "images") if facts.model else ():
        if "at least" in table.columns:
            return min(int(row[table.columns.index("at least")]) for row in table.rows), table.source
    return FEWEST, guide_tables.FAQ


def repeats(facts: Facts) -> CheckResult:
    """Folders whose number is hardly meant as repeats: a year, or so large that an epoch would never end."""
    by_folder: dict[str, list[Sample]] = {}
    for sample in facts.scan.samples:
        if sample.repeats > MOST_REPEATS:
            by_folder.setdefault(str(PurePosixPath(sample.name).parent), []).append(sample)
    details = {
        folder: f"{samples[0].repeats} × {len(samples)} = {samples[0].repeats * len(samples)}"
        for folder, samples in by_folder.items()
    }
    return CheckResult(details=details, fields={"folders": len(details), "most": MOST_REPEATS})


def concepts(facts: Facts) -> CheckResult | None:
    """Concept folders (<repeats>_<name>) that are shown far more often per epoch than others."""
    by_folder: dict[str, list[Sample]] = {}
    for sample in facts.samples:
        folder = PurePosixPath(sample.name).parent
        # Only folders with repeats in their names are concepts.
        if repeats_of(folder.name):
            by_folder.setdefault(str(folder), []).append(sample)
    per_epoch = {folder: sum(sample.repeats for sample in samples) for folder, samples in by_folder.items()}
    if len(per_epoch) < 2 or max(per_epoch.values()) <= UNEQUAL * min(per_epoch.values()):
        return None
    most = max(per_epoch.values())
    details = {}
    for folder, samples in sorted(by_folder.items(), key=lambda item: per_epoch[item[0]]):
        # repeats that would bring this folder up to the most frequent one
        balanced = max(1, round(most / len(samples)))
        is_rare = per_epoch[folder] * UNEQUAL < most
        more = f" → {balanced} × {len(samples)} = {balanced * len(samples)}" if is_rare else ""
        # For example: 2 × 10 = 20 → 5 × 10 = 50
        details[folder] = f"{samples[0].repeats} × {len(samples)} = {per_epoch[folder]}{more}"
    return CheckResult(details=details, fields={"least": min(per_epoch.values()), "most": most})


def backgrounds(facts: Facts) -> CheckResult | None:
    """More images of places without people than of people."""
    places, persons = [], 0
    for sample in facts.samples:
        tags = facts.tags.get(sample.name, [])
        folder = PurePosixPath(sample.name).parent.name
        # Weighted by repeats: what counts is how often training shows each.
        if shows_people(tags):
            persons += sample.repeats
        # Captions without tags for people are not enough: sentences have none.
        elif PLACE & set(tags) or re.search(r"backgrounds?|scenery", folder, re.IGNORECASE):
            places.append(sample)
    per_epoch = sum(sample.repeats for sample in places)
    if not persons or per_epoch <= persons:
        return None
    return CheckResult(tuple(sample.name for sample in places), fields={"places": per_epoch, "persons": persons})


def shapes(facts: Facts) -> CheckResult | None:
    """Many buckets with only a few images each."""
    # name -> (width, height) of its bucket
    sizes = {sample.name: facts.fits[sample.name].size for sample in facts.samples}
    counts = Counter(sizes.values())
    tiny = {size for size, count in counts.items() if count < TINY}
    rare = sorted((sizes[name], name) for name in sizes if sizes[name] in tiny)
    if len(tiny) < TINY_BUCKETS or len(rare) < ceil(TINY_SHARE * len(sizes)):
        return None
    details = {name: f"{width} × {height} px" for (width, height), name in rare}
    return CheckResult(tuple(details), details, fields={"tiny": len(tiny), "buckets": len(counts)})
