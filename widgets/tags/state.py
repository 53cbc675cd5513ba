"""What the tag editor looks at: the tag book, what a tagger and the pixels say of it, and what is chosen just now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

from lorakit.data.captions import tags_of
from lorakit.data.image_stats import StatsCache
from lorakit.project import Project
from lorakit.tags import suspects
from lorakit.tags.editor import CaptionEditor
from lorakit.tags.edits import Change
from lorakit.tags.rules import Rule, matcher
from lorakit.tags.scores import ScoreFile, taggers_with_scores
from lorakit.tags.suspects import SuspiciousTag, TaggerScores
from lorakit.tags.tagging import read_tagging
from lorakit.tags.vocabulary import spelled
from widgets.project.draft import Draft

PAGE = 24  # images on a page
OFFERED = 30  # tags that are offered while one is typed


@dataclass(frozen=True)
class Row:
    """A tag of the dataset: how many images have it, in how many it is doubted, and the tagger's mean score (0 to 1)
    in those that have it, None when the tagger does not know it."""

    tag: str
    count: int
    doubts: int
    score: float | None


class State:
    """Everything that the parts of the editor draw. Captions change through `book` alone; the rest is what is seen."""

    def __init__(self, project: Project):
        self.project = project
        self.tag, self.sort, self.show, self.wanted = "", "rarest", "all", ""
        self.selected: set[str] = set()
        self.focus = ""  # the image that is looked at
        self.page = 0
        self.read()

    def read(self) -> None:
        """Read the dataset, and what taggers said of it, as they are now."""
        self.config = Draft(self.project).data
        self.book = CaptionEditor(self.project, self.config)
        self.tagger, self.opinion = self._opinion()
        looks = StatsCache.of(self.project.folder)
        paths = {sample.path: name for name, sample in self.book.samples.items()}
        self.colours = {paths[path]: look.colours for path, look in looks.measure(list(paths))}
        self.derive()

    def derive(self) -> None:
        """What follows from the images and captions as the book has them now."""
        self.names = list(self.book.samples)
        self.numbers = {name: number for number, name in enumerate(self.names, 1)}
        self.holders: dict[str, set[str]] = {}
        for name, caption in self.book.captions.items():
            for tag in tags_of(caption):
                self.holders.setdefault(tag, set()).add(name)
        found = suspects.suspicious_tags(self.book.captions, self.opinion, self.colours, self.config.trigger)
        self.hints = [hint for hint in found if not self._is_settled(hint)]
        self.doubts = Counter(hint.tag for hint in self.hints)
        self.doubted: dict[str, list[SuspiciousTag]] = {}
        for hint in self.hints:
            self.doubted.setdefault(hint.image, []).append(hint)
        if self.tag and not self.having(self.tag):
            self.choose(self.tag)  # nobody has it any more
        self.selected &= set(self.names)
        self.focus = self.focus if self.focus in self.numbers else next(iter(self.names), "")

    def _is_settled(self, hint: SuspiciousTag) -> bool:
        """Whether a person took out what the tagger misses."""
        return hint.kind in suspects.ABSENT and hint.tag in self.book.removed_tags(hint.image)

    def _opinion(self) -> tuple[str, TaggerScores | None]:
        """The tagger whose scores are there for most images, and what it says; ("", None) before any was asked."""
        _, _, config = read_tagging(self.project)
        best: tuple[str, TaggerScores | None] = ("", None)
        for tagger in taggers_with_scores(self.project):
            kept = ScoreFile(self.project, tagger)
            found = {name: kept.get(sample.digest) for name, sample in self.book.samples.items()}
            scores = {
                name: {spelled(tag): score for tag, score in its.items()}
                for name, its in found.items()
                if its is not None
            }
            if scores and (best[1] is None or len(scores) >= len(best[1].scores)):
                categories = {spelled(tag): category for tag, category in kept.categories.items()}
                thresholds = config.general_threshold, config.character_threshold
                best = tagger, TaggerScores(scores, categories, *thresholds)
        return best

    # ---- what is seen ------------------------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """The tags that hold what is searched for, in the chosen order."""
        rows = [
            Row(tag, len(names), self.doubts[tag], self._mean(tag, names))
            for tag, names in self.holders.items()
            if self.wanted.lower() in tag.lower()
        ]
        orders = {
            "rarest": lambda row: (row.count, row.tag),
            "frequent": lambda row: (-row.count, row.tag),
            "name": lambda row: (row.tag.lower(), row.tag),
            "suspicious": lambda row: (-row.doubts / row.count, -row.doubts, row.tag),
        }
        return sorted(rows, key=orders[self.sort])

    def named(self, text: str) -> list[str]:
        """The tags of the dataset that a text names: one, several with commas, or patterns."""
        if text in self.holders:
            return [text]
        named = [matcher(tag, self.config.trigger) for tag in tags_of(text)]
        return [tag for tag in self.holders if any(is_named(tag) for is_named in named)]

    def having(self, text: str) -> set[str]:
        """The images with any of the tags that a text names."""
        return {name for tag in self.named(text) for name in self.holders[tag]}

    def shown(self, show: str = "") -> list[str]:
        """The images that are to be seen, on all pages; `show`, such as "locked", instead of the chosen ones."""
        have = self.having(self.tag)
        is_shown = {
            "all": lambda name: True,
            "with": lambda name: name in have,
            "without": lambda name: name not in have,
            "selected": lambda name: name in self.selected,
            "suspicious": lambda name: name in self.doubted,
            "locked": self.book.is_locked,
        }[show or self.show]
        return [name for name in self.names if is_shown(name)]

    def score(self, name: str, tag: str) -> float | None:
        """What the tagger gives a tag in an image, 0 to 1; None when it does not know the tag or the image."""
        if self.opinion is None or tag not in self.opinion.categories or name not in self.opinion.scores:
            return None
        return self.opinion.scores[name].get(tag, 0.0)

    def offered(self, text: str) -> list[str]:
        """Tags that go on with the last of those typed in `text`, all of which stay: the dataset's most frequent
        first, then the tagger's."""
        before, comma, typed = text.rpartition(",")
        begun, lead = typed.strip().lower(), f"{before}{comma} " if comma else ""
        if not begun:
            return []
        mine = sorted(self.holders, key=lambda tag: (-len(self.holders[tag]), tag))
        others = self.opinion.categories if self.opinion else ()
        found = dict.fromkeys(tag for tags in (mine, others) for tag in tags if tag.lower().startswith(begun))
        return [lead + tag for tag in list(found)[:OFFERED]]

    def _mean(self, tag: str, names: set[str]) -> float | None:
        scores = [score for name in names if (score := self.score(name, tag)) is not None]
        return sum(scores) / len(scores) if scores else None

    # ---- what is done ------------------------------------------------------------------------------------------------

    def choose(self, tag: str) -> None:
        """Look at a tag, or at what a pattern names: the images that have it; chosen again, at all of them."""
        self.tag = "" if tag == self.tag else tag
        self.look("with" if self.tag else "all")

    def look(self, show: str) -> None:
        """Show other images, from their first page."""
        self.show, self.page = show, 0

    def toggle(self, name: str) -> None:
        """Select an image, or no longer; it is the one that is looked at."""
        self.selected ^= {name}
        self.focus = name

    def edit(self, what: str, rules: Sequence[Rule], names: Iterable[str]) -> Change | None:
        """Apply rules, one after the other, to the captions of these images; None when that changes nothing."""
        captions = self.book.captions
        return self.write(
            what, {name: reduce(lambda text, rule: rule.apply(text), rules, captions[name]) for name in names}
        )

    def write(self, what: str, captions: dict[str, str]) -> Change | None:
        """Write captions by image; None when that changes nothing."""
        changed = {name: text for name, text in captions.items() if text != self.book.captions[name]}
        return self.book.change(what, changed) if changed else None
