"""Results of taggers, stored by the content of images so that none is scored twice: `tags/scores`, `tags/sentences`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from lorakit.errors import UserError
from lorakit.files.disk import read_file
from lorakit.project import Project

# Lower scores are not stored: thresholds begin here, and a tagger has ten thousand tags.
MIN_SCORE = 0.05
# The digits that float32 has. Fewer could round a score up to a threshold that it does not reach.
DIGITS = 6


class ScoresError(UserError):
    """Results of a tagger cannot be stored; the message says why."""


class ScoreFile:
    """A tagger's scores, in `tags/scores/<tagger>.jsonl`, which is only ever appended to.

    categories   tag -> general, character, copyright, artist, rating, meta or quality
    """

    def __init__(self, project: Project, tagger: str):
        self.tagger = tagger
        self.categories: dict[str, str] = {}
        self.file = _file(project, "scores", tagger)
        self._scores: dict[str, dict[str, float]] = {}
        for line in _lines(self.file):
            self.categories |= line.get("categories", {})
            # later lines replace earlier ones
            if "digest" in line:
                self._scores[line["digest"]] = line["tags"]

    def get(self, digest: str) -> dict[str, float] | None:
        """Tag -> score (0.05 to 1) of the image with this SHA-256, in the tagger's spelling; None: not scored yet."""
        return self._scores.get(digest)

    def add(self, scores: dict[str, dict[str, float]], categories: dict[str, str]) -> None:
        """Store scores by digest, and the categories of all the tagger's tags. They are on disk when this returns."""
        kept = {
            digest: {tag: round(score, DIGITS) for tag, score in tags.items() if score >= MIN_SCORE}
            for digest, tags in scores.items()
        }
        new_categories = {tag: category for tag, category in categories.items() if tag not in self.categories}
        lines = [{"tagger": self.tagger, "categories": new_categories}] if new_categories else []
        _append(self.file, lines + [{"digest": digest, "tags": tags} for digest, tags in kept.items()])
        self.categories |= new_categories
        self._scores |= kept


class SentenceFile:
    """A tagger's sentences for one prompt, in `tags/sentences/<tagger>.jsonl`, which is only ever appended to."""

    def __init__(self, project: Project, tagger: str, prompt: str):
        self.tagger, self.prompt = tagger, prompt
        self._file = _file(project, "sentences", tagger)
        lines = list(_lines(self._file))
        self._has_name = any("tagger" in line for line in lines)
        self._sentences = {line["digest"]: line["sentence"] for line in lines if line.get("prompt") == prompt}

    def get(self, digest: str) -> str | None:
        """The sentence about the image with this SHA-256; None: there is none yet."""
        return self._sentences.get(digest)

    def add(self, sentences: dict[str, str]) -> None:
        """Store sentences by digest. They are on disk when this returns."""
        lines = [{"digest": digest, "prompt": self.prompt, "sentence": text} for digest, text in sentences.items()]
        _append(self._file, ([] if self._has_name else [{"tagger": self.tagger}]) + lines)
        self._has_name = True
        self._sentences |= sentences


def taggers_with_scores(project: Project) -> list[str]:
    """The names of the taggers that scored images of this project."""
    return _taggers(project, "scores")


def taggers_with_sentences(project: Project) -> list[str]:
    """The names of the taggers that wrote sentences in this project."""
    return _taggers(project, "sentences")


def _file(project: Project, output: str, tagger: str) -> Path:
    return project.folder / "tags" / output / (re.sub(r"[^\w.-]", "_", tagger)[:100] + ".jsonl")


def _taggers(project: Project, output: str) -> list[str]:
    # the name is in the file: that of the file itself is shortened
    files = sorted((project.folder / "tags" / output).glob("*.jsonl"))
    names = (next((line["tagger"] for line in _lines(file) if "tagger" in line), None) for file in files)
    return [name for name in names if name is not None]


def _lines(file: Path) -> Iterator[dict]:
    """The whole lines of a file, none if it is missing; lines torn by a killed process are skipped."""
    if not file.exists():
        return
    for line in read_file(file).splitlines():
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(content, dict):
            yield content


def _append(file: Path, lines: list[dict]) -> None:
    """Append lines in one write, so that two processes may do so at once; a torn last line is ended first.

    Raises ScoresError when they cannot be written.
    """
    # replace: what UTF-8 cannot hold becomes a question mark.
    data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode("utf-8", "replace")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "ab+") as stream:
            # appending ignores the position, which only matters for reading the last byte
            if stream.seek(0, os.SEEK_END) and (stream.seek(-1, os.SEEK_END), stream.read(1))[1] != b"\n":
                data = b"\n" + data
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise ScoresError(
            f"{file} cannot be written ({error.strerror}): it stores the tagger's results. Free some space there, or "
            "allow writing, and run the tagger again; it continues with the images that are left."
        ) from error
