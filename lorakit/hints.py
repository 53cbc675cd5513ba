"""What the captions of a data set make one look twice at: tags that may be wrong, and what a trigger should take in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from lorakit.data.captions import tags_of

# kind -> (severity, sentence), the gravest first. "wrong": surely a mistake, "look": probably, "tip": worth a thought.
KINDS = {
    "colour": ("look", "“{tag}”, but almost nothing in the picture is {colour}"),
    "unseen": ("look", "“{tag}”, but the tagger does not see it: {score}"),
    "missed": ("look", "no “{tag}”, though the tagger is sure of it: {score}"),
    "barely": ("tip", "“{tag}” is only just above the threshold: {score}"),
    "nearly": ("tip", "“{tag}” is left out, just below the threshold: {score}"),
    "once": ("tip", "no other picture has “{tag}”"),
    "absorb": ("tip", "“{tag}” is in {n} of {all} pictures: without it, the trigger stands for it"),
    "fixed": ("look", "“{tag}” ({group}) is in {n} of {all} pictures: add some without it, or it is hard to change"),
    "stay": ("tip", "“{tag}” ({group}) is in {n} of {all} pictures: keep it tagged, and it can be changed later"),
}


@dataclass(frozen=True)
class Hint:
    """One thing to look at: `kind` of KINDS, the tag, the picture's name ("" when all are meant), the sentence's fields."""

    kind: str
    tag: str
    picture: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def severity(self) -> str:
        """ "wrong", "look" or "tip"."""
        return KINDS[self.kind][0]

    @property
    def reason(self) -> str:
        """Why, as an English sentence."""
        return KINDS[self.kind][1].format(tag=self.tag, **self.facts)


@dataclass(frozen=True)
class Opinion:
    """What a tagger says: picture -> {tag as captions spell it: 0..1} (what is not there is below 0.05), the category
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
    opinion: Opinion | None = None,
    colours: Mapping[str, Mapping[str, float]] | None = None,
    trigger: str = "",
) -> list[Hint]:
    """Tags that may be wrong, the most suspicious first; `captions` and `colours` (Look.colours) go by picture."""
    raise NotImplementedError


def absorb(captions: Mapping[str, str], trigger: str = "") -> list[Hint]:
    """Tags in more than 90 % of the pictures that a person would not want to switch off: the trigger can take them."""
    raise NotImplementedError


def must_stay(captions: Mapping[str, str], trigger: str = "") -> list[Hint]:
    """Tags of what should be switchable (clothes, pose, expression, background ...): they have to stay in captions."""
    raise NotImplementedError
