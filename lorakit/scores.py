"""What taggers said of pictures, by content, so that none is asked twice: `tags/scores` and `tags/sentences`."""

from __future__ import annotations

from lorakit.project import Project

LEAST = 0.05  # lower scores are not kept


class Scores:
    """A tagger's scores of pictures, in `tags/scores/<tagger>.jsonl`, which only grows."""

    def __init__(self, project: Project, tagger: str):
        self.tagger = tagger
        self.categories: dict[str, str] = {}  # tag -> general, character, copyright, artist, rating, meta or quality

    def get(self, digest: str) -> dict[str, float] | None:
        """Tag -> score (0.05 to 1) of the picture with this SHA-256, as the tagger spells tags; None: never asked."""
        raise NotImplementedError

    def add(self, scores: dict[str, dict[str, float]], categories: dict[str, str]) -> None:
        """Remember scores by digest, and the categories of their tags, on disk before this returns."""
        raise NotImplementedError


class Sentences:
    """A tagger's sentences about pictures, in `tags/sentences/<tagger>.jsonl`, by digest and prompt."""

    def __init__(self, project: Project, tagger: str):
        self.tagger = tagger

    def get(self, digest: str, prompt: str) -> str | None:
        """The sentence of the picture with this SHA-256 on this prompt; None: never asked."""
        raise NotImplementedError

    def add(self, sentences: dict[str, str], prompt: str) -> None:
        """Remember sentences by digest, on disk before this returns."""
        raise NotImplementedError


def known(project: Project) -> list[str]:
    """The taggers that gave scores in this project, by name."""
    raise NotImplementedError


def known_writers(project: Project) -> list[str]:
    """The taggers that wrote sentences in this project, by name."""
    raise NotImplementedError
