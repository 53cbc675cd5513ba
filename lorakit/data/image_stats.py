"""Measurements of image files, cached: digest, size, perceptual hash, sharpness, border, colours."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import PIL

from lorakit.data import measures
from lorakit.data.images import ImageError, decoded, flattened, header, profile_of, transparency
from lorakit.files import write_atomic
from lorakit.files.disk import raise_if_failing, read_json

# bytes of a file; no image within MAX_PIXELS has more
MAX_BYTES = 512_000_000
# Only one file above these sizes is in memory at a time.
LARGE_BYTES, LARGE_PIXELS = 32_000_000, 16_000_000
# Pillow and hashlib release the GIL, so threads are enough.
THREADS = min(8, os.cpu_count() or 1)
# seconds; a file that changed shortly before it was read may change again within one time stamp
SETTLED = 2.0


@dataclass(frozen=True)
class ImageStats:
    """Measurements of one image file. With an `error` (why it cannot be used) all but the digest is 0 or empty."""

    # SHA-256 of the file's bytes; "" when they cannot be read
    digest: str
    # of the bytes, as Pillow calls it: "PNG", "JPEG"
    format: str = ""
    # Pillow's mode as stored: "RGB", "CMYK", "P"
    mode: str = ""
    # px, upright (after EXIF rotation)
    width: int = 0
    height: int = 0
    frames: int = 0
    # at least one pixel is transparent
    has_alpha: bool = False
    # 64-bit perceptual hash in hexadecimal; "" without the ImageHash package
    phash: str = ""
    # mean colour of each cell of a grid, see measures.py
    cells: str = ""
    # variance of the Laplacian of grey 0..255, see measures.py
    sharpness: float = 0.0
    # px of one colour at left, top, right, bottom
    border: tuple[int, int, int, int] = (0, 0, 0, 0)
    # "#rrggbb"; "" without a border
    border_colour: str = ""
    # share 0..1 of the opaque pixels near each of measures.COLOURS
    colours: dict[str, float] = field(default_factory=dict)
    profile: str = ""  # colour profile from which its colours are converted; "" when they are taken as they are
    profile_error: str = ""  # what is wrong with its colour profile
    is_turned: bool = False  # upright only by its EXIF
    error: str = ""


class StatsCache:
    """The measurements of image files in one cache file, so that only changed files are read again.

    A file counts as unchanged while its path, size, time stamps and inode are the same, as in git, and only if it was
    not modified shortly before it was read. A damaged cache, or one of another version, is discarded.
    """

    def __init__(self, file: Path):
        self.file = file
        # why the cache could not be written; "" if it could
        self.error = ""
        # path -> [*stamp, stats]
        self._stored: dict[str, list] = _read(file)
        # Reentrant: a file can be large in bytes and in pixels.
        self._large = threading.RLock()

    @classmethod
    def of(cls, project: Path) -> StatsCache:
        """The cache of a project; a hidden file, so that the sync service does not upload the whole cache for it."""
        return cls(project / "cache" / ".looks.json")

    def measure(self, paths: Iterable[Path]) -> Iterator[tuple[Path, ImageStats]]:
        """Yield each path with its measurements, in the given order; several files are read at once. Files that were
        read are stored even if the caller stops early.
        """
        listed, before = list(paths), dict(self._stored)
        with ThreadPoolExecutor(THREADS) as pool:
            futures = [pool.submit(self._one, path) for path in listed]
            try:
                for path, future in zip(listed, futures, strict=True):
                    yield path, future.result()
            finally:
                for future in futures:
                    # When the caller stops early, files that are not begun are not read.
                    future.cancel()
                pool.shutdown()
                if self._stored != before:
                    self._write()

    def _one(self, path: Path) -> ImageStats:
        key, stamp = os.path.abspath(path), _stamp(path)
        # JSON has no tuples.
        if stamp and (stored := self._stored.get(key)) and stored[:-1] == stamp:
            return ImageStats(**{**stored[-1], "border": tuple(stored[-1]["border"])})
        now = time.time()
        stats = self._measured(path)
        # what could not be read now may be read the next time
        if stats.digest and stamp == _stamp(path) and stamp[2] / 1e9 < now - SETTLED:
            self._stored[key] = [*stamp, asdict(stats)]
        return stats

    def _measured(self, path: Path) -> ImageStats:
        """Read one file. Only plain files are opened, as opening a pipe would block."""
        digest = ""
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                return ImageStats("", error="it is no file but a pipe, a socket, a device or a folder")
            if status.st_size > MAX_BYTES:
                return ImageStats("", error=f"its {status.st_size / 1e9:.1f} GB are more than any image has")
            with ExitStack() as alone:
                if status.st_size > LARGE_BYTES:
                    alone.enter_context(self._large)
                data = path.read_bytes()
                digest = hashlib.sha256(data).hexdigest()
                return self._decoded(data, digest, alone)
        except ImageError as error:
            return ImageStats(digest, error=str(error))
        except OSError as error:
            raise_if_failing(error, path)
            return ImageStats("", error=f"it cannot be read ({error.strerror})")
        except MemoryError:
            return ImageStats("", error="there is not enough memory to read it now")

    def _decoded(self, data: bytes, digest: str, alone: ExitStack) -> ImageStats:
        """Decode and measure; many large images at once would fill the memory. Raises ImageError."""
        stored = header(data)
        if stored.width * stored.height > LARGE_PIXELS:
            alone.enter_context(self._large)
        opened = decoded(stored)
        alpha, rgb = transparency(opened.image), flattened(opened.image)
        border, border_colour = measures.border(rgb)
        profile, profile_error = profile_of(opened.image)
        # Reduced once, for all measures that need no more.
        small = measures.reduced(rgb, measures.SHARP)
        return ImageStats(
            digest=digest,
            format=opened.format,
            mode=opened.image.mode,
            width=rgb.width,
            height=rgb.height,
            frames=opened.frames,
            has_alpha=alpha is not None,
            phash=measures.phash(small),
            cells=measures.cells(small),
            sharpness=measures.sharpness(small),
            border=border,
            border_colour=border_colour,
            colours=measures.colours(small, alpha and measures.reduced(alpha, measures.SHARP)),
            profile=profile,
            profile_error=profile_error,
            is_turned=opened.is_turned,
        )

    def _write(self) -> None:
        # Entries of deleted files are dropped here.
        rows = {path: row for path, row in self._stored.items() if os.path.lexists(path)}
        try:
            self.file.parent.mkdir(exist_ok=True)
            write_atomic(self.file, json.dumps({"made by": _version(), "sum": _sum(rows), "looks": rows}))
            self.error = ""
        except OSError as error:
            self.error = f"cannot be written ({error.strerror}); all images will be read again the next time"


def _version() -> str:
    """Version of the measurements: other versions and packages give other numbers."""
    # The number is raised when a measure changes.
    return f"4, Pillow {PIL.__version__}{', ImageHash' * measures.can_hash()}"


def _stamp(path: Path) -> list[int]:
    """What changes when a file's content does: bytes, mtime and ctime in ns, inode; empty when it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _sum(rows: dict[str, list]) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _read(file: Path) -> dict[str, list]:
    """The rows of a cache file; none if it is missing, damaged or of another version."""
    try:
        stored = read_json(file)
        # "looks" and "made by" are stored names.
        is_valid = stored["made by"] == _version() and stored["sum"] == _sum(stored["looks"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}
    return stored["looks"] if is_valid else {}
