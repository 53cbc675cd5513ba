"""Preparing: copies of the pictures as they are to be trained, cropped, padded and resized, made anew when need be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lorakit.config import Config, setting
from lorakit.data import DataConfig
from lorakit.data.scan import Note
from lorakit.events import Progress
from lorakit.project import Project

FOLDER = "prepared"  # inside the project; train on it with data.folder


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(Config):
    """What becomes of each picture, in this order: crop, pad, resize."""

    crop: bool = setting(True, help="cut out what is in the boxes that were drawn, a picture for each")


def prepare(project: Project, config: DataConfig, how: PrepareConfig) -> Iterator[Progress | Note]:
    """Write a copy of every usable picture into `<project>/prepared/`, with its caption, in the same folders.

    Run again, it makes anew only what changed, and removes what is no longer wanted. Captions and pictures that were
    changed there are kept. The originals stay as they are. Raises DataError without pictures, DiskFull.
    """
    yield Progress(what="pictures", done=0, total=0)
