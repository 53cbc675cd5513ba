"""Checks of files: what training skips, and what it reads differently than one might expect."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath

from lorakit.data.caption_files import MAX_CAPTION_BYTES
from lorakit.data.listing import Note
from lorakit.examine.encodings import likely_encoding, unread_captions
from lorakit.examine.facts import Facts
from lorakit.examine.finding import CheckResult

# Words in the errors of Pillow's decoders for a file that ends too early.
INCOMPLETE = ("truncated", "not processed", "next frame")


def unusable(facts: Facts) -> CheckResult | None:
    """The folder is missing, or has no image to train on."""
    # What is wrong with each file is a finding of its own.
    return CheckResult(details={facts.config.folder: facts.error.partition("\n")[0]}) if facts.error else None


def truncated(facts: Facts) -> CheckResult:
    """Image files that end too early."""
    return from_notes([note for note in facts.notes("unreadable") if _is_incomplete(note)])


def unreadable(facts: Facts) -> CheckResult:
    """Files that cannot be read as images for any other reason."""
    return from_notes([note for note in facts.notes("unreadable") if not _is_incomplete(note)])


def shared_caption(facts: Facts) -> CheckResult:
    """Images with the same stem, which read the same caption file."""
    stems = {PurePosixPath(note.name).with_suffix("") for note in facts.notes("shared caption")}
    names = [s.name for s in facts.samples if PurePosixPath(s.name).with_suffix("") in stems]
    return CheckResult(tuple(names), {name: facts.captions.get(name, "") for name in names})


def caption_encoding(facts: Facts) -> CheckResult:
    """Caption files that cannot be read for certain, and the encoding that all of them most likely have."""
    result = from_notes(facts.notes("caption encoding"))
    if not result.images:
        return result
    files = [caption.source for caption in unread_captions(facts.root, facts.config).values() if caption.source]
    texts = [text for file in dict.fromkeys(files) if (text := _bytes(file))]
    return replace(result, fields={"encoding": likely_encoding(texts) or "?"})


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes() if file.stat().st_size <= MAX_CAPTION_BYTES else b""
    except OSError:
        return b""


def alpha(facts: Facts) -> CheckResult:
    """Images with transparent pixels, unless transparency is used as a loss mask."""
    names = tuple(name for name, stats in facts.stats.items() if stats.has_alpha and not facts.config.alpha_mask)
    return CheckResult(names, fields={"colour": facts.config.background})


def from_notes(notes: list[Note]) -> CheckResult:
    """The scan's notes as the result of a check."""
    # One file may have several notes; the last one is shown.
    return CheckResult(tuple(dict.fromkeys(note.name for note in notes)), {note.name: note.text for note in notes})


def _is_incomplete(note: Note) -> bool:
    return any(words in note.text.lower() for words in INCOMPLETE)
