"""Texts of the widgets in the reader's language: the English sentence is the key, zh/ holds the Chinese ones."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lorakit.errors import UserError

LANGUAGES = {"en": "English", "zh": "中文"}
BY_PATH = ("settings",)  # sections that hold [label, help] of a setting's path, not sentences
MESSAGES = "messages"  # section of lorakit's messages, whose fields are filled in before the widgets see them
# Fields of a message that hold a number, perhaps with a unit; all other fields hold any text.
NUMBERS = ("low", "high", "n")

# A dict, so that functions can change it without `global`. One language for the kernel, as a notebook has one reader.
_chosen = {"language": "en"}


def use(language: str) -> None:
    """Use "en" or "zh" from now on. Raises UserError for any other language."""
    if language not in LANGUAGES:
        raise UserError(f"The language {language!r} is unknown; choose one of {', '.join(LANGUAGES)}.")
    _chosen["language"] = language


def language() -> str:
    """The current language: "en" or "zh"."""
    return _chosen["language"]


def say(text: str, **fields: Any) -> str:
    """An English sentence in the reader's language, with `{name}` replaced by the fields: `say("{n} steps", n=3)`.

    A sentence without a translation stays English.
    """
    if language() == "zh":
        text = _sentences().get(text, text)
    return text.format(**fields) if fields else text


def message(text: str) -> str:
    """A message of lorakit in the reader's language, line by line; a line without a translation stays English.

    An error or a warning arrives with its values filled in, so it is compared with the pattern of each sentence.
    """
    return "\n".join(map(_translated, text.split("\n"))) if language() == "zh" else text


def _translated(line: str) -> str:
    for pattern, chinese in _messages():
        if match := pattern.fullmatch(line):
            # A field may hold a sentence of its own, such as the allowed range of a number.
            return chinese.format(**{name: _translated(value) for name, value in match.groupdict().items()})
    return line


def words(section: str, path: str, label: str, help: str) -> tuple[str, str]:
    """Label and help of a setting in the reader's language; `path` is its key in a section ("settings")."""
    if language() == "zh" and path in translations()[section]:
        label, help = translations()[section][path]
    return label, help


@cache
def translations() -> dict[str, dict[str, Any]]:
    """All of zh/*.yaml: section (a module below widgets, such as `training.form`, or a table) -> key -> translation."""
    files = sorted((Path(__file__).parent / "zh").glob("*.yaml"))
    return {
        section: entries
        for file in files
        for section, entries in yaml.safe_load(file.read_text(encoding="utf-8")).items()
    }


@cache
def _sentences() -> dict[str, str]:
    return {
        english: chinese
        for section, entries in translations().items()
        if section not in (*BY_PATH, MESSAGES)
        for english, chinese in entries.items()
    }


@cache
def _messages() -> list[tuple[re.Pattern[str], str]]:
    """(pattern of an English message, its translation), those with the longest fixed text first: they fit best."""
    entries = translations().get(MESSAGES, {})
    ordered = sorted(entries, key=lambda english: -len(re.sub(r"\{\w+\}", "", english)))
    return [(re.compile(_pattern(english)), entries[english]) for english in ordered]


def _pattern(english: str) -> str:
    """The regular expression of a message: a named group for each `{field}`, the same text where it recurs."""
    pattern, seen = "", set()
    # split() with a group returns fixed texts and names of fields in turn
    for place, piece in enumerate(re.split(r"\{(\w+)\}", english)):
        if place % 2 == 0:
            pattern += re.escape(piece)
        elif piece in seen:
            pattern += f"(?P={piece})"
        else:
            pattern += rf"(?P<{piece}>-?\d[\d.e+-]*(?: \w+)?)" if piece in NUMBERS else f"(?P<{piece}>.+?)"
            seen.add(piece)
    return pattern
