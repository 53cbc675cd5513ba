"""Errors of a disk in words: which file, what is wrong, what to do; and small files read without hanging on a pipe."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lorakit.errors import UserError
from lorakit.secrets import hidden

MOST = 1 << 28  # bytes of a file that is read whole; the largest log or record is far smaller

# errno -> what is wrong, and what to do about it.
REASONS = {
    errno.ENOSPC: (
        "the disk is full",
        "Free some space there: delete caches, or runs that are no longer needed; an online disk's trash counts, too.",
    ),
    errno.EDQUOT: ("the disk is full (your quota)", "Free some space there, or ask for a larger quota."),
    errno.EROFS: ("the disk is read-only", "Put the project on a disk that can be written."),
    errno.EACCES: ("permission denied", "Give your user access to it (chmod, chown), or take another folder."),
    errno.EPERM: ("permission denied", "Give your user access to it (chmod, chown), or take another folder."),
    errno.EIO: ("the disk reports an input/output error", "Check the disk, or mount it again (Google Drive)."),
    errno.EMFILE: ("too many files are open", "Raise the limit (ulimit -n 4096), or restart this program."),
    errno.ENFILE: ("too many files are open on this machine", "Close other programs."),
    errno.ENAMETOOLONG: ("the name is too long", "Shorten it, or move the project to a shorter path."),
    errno.EFBIG: ("the file would be larger than allowed", "Raise the limit (ulimit -f), or take another disk."),
    errno.ENOENT: ("it is not there, or no longer", "Check the path, and whether the disk is still mounted."),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "Move that file away."),
    errno.EISDIR: ("it is a folder, not a file", "Move that folder away."),
    errno.EEXIST: ("something of that name is there already", "Move it away."),
    errno.ELOOP: ("its links lead in a circle", "Remove the link."),
    errno.ENOTCONN: (
        "the disk is no longer connected",
        "Mount it again (in Colab: run the cell that mounts Google Drive).",
    ),
    errno.ENODEV: ("the disk is gone", "Mount it again."),
    errno.ESTALE: ("the disk was disconnected meanwhile", "Mount it again."),
    errno.ENXIO: ("it is a pipe, a socket or a device, not a file", "Remove it."),
    errno.EILSEQ: ("this disk allows no such name", "Use plain letters and digits."),
}
# Full in the words of the kernel; libraries that are not written in Python pass on its text or number only.
_FULL = (errno.ENOSPC, errno.EDQUOT)
_RUST = re.compile(r"\(os error (\d+)\)")
# Of a disk, or of this program, as a whole: the next file would fail as well.
_FAILING = (
    *(errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOTCONN, errno.ESTALE, errno.ENODEV, errno.ENOMEM),
    errno.ETIMEDOUT,
)
# Not of a disk: a reader that is gone, a connection.
_ELSEWHERE = (errno.EPIPE, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EHOSTUNREACH)


class DiskError(UserError, OSError):
    """A file cannot be read or written; says which, why, and what to do.

    `errno` is the kernel's number; `reason` says which file and why, `advice` what to do.
    """

    reason = advice = ""

    def __str__(self) -> str:
        # an OSError's own text would be made of its number
        return hidden(str(self.args[0]))


class DiskFull(DiskError):
    """The disk is full."""


class DamagedFile(DiskError):
    """A file is not what it should be: no plain file, far too large, or not of its format."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Within, a disk's error, however a library reports it, becomes a DiskError about `path`."""
    try:
        yield
    # broad, as safetensors, torch and Pillow each have classes of their own for it; what is no disk's error passes
    except Exception as error:
        if isinstance(error, UserError) or (explained := disk_error(error, path)) is None:
            raise
        raise explained from error


def disk_error(error: BaseException, path: Path | str = "") -> DiskError | None:
    """The error of a disk in words; None for errors of another kind. `path` is the file, else the error's own."""
    if isinstance(error, UserError):
        return error if isinstance(error, DiskError) else None
    number, cause = _number(error)
    if not number:
        return None
    where, (reason, advice) = path or _named(cause), _reason(number, cause)
    if number in _FULL:
        reason, advice = _room(Path(where), reason, advice)
    writes = number in (*_FULL, errno.EROFS, errno.EFBIG)
    problem, kept = ("cannot be written", " Everything saved before is kept.") if writes else ("cannot be used", "")
    kind = DiskFull if number in _FULL else DiskError
    explained = kind(f"{where} {problem}: {reason}.{kept} {advice}")
    explained.errno, explained.strerror = number, os.strerror(number)
    explained.reason, explained.advice = f"{where}: {reason}", advice
    return explained


def reason_of(error: OSError, path: Path | str = "") -> str:
    """What an error of a disk says, without advice, for a sentence that has its own: "/p/x.png: the disk is full".

    path   what it was about, where the error names no file
    """
    explained = disk_error(error, "" if error.filename else path)
    return (explained and explained.reason) or str(explained or error).rstrip(".")


