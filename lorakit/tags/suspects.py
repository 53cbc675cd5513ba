"""Suspicious tags, which may be wrong, and suggestions: what the trigger word should cover, what must stay tagged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from lorakit.data.caption_parts import is_sentence, tags_of
from lorakit.tags.vocabulary import implied

# kind -> (severity, sentence), the most severe first. "warning": probably a mistake, "tip": worth a look.
SUSPICIOUS = {
    "colour": ("warning", "“{tag}”, but almost nothing in the image is {colour}"),
    "unseen": ("warning", "“{tag}”, but the tagger does not see it ({score:.2f})"),
    "missing": ("warning", "“{tag}” is missing, but the tagger is sure of it ({score:.2f})"),
    "close": ("tip", "“{tag}” is close to the threshold ({score:.2f})"),
    "nearly": ("tip", "“{tag}” is missing, just below the threshold ({score:.2f})"),
    "implied": ("tip", "“{tag}” is already implied by “{by}”"),
    "once": ("tip", "“{tag}” is used only once"),
}
SUGGESTIONS = {
    "trigger": "“{tag}” is in {n} of {all} images: remove it, and the trigger word will stand for it",
    "fixed": "“{tag}” is in {n} of {all} images: add images without it, or it will be hard to change",
    "keep": "“{tag}” is in {n} of {all} images: keep it tagged, so that it can be changed",
}
ABSENT = ("missing", "nearly")  # kinds of suspicious tags that the caption does not have
# A score closer to the threshold than this decides little.
NEAR = 0.05
# From this score on a tagger is sure.
SURE = 0.9
# Share of the images above which a tag is taken for part of the subject.
ALWAYS = 0.9
# Share of an image's pixels below which a colour counts as absent.
MIN_COLOUR_SHARE = 0.004
# In smaller datasets it shows nothing how many images have a tag.
MIN_IMAGES = 4

# Colour word -> the pixel colours (lorakit.data.measures) that it may appear as. Generous, as light and shadow change
# colours.
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
# Group -> words: a tag belongs to the group if all of it or its last word is listed. All of these are things that users
# want to change from image to image.
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
# Things that are large in an image, so that their colour must show in its pixels; eyes or ribbons are too small.
_LARGE = {"hair", "dress", "shirt", "skirt", "hoodie", "jacket", "coat", "sweater", "serafuku", "kimono", "background"}
# The number of people: base models expect these tags in every caption, so they are never suggested for removal.
_COUNTS = {"solo", "1girl", "1boy", "1other", "2girls", "2boys", "girl", "boy", "no humans", "multiple girls"}


@dataclass(frozen=True)
class SuspiciousTag:
    """A tag of one image that may be wrong or missing: `kind` of SUSPICIOUS, and the `fields` of its sentence."""

    kind: str
    tag: str
    image: str
    fields: Mapping[str, str | float] = field(default_factory=dict)

    @property
    def severity(self) -> str:
        """ "warning" or "tip"."""
        return SUSPICIOUS[self.kind][0]

    @property
    def reason(self) -> str:
        """Why it is suspicious, as an English sentence."""
        return SUSPICIOUS[self.kind][1].format(tag=self.tag, **self.fields)


@dataclass(frozen=True)
class Suggestion:
    """Advice on a tag that `count` of `total` images have: `kind` is one of SUGGESTIONS."""

    kind: str
    tag: str
    count: int
    total: int

    @property
    def fields(self) -> dict[str, int]:
        """The fields of its sentence, except for the tag."""
        return {"n": self.count, "all": self.total}

    @property
    def reason(self) -> str:
        """The advice as an English sentence."""
        return SUGGESTIONS[self.kind].format(tag=self.tag, **self.fields)


@dataclass(frozen=True)
class TaggerScores:
    """A tagger's scores of a dataset.

    scores       image -> {tag as captions spell it: score, 0 to 1}; tags that are not listed are below 0.05
    categories   tag -> category, of every tag that the tagger knows
    general, character   the thresholds from which on a tag, or a character's name, is written
    """

    scores: Mapping[str, Mapping[str, float]]
    categories: Mapping[str, str]
    general: float = 0.35
    character: float = 0.85

    def threshold(self, tag: str) -> float:
        """The score from which on this tag is written."""
        return self.character if self.categories.get(tag) == "character" else self.general


def suspicious_tags(
    captions: Mapping[str, str],
    scores: TaggerScores | None = None,
    colours: Mapping[str, Mapping[str, float]] | None = None,
    trigger: str = "",
) -> list[SuspiciousTag]:
    """Tags that may be wrong or missing, the most severe first.

    captions   by image
    colours    image -> {pixel colour: share of the image, 0 to 1} (lorakit.data.image_stats)

    A tag is reported missing only if captions have it in most of the images where the tagger sees it. Other tags were
    left out on purpose, for the trigger word to cover.
    """
    # sentences are left out: each would look like a tag that is used only once
    tagged = {name: _tags(caption, trigger) for name, caption in captions.items()}
    counts = Counter(tag for tags in tagged.values() for tag in set(tags))
    usual = _usual_tags(counts, scores) if scores else set()
    suspects: list[SuspiciousTag] = []
    for name, tags in tagged.items():
        suspects += [SuspiciousTag("implied", tag, name, {"by": by}) for tag, by in implied(tags).items()]
        if len(captions) >= MIN_IMAGES:
            suspects += [SuspiciousTag("once", tag, name) for tag in tags if counts[tag] == 1]
        if colours and name in colours:
            suspects += _wrong_colours(name, tags, colours[name])
        if scores and name in scores.scores:
            suspects += _disagreements(name, tags, scores, usual)
    ranks = {kind: rank for rank, kind in enumerate(SUSPICIOUS)}
    return sorted(suspects, key=lambda suspect: (ranks[suspect.kind], _rank(suspect), suspect.tag, suspect.image))


def tags_for_trigger(captions: Mapping[str, str], trigger: str = "") -> list[Suggestion]:
    """Tags in more than 90 % of the images that the trigger word can stand for, so that they can be removed.

    Tags that users want to change (`tags_to_keep`) are not among them, nor the number of people.
    """
    return [
        Suggestion("trigger", tag, count, len(captions))
        for tag, count in _counted(captions, trigger)
        if count > ALWAYS * len(captions) and tag not in _COUNTS and not group(tag)
    ]


def tags_to_keep(captions: Mapping[str, str], trigger: str = "") -> list[Suggestion]:
    """Tags of what users want to change (clothes, pose, expression, background, view), the most frequent first.

    "fixed": nearly all images have it, so that the LoRA may learn it whether it is tagged or not; "keep": it varies.
    """
    return [
        Suggestion("fixed" if count > ALWAYS * len(captions) else "keep", tag, count, len(captions))
        for tag, count in _counted(captions, trigger)
        if count > 1 and group(tag)
    ]


def group(tag: str) -> str:
    """The group of SWITCHABLE that a tag belongs to; "" for a tag of the subject itself."""
    words = tag.lower()
    # The last word of English tags is the thing: a "red plaid skirt" is a skirt.
    return _GROUPS.get(words) or _GROUPS.get(words.rpartition(" ")[2], "")


def _tags(caption: str, trigger: str) -> list[str]:
    """The tags of a caption without the trigger word and without sentences."""
    triggers = tags_of(trigger)
    return [tag for tag in tags_of(caption) if tag not in triggers and not is_sentence(tag)]


def _counted(captions: Mapping[str, str], trigger: str) -> list[tuple[str, int]]:
    """Tags with the number of images that have them, the most frequent first; none for a small dataset."""
    if len(captions) < MIN_IMAGES:
        return []
    counts = Counter(tag for caption in captions.values() for tag in set(_tags(caption, trigger)))
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _wrong_colours(name: str, tags: list[str], colours: Mapping[str, float]) -> Iterator[SuspiciousTag]:
    """Tags such as "red hair" of an image in which hardly a pixel could be called red."""
    for tag in tags:
        words = tag.lower().split()
        if len(words) < 2 or words[-1] not in _LARGE or words[-2] not in SHADES:
            continue
        if sum(colours.get(shade, 0.0) for shade in SHADES[words[-2]]) < MIN_COLOUR_SHARE:
            yield SuspiciousTag("colour", tag, name, {"colour": words[-2]})


def _usual_tags(counts: Mapping[str, int], scores: TaggerScores) -> set[str]:
    """The tags that captions have in at least half of the images in which the tagger sees them."""
    seen = Counter(
        tag for image in scores.scores.values() for tag, score in image.items() if score >= scores.threshold(tag)
    )
    return {tag for tag, count in counts.items() if 2 * count >= seen[tag]}


def _disagreements(name: str, tags: list[str], scores: TaggerScores, usual: set[str]) -> Iterator[SuspiciousTag]:
    """Tags on which caption and tagger disagree, or whose score is close to the threshold."""
    image_scores, present = scores.scores[name], set(tags)
    for tag in tags:
        if tag not in scores.categories:
            continue
        score, threshold = image_scores.get(tag, 0.0), scores.threshold(tag)
        if score < threshold + NEAR:
            yield SuspiciousTag("unseen" if score < threshold - NEAR else "close", tag, name, {"score": score})
    for tag, score in image_scores.items():
        threshold = scores.threshold(tag)
        is_sure, is_near = score >= max(SURE, threshold), threshold - NEAR <= score < threshold
        # a tag that another one of the caption implies is not missing
        if not (is_sure or is_near) or tag in present or tag not in usual or tag in implied([*tags, tag]):
            continue
        yield SuspiciousTag("missing" if is_sure else "nearly", tag, name, {"score": score})


def _rank(suspect: SuspiciousTag) -> float:
    """Sort key within a kind: the larger the disagreement between score and caption, the lower."""
    score = suspect.fields.get("score", 0.5)
    return -score if suspect.kind == "missing" else score
