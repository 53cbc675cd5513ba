"""The edit history in memory: each image's caption, who wrote which tag, what is locked, what undo can take back."""

from __future__ import annotations

from collections import defaultdict

from lorakit.data.caption_parts import pieces_of
from lorakit.tags.edits import SEPARATOR, Change, Edit, Entry
from lorakit.tags.files import caption_content

# The author of a change, unless a tagger is.
PERSON = "person"
# The author of captions written for images without one; taggers may fill these in.
DOCTOR = "doctor"


class EditHistory:
    """The history of all images that were ever seen, deleted ones too. Reads no files: entries are replayed into it.

    first      image -> its caption when it was first read
    texts      image -> its caption now
    changes    number -> entry, in the order in which they were made; undos and redos are not among them
    in_force   numbers of the changes that are not undone, newest last
    undone     numbers of the changes that can be redone, the next one last
    """

    def __init__(self) -> None:
        self.first: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self.changes: dict[int, Entry] = {}
        self.in_force: list[int] = []
        self.undone: list[int] = []
        # image -> content of its caption file, where that does not simply hold the caption
        self._contents: dict[str, str | None] = {}
        # image -> the changes in force that touched it, newest last
        self._changes_of: dict[str, list[int]] = defaultdict(list)
        # undone change -> image -> the change that was the newest one below it, as a list of one or none
        self._made_on: dict[int, dict[str, list[int]]] = {}
        self._authors: dict[str, tuple[dict[str, str], set[str]]] = {}  # cache of `authors`

    def add_image(self, name: str, text: str, content: str | None) -> None:
        """An image is seen for the first time, with this caption and this content of its caption file."""
        self.first[name] = self.texts[name] = text
        if content != caption_content(text):
            self._contents[name] = content

    def replay(self, entry: Entry) -> None:
        """Apply the next entry of the history."""
        number = entry.target
        if entry.undoes:
            self.in_force = [other for other in self.in_force if other != number]
            self.undone.append(number)
            self._made_on[number] = {}
        elif entry.redoes:
            self.in_force.append(number)
            self.undone = [other for other in self.undone if other != number]
        else:
            self.changes[number] = entry
            self.in_force.append(number)
            # A new change ends what could be redone.
            self.undone = []
        for name in entry.images():
            if not entry.undoes:
                self._changes_of[name].append(number)
            # the undo skipped an image that was changed since: there the change stays in force
            elif self._changes_of[name][-1:] == [number]:
                self._changes_of[name].pop()
                self._made_on[number][name] = self._changes_of[name][-1:]
            self._authors.pop(name, None)
        for name, edit in entry.edits.items():
            self._replay_edit(name, edit, entry)

    def _replay_edit(self, name: str, edit: Edit, entry: Entry) -> None:
        text = edit.apply(self.texts[name]) if name in self.texts else None
        if text is None:
            # The history file was tampered with: the caption file decides.
            return
        self.texts[name] = text
        self._contents.pop(name, None)
        if name in entry.files:
            self._contents[name] = entry.files[name][1]

    def all_changes(self) -> list[Change]:
        """All changes, oldest first, undone ones too."""
        in_force = set(self.in_force)
        return [Change.of(entry, undone=number not in in_force) for number, entry in self.changes.items()]

    def content(self, name: str) -> str | None:
        """The content that an image's caption file should have; None: there should be no file."""
        return self._contents[name] if name in self._contents else caption_content(self.texts[name])

    def undoable(self, number: int) -> set[str]:
        """The images of a change that no later change touched."""
        return {name for name in self.changes[number].images() if self._changes_of[name][-1:] == [number]}

    def redoable(self, number: int) -> set[str]:
        """The images of an undone change that are in the state in which it was made."""
        return {name for name, below in self._made_on[number].items() if self._changes_of[name][-1:] == below}

    def is_locked(self, name: str) -> bool:
        """Whether a person wrote, changed or locked a caption, and nobody unlocked it since."""
        for entry in (self.changes[number] for number in reversed(self._changes_of.get(name, ()))):
            if name in entry.unlock:
                return False
            if name in entry.lock or (entry.by == PERSON and name in entry.edits and not entry.edits[name].is_empty):
                return True
        # a caption that was there before lorakit was written by a person
        return bool(self.first[name])

    def authors(self, name: str) -> tuple[dict[str, str], set[str]]:
        """What stands between two commas -> its author, and what of that a person removed and nobody put back."""
        if name not in self._authors:
            set_by, removed_tags = dict.fromkeys(pieces_of(self.first[name]), PERSON), set()
            for entry in (self.changes[number] for number in self._changes_of.get(name, ())):
                edit = entry.edits.get(name, Edit(0, (), ()))
                out, into = (pieces_of(SEPARATOR.join(parts)) for parts in (edit.removed, edit.inserted))
                for tag in set(out) - set(into):
                    set_by.pop(tag, None)
                    removed_tags |= {tag} if entry.by == PERSON else set()
                # a tag that only moved keeps its author
                set_by |= {tag: entry.by for tag in into if tag not in out}
                removed_tags -= set(into)
            self._authors[name] = set_by, removed_tags
        return self._authors[name]
