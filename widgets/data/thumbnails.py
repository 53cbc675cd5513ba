"""Small copies of a dataset's images, made once and kept on disk by what the images hold."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import get_ident

from lorakit.data.images import ImageError, open_rgb
from lorakit.data.scan import Sample
from lorakit.project import Project
from widgets.images import SIDE, jpeg, source

QUALITY = 80  # of JPEG
LARGE = 480  # px of the longer side of one image that is looked at
# Pillow releases Python's lock while it decodes, so that threads help.
THREADS = 4


class Thumbnails:
    """The thumbnails of a project, below `<cache>/.thumbnails/`; an image that changes gets another one.

    The folder is hidden, so that the sync service does not upload the whole cache again for them.
    """

    def __init__(self, project: Project):
        self.folder = project.cache / ".thumbnails"
        self._ahead = ThreadPoolExecutor(THREADS, thread_name_prefix="thumbnails")

    def sources(self, samples: Iterable[Sample], side: int = SIDE) -> list[str]:
        """`src` of an <img> for each image, its longer side `side` px; "" for one that cannot be read (any more)."""
        thumbnails = self._ahead.map(lambda sample: self._create(sample, side), samples)
        return [source(data) if data else "" for data in thumbnails]

    def prepare(self, samples: Iterable[Sample]) -> None:
        """Create thumbnails that will be needed soon, without waiting for them."""
        for sample in samples:
            self._ahead.submit(self._create, sample, SIDE)

    def _create(self, sample: Sample, side: int) -> bytes | None:
        # Named by the image's content: a renamed image keeps its thumbnail, a changed one gets another.
        file = self.folder / f"{sample.digest}-{side}.jpg"
        with suppress(OSError):
            # An empty file is what a power cut may leave.
            if data := file.read_bytes():
                return data
        try:
            small = open_rgb(sample.path)
        except ImageError:
            return None
        small.thumbnail((side, side))
        data = jpeg(small, QUALITY)
        # A name of its own, as another thread or process may write the same thumbnail.
        part = file.with_name(f"{file.name}.{os.getpid()}-{get_ident()}.part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data)
            part.replace(file)
        except OSError:
            # A full or read-only disk: the thumbnail is made again next time.
            with suppress(OSError):
                part.unlink()
        return data
