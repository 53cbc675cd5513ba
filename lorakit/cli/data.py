"""`lorakit data add`, `data prepare` and `data buckets` in a terminal."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.cli.options import SET, default_settings, project_at, refuse_rest, with_changes

if TYPE_CHECKING:
    from lorakit.data import DataConfig
    from lorakit.data.scan import Note
    from lorakit.events import Progress

# Images that lose this share of their area to cropping, or more, are listed.
CUT = 0.1


def add(verbs: argparse._SubParsersAction) -> None:
    """Add these verbs to those of `lorakit data`."""
    what = "add images with their captions to a project; existing files are never overwritten"
    adding = verbs.add_parser("add", help=what, description=what)
    adding.set_defaults(verb=_add)
    adding.add_argument("project", type=Path, help="project folder; it need not exist yet")
    adding.add_argument("source", nargs="+", help="zip or tar archives, folders, images")
    adding.add_argument("--into", default="", metavar="NAME", help="concept folder, e.g. mofurin or reg/girl")
    adding.add_argument(
        "--repeats", type=int, default=0, help="repeats of the concept folder; 0 (default): as its name says, or 1"
    )
    what = "write cropped, padded and resized copies into prepared/; the originals do not change"
    preparing = verbs.add_parser("prepare", help=what, description=what)
    preparing.set_defaults(verb=_prepare)
    preparing.add_argument("project", type=Path, help="project folder; its images are in dataset/")
    preparing.add_argument("--set", **SET, help="e.g. prepare.pad=1x1, prepare.size=768; remembered for the next time")
    what = "list buckets with their images, and the images that are enlarged or lose a tenth or more to cropping"
    buckets = verbs.add_parser("buckets", help=what, description=what)
    buckets.set_defaults(verb=_buckets)
    buckets.add_argument("project", type=Path, help="project folder; its images are in dataset/")
    buckets.add_argument("--set", **SET, help="e.g. data.folder=prepared, data.resolution=768, model.family=sdxl")


def _add(options: argparse.Namespace) -> int:
    from lorakit.prepare.intake import import_images
    from lorakit.project import Project

    for source in options.source:
        # Not project_at: the first import creates the project.
        _follow(import_images(Project(options.project), source, options.into, options.repeats))
    return 0


def _prepare(options: argparse.Namespace) -> int:
    from lorakit.config import from_dict, to_dict
    from lorakit.prepare.crop import FOLDER, PrepareConfig, prepare, read_prepare_config, write_prepare_config

    project = project_at(options.project)
    settings = with_changes({"prepare": to_dict(read_prepare_config(project))}, options.set)
    how = from_dict(PrepareConfig, settings.pop("prepare"), "prepare.")
    data = _data(settings)
    # Stored before preparing: an interrupted call then resumes with the same settings.
    write_prepare_config(project, how)
    _follow(prepare(project, data, how))
    print(f"{project.folder / FOLDER}\ntrain on it: --set data.folder={FOLDER}")
    return 0


def _buckets(options: argparse.Namespace) -> int:
    from lorakit.data.buckets import group_by_bucket
    from lorakit.data.scan import scan

    data = _data(with_changes({}, options.set))
    scanned = scan(data, project_at(options.project).folder)
    for note in scanned.left_out:
        print(f"! {note}")
    buckets = group_by_bucket(scanned.samples, data)
    for bucket in buckets:
        width, height = bucket.size
        per_epoch = f"{bucket.images_per_epoch:6} per epoch (with repeats)"
        print(f"{width:5} x {height:<5} {len(bucket.images):5} images {per_epoch}")
    for fitted in (fitted for bucket in buckets for fitted in bucket.images):
        notes = [f"{fitted.lost:.0%} lost to cropping"] * (fitted.lost >= CUT) + [f"enlarged x {fitted.scale:.2f}"] * (
            fitted.scale > 1
        )
        if notes:
            print(f"! {fitted.sample.name}: {', '.join(notes)}")
    return 0


def _data(settings: dict[str, Any]) -> DataConfig:
    """The data settings that a run of the family would have, with those that were given."""
    from lorakit import models
    from lorakit.config import from_dict
    from lorakit.data import DataConfig

    # A family's defaults (resolution, buckets) decide how images are cropped.
    family = models.config_class({**default_settings()["model"], **settings.pop("model", {})}["family"])
    data = {**family.defaults.get("data", {}), **settings.pop("data", {})}
    refuse_rest(settings, "data and model.family, e.g. data.folder=x")
    return from_dict(DataConfig, data, "data.")


def _follow(events: Iterator[Progress | Note]) -> None:
    """Print notes as they come, and the progress when it ends."""
    from lorakit.events import Progress

    # Progress comes once per image; only the last one is printed.
    last = None
    for event in events:
        if isinstance(event, Progress):
            last = event
        else:
            print(event, flush=True)
    if last:
        print(f"{last.what}: {last.done} of {last.total}")
