"""The caption files of a dataset: which images share one, what each holds, and writing many of them safely."""

from __future__ import annotations

import errno
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lorakit.data import DataConfig
from lorakit.data.caption_files import MAX_CAPTION_BYTES, with_bom
from lorakit.data.listing import Note
from lorakit.data.scan import Sample, scan
from lorakit.files.disk import DamagedFile, read_file
from lorakit.tags.edits import SEPARATOR, CaptionEditError

# A caption that is being written; one at a time in a folder.
PART = ".lorakit-caption.part"
# A disk flushes many files in about the time of one.
FSYNC_THREADS = 16
# Errors of flushing a folder, which some network and shared disks cannot do.
NO_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)
# A caption file with nothing but these characters has no caption.
BLANK = " ,\t\r\n\ufeff"


class CaptionFiles:
    """The caption files of all training images (no regularization images) of a dataset.

    samples      image -> its sample, of the last `scan`
    left_out     a note for each image that the last scan could not read
    unreadable   images whose caption file holds something that cannot be read as one caption; never written
    """

    samples: dict[str, Sample]
    left_out: tuple[Note, ...]
    unreadable: set[str]

    def __init__(self, root: Path, config: DataConfig):
        self._root, self._config = root, config
        self._stats: dict[str, tuple | None] = {}  # image -> what `stat` said of its caption file when it was read
        self._images: dict[Path, list[str]] = {}  # caption file -> the images that it belongs to
        self.samples, self.left_out, self.unreadable = {}, (), set()

    def scan(self) -> None:
        """List the training images anew. Raises DataError as `lorakit.data.scan.scan` does."""
        scanned = scan(self._config, self._root)
        self.left_out = scanned.left_out
        self.samples = {sample.name: sample for sample in scanned.samples if not sample.is_reg}
        self._images = defaultdict(list)
        for name in self.samples:
            self._images[self.file(name)].append(name)

    def file(self, name: str) -> Path:
        """The caption file of an image, which need not exist."""
        return self.samples[name].caption_file

    def sharing(self, name: str) -> list[str]:
        """All images with the same caption file, such as a.png and a.jpg, this one too."""
        return self._images[self.file(name)]

    def spread(self, captions: Mapping[str, str]) -> dict[str, str]:
        """The captions given to all images that share a caption file; of several for one file the first is taken."""
        by_file: dict[Path, str] = {}
        for name, text in captions.items():
            by_file.setdefault(self.file(name), text)
        # several images of one file would otherwise overwrite each other's caption
        return {name: text for file, text in by_file.items() for name in self._images[file]}

    def have_changed(self) -> bool:
        """Whether a caption file was written, created or removed since `read`, or nothing was read yet."""
        return not self._stats or any(_stat(self.file(name)) != stat for name, stat in self._stats.items())

    def read(self) -> dict[str, str | None]:
        """Image -> content of its caption file, None where there is none. Updates `unreadable`."""
        contents: dict[str, str | None] = {}
        self._stats, self.unreadable = {}, set()
        for name, sample in self.samples.items():
            # before reading: a write in between is then seen by the next `have_changed`
            self._stats[name] = _stat(sample.caption_file)
            try:
                contents[name] = read_content(sample.caption_file)
            except DamagedFile:
                contents[name] = ""
                self.unreadable.add(name)
            # a file that is not empty although the scan found no caption in it: an unknown encoding, for example
            if (contents[name] or "").strip(BLANK) and not sample.written:
                self.unreadable.add(name)
            # a file of alternatives would become one caption
            if self._config.caption_lines == "alternatives" and len(sample.lines) > 1:
                self.unreadable.add(name)
        return contents

    def write(self, contents: Mapping[str, tuple[str | None, str | None]]) -> tuple[set[str], OSError | None]:
        """Replace caption files, durably: image -> (old content, new content), None for no file.

        A file that holds neither is left alone: somebody else changed it. Returns the images that were not written,
        and the last error of the disk, if there was any.
        """
        unwritten, failure, written = set(), None, set()
        for name, (old, new) in contents.items():
            try:
                if _replace(self.file(name), old, new):
                    written.add(self.file(name))
                    self._stats[name] = _stat(self.file(name))
                else:
                    unwritten.add(name)
            except OSError as error:
                unwritten.add(name)
                failure = error
        # a replaced or removed file lasts when its folder is flushed, too
        paths = [file for file in written if file.exists()] + list({file.parent for file in written})
        try:
            with ThreadPoolExecutor(FSYNC_THREADS) as threads:
                list(threads.map(fsync, paths))
        # The disk is failing, or another program removed a file meanwhile.
        except OSError as error:
            failure = error
        return unwritten, failure


def caption_content(text: str) -> str:
    """The content of a caption file that holds this caption as lorakit writes it."""
    return with_bom(text + "\n")


def read_content(file: Path) -> str | None:
    """The whole content of a caption file, bytes that are not UTF-8 as surrogates; None when there is no file."""
    try:
        return read_file(file).decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return None


def one_line(text: str) -> str:
    """A caption as its file can hold it and a scan reads it again: one line, no stray commas.

    Raises CaptionEditError for text that UTF-8 cannot hold, and for more than MAX_CAPTION_BYTES.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CaptionEditError(f"The caption {text!r} is no text that UTF-8 can hold ({error.reason}).") from None
    # a caption file holds one line; a scan drops spaces and commas at its ends, and a byte order mark
    lines = (re.sub(r"^\s+|[\s,]+$", "", line) for line in re.sub("[\0\ufeff]", "", text).splitlines())
    caption = SEPARATOR.join(filter(None, lines))
    if (size := len(caption_content(caption).encode())) > MAX_CAPTION_BYTES:
        raise CaptionEditError(
            f"A caption of {size / 1e6:.1f} MB ({caption[:40]}…) is longer than any that is read again: "
            f"at most {MAX_CAPTION_BYTES / 1e6:.0f} MB."
        )
    return caption


def fsync(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut, where the file system can do that."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise
    finally:
        os.close(handle)


def _replace(file: Path, old: str | None, new: str | None) -> bool:
    """Write one file whole, or remove it (new is None); False when it holds neither `old` nor `new`."""
    if (content := read_content(file)) == new:
        # Written before this process was killed, or for another image that shares the file.
        return True
    if content != old:
        return False
    if new is None:
        file.unlink()
        return True
    # written aside and renamed: a reader sees the old caption or the new one, never half of it
    part = file.with_name(PART)
    try:
        part.write_bytes(new.encode("utf-8", "surrogateescape"))
        os.replace(part, file)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    return True


def _stat(file: Path) -> tuple | None:
    """What changes when a file is written again; None when there is no file."""
    try:
        stat = os.stat(file)
    except OSError:
        return None
    # Several signs, as a disk may count times in whole seconds.
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
