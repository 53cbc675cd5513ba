"""What a change of captions is: the edit of one caption, and an entry of the history that holds many of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from lorakit.errors import UserError

# An edit splits a caption at exactly this text, and nowhere else, so that joining the parts gives back every character.
SEPARATOR = ", "


class CaptionEditError(UserError):
    """Captions cannot be changed; the message says which, why, and what to do."""


@dataclass(frozen=True, slots=True)
class Edit:
    """The edit of one caption: at part number `position`, `removed` is replaced by `inserted`.

    Parts are what SEPARATOR separates, mostly one tag each; positions count from 0.
    """

    position: int
    removed: tuple[str, ...]
    inserted: tuple[str, ...]

    @classmethod
    def between(cls, old: str, new: str) -> Edit:
        """The edit that turns `old` into `new`: everything between their common beginning and their common end."""
        before, after = old.split(SEPARATOR), new.split(SEPARATOR)
        shorter = min(len(before), len(after))
        begin = next((i for i in range(shorter) if before[i] != after[i]), shorter)
        # the common end must not overlap the common beginning
        longest_end = shorter - begin
        end = next((i for i in range(longest_end) if before[-1 - i] != after[-1 - i]), longest_end)
        return cls(begin, tuple(before[begin : len(before) - end]), tuple(after[begin : len(after) - end]))

    def apply(self, text: str) -> str | None:
        """The edited text; None when `removed` does not stand at `position`, so that the edit does not fit."""
        parts = text.split(SEPARATOR)
        end = self.position + len(self.removed)
        if tuple(parts[self.position : end]) != self.removed:
            return None
        return SEPARATOR.join([*parts[: self.position], *self.inserted, *parts[end:]])

    @property
    def is_empty(self) -> bool:
        """Whether the text stays the same (the bytes of its caption file may still differ)."""
        return not (self.removed or self.inserted)

    def reversed(self) -> Edit:
        """The edit that undoes this one."""
        return Edit(self.position, self.inserted, self.removed)


@dataclass(frozen=True)
class Entry:
    """One entry of the history: a change of captions or locks, an undo (`undoes`) or a redo (`redoes`) of one.

    `undoes` and `redoes` are numbers of other entries, 0 for none. The store sets `number` and `at` when it writes
    the entry.
    """

    # "person", or the name of a tagger.
    by: str
    what: str
    number: int = 0
    at: str = ""  # local time, "2026-11-21 12:00:00"
    edits: Mapping[str, Edit] = field(default_factory=dict)  # by image
    # (old, new) content of caption files that do not simply hold their caption, by image; None where there is no file.
    # Bytes that are not UTF-8 stand as surrogates, so that undo restores them.
    files: Mapping[str, tuple[str | None, str | None]] = field(default_factory=dict)
    lock: tuple[str, ...] = ()  # images
    unlock: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()  # images that were left unchanged
    undoes: int = 0
    redoes: int = 0

    @property
    def target(self) -> int:
        """The number of the change that this entry makes, undoes or redoes."""
        return self.undoes or self.redoes or self.number

    def images(self) -> set[str]:
        """All images whose caption or lock it changes."""
        return {*self.edits, *self.lock, *self.unlock}

    def limited_to(self, images: Iterable[str]) -> Entry:
        """The same entry for fewer images; the others are added to `skipped`."""
        chosen = set(images)
        return replace(
            self,
            edits={name: edit for name, edit in self.edits.items() if name in chosen},
            files={name: pair for name, pair in self.files.items() if name in chosen},
            lock=tuple(name for name in self.lock if name in chosen),
            unlock=tuple(name for name in self.unlock if name in chosen),
            skipped=(*self.skipped, *sorted(self.images() - chosen)),
        )

    def reversed(self) -> Entry:
        """The entry with every edit and every file content reversed."""
        return replace(
            self,
            edits={name: edit.reversed() for name, edit in self.edits.items()},
            files={name: (new, old) for name, (old, new) in self.files.items()},
        )


@dataclass(frozen=True)
class Change:
    """One change of captions or locks, as the history shows it.

    `old` and `new` hold, by image, only the tags in which its captions differ, such as
    {"a.png": "boots, red footwear"} and {"a.png": "red boots"}; "" where there are none on that side.
    """

    number: int
    at: str  # local time, "2026-11-21 12:00:00"
    what: str
    by: str  # "person" or a tagger's name
    old: Mapping[str, str]
    new: Mapping[str, str]
    skipped: tuple[str, ...]  # images that were left unchanged: locked, or changed by somebody else meanwhile
    undone: bool
    locked: tuple[str, ...]  # images that it locked
    unlocked: tuple[str, ...]

    @classmethod
    def of(cls, entry: Entry, undone: bool) -> Change:
        """The change that an entry makes, undoes or redoes."""
        return cls(
            number=entry.target,
            at=entry.at,
            what=entry.what,
            by=entry.by,
            old={name: SEPARATOR.join(edit.removed) for name, edit in entry.edits.items()},
            new={name: SEPARATOR.join(edit.inserted) for name, edit in entry.edits.items()},
            skipped=entry.skipped,
            undone=undone,
            locked=entry.lock,
            unlocked=entry.unlock,
        )
