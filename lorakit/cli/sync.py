"""`lorakit open` and `lorakit sync`: a project and its remote copy, in a terminal."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from lorakit.cli.options import project_at


def add(add_verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add both verbs to those of `lorakit`."""
    verb = add_verb(
        open, "download a project from its remote copy on a slow disk (e.g. Google Drive) to this machine's own disk"
    )
    verb.add_argument("remote", type=Path, help="folder of the remote copy")
    verb.add_argument(
        "--local", type=Path, metavar="FOLDER", help="folder for projects on this machine (default: the fastest disk)"
    )
    verb = add_verb(
        sync, "upload a project's new files to its remote copy, in the foreground; `start` does so in the background"
    )
    verb.add_argument("project", type=Path, help="project folder, as printed by `lorakit open`")


def open(options: argparse.Namespace) -> int:
    """Download a project and print its folder here."""
    from lorakit.project import platforms
    from lorakit.sync.workspace import notes, open_remote

    project = open_remote(options.remote, options.local or platforms.find(os.environ).fast)
    for note in notes(project):
        print(f"! {note}", file=sys.stderr)
    # Only the folder on stdout, so that scripts can use it: cd "$(lorakit open ...)".
    print(project.folder)
    return 0


def sync(options: argparse.Namespace) -> int:
    """Upload new files until everything is confirmed."""
    from lorakit.sync.service import serve

    serve(project_at(options.project))
    return 0
