"""Texts of the widgets in the reader's language: the English sentence is the key, zh/ holds the Chinese ones."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lorakit.errors import UserError

LANGUAGES = {"en": "English", "zh": "中文"}
BY_PATH = ("settings",)  # sections that hold [label, help] of a setting's path, not sentences

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
        if section not in BY_PATH
        for english, chinese in entries.items()
    }
