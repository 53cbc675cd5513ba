"""`lorakit model check` and `lorakit model fetch`: model files, in a terminal."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from lorakit.cli.options import SET, default_settings, with_changes


def add(verbs: argparse._SubParsersAction) -> None:
    """Add both verbs to those of `lorakit model`."""
    help = "show what each model file is, whether it is complete, and what is missing to train; reads headers only"
    verb = verbs.add_parser("check", help=help, description=help)
    verb.set_defaults(verb=check)
    verb.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="files, or folders that are searched")
    help = "download a base model and check it; an interrupted download is resumed"
    verb = verbs.add_parser("fetch", help=help, description=help)
    verb.set_defaults(verb=fetch)
    verb.add_argument("--set", **SET, help="e.g. model.source=owner/name")


def check(options: argparse.Namespace) -> int:
    """Print a line for each model file; 1 when one of them is damaged."""
    from lorakit.models.files.check import check, missing

    findings = check(options.paths)
    for finding in findings:
        print(finding)
    for line in missing(findings):
        print(f"! {line}")
    if not findings:
        print("No model files there.")
    # Exit status 1 for a damaged file; an incomplete set of files is only reported.
    return int(any(finding.problem for finding in findings))


def fetch(options: argparse.Namespace) -> int:
    """Download all files of a base model."""
    import torch

    from lorakit.hub import fetch
    from lorakit.models import family
    from lorakit.models.files.check import check
    from lorakit.run.config import configure

    # Checks the settings before anything is downloaded.
    model = configure(with_changes(default_settings(), options.set)).model
    print(f"looking for {model.source}", flush=True)
    # Opening the model downloads every file that it consists of.
    family(model.family).Model(model, torch.device("cpu"), torch.float32)
    for finding in check([fetch(model.source)]):
        # it opened, so what the file lacks comes from another setting
        print(replace(finding, unfit=""))
    print(f"The base model is here, and it can be trained as {model.family}.")
    return 0
