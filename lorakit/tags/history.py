"""The edit history on disk: a line of JSON for each change, written before any caption file is touched.

A change takes two lines: what will be done, and, after the caption files are written, that it is done. A process
killed in between leaves a pending entry, which the next process finishes.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from lorakit.files import NO_LOCKS, open_lock, write_atomic
from lorakit.files.disk import DamagedFile, read_file, read_json
from lorakit.tags.edits import CaptionEditError, Edit, Entry
from lorakit.tags.files import caption_content, fsync

# s to wait for another process that reads or writes captions.
LOCK_TIMEOUT = 60.0
# s between two attempts to take the lock.
LOCK_POLL = 0.02


class HistoryFile:
    """The entries about one dataset in `tags/history.jsonl`, which holds those of all datasets of a project.

    `dataset` names the caption files that an entry is about, such as "dataset/*.txt". `pending` is an entry that was
    begun and not finished: each of its caption files may hold the old or the new caption. `last` is the highest
    number, of all datasets. Every call needs the lock (`exclusive`).
    """

    def __init__(self, file: Path, dataset: str):
        self.file = file
        self.dataset = dataset
        self.pending: Entry | None = None
        self.last = 0
        # Bytes that were read or written by this object.
        self._offset = 0

    def new(self) -> list[Entry]:
        """The finished entries since the last call, oldest first; a line torn by a killed process is skipped."""
        try:
            data = read_file(self.file)[self._offset :]
        except FileNotFoundError:
            return []
        # we hold the lock, so the process that wrote half a line is dead: end the line before adding others
        if data and not data.endswith(b"\n"):
            data += b"\n"
            self._write(b"\n")
        self._offset += len(data)
        # lines that begin an entry give none: it counts only when its "done" line is there
        return [entry for line in data.splitlines() if (entry := self._read(line)) is not None]

    def begin(self, entry: Entry) -> None:
        """Record what will be done. It is on disk when this returns. Raises CaptionEditError on a full disk."""
        self._append(_record(entry, self.dataset))
        self.pending, self.last = entry, entry.number

    def finish(self, skipped: Iterable[str] = ()) -> Entry:
        """Record that the pending entry is done, except for the `skipped` images; returns it without these."""
        entry = self.pending
        # "kept" is the stored name of what is skipped
        self._append({"done": entry.number, "of": self.dataset} | ({"kept": sorted(skipped)} if skipped else {}))
        self.pending = None
        return entry.limited_to(entry.images() - set(skipped)) if skipped else entry

    def _append(self, record: dict) -> None:
        line = _json(record).encode() + b"\n"
        self._write(line)
        self._offset += len(line)

    def _write(self, data: bytes) -> None:
        is_new = not self.file.exists()
        size = 0 if is_new else self.file.stat().st_size
        try:
            with open(self.file, "ab") as lines:
                # fsync: captions may only be touched when this line would survive a power cut
                lines.write(data)
                lines.flush()
                os.fsync(lines.fileno())
        except OSError as error:
            # without half a line at the end, the file can still be read while the disk is full
            with suppress(OSError):
                os.truncate(self.file, size)
            raise _unwritable(self.file, error) from error
        # a new file lasts only when its folder's list of names does
        if is_new:
            fsync(self.file.parent)

    def _read(self, line: bytes) -> Entry | None:
        """The entry that this line finishes, or None; a line that begins one sets `pending`."""
        try:
            record = json.loads(line)
            if "done" in record:
                if self.pending is None or record["done"] != self.pending.number or record["of"] != self.dataset:
                    return None
                skipped, entry, self.pending = record.get("kept", ()), self.pending, None
                return entry.limited_to(entry.images() - set(skipped)) if skipped else entry
            self.last = max(self.last, record["number"])
            if record["of"] == self.dataset:
                self.pending = _entry(record)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            # Torn or damaged: the caption files themselves show what they hold.
            pass
        return None


class FirstCaptions:
    """The captions of one dataset when they were first read, in `tags/captions.v1.json` with those of all datasets.

    The history replays on top of them. Every call needs the lock (`exclusive`).
    """

    def __init__(self, file: Path, dataset: str):
        self.file = file
        self.dataset = dataset
        self._seen: set[str] = set()
        self._last_stat: tuple[int, int] | None = None

    def new(self) -> dict[str, tuple[str, str | None]]:
        """Image -> (caption, content of its caption file) of the images that no earlier call returned."""
        if not self.file.exists() or (stat := self._stat()) == self._last_stat:
            return {}
        stored = self._read().get(self.dataset, {"captions": {}, "files": {}})
        captions = {name: text for name, text in stored["captions"].items() if name not in self._seen}
        self._seen.update(captions)
        self._last_stat = stat
        return {name: (text, stored["files"].get(name, caption_content(text))) for name, text in captions.items()}

    def add(self, captions: Mapping[str, tuple[str, str | None]]) -> None:
        """Store the captions of more images, before anything changes them. Raises CaptionEditError on a full disk."""
        if not captions:
            return
        datasets = self._read() if self.file.exists() else {}
        stored = datasets.setdefault(self.dataset, {"captions": {}, "files": {}})
        stored["captions"] |= {name: text for name, (text, _) in captions.items()}
        # only content that does not follow from the caption
        stored["files"] |= {
            name: content for name, (text, content) in captions.items() if content != caption_content(text)
        }
        try:
            write_atomic(self.file, _json(datasets, indent=1))
        except OSError as error:
            raise _unwritable(self.file, error) from error
        self._seen.update(captions)
        self._last_stat = self._stat()

    def _stat(self) -> tuple[int, int]:
        stat = self.file.stat()
        # The inode, too: an atomic write makes another file, perhaps within one tick of the clock.
        return stat.st_ino, stat.st_mtime_ns

    def _read(self) -> dict:
        try:
            return read_json(self.file)
        except DamagedFile as error:
            raise CaptionEditError(
                f"{error} It holds the first captions of all images: restore it from a "
                f"copy, or move the folder {self.file.parent} away, which ends the history; the captions stay."
            ) from None


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lock the captions of a project (`folder` is its tags/) against all other processes and kernels.

    Raises CaptionEditError when another process holds the lock for LOCK_TIMEOUT, and where nothing can be written.
    """
    try:
        # the name is fixed: other versions of lorakit lock the same file
        lock = open_lock(folder / "book.lock")
    except OSError as error:
        raise CaptionEditError(
            f"{folder / 'book.lock'} cannot be written ({error.strerror}): the edit history is stored there. Allow "
            "writing, or free some space."
        ) from error
    deadline = time.monotonic() + LOCK_TIMEOUT
    with lock:
        while not _try_lock(lock.fileno()):
            if time.monotonic() > deadline:
                raise CaptionEditError(
                    f"Another process has been reading or writing the captions of {folder.parent} for a minute: wait "
                    "for it, or end it, and try again."
                )
            time.sleep(LOCK_POLL)
        yield


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # a file system without locks: there, only one process at a time is safe
        if error.errno not in NO_LOCKS:
            raise
    return True


