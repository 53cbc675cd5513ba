"""Checks of the files of a dataset: what is left out of training, and what is used otherwise than it lies there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath

from lorakit.data.listing import Note
from lorakit.examine.facts import Facts
from lorakit.examine.finding import CheckResult

CUT_OFF = ("truncated", "not processed", "next frame")  # how Pillow's decoders speak of a file that is not whole


def unusable(facts: Facts) -> CheckResult | None:
    """The folder is missing, or nothing in it can be trained on."""
    return CheckResult(details={facts.config.folder: facts.error}) if facts.error else None


def truncated(facts: Facts) -> CheckResult | None:
    """Images whose file ends too early."""
    return _told([note for note in facts.notes("unreadable") if _is_cut_off(note)])


def unreadable(facts: Facts) -> CheckResult | None:
    """Files that cannot be read as images for any other reason."""
    return _told([note for note in facts.notes("unreadable") if not _is_cut_off(note)])


def shared_caption(facts: Facts) -> CheckResult:
    """Images of one stem, which one caption file stands for."""
    stems = {PurePosixPath(note.name).with_suffix("") for note in facts.notes("shared caption")}
    found = [s.name for s in facts.samples if PurePosixPath(s.name).with_suffix("") in stems]
    return CheckResult(tuple(found), {name: facts.captions.get(name, "") for name in found})


def noted(*kinds: str) -> Callable[[Facts], CheckResult | None]:
    """A check that passes on what the scan notes of these kinds."""
    return lambda facts: _told(facts.notes(*kinds))


def alpha(facts: Facts) -> CheckResult | None:
    """Images that are transparent somewhere, unless that is what weights the loss."""
    found = tuple(name for name, look in facts.looks.items() if look.has_alpha and not facts.config.alpha_mask)
    return CheckResult(found, fields={"colour": facts.config.background})


def _is_cut_off(note: Note) -> bool:
    return any(words in note.text.lower() for words in CUT_OFF)


def _told(notes: list[Note]) -> CheckResult:
    return CheckResult(tuple(dict.fromkeys(note.name for note in notes)), {note.name: note.text for note in notes})
