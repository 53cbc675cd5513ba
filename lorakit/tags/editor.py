"""The captions of a dataset as a book that remembers: who wrote which tag, what may be overwritten, undo and redo."""

from __future__ import annotations

import difflib
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lorakit.data import DataConfig
from lorakit.data.caption_files import MAX_CAPTION_BYTES
from lorakit.data.captions import tags_of
from lorakit.data.scan import Sample, scan
from lorakit.project import Project
from lorakit.tags.authors import PERSON, Change, Ledger
from lorakit.tags.history import (
    BETWEEN,
    CaptionEditError,
    Edit,
    Entry,
    FirstCaptions,
    History,
    content_of,
    fsync,
    held,
    plain,
)
from lorakit.tags.rules import merged

PART = ".lorakit-caption.part"  # a caption on its way to its file; one at a time in a folder
FSYNCS = 16  # files at once: a disk takes many along with one


class CaptionEditor:
    """All training images' captions; the truth is their caption files, the history `tags/history.jsonl`."""

    samples: dict[str, Sample]  # name -> training image (no regularization)
    captions: dict[str, str]  # name -> text as it stands on disk, as the last call here saw it

    def __init__(self, project: Project, config: DataConfig):
        """Read the dataset. What was changed elsewhere since is a change by "person"; a cut change is finished.

        Raises DataError as `scan` does, CaptionEditError when another process holds the book for long.
        """
        self._project, self._config = project, config
        self._folder = project.folder / "tags"
        self._is_whole = False  # what is known of the history and the caption files, which an interruption may tear
        self.samples, self.captions = {}, {}
        self.refresh()

    # ---- what is there -----------------------------------------------------------------------------------------------

    def refresh(self) -> Change | None:
        """See what other kernels, editors and Drive changed; returns what became a change of "person" by that."""
        with self._current() as change:
            return change

    def history(self) -> list[Change]:
        """All changes, oldest first; undone ones say so."""
        return self._ledger.history()

    def origin(self, name: str) -> dict[str, str]:
        """Tag -> "person" or the name of the tagger that set it, in the caption's order."""
        set_by, _ = self._ledger.story(name)
        return {tag: set_by.get(tag, PERSON) for tag in tags_of(self.captions[name])}

    def removed(self, name: str) -> set[str]:
        """Tags that a person took out of this caption, and that nobody put back."""
        return set(self._ledger.story(name)[1])

    def is_locked(self, name: str) -> bool:
        """Whether taggers leave this caption alone: a person wrote or changed it, and nobody unlocked it since.
        A caption that could not be read is always locked."""
        return name in self._unread or self._ledger.is_locked(name)

    def counts(self) -> dict[str, int]:
        """Tag -> number of images that have it, rarest first, then by name."""
        counts = Counter(tag for caption in self.captions.values() for tag in set(tags_of(caption)))
        return dict(sorted(counts.items(), key=lambda row: (row[1], row[0])))

    def difference(self) -> str:
        """What changed since the book began, as a unified diff of captions."""
        lines: list[str] = []
        for name, text in self.captions.items():
            old, new = ([line] if line else [] for line in (self._ledger.first[name], text))
            lines += difflib.unified_diff(old, new, name, name, lineterm="")
        return "".join(line + "\n" for line in lines)

    # ---- changing it -------------------------------------------------------------------------------------------------

    def change(self, what: str, captions: Mapping[str, str], by: str = PERSON) -> Change | None:
        """Write captions (name -> text, on one line); None when nothing differs.

        A tagger's change leaves locked images out (`Change.kept`). Where somebody else changed a caption since this
        book saw it, only the tags that differ from what it saw are put in and taken out.
        Raises CaptionEditError for names that are no training image, and when captions could not be written.
        """
        self._check(captions)
        wanted = {name: _one_line(text) for name, text in captions.items()}
        seen = self.captions
        with self._current():
            there = wanted.keys() & self.samples.keys() - self._unread
            free = {name for name in there if by == PERSON or not self.is_locked(name)}
            own = {name: merged(seen[name], wanted[name], self.captions[name]) for name in wanted if name in free}
            texts = self._shared(own)
            edits = {name: Edit.between(self.captions[name], text) for name, text in texts.items()}
            edits = {name: edit for name, edit in edits.items() if not edit.is_empty}
            if not edits:
                return None
            kept = sorted(name for name in wanted if name not in free or texts[name] != own[name])
            old = {name: self._ledger.content(name) for name in edits}
            files = {n: (old[n], plain(texts[n])) for n in edits if old[n] != plain(self.captions[n])}
            return self._make(Entry(by=by, what=what, edits=edits, files=files, kept=tuple(kept), **self._next()))

    def lock(self, names: Iterable[str]) -> Change | None:
        """Keep taggers from these captions; a change that can be undone. None when all are locked already."""
        return self._lock(names, "lock")

    def unlock(self, names: Iterable[str]) -> Change | None:
        """Let taggers write these captions again; tags that a person set or took out stay so."""
        return self._lock(names, "unlock")

    def undo(self) -> Change | None:
        """Take back the newest change that this book knows of; None when there is none. Images that were changed
        since are left as they are (`kept`)."""
        known = self._ledger.done[::-1]
        with self._current():
            number = next((number for number in known if number in self._ledger.done), None)
            if number is None:
                return None
            change = replace(self._ledger.changes[number], kept=()).only(self._ledger.undoable(number))
            return self._make(replace(change.back(), undoes=number, **self._next()))

    def redo(self) -> Change | None:
        """Make the change again that was undone last, unless another was made since; `kept` as in `undo`."""
        known = self._ledger.undone[-1:]
        with self._current():
            if not known or known[0] in self._ledger.done:
                return None
            change = replace(self._ledger.changes[known[0]], kept=()).only(self._ledger.redoable(known[0]))
            return self._make(replace(change, redoes=known[0], **self._next()))

    def _lock(self, names: Iterable[str], way: str) -> Change | None:
        names = set(names)
        self._check(names)
        with self._current():
            there = names & self.samples.keys()
            names = {other for name in there for other in self._sharing[self._file(name)]} - self._unread
            found = tuple(sorted(name for name in names if self.is_locked(name) != (way == "lock")))
            return self._make(Entry(by=PERSON, what=way, **{way: found}, **self._next())) if found else None

    def _check(self, names: Iterable[str]) -> None:
        if strangers := [name for name in names if name not in self.captions]:
            raise CaptionEditError(
                f"{strangers[0]!r} is no training image of {self._config.folder}; name it by its path inside that "
                "folder, as the table of images does."
            )

    def _shared(self, wanted: Mapping[str, str]) -> dict[str, str]:
        """The wanted captions for all images that share a caption file; of several texts for one the first is it."""
        texts: dict[Path, str] = {}
        for name, text in wanted.items():
            texts.setdefault(self._file(name), text)
        return {name: text for file, text in texts.items() for name in self._sharing[file]}

    def _next(self) -> dict:
        return {"number": self._history.last + 1, "at": time.strftime("%Y-%m-%d %H:%M:%S")}

    def _make(self, entry: Entry) -> Change:
        """Write down what is to be done, do it, write down that it is done."""
        self._history.begin(entry)
        left, error = self._write(entry)
        entry = self._history.finish(left)
        self._ledger.play(entry)
        self._show()
        if error is not None:
            raise CaptionEditError(
                f"{len(left)} captions could not be written ({error.strerror}) and are as they were; "
                f"{len(entry.edits)} are written. Free some space, or allow writing there, and do it again."
            )
        return Change.of(entry, undone=bool(entry.undoes))

    # ---- caption files -----------------------------------------------------------------------------------------------

    def _write(self, entry: Entry) -> tuple[set[str], OSError | None]:
        """Write the entry's caption files, so that they last; returns the images that were left as they are."""
        left, failed, written = set(), None, set()
        for name in entry.edits:
            try:
                if self._put(name, entry):
                    written.add(self._file(name))
                    self._looks[name] = _look(self._file(name))
                else:
                    left.add(name)
            except OSError as error:
                left.add(name)
                failed = error
        paths = [file for file in written if file.exists()] + list({file.parent for file in written})
        try:
            with ThreadPoolExecutor(FSYNCS) as threads:
                list(threads.map(fsync, paths))
        except OSError as error:  # the disk is failing, or another program removed one meanwhile
            failed = error
        return left, failed

    def _put(self, name: str, entry: Entry) -> bool:
        """Write one caption file whole; False when it holds neither what it should before nor after."""
        text = entry.edits[name].apply(self._ledger.texts[name]) if name in self.samples else None
        if text is None:
            return False
        old, new = entry.files.get(name) or (self._ledger.content(name), plain(text))
        if old == new and (entry.undoes or entry.redoes):
            return False  # another file said otherwise, such as a captions.json
        file = self._file(name)
        if (now := content_of(file)) == new:
            return True  # written by a process that died, or for another image with the same caption file
        if now != old:
            return False
        if new is None:
            file.unlink()
        else:
            part = file.with_name(PART)
            try:
                part.write_bytes(new.encode("utf-8", "surrogateescape"))
                os.replace(part, file)
            except OSError:
                part.unlink(missing_ok=True)
                raise
        return True

    def _file(self, name: str) -> Path:
        return self.samples[name].caption_file

    @contextmanager
    def _current(self) -> Iterator[Change | None]:
        """Hold the book, up to date. Where that is interrupted or fails, all is read anew the next time."""
        with held(self._folder):
            if not self._is_whole:
                of = f"{self._config.folder}/*{self._config.caption_extension}"  # a history for several data folders
                self._history = History(self._folder / "history.jsonl", of)
                self._firsts = FirstCaptions(self._folder / "captions.v1.json", of)
                self._ledger = Ledger()
                self._looks: dict[str, tuple | None] = {}  # name -> what its caption file looked like when it was read
            self._is_whole = False
            yield self._refresh()
            self._is_whole = True

    def _refresh(self) -> Change | None:
        """Follow what other processes did, finish what a dead one began, and see what other hands changed."""
        for name, (text, content) in self._firsts.new().items():
            self._ledger.begin(name, text, content)
        for entry in self._history.new():
            self._ledger.play(entry)
        is_same = all(_look(self._file(name)) == look for name, look in self._looks.items())
        change = None
        if not self._looks or self._history.begun is not None or not is_same:
            self._scan()
            if self._history.begun is not None:
                left, _ = self._write(self._history.begun)
                self._ledger.play(self._history.finish(left))
                self._scan()
            change = self._see()
        self._show()
        return change

    def _show(self) -> None:
        self.captions = {name: self._ledger.texts[name] for name in self.samples}

    def _scan(self) -> None:
        found = scan(self._config, self._project.folder).samples
        self.samples = {sample.name: sample for sample in found if not sample.is_reg}
        self._sharing: dict[Path, list[str]] = defaultdict(list)
        for name in self.samples:
            self._sharing[self._file(name)].append(name)

    def _see(self) -> Change | None:
        """Take in what the caption files say; what is not as the history has it becomes a change of "person"."""
        contents: dict[str, str | None] = {}
        self._unread = set()  # images whose caption file holds something that was not read
        self._looks = {}
        for name, sample in self.samples.items():
            self._looks[name] = _look(sample.caption_file)
            try:
                contents[name] = content_of(sample.caption_file)
            except OSError:
                contents[name] = ""
                self._unread.add(name)
            if (contents[name] or "").strip(" ,\t\r\n\ufeff") and not sample.written:
                self._unread.add(name)
        fresh = {n: (self.samples[n].written, c) for n, c in contents.items() if n not in self._ledger.first}
        self._firsts.add(fresh)
        for name, (text, content) in fresh.items():
            self._ledger.begin(name, text, content)
        edits, files = {}, {}
        for name, content in contents.items():
            old, new, was = self._ledger.texts[name], self.samples[name].written, self._ledger.content(name)
            if old != new or was != content:
                edits[name] = Edit.between(old, new)
                if (was, content) != (plain(old), plain(new)):
                    files[name] = (was, content)
        if not edits:
            return None
        entry = Entry(by=PERSON, what="changed elsewhere", edits=edits, files=files, **self._next())
        self._history.begin(entry)
        self._ledger.play(self._history.finish())
        return Change.of(entry, undone=False)


def _one_line(text: str) -> str:
    """A caption as its file can hold it and a scan reads it again."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CaptionEditError(f"The caption {text!r} is no text that UTF-8 can hold ({error.reason}).") from None
    lines = (re.sub(r"^\s+|[\s,]+$", "", line) for line in re.sub("[\0\ufeff]", "", text).splitlines())
    caption = BETWEEN.join(filter(None, lines))
    if (size := len(plain(caption).encode())) > MAX_CAPTION_BYTES:
        raise CaptionEditError(
            f"A caption of {size / 1e6:.1f} MB ({caption[:40]}…) is longer than any that is read again: "
            f"at most {MAX_CAPTION_BYTES / 1e6:.0f} MB."
        )
    return caption


def _look(file: Path) -> tuple | None:
    """What shows that a file was written again; None when there is none."""
    try:
        stat = os.stat(file)
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
