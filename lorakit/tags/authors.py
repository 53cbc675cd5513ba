"""What follows from a history of captions: every text, who set which tag, what is locked, what undo takes back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from lorakit.data.captions import tags_of
from lorakit.tags.history import BETWEEN, Edit, Entry, plain

PERSON = "person"  # who changes captions, unless a tagger does
DOCTOR = "doctor"  # who writes down what an image without a caption is trained as; a tagger fills that


@dataclass(frozen=True)
class Change:
    """One change of captions or locks. `old` and `new` have, by image, only the tags in which its captions differ,
    such as {"a.png": "boots, red footwear"} and {"a.png": "red boots"}; "" where there are none on that side."""

    number: int
    at: str  # local time, "2026-11-21 12:00:00"
    what: str
    by: str  # "person" or a tagger's name
    old: Mapping[str, str]
    new: Mapping[str, str]
    kept: tuple[str, ...]  # images that were left as they are: locked, or changed elsewhere meanwhile
    undone: bool
    locked: tuple[str, ...]  # images that were locked by it
    unlocked: tuple[str, ...]

    @classmethod
    def of(cls, entry: Entry, undone: bool) -> Change:
        """The change that an entry made, took back or made again."""
        return cls(
            number=entry.undoes or entry.redoes or entry.number,
            at=entry.at,
            what=entry.what,
            by=entry.by,
            old={name: BETWEEN.join(edit.out) for name, edit in entry.edits.items()},
            new={name: BETWEEN.join(edit.into) for name, edit in entry.edits.items()},
            kept=entry.kept,
            undone=undone,
            locked=entry.lock,
            unlocked=entry.unlock,
        )


class Ledger:
    """All images that were ever seen, gone ones too; nothing here reads a file."""

    def __init__(self) -> None:
        self.first: dict[str, str] = {}  # name -> text when it was first seen
        self.texts: dict[str, str] = {}  # name -> text now
        self.changes: dict[int, Entry] = {}  # by number; undos and redos are none
        self.done: list[int] = []  # changes in force, the newest last
        self.undone: list[int] = []  # changes that can be made again, the next one last
        self._files: dict[str, str | None] = {}  # name -> what its caption file holds, where that is not plain
        self._stack: dict[str, list[int]] = defaultdict(list)  # name -> its changes in force
        self._below: dict[int, dict[str, list[int]]] = {}  # undone change -> name -> the change it was made on, if any
        self._stories: dict[str, tuple[dict[str, str], set[str]]] = {}

    def begin(self, name: str, text: str, content: str | None) -> None:
        """An image is seen for the first time, with this caption; `content` is what its caption file holds."""
        self.first[name] = self.texts[name] = text
        if content != plain(text):
            self._files[name] = content

    def play(self, entry: Entry) -> None:
        """Follow the history by one entry."""
        number = entry.undoes or entry.redoes or entry.number
        if entry.undoes:
            self.done = [other for other in self.done if other != number]
            self.undone.append(number)
            self._below[number] = {}
        else:
            self.done.append(number)
            self.undone = [other for other in self.undone if other != number] if entry.redoes else []
        if not (entry.undoes or entry.redoes):
            self.changes[number] = entry
        for name in entry.names():
            if not entry.undoes:
                self._stack[name].append(number)
            elif self._stack[name][-1:] == [number]:
                self._stack[name].pop()
                self._below[number][name] = self._stack[name][-1:]
            self._stories.pop(name, None)
        for name, edit in entry.edits.items():
            text = edit.apply(self.texts[name]) if name in self.texts else None
            if text is not None:  # else other hands were in the history: what the file says counts
                self.texts[name] = text
                self._files.pop(name, None)
                if name in entry.files:
                    self._files[name] = entry.files[name][1]

    def history(self) -> list[Change]:
        """All changes, oldest first."""
        done = set(self.done)
        return [Change.of(entry, undone=number not in done) for number, entry in self.changes.items()]

    def content(self, name: str) -> str | None:
        """What a caption's file should hold; None: there is none."""
        return self._files[name] if name in self._files else plain(self.texts[name])

    def undoable(self, number: int) -> set[str]:
        """The images of a change that nothing changed since."""
        return {name for name in self.changes[number].names() if self._stack[name][-1:] == [number]}

    def redoable(self, number: int) -> set[str]:
        """The images of an undone change that are as they were when it was made."""
        return {name for name, below in self._below[number].items() if self._stack[name][-1:] == below}

    def is_locked(self, name: str) -> bool:
        """Whether a person wrote or changed a caption, or locked it, and nobody unlocked it since."""
        for entry in (self.changes[number] for number in reversed(self._stack.get(name, ()))):
            if name in entry.unlock:
                return False
            if name in entry.lock or (entry.by == PERSON and name in entry.edits and not entry.edits[name].is_empty):
                return True
        return bool(self.first[name])

    def story(self, name: str) -> tuple[dict[str, str], set[str]]:
        """Who set which tag, and which tags a person took out."""
        if name not in self._stories:
            set_by, removed = dict.fromkeys(tags_of(self.first[name]), PERSON), set()
            for entry in (self.changes[number] for number in self._stack.get(name, ())):
                edit = entry.edits.get(name, Edit(0, (), ()))
                out, into = (tags_of(BETWEEN.join(part)) for part in (edit.out, edit.into))
                for tag in set(out) - set(into):
                    set_by.pop(tag, None)
                    removed |= {tag} if entry.by == PERSON else set()
                set_by |= {tag: entry.by for tag in into if tag not in out}
                removed -= set(into)
            self._stories[name] = set_by, removed
        return self._stories[name]
