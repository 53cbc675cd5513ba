"""`lorakit export`: a LoRA file of a run, verified and copied out, in a terminal."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from lorakit.cli.options import SET, project_at, run_options, with_changes


def add(add_verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `export` to the verbs of `lorakit`."""
    verb = add_verb(export, "verify a run's LoRA file and copy it out", run_options())
    verb.add_argument("--step", type=int, help="the LoRA file of this step (default: the newest)")
    verb.add_argument("--output", type=Path, default=Path(), help="folder or file to copy to (default: here)")
    help = "what the copy says about itself, e.g. save.author=me, save.license=CC-BY-4.0, save.thumbnail=true"
    verb.add_argument("--set", **SET, help=help)


def export(options: argparse.Namespace) -> int:
    """Copy the LoRA file of a step and print where it is."""
    from lorakit.generation.generator import deliver
    from lorakit.run.config import read_config, with_save

    run = project_at(options.project).run(options.run)
    # Raises with the names of existing runs if there is no such run.
    save = with_save(read_config(run), with_changes({}, options.set))
    step = options.step if options.step is not None else max(run.lora_steps(), default=0)
    file, matched = deliver(run, step, options.output, save)
    print(f"{file}: {matched} modules matched")
    return 0
