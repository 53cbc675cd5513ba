"""`lorakit data regularize`: regularization images by the base model, in a terminal."""

from __future__ import annotations

import argparse
from pathlib import Path

from lorakit.cli.options import SET, default_settings, project_at, with_changes


def add(verbs: argparse._SubParsersAction) -> None:
    """Add the verb to those of `lorakit data`."""
    what = "generate a regularization image for each training image with the base model; run it again to resume"
    parser = verbs.add_parser("regularize", help=what, description=what)
    parser.set_defaults(verb=_regularize)
    parser.add_argument("project", type=Path, help="project folder; its images are in dataset/")
    parser.add_argument("--run", default="", metavar="NAME", help="take the settings of this run")
    parser.add_argument(
        "--set",
        **SET,
        help="e.g. model.source=owner/name, data.resolution=512, regularize.class_name=1girl, "
        "regularize.use_captions=false",
    )


def _regularize(options: argparse.Namespace) -> int:
    from lorakit.config import from_dict, to_dict
    from lorakit.generation.regularize import Generated, RegularizeConfig, regularize
    from lorakit.run.config import configure, read_config

    project = project_at(options.project)
    # The settings of a run, so that base, resolution and sampling are the same as in its training.
    plain = to_dict(read_config(project.run(options.run))) if options.run else default_settings()
    settings = with_changes(plain, options.set)
    how = from_dict(RegularizeConfig, settings.pop("regularize", {}), "regularize.")
    done = new = 0
    for event in regularize(project, configure(settings), how):
        if not isinstance(event, Generated):
            print(f"! {event}")
            continue
        # Existing images are counted but not printed.
        done, new = event.done, new + event.is_new
        if event.is_new:
            print(f"image {event.done} of {event.total}: {event.planned.file}", flush=True)
    print(f"{done} regularization images, {new} of them new; the next run trains on them as well.")
    return 0