def _unwritable(file: Path, error: OSError) -> CaptionEditError:
    return CaptionEditError(f"{file} cannot be written ({error.strerror}): free some space there.")


def _json(record: dict, indent: int | None = None) -> str:
    """JSON that UTF-8 can hold: the surrogates that stand for other bytes are escaped."""
    text = json.dumps(record, ensure_ascii=False, indent=indent)
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)


def _record(entry: Entry, dataset: str) -> dict:
    """An entry as its line stores it; images with the same edit stand together."""
    # one edit of a thousand captions is one group, so that the line stays short
    groups: dict[tuple, dict[str, int]] = {}
    for name, edit in entry.edits.items():
        groups.setdefault((edit.removed, edit.inserted), {})[name] = edit.position
    record = {"number": entry.number, "at": entry.at, "by": entry.by, "what": entry.what, "of": dataset}
    record["edits"] = [
        {"out": removed, "in": inserted, "at": positions} for (removed, inserted), positions in groups.items()
    ]
    optional = {
        "files": entry.files,
        "lock": entry.lock,
        "unlock": entry.unlock,
        "kept": entry.skipped,
        "undoes": entry.undoes,
        "redoes": entry.redoes,
    }
    return record | {key: value for key, value in optional.items() if value}


def _entry(record: dict) -> Entry:
    """The entry of a stored line. Raises LookupError, TypeError, ValueError or AttributeError for a damaged one."""
    edits = {}
    for group in record["edits"]:
        removed, inserted = tuple(group["out"]), tuple(group["in"])
        edits |= {name: Edit(position, removed, inserted) for name, position in group["at"].items()}
    return Entry(
        by=record["by"],
        what=record["what"],
        number=record["number"],
        at=record["at"],
        edits=edits,
        files={name: (old, new) for name, (old, new) in record.get("files", {}).items()},
        lock=tuple(record.get("lock", ())),
        unlock=tuple(record.get("unlock", ())),
        skipped=tuple(record.get("kept", ())),
        undoes=record.get("undoes", 0),
        redoes=record.get("redoes", 0),
    )
