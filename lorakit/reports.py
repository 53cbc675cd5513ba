"""What a terminal and a notebook show for an error: its sentence, or for a fault of lorakit where its report is."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lorakit import __version__
from lorakit.errors import UserError
from lorakit.files.disk import disk_error
from lorakit.secrets import hidden, hidden_with_environment


@dataclass(frozen=True)
class Shown:
    """An error as people see it; `is_fault`: of lorakit itself, not of what it was given."""

    text: str
    is_fault: bool


def shown(error: BaseException, place: Path | None = None, doing: str = "") -> Shown:
    """An error in words, without a traceback and without secrets.

    place   folder that the work was about: named when the error of a disk names no file
    doing   the command or what was clicked, for the report of a fault

    A UserError and an error of a disk say what to do. Anything else is a fault of lorakit: a report, with the
    traceback and without secrets, is written beside the project, else where this machine allows it.
    """
    if isinstance(error, UserError):
        return Shown(hidden(str(error)), is_fault=False)
    # named by the kernel if it did, else the folder that all was about
    named = getattr(error, "filename", None)
    if (explained := disk_error(error, "" if named else place or "")) is not None:
        return Shown(hidden(str(explained)), is_fault=False)
    kind = f"{type(error).__name__}: {error}".strip().splitlines()[0][:200].rstrip(": ")
    report = _write(error, place, doing)
    kept = f"attach {report}" if report else "attach the lines above"
    if not report:
        print(_report(error, doing), file=sys.stderr)
    text = (
        f"this is a fault of lorakit, not of yours ({kind}). Everything saved before is kept. Please report it, and "
        f"{kept}"
    )
    return Shown(hidden_with_environment(text), is_fault=True)


def _write(error: BaseException, place: Path | None, doing: str) -> Path | None:
    """The file with the report; None where none can be written."""
    name = f"lorakit-error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    for folder in _folders(place):
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(_report(error, doing), encoding="utf-8", errors="backslashreplace")
            return folder / name
    return None


def _folders(place: Path | None) -> Iterator[Path]:
    """Where a report may go: a project that is there, the user's folder for such files, the temporary one."""
    if place is not None and place.is_dir():
        yield place.absolute()
    yield Path(os.environ.get("XDG_STATE_HOME", "~/.local/state")).expanduser() / "lorakit"
    with suppress(OSError):
        yield Path(tempfile.gettempdir())


def _report(error: BaseException, doing: str) -> str:
    """What a report holds: versions, what was done, the traceback."""
    lines = [
        f"lorakit {__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"doing: {doing}",
        "",
        *traceback.format_exception(type(error), error, error.__traceback__),
    ]
    return hidden_with_environment("\n".join(lines))
