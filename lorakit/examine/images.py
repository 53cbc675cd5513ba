"""Checks of training images: too small, upscaled, blurred, with borders, duplicates."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from lorakit.data import measures
from lorakit.data.buckets import FittedImage
from lorakit.data.caption_parts import tags_of
from lorakit.data.image_stats import ImageStats
from lorakit.data.scan import Sample
from lorakit.examine.facts import Facts
from lorakit.examine.finding import CheckResult

# Share of the training area; a quarter of the pixels is half of each side.
SMALL = 0.25
# Share of the area.
CROPPED = 0.1
# Factor of a side.
ENLARGED = 1.5
# An image is blurred below this share of the dataset's median sharpness, but never above the second of the limits
# and always below the first.
BLUR_LIMITS, BLUR_SHARE = (12.0, 100.0), 0.1
# Bits of 64 that may differ; a copy that was scaled, recompressed or lightened differs in 0 to 6.
ALIKE = 8
# Share of a side that a border takes at both ends.
FRAME = 0.03
# A bright border (channels from 0 to 255) must be this share of a side, as figures often stand on a white ground.
BRIGHT, BRIGHT_FRAME = 235, 0.1
PLAIN = ("simple background", "white background", "transparent background")


def small(facts: Facts) -> CheckResult | None:
    """Images with less than a quarter of the pixels of the training area."""
    least = SMALL * facts.config.resolution**2
    samples = [sample for sample in facts.samples if sample.width * sample.height < least]
    # The smallest first.
    samples.sort(key=lambda sample: sample.width * sample.height)
    details = {s.name: f"{s.width} × {s.height} px" for s in samples}
    return CheckResult(tuple(details), details, fields={"side": facts.config.resolution})


def enlarged(facts: Facts) -> CheckResult | None:
    """Images that are upscaled to fill their bucket."""
    # px of the training image for one px of the file
    scales = {sample.name: facts.fits[sample.name].resized[0] / sample.width for sample in facts.samples}
    samples = [sample for sample in facts.samples if scales[sample.name] > ENLARGED]
    details = {s.name: f"{s.width} × {s.height} px × {scales[s.name]:.1f}" for s in samples}
    return CheckResult(tuple(details), details, fields={"factor": ENLARGED})


def blurred(facts: Facts) -> CheckResult | None:
    """Images without sharp edges, in absolute terms or compared with the rest of the dataset."""
    sharpness = {name: stats.sharpness for name, stats in facts.stats.items() if not stats.error}
    least, most = BLUR_LIMITS
    limit = min(most, max(least, BLUR_SHARE * median(sharpness.values()))) if sharpness else 0.0
    blurry = sorted((value, name) for name, value in sharpness.items() if value < limit)
    details = {name: f"{value:.0f} < {limit:.0f}" for value, name in blurry}
    return CheckResult(tuple(details), details)


def cropped(facts: Facts) -> CheckResult:
    """Images of which the bucket cuts off a tenth or more."""
    fitted = (FittedImage(sample, facts.fits[sample.name]) for sample in facts.samples)
    lost = sorted((image for image in fitted if image.lost >= CROPPED), key=lambda image: -image.lost)
    details = {image.sample.name: f"{_size(image.sample)}: −{image.lost:.0%}" for image in lost}
    return CheckResult(tuple(details), details)


def sideways(facts: Facts) -> CheckResult:
    """Images that stand upright only by their EXIF."""
    return CheckResult(tuple(name for name, stats in facts.stats.items() if stats.is_turned))


def framed(facts: Facts) -> CheckResult | None:
    """Images with a border or bars of one colour on opposite sides."""
    stats = {sample.name: facts.stats[sample.name] for sample in facts.samples if _is_framed(facts, sample)}
    details = {name: f"{_arrows(own)} px {own.border_colour}" for name, own in stats.items()}
    return CheckResult(tuple(details), details)


def _is_framed(facts: Facts, sample: Sample) -> bool:
    """Whether an image has a border that no crop box removes."""
    stats = facts.stats[sample.name]
    if not stats.border_colour or sample.name in facts.boxed:
        return False
    left, top, right, bottom = stats.border
    # Shares of a side, 0..1; min(): a border must be at both ends.
    across, down = min(left, right) / stats.width, min(top, bottom) / stats.height
    # "#rrggbb" -> the darkest channel
    if min(bytes.fromhex(stats.border_colour[1:])) < BRIGHT:
        return max(across, down) >= FRAME
    # The white margin around a figure on white ground is no frame: it has four sides, or three if the figure is cut
    # at one edge. Bars have two.
    is_ground = sum(px > 0 for px in stats.border) > 2 or set(PLAIN) & set(tags_of(sample.written))
    return max(across, down) >= BRIGHT_FRAME and not is_ground


def _arrows(stats: ImageStats) -> str:
    """A border as text, e.g. "←12 →12"."""
    return " ".join(f"{arrow}{px}" for arrow, px in zip("←↑→↓", stats.border, strict=True) if px)


def duplicates(facts: Facts) -> CheckResult | None:
    """Identical and nearly identical images: the best of each group is kept, the others are `targets`."""
    images: list[str] = []
    targets: list[str] = []
    details: dict[str, str] = {}
    sizes = {sample.name: _size(sample) for sample in facts.samples}
    for best, *others in _groups(facts):
        images += [best, *others]
        targets += others
        details |= {best: sizes[best], **{name: f"{sizes[name]} ≈ {best}" for name in others}}
    return CheckResult(tuple(images), details, tuple(targets))


def _size(sample: Sample) -> str:
    return f"{sample.width} × {sample.height} px"


def unhashed(facts: Facts) -> CheckResult | None:
    """Near-duplicates were not checked, as a package is missing."""
    is_missing = any(not stats.phash and not stats.error for stats in facts.stats.values())
    return CheckResult(details={"pip install ImageHash": ""}) if is_missing else None


def _groups(facts: Facts) -> Iterator[list[str]]:
    """Groups of duplicates, the best image of each first: captioned, then larger, then sharper."""
    # Union-find: each name leads to the leader of its group.
    order = {sample.name: place for place, sample in enumerate(facts.samples)}
    leader = {name: name for name in order}

    def leading(name: str) -> str:
        while leader[name] != name:
            # Path halving keeps the chains short.
            leader[name] = name = leader[leader[name]]
        return name

    for one, other in _pairs(facts):
        leader[leading(other)] = leading(one)
    groups: dict[str, list[str]] = {}
    for name in order:
        groups.setdefault(leading(name), []).append(name)

    def worth(name: str) -> tuple:
        stats = facts.stats[name]
        # Ascending: False (has a caption) comes first, then large, then sharp, then the order of the dataset.
        return (name not in facts.captions, -stats.width * stats.height, -stats.sharpness, order[name])

    yield from (sorted(group, key=worth) for group in groups.values() if len(group) > 1)


def _pairs(facts: Facts) -> Iterator[tuple[str, str]]:
    """Pairs of duplicates, enough of them to build the groups."""
    same: dict[str, list[str]] = {}
    for name, stats in facts.stats.items():
        same.setdefault(stats.digest, []).append(name)
    yield from ((names[0], other) for names in same.values() for other in names[1:])
    # One image per group of identical files is enough.
    yield from _near({names[0]: facts.stats[names[0]] for names in same.values()})


def _near(all_stats: dict[str, ImageStats]) -> Iterator[tuple[str, str]]:
    """Pairs whose perceptual hashes and colours, place by place, hardly differ."""
    import numpy as np

    names = [name for name, stats in all_stats.items() if stats.phash]
    bits = np.array([int(all_stats[name].phash, 16) for name in names], np.uint64)  # [n]
    places = np.stack([measures.with_neighbours(all_stats[name].cells) for name in names]) if names else np.empty(0)
    for i, name in enumerate(names):
        # one row of the triangle of all pairs; the colours are compared only where the hashes agree
        near = i + 1 + np.flatnonzero(np.bitwise_count(bits[i + 1 :] ^ bits[i]) <= ALIKE)
        for j in near[measures.colour_distance(places[i], places[near]) <= measures.MAX_COLOUR_DISTANCE]:
            yield name, names[j]
