"""Captions of a dataset that are edited with a history: who wrote which tag, locks against taggers, undo and redo."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from lorakit.data import DataConfig
from lorakit.data.caption_parts import pieces_of, tags_of
from lorakit.data.listing import Note
from lorakit.data.scan import Sample
from lorakit.files.disk import reason_of
from lorakit.project import Project
from lorakit.tags.authors import PERSON
from lorakit.tags.edits import CaptionEditError, Change, Edit, Entry
from lorakit.tags.files import caption_content, one_line
from lorakit.tags.history import exclusive
from lorakit.tags.rules import merged
from lorakit.tags.store import CaptionStore


class CaptionEditor:
    """The captions of all training images. They are stored in their caption files, the history in `tags/`.

    Several editors, also in other processes, may be open on one dataset: each call first reads what others changed.

    samples    image -> training image (no regularization images); an image is named by its path in the dataset
    captions   image -> its caption on disk, as the last call here saw it
    left_out   a note for each image that could not be read, and is none of `samples`
    """

    samples: dict[str, Sample]
    left_out: tuple[Note, ...]
    captions: dict[str, str]

    def __init__(self, project: Project, config: DataConfig):
        """Read the dataset. Edits made elsewhere since become a change by "person"; an interrupted change is finished.

        Raises DataError as `lorakit.data.scan.scan` does, CaptionEditError when another process is busy for long.
        """
        self._project, self._config = project, config
        self._store = CaptionStore(project, config)
        # False while a call runs: one that was interrupted may have left the store half updated
        self._is_consistent = True
        self.samples, self.captions = {}, {}
        self.refresh()

    # ---- reading -----------------------------------------------------------------------------------------------------

    def refresh(self) -> Change | None:
        """Read what other kernels, text editors and Drive changed; returns it as a change by "person", if any."""
        with self._session() as outside_change:
            return outside_change

    def history(self) -> list[Change]:
        """All changes, oldest first, undone ones too (`Change.undone`)."""
        return self._store.history.all_changes()

    def authors(self, name: str) -> dict[str, str]:
        """Tag -> "person" or the name of the tagger that wrote it, in the caption's order."""
        set_by, _ = self._store.history.authors(name)
        # A sentence may have commas; a person has changed one whose pieces are of several authors.
        writers = {tag: {set_by.get(piece, PERSON) for piece in pieces_of(tag)} for tag in tags_of(self.captions[name])}
        return {tag: by.pop() if len(by) == 1 else PERSON for tag, by in writers.items()}

    def removed_tags(self, name: str) -> set[str]:
        """Tags that a person removed from this caption, and that nobody put back."""
        return set(self._store.history.authors(name)[1])

    def is_locked(self, name: str) -> bool:
        """Whether taggers leave this caption alone: a person wrote or changed it, and nobody unlocked it since.

        A caption file that cannot be read is always locked.
        """
        return name in self._store.files.unreadable or self._store.history.is_locked(name)

    def diff(self) -> str:
        """All captions now against those that were first read, as a unified diff."""
        lines: list[str] = []
        for name, text in self.captions.items():
            old, new = ([line] if line else [] for line in (self._store.history.first[name], text))
            lines += difflib.unified_diff(old, new, name, name, lineterm="")
        return "".join(line + "\n" for line in lines)

    # ---- writing -----------------------------------------------------------------------------------------------------

    def change(self, what: str, captions: Mapping[str, str], by: str = PERSON) -> Change | None:
        """Write captions (image -> one line of text) as one change; None when nothing differs.

        A tagger's change skips locked images (`Change.skipped`). Where somebody else changed a caption since this
        editor read it, only the tags that differ from what it read are added and removed.
        Raises CaptionEditError for names of no training image, and when captions could not be written.
        """
        _check_names(captions, self.captions, self._config.folder)
        new_texts = {name: one_line(text) for name, text in captions.items()}
        as_read = self.captions
        with self._session():
            files, history = self._store.files, self._store.history
            present = (new_texts.keys() & self.samples.keys()) - files.unreadable
            writable = {name for name in present if by == PERSON or not self.is_locked(name)}
            own_texts = {
                name: merged(as_read[name], text, self.captions[name])
                for name, text in new_texts.items()
                if name in writable
            }
            texts = files.spread(own_texts)
            # an edit is what is stored: the tags that change, not the whole caption
            edits = {name: Edit.between(self.captions[name], text) for name, text in texts.items()}
            edits = {name: edit for name, edit in edits.items() if not edit.is_empty}
            if not edits:
                return None
            # not written: locked or gone, or the caption of another image with the same file was taken
            skipped = sorted(name for name in new_texts if name not in writable or texts[name] != own_texts[name])
            # the bytes of files that lorakit did not write (encodings, line ends), so that undo restores them
            contents = {
                name: (history.content(name), caption_content(texts[name]))
                for name in edits
                if history.content(name) != caption_content(self.captions[name])
            }
            return self._commit(Entry(by=by, what=what, edits=edits, files=contents, skipped=tuple(skipped)))

    def lock(self, names: Iterable[str]) -> Change | None:
        """Lock captions against taggers, as a change that can be undone; None when all are locked already."""
        return self._set_locks(names, is_locked=True)

    def unlock(self, names: Iterable[str]) -> Change | None:
        """Let taggers write these captions again; tags that a person wrote or removed stay so."""
        return self._set_locks(names, is_locked=False)

    def undo(self) -> Change | None:
        """Undo the newest change that this editor has read; None when there is none.

        Images that were changed since are left unchanged (`Change.skipped`).
        """
        # a change made elsewhere meanwhile was not seen by whoever presses undo
        seen = self._store.history.in_force[::-1]
        with self._session():
            history = self._store.history
            number = next((number for number in seen if number in history.in_force), None)
            if number is None:
                return None
            entry = replace(history.changes[number], skipped=()).limited_to(history.undoable(number))
            return self._commit(replace(entry.reversed(), undoes=number))

    def redo(self) -> Change | None:
        """Redo the change that was undone last, unless another one was made since; `skipped` as in `undo`."""
        seen = self._store.history.undone[-1:]
        with self._session():
            history = self._store.history
            if not seen or seen[0] in history.in_force:
                return None
            entry = replace(history.changes[seen[0]], skipped=()).limited_to(history.redoable(seen[0]))
            return self._commit(replace(entry, redoes=seen[0]))

    def _set_locks(self, names: Iterable[str], is_locked: bool) -> Change | None:
        names = set(names)
        _check_names(names, self.captions, self._config.folder)
        with self._session():
            files = self._store.files
            present = {other for name in names & self.samples.keys() for other in files.sharing(name)}
            changed = tuple(sorted(n for n in present - files.unreadable if self.is_locked(n) != is_locked))
            if not changed:
                return None
            way = "lock" if is_locked else "unlock"
            return self._commit(Entry(by=PERSON, what=way, **{way: changed}))

    def _commit(self, entry: Entry) -> Change:
        try:
            entry, unwritten, error = self._store.commit(entry)
        finally:
            self._take_snapshot()
        # the captions that could be written stay written, and can be undone
        if error is not None:
            reason = reason_of(error, self._config.folder)
            raise CaptionEditError(
                f"{len(unwritten)} captions could not be written ({reason}) and are unchanged; "
                f"{len(entry.edits)} are written. Free some space, or allow writing there, and do it again."
            )
        return Change.of(entry, undone=bool(entry.undoes))

    @contextmanager
    def _session(self) -> Iterator[Change | None]:
        """Hold the lock with everything up to date; after a failure or an interruption all is read anew."""
        with exclusive(self._project.folder / "tags"):
            store = self._store if self._is_consistent else CaptionStore(self._project, self._config)
            self._is_consistent = False
            outside_change = store.sync()
            self._store = store
            self._take_snapshot()
            yield outside_change
            self._is_consistent = True

    def _take_snapshot(self) -> None:
        self.samples, self.left_out = self._store.files.samples, self._store.files.left_out
        self.captions = {name: self._store.history.texts[name] for name in self.samples}


def tag_counts(captions: Iterable[str]) -> dict[str, int]:
    """Tag -> number of captions that have it, rarest first, then by name."""
    counts = Counter(tag for caption in captions for tag in set(tags_of(caption)))
    return dict(sorted(counts.items(), key=lambda row: (row[1], row[0])))


def _check_names(names: Iterable[str], images: Container[str], folder: str) -> None:
    if unknown := [name for name in names if name not in images]:
        raise CaptionEditError(
            f"{unknown[0]!r} is no training image of {folder}; name it by its path inside that folder, as the table of "
            "images does."
        )
