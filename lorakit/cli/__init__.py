"""The same verbs for a terminal: `lorakit train`, `start`, `watch`, `stop`, `status`, `grid`, `export` and others."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from lorakit.cli import data, examine, export, fits, grid, model, regularize, sync, tags, train

# Exit statuses: 2 as argparse has it, 70 (EX_SOFTWARE of sysexits.h) for a fault of lorakit, 130 as shells report
# Ctrl-C, 141 as they report a program ended by SIGPIPE.
BAD_INPUT, FAULT, INTERRUPTED, UNREAD = 2, 70, 130, 141

# Group of verbs -> its help and the modules that add them.
GROUPS = {
    "model": ("model files: check, download", (model,)),
    "data": ("images: import, check, prepare", (data, examine, regularize)),
    "tag": ("captions: taggers, edits, undo, locks", (tags,)),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit status.

    0, 1 for a check that failed, 2 (with one message) for bad input and for errors of a disk, 70 (with the file of a
    report) for a fault of lorakit, 130 when it was interrupted, 141 when nobody reads its output.
    """
    for stream in (sys.stdout, sys.stderr):
        # a console that is not UTF-8 gets \u72d0 for what it cannot show, instead of an error
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    try:
        status = options.verb(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Python would complain once more when it flushes at its end
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return UNREAD
    # Only before training: from the first step on, Ctrl-C makes the trainer save and stop.
    except KeyboardInterrupt:
        print("\nlorakit: interrupted. Files on disk are kept; the same command continues.", file=sys.stderr)
        return INTERRUPTED
    # The one place that catches everything: what nobody foresaw is a message and a report, not a traceback.
    except Exception as error:
        return _report(error, options, arguments)


def _report(error: Exception, options: argparse.Namespace, arguments: list[str] | None) -> int:
    """Print an error as people see it; returns the exit status."""
    from lorakit.reports import shown

    place = getattr(options, "project", None) or getattr(options, "folder", None) or getattr(options, "output", None)
    shown_error = shown(error, place, shlex.join(sys.argv[1:] if arguments is None else arguments))
    print(f"lorakit: {shown_error.text}", file=sys.stderr)
    return FAULT if shown_error.is_fault else BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lorakit", description="Train LoRAs for diffusion models; stop and resume exactly."
    )
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")

    def add_verb(verb, help: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        # The function's name is the verb; an underscore keeps it apart from a module or builtin.
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
    for module in (train, fits, sync, grid, export):
        module.add(add_verb)
    return parser


def _demo(options: argparse.Namespace) -> int:
    # Imported here, as in all verbs: `lorakit --help` must not wait for torch.
    from lorakit.demo.quickstart import execute

    execute(options.output)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from lorakit.doctor import check_machine

    for check in check_machine(options.folder.absolute()):
        # Aligned for the longest common names; "!" marks what needs fixing.
        print(f"{check.name:16} {check.value}" + (f"   ! {check.fix}" if check.fix else ""))
    return 0
