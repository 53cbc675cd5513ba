"""The captions of a data set as a book that remembers: who wrote which tag, what may be overwritten, undo and redo."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from lorakit.data import DataConfig
from lorakit.data.scan import Sample
from lorakit.errors import UserError
from lorakit.project import Project

PERSON = "person"  # who changes captions, unless a tagger does


class TagBookError(UserError):
    """A caption could not be changed; the message says which and why."""


@dataclass(frozen=True)
class Change:
    """One change of captions or locks. `old` and `new` have, by picture, only the tags in which its captions differ,
    such as {"a.png": "boots, red footwear"} and {"a.png": "red boots"}; "" where there are none on that side."""

    number: int
    at: str  # local time, "2026-11-21 12:00:00"
    what: str
    by: str  # "person" or a tagger's name
    old: dict[str, str]
    new: dict[str, str]
    kept: tuple[str, ...] = ()  # pictures that were left as they are: locked, or changed elsewhere meanwhile
    undone: bool = False
    locked: tuple[str, ...] = field(default=())  # pictures that were locked by it
    unlocked: tuple[str, ...] = field(default=())


class TagBook:
    """All training pictures' captions; the truth is their caption files, the history `tags/history.jsonl`."""

    samples: dict[str, Sample]  # name -> training picture (no regularization)
    captions: dict[str, str]  # name -> text as it stands on disk; it is what the last call here saw

    def __init__(self, project: Project, config: DataConfig):
        """Read the data set. What was changed elsewhere since is a change by "person"; a cut change is finished.

        Raises DataError as `scan` does, TagBookError when another process holds the book for long.
        """
        raise NotImplementedError

    def refresh(self) -> Change | None:
        """See what other kernels, editors and Drive changed; returns what became a change of "person" by that."""
        raise NotImplementedError

    def change(self, what: str, captions: dict[str, str], by: str = PERSON) -> Change | None:
        """Write captions (name -> text, on one line); None when nothing differs.

        A tagger's change leaves locked pictures out (`Change.kept`). Where somebody else changed a caption since this
        book saw it, only the tags that differ from what it saw are put in and taken out.
        Raises TagBookError for names that are no training picture and when nothing could be written.
        """
        raise NotImplementedError

    def undo(self) -> Change | None:
        """Take back the newest change that this book knows of; None when there is none. Pictures that were changed
        since are left as they are (`kept`)."""
        raise NotImplementedError

    def redo(self) -> Change | None:
        """Make the change again that was undone last, unless another was made since."""
        raise NotImplementedError

    def history(self) -> list[Change]:
        """All changes, oldest first; undone ones say so."""
        raise NotImplementedError

    def origin(self, name: str) -> dict[str, str]:
        """Tag -> "person" or the name of the tagger that set it, in the caption's order."""
        raise NotImplementedError

    def removed(self, name: str) -> set[str]:
        """Tags that a person took out of this caption and did not put back."""
        raise NotImplementedError

    def is_locked(self, name: str) -> bool:
        """Whether taggers leave this caption alone: a person wrote or changed it, and nobody unlocked it since.
        A caption that could not be read is always locked."""
        raise NotImplementedError

    def lock(self, names: Iterable[str]) -> Change | None:
        """Keep taggers from these captions; a change that can be undone. None when all are locked already."""
        raise NotImplementedError

    def unlock(self, names: Iterable[str]) -> Change | None:
        """Let taggers write these captions again; tags that a person set or took out stay so."""
        raise NotImplementedError

    def counts(self) -> dict[str, int]:
        """Tag -> number of pictures that have it, rarest first, then by name."""
        raise NotImplementedError

    def difference(self) -> str:
        """What changed since the book began, as a unified diff of captions."""
        raise NotImplementedError
