"""Many small files as one: a folder into a tar, and zip and tar files into a folder that they cannot leave."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from lzma import LZMAError
from pathlib import Path
from typing import BinaryIO

from lorakit.errors import UserError
from lorakit.files.copying import blocks, temporary_path

MAX_FILES = 200_000
# Unpacked size / packed size; checked only above SMALL bytes of unpacked size.
MAX_RATIO = 200
# bytes; a few megabytes of text may well shrink a thousandfold.
SMALL = 1 << 26
# bytes of the disk that stay free
RESERVE = 1 << 28
SUFFIXES = (".tar.gz", ".tar.bz2", ".tar.xz", ".tgz", ".tar", ".zip")
# What zipfile and tarfile raise for damaged files; RuntimeError and NotImplementedError stand for
# encryption and compression methods that they cannot read.
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, LZMAError, NotImplementedError, RuntimeError)


class ArchiveError(UserError):
    """An archive is damaged, unsafe, too large or of another kind."""


def tar_bytes(files: Iterable[tuple[str, Path]]) -> Iterator[bytes]:
    """The bytes of a tar of (name, file) pairs: the same content and names give the same bytes, whenever and wherever.

    Nothing is compressed, since images and tensors are not compressible. Raises ArchiveError when a file shrinks.
    """
    # Sorted, and without times, owners and modes: the bytes depend on names and content only.
    for name, path in sorted(files):
        with open(path, "rb") as file:
            entry = tarfile.TarInfo(name)
            entry.size = os.fstat(file.fileno()).st_size
            yield entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
            left = entry.size
            for block in blocks(file, entry.size):
                left -= len(block)
                yield block
            if left:
                raise ArchiveError(f"{path} became shorter while it was packed; this is tried again.")
            # A tar consists of 512-byte blocks: each file is padded to whole ones, two empty ones end it.
            yield b"\0" * (-entry.size % tarfile.BLOCKSIZE)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)


def is_archive(path: Path) -> bool:
    """Whether a file is named like one that can be unpacked."""
    return path.name.lower().endswith(SUFFIXES)


def unpack(file: Path, folder: Path) -> Iterator[int]:
    """Unpack a zip or tar into a new folder, which is there whole or not at all. Yields bytes as they are written.

    Raises ArchiveError, and leaves nothing behind, for anything but plain files and folders inside `folder`, for
    damaged and encrypted archives, for more than MAX_FILES files, and for more bytes than the disk has or than
    MAX_RATIO times the archive's.
    """
    # Unpacked under a temporary name, so that an interrupted call leaves no half dataset.
    part = temporary_path(folder)
    part.mkdir(parents=True)
    try:
        with open(file, "rb") as opened:
            limit = _Limit(file, part)
            # First: a tar may hold a zip at its end, which zipfile would open instead of the tar.
            if tarfile.is_tarfile(opened):
                opened.seek(0)
                yield from _untarring(opened, part, limit)
            elif zipfile.is_zipfile(opened):
                yield from _unzipping(opened, part, limit)
            else:
                raise ArchiveError(f"{file} is neither a zip nor a tar archive, or it is damaged: upload it again.")
        os.replace(part, folder)
    except DAMAGED as error:
        raise ArchiveError(f"{file} is damaged or incomplete ({error}): upload it again.") from error
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL):
            raise ArchiveError(f"{file} holds a name that no folder can hold: {error}.") from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


class _Limit:
    """How much an archive may become."""

    def __init__(self, file: Path, folder: Path):
        self.file, self.files, self.bytes = file, 0, 0
        self.room = max(0, shutil.disk_usage(folder).free - RESERVE)
        # Bytes counted while unpacking: sizes in an archive's headers can be wrong on purpose.
        self.ratio = max(SMALL, MAX_RATIO * file.stat().st_size)

    def one_more(self) -> None:
        self.files += 1
        if self.files > MAX_FILES:
            raise ArchiveError(f"{self.file} holds more than {MAX_FILES} files; it is not unpacked.")

    def add(self, count: int) -> int:
        self.bytes += count
        if self.bytes > self.ratio:
            raise ArchiveError(
                f"{self.file} becomes more than {MAX_RATIO} times as large as it is, which no images do; "
                "it is not unpacked."
            )
        if self.bytes > self.room:
            raise ArchiveError(
                f"{self.file} becomes larger than the {self.room / 1e9:.1f} GB that are free on the disk; free some."
            )
        return count


def _unzipping(opened: BinaryIO, folder: Path, limit: _Limit) -> Iterator[int]:
    with zipfile.ZipFile(opened) as archive:
        for entry in archive.infolist():
            limit.one_more()
            name = _spelled(entry)
            # The upper 16 bits hold the Unix mode; 0 for archives made on Windows.
            kind = stat.S_IFMT(entry.external_attr >> 16)
            # Bit 0: encrypted.
            if entry.flag_bits & 1:
                raise ArchiveError(f"{limit.file} is encrypted; pack it again without a password.")
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refused(limit.file, name, "is a link or a device")
            target = _inside(folder, name, limit.file)
            if entry.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            with archive.open(entry) as source:
                yield from _storing(source, target, limit)


def _untarring(opened: BinaryIO, folder: Path, limit: _Limit) -> Iterator[int]:
    with tarfile.open(fileobj=opened, mode="r:*") as archive:
        for entry in archive:
            limit.one_more()
            if not entry.isreg() and not entry.isdir():
                raise _refused(limit.file, entry.name, "is a link or a device")
            target = _inside(folder, entry.name, limit.file)
            if entry.isdir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            yield from _storing(archive.extractfile(entry), target, limit)
        # tarfile takes the end of a file that was uploaded halfway for the end of the archive. A whole tar
        # continues with at least one block of zeros.
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0") or archive.fileobj.tell() == archive.offset:
            raise ArchiveError(f"{limit.file} is damaged or incomplete (it has no end): upload it again.")
        # Read to the end, where compressed files have their checksum.
        for block in blocks(archive.fileobj):
            limit.add(len(block))


def _storing(source: BinaryIO, target: Path, limit: _Limit) -> Iterator[int]:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb") as file:
        for block in blocks(source):
            limit.add(len(block))
            file.write(block)
            yield len(block)


def _spelled(entry: zipfile.ZipInfo) -> str:
    """The name of a zip's entry; Windows writes Chinese names in GBK without saying so, read as cp437 by zipfile."""
    # Bit 11: the name is UTF-8.
    if entry.flag_bits & 0x800 or entry.filename.isascii():
        return entry.filename
    raw = entry.filename.encode("cp437")
    for encoding in ("utf-8", "gb18030"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return entry.filename


def _inside(folder: Path, name: str, file: Path) -> Path:
    """Where an entry goes. Raises ArchiveError for names that lead out of the folder."""
    # Windows' zips may separate folders by backslashes, and start with a drive letter.
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) or ".." in parts or "\0" in name:
        raise _refused(file, name, "leads out of the folder")
    return folder.joinpath(*parts)


def _refused(file: Path, name: str, why: str) -> ArchiveError:
    return ArchiveError(f"{file} is not unpacked: its entry {name!r} {why}. Pack plain files and folders only.")
