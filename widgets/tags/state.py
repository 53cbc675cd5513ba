"""The state that all parts of the tag editor draw: captions, scores, suspicious tags, and what the user looks at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

from lorakit.data.caption_parts import tags_of
from lorakit.data.image_stats import StatsCache
from lorakit.data.scan import Sample
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
MAX_COMPLETIONS = 30  # tags that are offered while one is typed


@dataclass(frozen=True)
class TagRow:
    """A row of the table of tags.

    count      images that have the tag
    suspects   images in which it is suspicious
    score      the tagger's mean score (0 to 1) in the images that have it, None when the tagger does not know it
    """

    tag: str
    count: int
    suspects: int
    score: float | None


class EditorState:
    """Captions change through `editor` (a CaptionEditor) alone; the rest is derived from it or is what is shown.

    names     all images, in order; `numbers` are their numbers from 1
    holders   tag -> the images that have it
    tag       the chosen tag or pattern, "" for none
    show      which images are shown: all, with, without (the chosen tag), selected, suspicious, locked
    focus     the image that is shown large
    """

    def __init__(self, project: Project):
        self.project = project
        self.tag, self.sort, self.show, self.search = "", "rarest", "all", ""
        self.selected: set[str] = set()
        self.focus = ""
        self.page = 0
        self.reload()

    def reload(self) -> None:
        """Read the dataset and the taggers' scores again. Raises DataError and CaptionEditError."""
        self.config = Draft(self.project).data
        self.editor = CaptionEditor(self.project, self.config)
        self.tagger, self.scores = load_scores(self.project, self.editor.samples)
        # colours are measured once and cached; a tag with another colour is suspicious
        paths = {sample.path: name for name, sample in self.editor.samples.items()}
        stats = StatsCache.of(self.project.folder).measure(list(paths))
        self.colours = {paths[path]: stat.colours for path, stat in stats}
        self.derive()

    def derive(self) -> None:
        """Update everything that follows from the captions."""
        self.names = list(self.editor.samples)
        # From 1, as people count.
        self.numbers = {name: number for number, name in enumerate(self.names, 1)}
        self.holders: dict[str, set[str]] = {}
        for name, caption in self.editor.captions.items():
            for tag in tags_of(caption):
                self.holders.setdefault(tag, set()).add(name)
        all_suspects = suspects.suspicious_tags(self.editor.captions, self.scores, self.colours, self.config.trigger)
        self.suspects = [suspect for suspect in all_suspects if not self._is_settled(suspect)]
        self.suspect_counts = Counter(suspect.tag for suspect in self.suspects)
        self.suspects_of: dict[str, list[SuspiciousTag]] = {}
        for suspect in self.suspects:
            self.suspects_of.setdefault(suspect.image, []).append(suspect)
        if self.tag and not self.having(self.tag):
            # No image has the chosen tag any more: choosing it again shows all images.
            self.choose_tag(self.tag)
        self.selected &= set(self.names)
        self.focus = self.focus if self.focus in self.numbers else next(iter(self.names), "")

    def _is_settled(self, suspect: SuspiciousTag) -> bool:
        """Whether a person removed the tag that the tagger misses."""
        return suspect.kind in suspects.ABSENT and suspect.tag in self.editor.removed_tags(suspect.image)

    # ---- looking -----------------------------------------------------------------------------------------------------

    def rows(self) -> list[TagRow]:
        """The tags that contain the searched text, in the chosen order."""
        rows = [
            TagRow(tag, len(names), self.suspect_counts[tag], self._mean_score(tag, names))
            for tag, names in self.holders.items()
            if self.search.lower() in tag.lower()
        ]
        orders = {
            "rarest": lambda row: (row.count, row.tag),
            "frequent": lambda row: (-row.count, row.tag),
            "name": lambda row: (row.tag.lower(), row.tag),
            # The share of the tag's images in which it is suspicious decides, then their number.
            "suspicious": lambda row: (-row.suspects / row.count, -row.suspects, row.tag),
        }
        return sorted(rows, key=orders[self.sort])

    def matching(self, text: str) -> list[str]:
        """The tags of the dataset that a text names: one tag, several with commas, or patterns."""
        # A tag may itself hold a *, as emoticons do: it is taken as it is written.
        if text in self.holders:
            return [text]
        matchers = [matcher(tag, self.config.trigger) for tag in tags_of(text)]
        return [tag for tag in self.holders if any(matches(tag) for matches in matchers)]

    def having(self, text: str) -> set[str]:
        """The images that have any of the tags that a text names."""
        return {name for tag in self.matching(text) for name in self.holders[tag]}

    def shown(self, show: str = "") -> list[str]:
        """The images that are shown, on all pages; with `show`, such as "locked", those that it would show."""
        having = self.having(self.tag)
        is_shown = {
            "all": lambda name: True,
            "with": lambda name: name in having,
            "without": lambda name: name not in having,
            "selected": lambda name: name in self.selected,
            "suspicious": lambda name: name in self.suspects_of,
            "locked": self.editor.is_locked,
        }[show or self.show]
        return [name for name in self.names if is_shown(name)]

    def score(self, name: str, tag: str) -> float | None:
        """The tagger's score of a tag in an image, 0 to 1; None when it does not know the tag or the image."""
        if self.scores is None or tag not in self.scores.categories or name not in self.scores.scores:
            return None
        # Scores below 0.05 are not stored: a known tag without one counts as 0.
        return self.scores.scores[name].get(tag, 0.0)

    def completions(self, text: str) -> list[str]:
        """`text` with its last tag completed, tags of the dataset first (most frequent first), then the tagger's."""
        # Only the last tag is completed; those before it stay as they were typed.
        before, comma, last = text.rpartition(",")
        typed, lead = last.strip().lower(), f"{before}{comma} " if comma else ""
        if not typed:
            return []
        in_dataset = sorted(self.holders, key=lambda tag: (-len(self.holders[tag]), tag))
        others = self.scores.categories if self.scores else ()
        tags = dict.fromkeys(tag for tags in (in_dataset, others) for tag in tags if tag.lower().startswith(typed))
        return [lead + tag for tag in list(tags)[:MAX_COMPLETIONS]]

    def _mean_score(self, tag: str, names: set[str]) -> float | None:
        scores = [score for name in names if (score := self.score(name, tag)) is not None]
        return sum(scores) / len(scores) if scores else None

    # ---- acting ------------------------------------------------------------------------------------------------------

    def choose_tag(self, tag: str) -> None:
        """Show the images with a tag, or with what a pattern names; chosen again, show all images."""
        self.tag = "" if tag == self.tag else tag
        self.show_images("with" if self.tag else "all")

    def show_images(self, show: str) -> None:
        """Show other images, from their first page."""
        self.show, self.page = show, 0

    def toggle(self, name: str) -> None:
        """Select or deselect an image, and show it large."""
        self.selected ^= {name}
        self.focus = name

    def edit(self, what: str, rules: Sequence[Rule], names: Iterable[str]) -> Change | None:
        """Apply rules, one after the other, to the captions of these images; None when that changes nothing."""
        captions = self.editor.captions
        return self.write(
            what, {name: reduce(lambda text, rule: rule.apply(text), rules, captions[name]) for name in names}
        )

    def write(self, what: str, captions: dict[str, str]) -> Change | None:
        """Write captions by image; None when that changes nothing."""
        changed = {name: text for name, text in captions.items() if text != self.editor.captions[name]}
        return self.editor.change(what, changed) if changed else None


def load_scores(project: Project, samples: Mapping[str, Sample]) -> tuple[str, TaggerScores | None]:
    """The tagger that scored the most images, and its scores; ("", None) when no tagger has run yet."""
    _, _, config = read_tagging(project)
    best: tuple[str, TaggerScores | None] = ("", None)
    for tagger in taggers_with_scores(project):
        stored = ScoreFile(project, tagger)
        by_image = {name: stored.get(sample.digest) for name, sample in samples.items()}
        scores = {
            # Taggers write red_boots, captions "red boots": scores are looked up by the spelling of captions.
            name: {spelled(tag): score for tag, score in image_scores.items()}
            for name, image_scores in by_image.items()
            if image_scores is not None
        }
        # with equal numbers the last one by name
        if scores and (best[1] is None or len(scores) >= len(best[1].scores)):
            categories = {spelled(tag): category for tag, category in stored.categories.items()}
            best = tagger, TaggerScores(scores, categories, config.general_threshold, config.character_threshold)
    return best
