"""The history of captions on disk: a line of JSON for each change, there before any caption file is touched."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorakit.data.caption_files import with_bom
from lorakit.errors import UserError
from lorakit.files import NO_LOCKS, write_atomic

PATIENCE = 60.0  # s for which another process may read or write the book
NO_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # of folders, on some network and shared disks
BETWEEN = ", "  # an edit cuts a caption here, and only here, so that it can be put together again to the letter


class CaptionEditError(UserError):
    """Captions cannot be changed; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One caption's change: from its part `at` on, `out` goes and `into` comes; parts are what ", " parts."""

    at: int
    out: tuple[str, ...]
    into: tuple[str, ...]

    @classmethod
    def between(cls, old: str, new: str) -> Edit:
        """What turns one text into another: all but their common beginning and end."""
        before, after = old.split(BETWEEN), new.split(BETWEEN)
        shorter = min(len(before), len(after))
        begin = next((i for i in range(shorter) if before[i] != after[i]), shorter)
        left = shorter - begin
        end = next((i for i in range(left) if before[-1 - i] != after[-1 - i]), left)
        return cls(begin, tuple(before[begin : len(before) - end]), tuple(after[begin : len(after) - end]))

    def apply(self, text: str) -> str | None:
        """The new text; None when this is no edit of the text."""
        parts = text.split(BETWEEN)
        if tuple(parts[self.at : self.at + len(self.out)]) != self.out:
            return None
        return BETWEEN.join(parts[: self.at] + list(self.into) + parts[self.at + len(self.out) :])

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing of the text, but perhaps of its file."""
        return not (self.out or self.into)

    def back(self) -> Edit:
        """The edit that takes this one back."""
        return Edit(self.at, self.into, self.out)


@dataclass(frozen=True)
class Entry:
    """One line: a change, or one taken back (`undoes`) or made again (`redoes`), by number."""

    number: int
    at: str
    by: str
    what: str
    edits: Mapping[str, Edit] = field(default_factory=dict)
    files: Mapping[str, tuple[str | None, str | None]] = field(default_factory=dict)
    # (old, new) of caption files that are not simply `plain(text)`, with the bytes that are no UTF-8 as surrogates;
    # None: there is no such file
    lock: tuple[str, ...] = ()
    unlock: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    undoes: int = 0
    redoes: int = 0

    def names(self) -> set[str]:
        """The images that it is about."""
        return {*self.edits, *self.lock, *self.unlock}

    def only(self, names: Iterable[str]) -> Entry:
        """The same for fewer images; the others are kept."""
        chosen = set(names)
        return replace(
            self,
            edits={name: edit for name, edit in self.edits.items() if name in chosen},
            files={name: pair for name, pair in self.files.items() if name in chosen},
            lock=tuple(name for name in self.lock if name in chosen),
            unlock=tuple(name for name in self.unlock if name in chosen),
            kept=(*self.kept, *sorted(self.names() - chosen)),
        )

    def back(self) -> Entry:
        """What takes it back."""
        return replace(
            self,
            edits={name: edit.back() for name, edit in self.edits.items()},
            files={name: (new, old) for name, (old, new) in self.files.items()},
        )


def plain(text: str) -> str:
    """What a caption file holds after the kit has written a caption there."""
    return with_bom(text + "\n")


def content_of(file: Path) -> str | None:
    """All that a caption file holds, bytes that are no UTF-8 as surrogates; None when there is none."""
    try:
        return file.read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return None


class History:
    """The lines about one set of caption files, such as "dataset/*.txt", among all in `file`.

    Whoever calls this holds the book's lock. A torn line of a killed process is passed over; a whole one that is not
    said to be done is `begun`: its caption files may be old, new, or some of each.
    """

    def __init__(self, file: Path, of: str):
        self.file = file
        self.of = of
        self.begun: Entry | None = None
        self.last = 0  # the highest number, of all sets
        self._offset = 0

    def new(self) -> list[Entry]:
        """The finished entries since the last call, oldest first."""
        try:
            with open(self.file, "rb") as lines:
                lines.seek(self._offset)
                data = lines.read()
        except FileNotFoundError:
            return []
        if data and not data.endswith(b"\n"):  # its writer is dead: this process has the lock
            data += b"\n"
            self._write(b"\n")
        self._offset += len(data)
        return [entry for line in data.splitlines() if (entry := self._read(line)) is not None]

    def begin(self, entry: Entry) -> None:
        """Write down what is about to be done."""
        self._append(_told(entry, self.of))
        self.begun, self.last = entry, entry.number

    def finish(self, kept: Iterable[str] = ()) -> Entry:
        """Write down that what was begun is done, but for `kept`; returns it without these."""
        entry = self.begun
        self._append({"done": entry.number, "of": self.of} | ({"kept": sorted(kept)} if kept else {}))
        self.begun = None
        return entry.only(entry.names() - set(kept)) if kept else entry

    def _append(self, told: dict) -> None:
        line = _json(told).encode() + b"\n"
        self._write(line)
        self._offset += len(line)

    def _write(self, data: bytes) -> None:
        is_new = not self.file.exists()
        size = 0 if is_new else self.file.stat().st_size
        try:
            with open(self.file, "ab") as lines:
                lines.write(data)
                lines.flush()
                os.fsync(lines.fileno())
        except OSError as error:
            with suppress(OSError):
                os.truncate(self.file, size)  # a torn line would have to be ended before anything can be read
            raise CaptionEditError(
                f"{self.file} cannot be written ({error.strerror}): free some space there."
            ) from error
        if is_new:
            fsync(self.file.parent)

    def _read(self, line: bytes) -> Entry | None:
        """The entry that this line finishes, if it does."""
        try:
            told = json.loads(line)
            if "done" in told:
                if self.begun is None or told["done"] != self.begun.number or told["of"] != self.of:
                    return None
                kept, entry, self.begun = told.get("kept", ()), self.begun, None
                return entry.only(entry.names() - set(kept)) if kept else entry
            self.last = max(self.last, told["number"])
            if told["of"] == self.of:
                self.begun = _entry(told)
        except (ValueError, LookupError, TypeError, AttributeError):
            pass  # torn, or damaged by other hands: what it said of captions, their files say
        return None


class FirstCaptions:
    """The captions of one set as they were when the book first saw them, in a file with those of all sets."""

    def __init__(self, file: Path, of: str):
        self.file = file
        self.of = of
        self._seen: set[str] = set()
        self._look: tuple[int, int] | None = None

    def new(self) -> dict[str, tuple[str, str | None]]:
        """(text, what its caption file held) by name, of images that were not told before."""
        if not self.file.exists() or (look := self._stat()) == self._look:
            return {}
        told = self._read().get(self.of, {"captions": {}, "files": {}})
        texts = {name: text for name, text in told["captions"].items() if name not in self._seen}
        self._seen.update(texts)
        self._look = look
        return {name: (text, told["files"].get(name, plain(text))) for name, text in texts.items()}

    def add(self, captions: Mapping[str, tuple[str, str | None]]) -> None:
        """Keep more of them, before anything changes these."""
        if not captions:
            return
        everything = self._read() if self.file.exists() else {}
        told = everything.setdefault(self.of, {"captions": {}, "files": {}})
        told["captions"] |= {name: text for name, (text, _) in captions.items()}
        told["files"] |= {name: content for name, (text, content) in captions.items() if content != plain(text)}
        try:
            write_atomic(self.file, _json(everything, indent=1))
        except OSError as error:
            raise CaptionEditError(
                f"{self.file} cannot be written ({error.strerror}): free some space there."
            ) from error
        self._seen.update(captions)
        self._look = self._stat()

    def _stat(self) -> tuple[int, int]:
        stat = self.file.stat()
        return stat.st_ino, stat.st_mtime_ns

    def _read(self) -> dict:
        try:
            return json.loads(self.file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CaptionEditError(
                f"{self.file} is damaged ({error}). It keeps the first captions of all images: bring it back from a "
                f"copy, or move the folder {self.file.parent} away; the captions themselves stay."
            ) from None


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a book, so that no other process or kernel reads or writes it meanwhile.

    Raises CaptionEditError when another holds it for long, and where nothing can be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "book.lock", "ab")
    except OSError as error:
        raise CaptionEditError(f"{folder} cannot be written ({error.strerror}), and it keeps all changes.") from error
    end = time.monotonic() + PATIENCE
    with lock:
        while not _taken(lock.fileno()):
            if time.monotonic() > end:
                raise CaptionEditError(
                    f"Another process has been reading or writing the captions of {folder.parent} for a minute: wait "
                    "for it, or end it, and try again."
                )
            time.sleep(0.02)
        yield


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise  # else: a file system that cannot lock, where one process at a time has to do
    return True


def fsync(path: Path) -> None:
    """Make a file, or the names in a folder, last through a power cut, where the file system can do that."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise
    finally:
        os.close(handle)


