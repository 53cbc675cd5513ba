"""What each image file is, measured once and remembered: bytes, size, likeness, sharpness, border, colours."""

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
from lorakit.data.images import ImageError, decoded, flattened, header, transparency
from lorakit.files import write_atomic

MAX_BYTES = 512_000_000  # of a file: more than any image within MAX_PIXELS has
LARGE_BYTES, LARGE_PIXELS = 32_000_000, 16_000_000  # files of which only one is in memory at a time
THREADS = min(8, os.cpu_count() or 1)  # Pillow and hashlib work without Python's lock
SETTLED = 2.0  # s; a file that changed so shortly before it was read may change again without another time stamp


@dataclass(frozen=True)
class ImageStats:
    """What an image file is. With `error`, why it cannot be used, all else but the digest is 0 or empty."""

    digest: str  # SHA-256 of the file's bytes; "" when they cannot be read
    format: str = ""  # of the bytes, as Pillow calls it: "PNG", "JPEG"
    mode: str = ""  # Pillow's, as stored: "RGB", "CMYK", "P"
    width: int = 0  # px, upright
    height: int = 0
    frames: int = 0
    has_alpha: bool = False  # some pixel is transparent
    phash: str = ""  # 64 bit perceptual hash in hexadecimal; "" without the ImageHash package
    cells: str = ""  # mean colours place by place, see measures.py
    sharpness: float = 0.0  # variance of the Laplacian of grey 0..255, see measures.py
    border: tuple[int, int, int, int] = (0, 0, 0, 0)  # of one colour, px: left, top, right, bottom
    border_colour: str = ""  # "#rrggbb"; "" without a border
    # share 0..1 of the opaque pixels near each of measures.COLOURS
    colours: dict[str, float] = field(default_factory=dict)
    error: str = ""


class StatsCache:
    """The looks of files, remembered in one file: a second look reads only what changed.

    A file is taken for unchanged by its path, bytes, time stamps and inode, as git does, and only when it had been
    left alone for a while before it was read. Another version of what measures, or a damaged memory, begins anew.
    """

    def __init__(self, file: Path):
        self.file = file
        self.error = ""  # why the memory could not be written, "" while it could
        self._stored: dict[str, list] = _remembered(file)  # path -> [*stamp, look]
        self._large = threading.RLock()

    @classmethod
    def of(cls, project: Path) -> StatsCache:
        """Those of a project's folder; hidden, so that its mirror does not send the whole cache again for them."""
        return cls(project / "cache" / ".looks.json")

    def measure(self, paths: Iterable[Path]) -> Iterator[tuple[Path, ImageStats]]:
        """Each path with its look, in the order given; several are read at once. Whatever was read is remembered, also
        when nobody waits for the rest.
        """
        listed, before = list(paths), dict(self._stored)
        with ThreadPoolExecutor(THREADS) as pool:
            futures = [pool.submit(self._one, path) for path in listed]
            try:
                for path, future in zip(listed, futures, strict=True):
                    yield path, future.result()
            finally:
                for future in futures:
                    future.cancel()
                pool.shutdown()
                if self._stored != before:
                    self._write()

    def _one(self, path: Path) -> ImageStats:
        key, stamp = os.path.abspath(path), _stamp(path)
        if stamp and (stored := self._stored.get(key)) and stored[:-1] == stamp:
            return ImageStats(**{**stored[-1], "border": tuple(stored[-1]["border"])})
        now = time.time()
        look = self._measured(path)
        # what could not be read now may be read the next time
        if look.digest and stamp == _stamp(path) and stamp[2] / 1e9 < now - SETTLED:
            self._stored[key] = [*stamp, asdict(look)]
        return look

    def _measured(self, path: Path) -> ImageStats:
        """Read one file. Nothing but a plain file is opened, so that nobody waits for a pipe."""
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
                return self._seen(data, digest, alone)
        except ImageError as error:
            return ImageStats(digest, error=str(error))
        except OSError as error:
            return ImageStats("", error=f"it cannot be read ({error.strerror})")
        except MemoryError:
            return ImageStats("", error="there is not enough memory to read it now")

    def _seen(self, data: bytes, digest: str, alone: ExitStack) -> ImageStats:
        """Decode and measure; many large images at once would fill the memory. Raises ImageError."""
        stored = header(data)
        if stored.width * stored.height > LARGE_PIXELS:
            alone.enter_context(self._large)
        opened = decoded(stored)
        alpha, rgb = transparency(opened.image), flattened(opened.image)
        border, border_colour = measures.border(rgb)
        small = measures.reduced(rgb, measures.SHARP)  # once for all that needs no more
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
        )

    def _write(self) -> None:
        looks = {path: row for path, row in self._stored.items() if os.path.lexists(path)}
        try:
            self.file.parent.mkdir(exist_ok=True)
            write_atomic(self.file, json.dumps({"made by": _made_by(), "sum": _sum(looks), "looks": looks}))
            self.error = ""
        except OSError as error:
            self.error = f"cannot be written ({error.strerror}); all images will be read again the next time"


def _made_by() -> str:
    """What measured: other numbers come of another version, and of a package that was not there."""
    return f"3, Pillow {PIL.__version__}{', ImageHash' * measures.can_hash()}"


def _stamp(path: Path) -> list[int]:
    """What changes when a file's content does: bytes, mtime and ctime in ns, inode; empty when it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _sum(looks: dict[str, list]) -> str:
    return hashlib.sha256(json.dumps(looks).encode()).hexdigest()


def _remembered(file: Path) -> dict[str, list]:
    """What a memory file holds; nothing when it is missing, damaged or of another version."""
    try:
        stored = json.loads(file.read_bytes())
        whole = stored["made by"] == _made_by() and stored["sum"] == _sum(stored["looks"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}
    return stored["looks"] if whole else {}
