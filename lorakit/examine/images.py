"""Checks of what training images look like: too small, blurred, alike, framed."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from lorakit.data import measures
from lorakit.data.captions import tags_of
from lorakit.data.image_stats import ImageStats
from lorakit.data.scan import Sample
from lorakit.examine.facts import Facts
from lorakit.examine.finding import CheckResult

SMALL = 0.25  # of the training area: a quarter of the pixels is half of each side
ENLARGED = 1.5  # times a side
BLURRED, BESIDE = (12.0, 100.0), 0.1  # sharpness; its share of the set's median counts between the two
ALIKE = 8  # of 64 bits that may differ; a copy that was scaled, recompressed or lightened differs in 0 to 6
FRAME = 0.03  # share of a side that a border takes on both ends
BRIGHT, BRIGHT_FRAME = 235, 0.1  # of 255, and share of a side: what is not the image's own white ground
PLAIN = ("simple background", "white background", "transparent background")


def small(facts: Facts) -> CheckResult | None:
    """Images with less than a quarter of the pixels that training wants."""
    wanted = SMALL * facts.config.resolution**2
    found = [sample for sample in facts.samples if sample.width * sample.height < wanted]
    return CheckResult(*_listed(found), fields={"side": facts.config.resolution})


def enlarged(facts: Facts) -> CheckResult | None:
    """Images that are blown up to fill their bucket."""
    scales = {sample.name: facts.fits[sample.name].resized[0] / sample.width for sample in facts.samples}
    found = [sample for sample in facts.samples if scales[sample.name] > ENLARGED]
    details = {s.name: f"{s.width} × {s.height} px × {scales[s.name]:.1f}" for s in found}
    return CheckResult(tuple(details), details, fields={"factor": ENLARGED})


def blurred(facts: Facts) -> CheckResult | None:
    """Images without sharp edges, by themselves or beside the others of the set."""
    sharpness = {name: look.sharpness for name, look in facts.looks.items() if not look.error}
    least, most = BLURRED
    limit = min(most, max(least, BESIDE * median(sharpness.values()))) if sharpness else 0.0
    found = sorted((value, name) for name, value in sharpness.items() if value < limit)
    return CheckResult(tuple(name for _, name in found), {name: f"{value:.0f} < {limit:.0f}" for value, name in found})


def framed(facts: Facts) -> CheckResult | None:
    """Images with a border or with bars, of one colour, on opposite sides."""
    found = {sample.name: facts.looks[sample.name] for sample in facts.samples if _is_framed(facts, sample)}
    return CheckResult(tuple(found), {name: f"{_arrows(look)} px {look.border_colour}" for name, look in found.items()})


def _is_framed(facts: Facts, sample: Sample) -> bool:
    """A figure on white ground has a white margin, which is no frame, around it or, when it is cut off at one edge, on
    three sides; with a box the border is dealt with.
    """
    look = facts.looks[sample.name]
    if not look.border_colour or sample.name in facts.boxed:
        return False
    left, top, right, bottom = look.border
    across, down = min(left, right) / look.width, min(top, bottom) / look.height
    if min(bytes.fromhex(look.border_colour[1:])) < BRIGHT:
        return max(across, down) >= FRAME
    is_ground = sum(px > 0 for px in look.border) > 2 or set(PLAIN) & set(tags_of(sample.written))
    return max(across, down) >= BRIGHT_FRAME and not is_ground


def _arrows(look: ImageStats) -> str:
    return " ".join(f"{arrow}{px}" for arrow, px in zip("←↑→↓", look.border, strict=True) if px)


def duplicates(facts: Facts) -> CheckResult | None:
    """Images that are the same, or nearly: of each group the best is kept, the others are `targets`."""
    images: list[str] = []
    targets: list[str] = []
    details: dict[str, str] = {}
    sizes = {sample.name: f"{sample.width} × {sample.height} px" for sample in facts.samples}
    for best, *others in _groups(facts):
        images += [best, *others]
        targets += others
        details |= {best: sizes[best], **{name: f"{sizes[name]} ≈ {best}" for name in others}}
    return CheckResult(tuple(images), details, tuple(targets))


def unhashed(facts: Facts) -> CheckResult | None:
    """Likenesses could not be looked for, as a package is missing."""
    is_missing = any(not look.phash and not look.error for look in facts.looks.values())
    return CheckResult(details={"pip install ImageHash": ""}) if is_missing else None


def _groups(facts: Facts) -> Iterator[list[str]]:
    """Names of images that are alike, the best of them first: captioned, then larger, then sharper."""
    order = {sample.name: place for place, sample in enumerate(facts.samples)}
    leader = {name: name for name in order}

    def leading(name: str) -> str:
        while leader[name] != name:
            leader[name] = name = leader[leader[name]]
        return name

    for one, other in _pairs(facts):
        leader[leading(other)] = leading(one)
    groups: dict[str, list[str]] = {}
    for name in order:
        groups.setdefault(leading(name), []).append(name)

    def worth(name: str) -> tuple:
        look = facts.looks[name]
        return (name not in facts.captions, -look.width * look.height, -look.sharpness, order[name])

    yield from (sorted(group, key=worth) for group in groups.values() if len(group) > 1)


def _pairs(facts: Facts) -> Iterator[tuple[str, str]]:
    """Pairs of images that are alike, enough of them to tell the groups."""
    same: dict[str, list[str]] = {}
    for name, look in facts.looks.items():
        same.setdefault(look.digest, []).append(name)
    yield from ((names[0], other) for names in same.values() for other in names[1:])
    yield from _near({names[0]: facts.looks[names[0]] for names in same.values()})


def _near(looks: dict[str, ImageStats]) -> Iterator[tuple[str, str]]:
    """Pairs whose perceptual hashes hardly differ, nor their colours at any place."""
    import numpy as np

    names = [name for name, look in looks.items() if look.phash]
    bits = np.array([int(looks[name].phash, 16) for name in names], np.uint64)
    places = np.stack([measures.with_neighbours(looks[name].cells) for name in names]) if names else np.empty(0)
    for i, name in enumerate(names):  # a row of the triangle at once
        near = i + 1 + np.flatnonzero(np.bitwise_count(bits[i + 1 :] ^ bits[i]) <= ALIKE)
        for j in near[measures.colour_distance(places[i], places[near]) <= measures.MAX_COLOUR_DISTANCE]:
            yield name, names[j]


def _listed(samples: list[Sample]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Images and their sizes, the smallest first."""
    samples = sorted(samples, key=lambda sample: sample.width * sample.height)
    return tuple(s.name for s in samples), {s.name: f"{s.width} × {s.height} px" for s in samples}
