"""Getting pictures in: archives, folders, files and uploads into a project's data set, where nothing is overwritten."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from lorakit.data.scan import Note
from lorakit.errors import UserError
from lorakit.events import Progress
from lorakit.project import Project


class IntakeError(UserError):
    """Nothing could be added; the message says what was given and what to do."""


def add(
    project: Project, source: str | Path | Mapping[str, bytes], into: str = "", repeats: int = 0
) -> Iterator[Progress | Note]:
    """Copy pictures, captions and metadata into `<project>/dataset/`; yields progress and a note for all that was not
    just copied.

    source      a zip or tar, a folder, one file, or what was uploaded (name -> bytes)
    into        concept folder, e.g. "mofurin" or "10_mofurin"; "": where the source's own folders put it
    repeats     of a new concept folder; 0: as `into` says, or 1
    Raises IntakeError, or ArchiveError for an archive that cannot or must not be unpacked.
    """
    yield Progress(what="files", done=0, total=0)
