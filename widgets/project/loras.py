"""The LoRA files of a project in a cell: on a new machine they are downloaded from the remote copy first."""

from __future__ import annotations

import html
import time

from lorakit.project import Project, Run
from lorakit.sync.workspace import downloading_loras
from widgets.i18n import say
from widgets.page import aside, bar, size

REDRAW = 1.0  # s


def newest_run(project: Project) -> Run:
    """The run with LoRA files that changed last, with all its files on this machine.

    Raises ProjectError if there is none, WorkspaceError if the remote copy cannot be reached.
    """
    from IPython.display import HTML, display

    if project.remote is not None:
        # Small files are there within a second: no progress is shown for them.
        view, drawn = display(HTML(""), display_id=True), time.monotonic()
        for copied in downloading_loras(project):
            if time.monotonic() - drawn >= REDRAW:
                text = say(
                    "LoRA files from {remote}: {done} of {total}", **_progress(project, copied.done, copied.total)
                )
                view.update(HTML(f"{html.escape(text)}{bar(copied.done / max(1, copied.total))}"))
                drawn = time.monotonic()
        view.update(HTML(aside(say("All LoRA files are on this machine."))))
    return project.newest_run()


def _progress(project: Project, done: int, total: int) -> dict[str, str]:
    return {"remote": str(project.remote), "done": size(done), "total": size(total)}
