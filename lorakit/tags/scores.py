"""What taggers said of images, by content, so that none is asked twice: `tags/scores` and `tags/sentences`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from lorakit.errors import UserError
from lorakit.project import Project

LEAST = 0.05  # lower scores are not kept
DIGITS = 6  # that float32 has; fewer would lift a score to a threshold that it does not reach


class ScoresError(UserError):
    """What a tagger said cannot be kept; the message says why."""


class ScoreFile:
    """A tagger's scores of images, in `tags/scores/<tagger>.jsonl`, which only grows."""

    def __init__(self, project: Project, tagger: str):
        self.tagger = tagger
        self.categories: dict[str, str] = {}  # tag -> general, character, copyright, artist, rating, meta or quality
        self.file = _file(project, "scores", tagger)
        self._scores: dict[str, dict[str, float]] = {}
        for told in _lines(self.file):
            self.categories |= told.get("categories", {})
            if "digest" in told:
                self._scores[told["digest"]] = told["tags"]

    def get(self, digest: str) -> dict[str, float] | None:
        """Tag -> score (0.05 to 1) of the image with this SHA-256, as the tagger spells tags; None: never asked."""
        return self._scores.get(digest)

    def add(self, scores: dict[str, dict[str, float]], categories: dict[str, str]) -> None:
        """Remember scores by digest, and the categories of all the tagger's tags, on disk before this returns."""
        kept = {
            digest: {tag: round(score, DIGITS) for tag, score in tags.items() if score >= LEAST}
            for digest, tags in scores.items()
        }
        fresh = {tag: category for tag, category in categories.items() if tag not in self.categories}
        lines = [{"tagger": self.tagger, "categories": fresh}] if fresh else []
        _append(self.file, lines + [{"digest": digest, "tags": tags} for digest, tags in kept.items()])
        self.categories |= fresh
        self._scores |= kept


class SentenceFile:
    """A tagger's sentences about images on one prompt, in `tags/sentences/<tagger>.jsonl`, which only grows."""

    def __init__(self, project: Project, tagger: str, prompt: str):
        self.tagger, self.prompt = tagger, prompt
        self._file = _file(project, "sentences", tagger)
        lines = list(_lines(self._file))
        self._is_named = any("tagger" in told for told in lines)
        self._sentences = {told["digest"]: told["sentence"] for told in lines if told.get("prompt") == prompt}

    def get(self, digest: str) -> str | None:
        """The sentence of the image with this SHA-256; None: never asked."""
        return self._sentences.get(digest)

    def add(self, sentences: dict[str, str]) -> None:
        """Remember sentences by digest, on disk before this returns."""
        lines = [{"digest": digest, "prompt": self.prompt, "sentence": text} for digest, text in sentences.items()]
        _append(self._file, ([] if self._is_named else [{"tagger": self.tagger}]) + lines)
        self._is_named = True
        self._sentences |= sentences


def taggers_with_scores(project: Project) -> list[str]:
    """The taggers that gave scores in this project, by name."""
    return _known(project, "scores")


def taggers_with_sentences(project: Project) -> list[str]:
    """The taggers that wrote sentences in this project, by name."""
    return _known(project, "sentences")


def _file(project: Project, kind: str, tagger: str) -> Path:
    return project.folder / "tags" / kind / (re.sub(r"[^\w.-]", "_", tagger)[:100] + ".jsonl")


def _known(project: Project, kind: str) -> list[str]:
    files = sorted((project.folder / "tags" / kind).glob("*.jsonl"))
    first = (next((told["tagger"] for told in _lines(file) if "tagger" in told), None) for file in files)
    return [tagger for tagger in first if tagger is not None]


def _lines(file: Path) -> Iterator[dict]:
    """The whole lines of a file that need not be there; those that a killed process tore are passed over."""
    if not file.exists():
        return
    with open(file, "rb") as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:
                continue


def _append(file: Path, told: list[dict]) -> None:
    """Add lines in one piece, so that two processes may do so; a torn line before them is ended first.

    Raises ScoresError where they cannot be written.
    """
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in told).encode("utf-8", "replace")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "ab+") as lines:
            if lines.seek(0, os.SEEK_END) and (lines.seek(-1, os.SEEK_END), lines.read(1))[1] != b"\n":
                text = b"\n" + text
            lines.write(text)
            lines.flush()
            os.fsync(lines.fileno())
    except OSError as error:
        raise ScoresError(
            f"{file}, which keeps what taggers say, cannot be written ({error.strerror}): free some space there, or "
            "allow writing, and run it again; it goes on where it was."
        ) from error
