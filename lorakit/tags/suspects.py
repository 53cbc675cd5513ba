"""What the captions of a dataset make one look twice at: tags that may be wrong, and what a trigger should take in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from lorakit.data.captions import tags_of
from lorakit.tags.vocabulary import implied

# kind -> (severity, sentence), the gravest first. "look": probably a mistake, "tip": worth a thought.
KINDS = {
    "colour": ("look", "“{tag}”, but almost nothing in the image is {colour}"),
    "unseen": ("look", "“{tag}”, but the tagger does not see it ({score:.2f})"),
    "missed": ("look", "no “{tag}”, though the tagger is sure of it ({score:.2f})"),
    "close": ("tip", "“{tag}” is close to the threshold ({score:.2f})"),
    "nearly": ("tip", "no “{tag}”, which is just below the threshold ({score:.2f})"),
    "double": ("tip", "“{tag}” says no more than “{by}” does"),
    "once": ("tip", "no other image has “{tag}”"),
    "absorb": ("tip", "“{tag}” is in {n} of {all} images: take it out, and the trigger stands for it"),
    "fixed": ("look", "“{tag}” is in {n} of {all} images: add some without it, or it will be hard to change"),
    "stay": ("tip", "“{tag}” is in {n} of {all} images: keep it tagged, so that it can be changed"),
}
ABSENT = ("missed", "nearly")  # kinds about a tag that the caption has not
NEAR = 0.05  # of a threshold: worth a second look
SURE = 0.9  # from this score on a tagger is sure
ALWAYS = 0.9  # of the images: what more of them have belongs to the subject
LEAST = 0.004  # share of an image's pixels below which a colour is practically not there
LONGEST = 5  # words of a tag; what has more is a sentence
FEW = 4  # below so many images, what is in all of them, or in one, says nothing

# What a colour word may look like in pixels: generous, since light and shadow change a colour's name.
SHADES = {
    "black": ("black", "grey", "brown", "blue", "purple"),
    "white": ("white", "grey"),
    "grey": ("grey", "white", "black"),
    "gray": ("grey", "white", "black"),
    "silver": ("grey", "white"),
    "red": ("red", "orange", "brown", "pink"),
    "orange": ("orange", "red", "yellow", "brown"),
    "yellow": ("yellow", "orange", "brown"),
    "blonde": ("yellow", "orange", "brown"),
    "green": ("green", "yellow", "blue"),
    "blue": ("blue", "purple", "green", "grey"),
    "aqua": ("blue", "green"),
    "purple": ("purple", "pink", "blue"),
    "pink": ("pink", "red", "purple"),
    "brown": ("brown", "orange", "red", "yellow", "black"),
}
# What a tag is about, by the whole of it or its last word: all that one wants to choose anew in each image.
SWITCHABLE = {
    "clothes": "dress shirt skirt hoodie jacket coat sweater uniform serafuku kimono yukata swimsuit bikini pants "
    "jeans shorts leggings pantyhose thighhighs socks shoes boots sandals sneakers footwear gloves hat cap beret hood "
    "helmet scarf necktie bowtie apron armor cape cloak vest blouse cardigan bodysuit leotard bra panties underwear "
    "pajamas robe suit overalls top sleeves clothes headphones glasses sunglasses goggles mask crown headwear legwear "
    "eyewear bow flower ornament hairband ribbon earrings necklace choker bracelet",
    "pose": "sitting standing lying kneeling squatting walking running jumping waving pose up stretching leaning hand "
    "hands salute dancing sleeping flying hip hips crossed back stomach side seiza",
    "expression": "smile smiling grin angry crying laughing blush frown pout closed mouth expressionless tears sad "
    "surprised scared smirk wink tongue nervous happy embarrassed closed_eyes half-closed_eyes",
    "background": "background sky forest sunset indoors outdoors beach ocean city street room bedroom classroom night "
    "day snow rain water grass tree trees blossoms flowers mountain moon clouds cloud building window sunlight",
    "view": "portrait body close-up shot view above below profile focus behind angle",
}
_GROUPS = {word.replace("_", " "): group for group, words in SWITCHABLE.items() for word in words.split()}
# Large enough in an image for its colour to count; eyes, ribbons or nails are a few pixels.
_LARGE = {"hair", "dress", "shirt", "skirt", "hoodie", "jacket", "coat", "sweater", "serafuku", "kimono", "background"}
# How many there are, and of what kind: base models expect it in a caption.
_COUNTS = {"solo", "1girl", "1boy", "1other", "2girls", "2boys", "girl", "boy", "no humans", "multiple girls"}


@dataclass(frozen=True)
class Hint:
    """One thing to look at: `kind` of KINDS, the tag, the image's name ("" for all), the fields of its sentence."""

    kind: str
    tag: str
    image: str = ""
    facts: Mapping[str, str | int | float] = field(default_factory=dict)

    @property
    def severity(self) -> str:
        """How grave it is: "look" or "tip"."""
        return KINDS[self.kind][0]

    @property
    def reason(self) -> str:
        """Why, as an English sentence."""
        return KINDS[self.kind][1].format(tag=self.tag, **self.facts)


@dataclass(frozen=True)
class TaggerScores:
    """What a tagger says: image -> {tag as captions spell it: 0..1} (what is not there is below 0.05), the category
    of every tag it knows, and from which score on it would write a tag."""

    scores: Mapping[str, Mapping[str, float]]
    categories: Mapping[str, str]
    general: float = 0.35
    character: float = 0.85

    def threshold(self, tag: str) -> float:
        """From which score on a tag is written."""
        return self.character if self.categories.get(tag) == "character" else self.general


