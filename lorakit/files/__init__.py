"""Small files written whole or not at all, and locks that the kernel releases when a process dies."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from lorakit.files.disk import DamagedFile, disk_errors

MACHINE = "".join(c if c.isalnum() or c == "-" else "_" for c in socket.gethostname())[:40]


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a small file so that a reader sees the old one or the new one, never half of it, also after a power cut.

    Raises DiskError, which names the file.
    """
    # The process id in the name: two processes may write the same file at once.
    part = path.with_name(f"{short_name(path.name)}.{os.getpid()}.part")
    try:
        # fsync before the rename: otherwise a power cut can leave the new name with an empty file.
        with disk_errors(path), open(part, "wb") as file:
            # surrogates: a file's name that is no UTF-8, such as a Chinese one that was unpacked without saying so
            file.write(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        with disk_errors(path):
            os.replace(part, path)
    # On a full disk an unfinished file would keep the space that is missing.
    except OSError:
        with suppress(OSError):
            part.unlink()
        raise


def remove_leftovers(parts: Iterable[Path]) -> None:
    """Remove those of these `.part` files that a process of this machine left when it was killed.

    Their names end in `.<pid>.part`, or `.<machine>.<pid>.part`; those of living processes and other machines stay.
    """
    for part in parts:
        *_, machine, pid, _ = ("", "", *part.name.rsplit(".", 3))
        of_another = part.name.startswith(".") and machine != MACHINE
        if pid.isdigit() and not of_another and not Path("/proc", pid).exists():
            with suppress(OSError):
                part.unlink()


def short_name(name: str) -> str:
    """A file's name, or a hash of one so long that nothing could be put before or behind it: 255 bytes are the most."""
    raw = os.fsencode(name)
    # Linux allows 255 bytes a name; 95 are left for what is put before and after it.
    return name if len(raw) <= 160 else hashlib.sha256(raw).hexdigest()


def open_lock(lock: Path) -> BinaryIO:
    """A file that is locked with flock, opened to append, unbuffered; made with its folder if need be.

    It is never emptied here and never deleted: another process could hold a lock on the deleted file while a third one
    locks a new file of the same name. Raises DiskError, and DamagedFile for a pipe or a folder.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
    with disk_errors(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedFile(f"{lock} is a pipe or a device, not a file: remove it, then run this again.")
    return open(descriptor, "ab+", buffering=0)


@contextmanager
def try_lock(lock: Path) -> Iterator[bool]:
    """Hold the flock on a file while this lasts; False when it is held already. Where a file system has no locks, one
    process at a time has to do.
    """
    with open_lock(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = True
        except OSError as error:
            # Any other error means that this file system has no locks.
            is_ours = not isinstance(error, BlockingIOError)
        yield is_ours


def is_locked(lock: Path) -> bool:
    """Whether a living process holds the flock on this file; it is gone when its holder dies, however it dies."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # A shared lock: two processes that only look do not see each other as holders.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def write_json(path: Path, data: Any) -> None:
    """Write JSON whole."""
    write_atomic(path, json.dumps(data, indent=1, ensure_ascii=False))


# Errors of file systems without flock, such as some network disks.
NO_LOCKS = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL}