def _json(told: dict, indent: int | None = None) -> str:
    """JSON that UTF-8 can hold: the surrogates that stand for other bytes are escaped."""
    text = json.dumps(told, ensure_ascii=False, indent=indent)
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)


def _told(entry: Entry, of: str) -> dict:
    """As a line says it; images that are changed alike stand together."""
    alike: dict[tuple, dict[str, int]] = {}
    for name, edit in entry.edits.items():
        alike.setdefault((edit.out, edit.into), {})[name] = edit.at
    told = {"number": entry.number, "at": entry.at, "by": entry.by, "what": entry.what, "of": of}
    told["edits"] = [{"out": out, "in": into, "at": at} for (out, into), at in alike.items()]
    optional = {key: getattr(entry, key) for key in ("files", "lock", "unlock", "kept", "undoes", "redoes")}
    return told | {key: value for key, value in optional.items() if value}


def _entry(told: dict) -> Entry:
    edits = {}
    for group in told.pop("edits"):
        out, into = tuple(group["out"]), tuple(group["in"])
        edits |= {name: Edit(at, out, into) for name, at in group["at"].items()}
    del told["of"]
    told |= {key: tuple(told[key]) for key in ("lock", "unlock", "kept") if key in told}
    files = {name: (old, new) for name, (old, new) in told.pop("files", {}).items()}
    return Entry(**told, edits=edits, files=files)
