"""The base model in a cell: downloaded by a separate process, checked, and identified."""

from __future__ import annotations

import html
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from lorakit.config import Config, to_dict
from lorakit.machine.host import child_environment
from lorakit.models.files.check import ModelFile, check, missing
from widgets.i18n import say
from widgets.page import AMBER, GREEN, RED, aside, box, size

REDRAW = 0.5  # s


def fetch_base(model: Config) -> None:
    """Download a base model (a run's `model` settings, e.g. `form.value.model`) and check it.

    After an interrupt the downloaded part is kept; running the cell again continues.
    """
    from IPython.display import HTML, display

    # One display that is updated: a download would else leave hundreds of lines in the notebook.
    view = display(HTML(""), display_id=True)
    text = say("looking for {source}", source=model.source)
    try:
        for text in _fetching(model):
            view.update(HTML(f"<code style='white-space:pre-wrap'>{html.escape(text)}</code>"))
    except KeyboardInterrupt:
        view.update(HTML(say("Interrupted. Run the cell again to continue; downloaded data is kept.")))


def check_models(paths: Iterable[str | Path]) -> None:
    """Show what each model file is, whether it is complete, and what training still needs. Reads headers only."""
    from IPython.display import HTML, display

    display(HTML(render(check(paths))))


def _about(file: ModelFile) -> str:
    return file.problem or "; ".join(filter(None, (file.kind, file.unfit)))


def render(findings: list[ModelFile]) -> str:
    """Findings as a table, with what is missing below."""
    rows = "".join(
        f"<tr><td style='color:{RED if file.problem else GREEN}'>{'✗' if file.problem else '✓'}</td>"
        f"<td style='text-align:left'><b>{html.escape(file.path.name)}</b></td>"
        f"<td style='text-align:left'>{html.escape(_about(file))}</td>"
        f"<td style='text-align:left'>{f'{size(file.size)} · ' if file.size else ''}"
        f"{html.escape(' '.join(file.dtypes))}</td></tr>"
        for file in findings
    )
    still_needed = missing(findings)
    below = box("\n".join(still_needed), AMBER) if still_needed else ""
    empty = "" if findings else aside(say("No model files found."))
    return f"<table style='font-size:13px'>{rows}</table>{below}{empty}"


def _fetching(model: Config) -> Iterator[str]:
    """What `lorakit model fetch` says, a line at a time, its last line for good."""
    options = [f"--set=model.{name}={value}" for name, value in to_dict(model).items() if value != ""]
    # A process of its own can be ended in the middle of a download.
    child = subprocess.Popen(
        [sys.executable, "-m", "lorakit", "model", "fetch", *options],
        env=child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    # Lines that ended with a newline, the bytes of the current line, and the time of the last update.
    finished, line, drawn = "", b"", 0.0
    try:
        # Byte by byte, as a progress bar ends its lines with a carriage return, for which readline() would not stop.
        while byte := child.stdout.read(1):
            if byte not in b"\r\n":
                line += byte
                continue
            text, line = line.decode("utf-8", "replace").strip(), b""
            if byte == b"\n" and text:
                # Bounded, as the output is saved with the notebook.
                finished = f"{finished}\n{text}".strip()[-4000:]
            if text and time.monotonic() - drawn > REDRAW:
                yield finished if byte == b"\n" else f"{finished}\n{text}".strip()
                drawn = time.monotonic()
        yield finished
    finally:
        # Also reached by the interrupt button: the download must not continue unseen.
        child.terminate()
        child.wait()
