"""Checks of a dataset as a whole: how many images, of what, and in how many shapes."""

from __future__ import annotations

import re
from collections import Counter
from math import ceil
from pathlib import PurePosixPath

from lorakit import guide_tables
from lorakit.data.listing import repeats_of
from lorakit.data.scan import Sample
from lorakit.examine.captions import people
from lorakit.examine.facts import Facts
from lorakit.examine.finding import CheckResult

UNEQUAL = 2.0  # how many times more often one concept may be seen than another
TINY, TINY_BUCKETS, TINY_SHARE = 4, 4, 0.25  # images in a tiny bucket; how many of these, with what share, are many
PLACE = {"no humans", "scenery", "landscape", "cityscape", "background"}
FEWEST = 15  # images, as the FAQ's table in `guides` has it for families without a table of their own


def few(facts: Facts) -> CheckResult | None:
    """Fewer images than the guides find enough."""
    least, source = _least(facts)
    if len(facts.samples) >= least or facts.error:
        return None
    told = {facts.config.folder: f"{len(facts.samples)} < {least}"}
    return CheckResult(details=told, fields={"images": len(facts.samples), "least": least, "source": source})


def _least(facts: Facts) -> tuple[int, str]:
    """The fewest images that a guide recommends for the family, and which guide that is."""
    for table in guide_tables.tables(facts.model.family, "images") if facts.model else ():
        if "at least" in table.columns:
            return min(int(row[table.columns.index("at least")]) for row in table.rows), table.source
    return FEWEST, guide_tables.FAQ


def concepts(facts: Facts) -> CheckResult | None:
    """Concept folders (<repeats>_<name>) that an epoch shows far more often than others."""
    by_folder: dict[str, list[Sample]] = {}
    for sample in facts.samples:
        folder = sample.name.partition("/")[0]
        if repeats_of(folder):
            by_folder.setdefault(folder, []).append(sample)
    seen = {folder: sum(sample.repeats for sample in mine) for folder, mine in by_folder.items()}
    if len(seen) < 2 or max(seen.values()) <= UNEQUAL * min(seen.values()):
        return None
    most = max(seen.values())
    details = {}
    for folder, mine in sorted(by_folder.items(), key=lambda item: seen[item[0]]):
        balanced = max(1, round(most / len(mine)))
        more = f" → {balanced} × {len(mine)} = {balanced * len(mine)}" if seen[folder] * UNEQUAL < most else ""
        details[folder] = f"{mine[0].repeats} × {len(mine)} = {seen[folder]}{more}"
    return CheckResult(details=details, fields={"least": min(seen.values()), "most": most})


def backgrounds(facts: Facts) -> CheckResult | None:
    """More images of places alone than of somebody."""
    places, persons = [], 0
    for sample in facts.samples:
        tags = facts.tags.get(sample.name, [])
        folder = PurePosixPath(sample.name).parent.name
        if people(tags):
            persons += sample.repeats
        elif PLACE & set(tags) or re.search(r"backgrounds?|scenery", folder, re.IGNORECASE):
            places.append(sample)
    seen = sum(sample.repeats for sample in places)
    if not persons or seen <= persons:
        return None
    return CheckResult(tuple(sample.name for sample in places), fields={"places": seen, "persons": persons})


def shapes(facts: Facts) -> CheckResult | None:
    """Many buckets that hold hardly an image."""
    sizes = {sample.name: facts.fits[sample.name].size for sample in facts.samples}
    counts = Counter(sizes.values())
    tiny = {size for size, count in counts.items() if count < TINY}
    found = sorted((sizes[name], name) for name in sizes if sizes[name] in tiny)
    if len(tiny) < TINY_BUCKETS or len(found) < ceil(TINY_SHARE * len(sizes)):
        return None
    details = {name: f"{width} × {height} px" for (width, height), name in found}
    return CheckResult(tuple(details), details, fields={"tiny": len(tiny), "buckets": len(counts)})