def suspicious(
    captions: Mapping[str, str],
    opinion: TaggerScores | None = None,
    colours: Mapping[str, Mapping[str, float]] | None = None,
    trigger: str = "",
) -> list[Hint]:
    """Tags that may be wrong, the gravest first; `captions` and `colours` (Look.colours) go by image.

    A tag is missed only when captions have it in most of the images where the tagger sees it: others were left to
    the trigger on purpose, or are not wanted.
    """
    tagged = {name: _tags(caption, trigger) for name, caption in captions.items()}
    counts = Counter(tag for tags in tagged.values() for tag in set(tags))
    usual = _usual(counts, opinion) if opinion else set()
    found: list[Hint] = []
    for name, tags in tagged.items():
        found += [Hint("double", tag, name, {"by": by}) for tag, by in implied(tags).items()]
        if len(captions) >= FEW:
            found += [Hint("once", tag, name) for tag in tags if counts[tag] == 1]
        if colours and name in colours:
            found += _contradicted(name, tags, colours[name])
        if opinion and name in opinion.scores:
            found += _disagreed(name, tags, opinion, usual)
    ranks = {kind: rank for rank, kind in enumerate(KINDS)}
    return sorted(found, key=lambda hint: (ranks[hint.kind], _surprise(hint), hint.tag, hint.image))


def absorb(captions: Mapping[str, str], trigger: str = "") -> list[Hint]:
    """Tags in more than 90 % of the images that are no one's to switch: the trigger can stand for them.

    What can be switched but hardly ever is, is `must_stay`'s; how many people there are stays, as base models expect.
    """
    return [
        Hint("absorb", tag, "", {"n": n, "all": len(captions)})
        for tag, n in _counted(captions, trigger)
        if n > ALWAYS * len(captions) and tag not in _COUNTS and not group(tag)
    ]


def must_stay(captions: Mapping[str, str], trigger: str = "") -> list[Hint]:
    """Tags of what should be switchable (clothes, pose, expression, background, view), the most frequent first.

    "fixed": nearly all images have it, so that it may stick however it is tagged; "stay": it varies.
    """
    return [
        Hint("fixed" if n > ALWAYS * len(captions) else "stay", tag, "", {"n": n, "all": len(captions)})
        for tag, n in _counted(captions, trigger)
        if n > 1 and group(tag)
    ]


def group(tag: str) -> str:
    """What a switchable tag is about, a key of SWITCHABLE; "" for a tag of the subject itself."""
    words = tag.lower()
    return _GROUPS.get(words) or _GROUPS.get(words.rpartition(" ")[2], "")


def _tags(caption: str, trigger: str) -> list[str]:
    """The tags of a caption, without the trigger and without what rather is a sentence."""
    words = [tag for tag in tags_of(caption) if tag != trigger]
    return [tag for tag in words if len(tag.split()) <= LONGEST and not tag.endswith(".")]


def _counted(captions: Mapping[str, str], trigger: str) -> list[tuple[str, int]]:
    """Tags and how many images have them, the most frequent first; none of a dataset that is too small to say."""
    if len(captions) < FEW:
        return []
    counts = Counter(tag for caption in captions.values() for tag in set(_tags(caption, trigger)))
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _contradicted(name: str, tags: list[str], colours: Mapping[str, float]) -> Iterator[Hint]:
    """Tags such as "red hair" of an image in which hardly a pixel is red, or anything that passes for red."""
    for tag in tags:
        words = tag.lower().split()
        if len(words) < 2 or words[-1] not in _LARGE or words[-2] not in SHADES:
            continue
        if sum(colours.get(shade, 0.0) for shade in SHADES[words[-2]]) < LEAST:
            yield Hint("colour", tag, name, {"colour": words[-2]})


def _usual(counts: Mapping[str, int], opinion: TaggerScores) -> set[str]:
    """The tags that captions have in at least half of the images in which the tagger sees them."""
    seen = Counter(
        tag for scores in opinion.scores.values() for tag, score in scores.items() if score >= opinion.threshold(tag)
    )
    return {tag for tag, count in counts.items() if 2 * count >= seen[tag]}


def _disagreed(name: str, tags: list[str], opinion: TaggerScores, usual: set[str]) -> Iterator[Hint]:
    """Where caption and tagger differ, or the tagger nearly decided otherwise."""
    scores, there = opinion.scores[name], set(tags)
    for tag in tags:
        if tag not in opinion.categories:
            continue
        score, threshold = scores.get(tag, 0.0), opinion.threshold(tag)
        if score < threshold + NEAR:
            yield Hint("unseen" if score < threshold - NEAR else "close", tag, name, {"score": score})
    for tag, score in scores.items():
        threshold = opinion.threshold(tag)
        is_sure, is_near = score >= max(SURE, threshold), threshold - NEAR <= score < threshold
        if not (is_sure or is_near) or tag in there or tag not in usual or tag in implied([*tags, tag]):
            continue
        yield Hint("missed" if is_sure else "nearly", tag, name, {"score": score})


def _surprise(hint: Hint) -> float:
    """For sorting: how far a score is from what the caption says."""
    score = hint.facts.get("score", 0.5)
    return -score if hint.kind == "missed" else score
