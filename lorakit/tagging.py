"""Captions for pictures that have none, from a tagger; a caption that is there is never touched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lorakit.data import DataConfig
from lorakit.data.captions import with_trigger
from lorakit.data.images import open_rgb
from lorakit.data.scan import scan
from lorakit.events import Progress
from lorakit.project import write_whole
from lorakit.taggers.wd14 import WD14

BATCH = 16  # pictures between two signs of life
KEPT = ("general", "character")  # categories that go into captions; ratings do not


def tag_missing(config: DataConfig, project: Path, tagger: WD14, *, threshold: float = 0.35) -> Iterator[Progress]:
    """Write a caption beside every training picture that has none: the trigger, then all tags of at least `threshold`
    (0 to 1), surest first. Yields how many are done; stopped anywhere, it goes on where it was.
    """
    pictures = [sample for sample in scan(config, project).samples if not (sample.is_captioned or sample.is_reg)]
    for begin in range(0, len(pictures), BATCH):
        batch = pictures[begin : begin + BATCH]
        for sample, scores in zip(batch, tagger.tag([open_rgb(sample.path) for sample in batch]), strict=True):
            sure = [tag for tag, score in scores.items() if score >= threshold and tagger.categories[tag] in KEPT]
            sure.sort(key=lambda tag: (tag != config.trigger, -scores[tag]))
            caption = with_trigger(", ".join(sure), config.trigger)
            write_whole(sample.path.with_suffix(config.caption_extension), caption + "\n")
        yield Progress(what="captions", done=begin + len(batch), total=len(pictures))