def raise_if_closed(error: BaseException, path: Path) -> None:
    """Raise DiskError when a file is there and the disk did not give it: no library's advice helps then."""
    if isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.EISDIR, errno.ENOTDIR):
        if (explained := disk_error(error, "" if error.filename else path)) is not None:
            raise explained from error


def raise_if_failing(error: OSError, path: Path | str = "") -> None:
    """Raise DiskError when the disk fails, and not this one file alone.

    For readers that leave out files which cannot be read: a run that began while a disk failed would never see them.
    """
    if error.errno in _FAILING:
        raise disk_error(error, path) or error from error


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk is full."""
    return _number(error)[0] in _FULL


def read_file(path: Path, most: int = MOST) -> bytes:
    """The bytes of a plain file.

    Raises FileNotFoundError, DiskError when it cannot be read, DamagedFile for a folder, a pipe or more than `most`
    bytes: a pipe is not waited for.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _no_file(path, "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device")
            if status.st_size > most:
                raise DamagedFile(
                    f"{path} has {status.st_size / 1e6:.0f} MB, more than any such file holds ({most / 1e6:.0f} MB): "
                    "move it away, then run this again."
                )
            return file.read()
    except FileNotFoundError:
        raise
    except IsADirectoryError:
        raise _no_file(path, "a folder") from None
    except OSError as error:
        raise disk_error(error, path) or error from error


def _no_file(path: Path, what: str) -> DamagedFile:
    damaged = DamagedFile(f"{path} cannot be read: it is {what}, not a file. Move it away, then run this again.")
    damaged.strerror, damaged.reason = f"it is {what}", f"{path}: it is {what}"
    return damaged


def read_json(path: Path, kind: type | tuple[type, ...] = dict) -> Any:
    """The JSON in a file, whose outermost value is a `kind`. Raises as `read_file`; DamagedFile when it is no such."""
    try:
        content = json.loads(read_file(path))
    except (UserError, FileNotFoundError):
        raise
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged: it is not JSON ({str(error)[:80]}).") from None
    if not isinstance(content, kind):
        raise DamagedFile(f"{path} is damaged: it holds {type(content).__name__}, not what belongs there.")
    return content


def _number(error: BaseException | None) -> tuple[int, BaseException | None]:
    """The kernel's number for an error of a disk, and the error that has it; 0 for errors of another kind."""
    while error is not None:
        of_rust = _RUST.search(str(error))
        if isinstance(error, OSError) and not isinstance(error, ConnectionError):
            number = error.errno or (int(of_rust[1]) if of_rust else 0)
            # safetensors says so of every file that it cannot open
            if not number and isinstance(error, FileNotFoundError):
                number = _why_closed(_named(error))
            return (number if number > 0 and number not in _ELSEWHERE else 0), error
        if of_rust:
            return int(of_rust[1]), error
        # torch and safetensors, when they map a file
        of_library = isinstance(error, RuntimeError) or type(error).__name__ == "SafetensorError"
        for number in REASONS if of_library else _FULL:
            if os.strerror(number) in str(error):
                return number, error
        # torch raises RuntimeError while it handles the error of the file object
        error = error.__cause__ or (error.__context__ if isinstance(error, RuntimeError) else None)
    return 0, None


def _why_closed(file: str) -> int:
    """The kernel's number for why a file cannot be opened."""
    try:
        os.close(os.open(file, os.O_RDONLY | os.O_NONBLOCK))
    except OSError as error:
        return error.errno or errno.ENOENT
    # now it can be: the disk failed for a moment
    return errno.EIO


def _named(cause: BaseException | None) -> str:
    """The file that an error of the kernel names."""
    file = (cause.filename2 or cause.filename) if isinstance(cause, OSError) else None
    if isinstance(file, (str, bytes, os.PathLike)):
        return os.fsdecode(file)
    in_text = re.search(r"[<:'\" ](/[^<>'\"\n]+)", f" {cause}")
    return in_text[1].strip() if in_text else "A file"


def _reason(number: int, cause: BaseException | None) -> tuple[str, str]:
    """What is wrong and what to do; in the error's own words where they are not the kernel's."""
    reason, advice = REASONS.get(number, (os.strerror(number), "Check the disk and the path."))
    own = getattr(cause, "strerror", None)
    return (own if own and own != os.strerror(number) else reason), advice


def _room(file: Path, reason: str, advice: str) -> tuple[str, str]:
    """What is full: the space, or the number of files."""
    folder = next((parent for parent in file.absolute().parents if parent.is_dir()), Path("/"))
    with suppress(OSError):
        if (status := os.statvfs(folder)).f_files and not status.f_favail:
            return "the disk is full: it has room for no more files (inodes)", "Delete files that are not needed."
        return f"{reason}: {shutil.disk_usage(folder).free / 1e6:.1f} MB are free", advice
    return reason, advice
