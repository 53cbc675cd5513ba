"""The same verbs for a terminal: `lorakit train`, `start`, `watch`, `stop`, `status`, `grid`, `export` and others."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lorakit.cli import data, examine, export, grid, model, regularize, sync, tags, train
from lorakit.errors import UserError

BAD_INPUT, INTERRUPTED = 2, 130  # exit status

# Group of verbs -> its help and the modules that add them.
GROUPS = {
    "model": ("model files: check, download", (model,)),
    "data": ("images: import, check, prepare", (data, examine, regularize)),
    "tag": ("captions: taggers, edits, undo, locks", (tags,)),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit status.

    0, 1 for a check that failed, 2 (with one message) for bad input, 130 when it was interrupted.
    """
    options = _parser().parse_args(arguments)
    try:
        return options.verb(options)
    except UserError as error:
        print(f"lorakit: {error}", file=sys.stderr)
        return BAD_INPUT
    # Only before training: from the first step on, Ctrl-C makes the trainer save and stop.
    except KeyboardInterrupt:
        print("\nlorakit: interrupted. Files on disk are kept; the same command continues.", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lorakit", description="Train LoRAs for diffusion models; stop and resume exactly."
    )
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")

    def add_verb(verb, help: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        added = verbs.add_parser(verb.__name__.lstrip("_"), help=help, description=help, parents=parents)
        added.set_defaults(verb=verb)
        return added

    demo = add_verb(_demo, "train, compare and export on the embedded base model; all files end up in one folder")
    demo.add_argument("--output", type=Path, default=Path("demo-output"), help="the folder (default: demo-output)")
    doctor = add_verb(_doctor, "check this machine, and show how to fix what is missing")
    doctor.add_argument(
        "folder", type=Path, nargs="?", default=Path(), help="folder of the project, to check its disk (default: here)"
    )
    for group, (help, modules) in GROUPS.items():
        members = verbs.add_parser(group, help=help, description=help).add_subparsers(required=True, metavar="COMMAND")
        for module in modules:
            module.add(members)
    for module in (train, sync, grid, export):
        module.add(add_verb)
    return parser


def _demo(options: argparse.Namespace) -> int:
    from lorakit.demo.quickstart import execute

    execute(options.output)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from lorakit.doctor import check_machine

    for check in check_machine(options.folder.absolute()):
        print(f"{check.name:16} {check.value}" + (f"   ! {check.fix}" if check.fix else ""))
    return 0
