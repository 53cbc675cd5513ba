"""Bytes from one disk to another: whole or not there, read back, with a sign of life for every block."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from lorakit.files import MACHINE, short_name

# bytes between two signs of life: seconds apart, even at the 20 kB/s that online disks fall to
BLOCK = 1 << 18
# In names of temporary files, so that machines which share a disk do not remove each other's.


class CorruptCopy(OSError):
    """A disk gave back other bytes than were written to it."""


def blocks(file: BinaryIO, size: int = -1) -> Iterator[bytes]:
    """What is left of an open file, or its next `size` bytes, a block at a time."""
    while size and (block := file.read(BLOCK if size < 0 else min(BLOCK, size))):
        yield block
        size -= len(block) if size > 0 else 0


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    hasher = hashlib.sha256()
    with open(path, "rb") as file:
        for block in blocks(file):
            hasher.update(block)
    return hasher.hexdigest()


def temporary_path(target: Path) -> Path:
    """Where this process writes a file before it gets its name; hidden, and no other process's."""
    return target.with_name(f".{short_name(target.name)}.{MACHINE}.{os.getpid()}.part")


def is_abandoned(part: Path) -> bool:
    """Whether a `.part` file is of a process of this machine that is gone, or of nobody known for a day."""
    # .<name>.<machine>.<pid>.part; the name may hold dots, so split from the right.
    *_, machine, pid, _ = part.name.rsplit(".", 3) if part.name.count(".") > 3 else ("", "", "", "")
    if machine == MACHINE and pid.isdigit():
        # Another process may have the same id by now; then the file stays until that one ends.
        return not Path("/proc", pid).exists()
    return machine != MACHINE


def wipe(path: Path) -> None:
    """Remove a file and free its space at once: online disks keep deleted files in their trash for weeks, whole."""
    with contextlib.suppress(FileNotFoundError):
        # Truncated first: what lands in the trash is then an empty file.
        os.truncate(path, 0)
        os.unlink(path)


def write_verified(content: Iterable[bytes], target: Path, expected_sha256: str = "") -> Generator[int, None, str]:
    """Write `content` to a file: aside, flushed, read back, renamed. Returns its SHA-256.

    Yields the bytes written since the last yield, 0 while reading back. Where `expected_sha256` is not "", the content
    must have it. Raises OSError; CorruptCopy when what is read back differs: then `target` is what it was.
    """
    part, sent = temporary_path(target), hashlib.sha256()
    size = 0
    try:
        with open(part, "wb") as file:
            for block in content:
                file.write(block)
                sent.update(block)
                size += len(block)
                yield len(block)
            # fsync, then read back: online disks report writes before they are done.
            file.flush()
            os.fsync(file.fileno())
        if expected_sha256 and sent.hexdigest() != expected_sha256:
            raise CorruptCopy(errno.EIO, "the file to be copied is damaged", str(target))
        # A yield without bytes is a sign of life: the caller can give up, or count time.
        yield 0
        yield from _reading_back(part, 0, size, sent.hexdigest())
        if target.exists() and target.stat().st_size > BLOCK:
            # A file that a rename replaces may go into the trash as well.
            os.truncate(target, 0)
        os.replace(part, target)
        yield 0
        # One more check under the final name: what an online disk shows after a rename may be incomplete.
        if (there := target.stat().st_size) != size:
            raise CorruptCopy(errno.EIO, f"{there} of {size} bytes are there after renaming", str(target))
    finally:
        # The disk may be gone by now; the .part file is removed when it is back.
        with contextlib.suppress(OSError):
            wipe(part)
    return sent.hexdigest()


def copy_verified(source: Path, target: Path, expected_sha256: str = "") -> Generator[int, None, str]:
    """Write a copy of a file with `write_verified`. What is appended to the file meanwhile is not copied."""
    with open(source, "rb") as file:
        target.parent.mkdir(parents=True, exist_ok=True)
        # The size is taken once: logs grow while they are copied.
        return (yield from write_verified(blocks(file, os.fstat(file.fileno()).st_size), target, expected_sha256))


def append_verified(source: Path, size: int, target: Path, size_there: int) -> Iterator[int]:
    """Append to a copy what the first `size` bytes of its source have beyond `size_there`, and read it back.

    A copy that has not exactly `size_there` bytes is written anew. For logs: a torn end is one torn line.
    """
    with open(source, "rb") as file:
        if not size_there or size_there > size or not target.exists() or target.stat().st_size != size_there:
            target.parent.mkdir(parents=True, exist_ok=True)
            yield from write_verified(blocks(file, size), target)
            return
        file.seek(size_there)
        added = hashlib.sha256()
        with open(target, "ab") as copy:
            for block in blocks(file, size - size_there):
                copy.write(block)
                added.update(block)
                yield len(block)
            copy.flush()
            os.fsync(copy.fileno())
    yield from _reading_back(target, size_there, size, added.hexdigest())


def _reading_back(path: Path, start: int, end: int, expected_sha256: str) -> Iterator[int]:
    """Check that the bytes from `start` to `end`, where the file must end, are those that were written."""
    hasher = hashlib.sha256()
    with open(path, "rb") as file:
        # Drop the page cache, so that the bytes come from the disk and not from this machine's memory.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        there = os.fstat(file.fileno()).st_size
        if there != end:
            raise CorruptCopy(errno.EIO, f"{there} of {end} bytes are there when read back", str(path))
        file.seek(start)
        for block in blocks(file):
            hasher.update(block)
            yield 0
    if hasher.hexdigest() != expected_sha256:
        raise CorruptCopy(errno.EIO, "other bytes are there when read back", str(path))
