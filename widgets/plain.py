"""Errors for people, shown below a cell as a sentence instead of a traceback."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

from lorakit.errors import UserError
from widgets.i18n import say
from widgets.page import AMBER, BLUE, RED, box


def plain_errors(worded: Callable[[str], str] = str) -> None:
    """From now on show some errors below a cell as a sentence; the cell has failed all the same, and Run All stops.

    These are a UserError (its text, passed through `worded`), a name that cells above define which were not run, and
    the interrupt button.
    """
    from IPython import get_ipython

    if (shell := get_ipython()) is not None:
        shell.set_custom_exc((UserError, NameError, KeyboardInterrupt), partial(_show, worded))


def _show(
    worded: Callable[[str], str],
    shell: Any,
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType,
    tb_offset: int | None = None,
) -> None:
    from IPython.display import HTML, display

    if isinstance(error, UserError):
        display(HTML(box(worded(str(error)), RED, say("Fix this, then run the cell again"))))
    elif isinstance(error, KeyboardInterrupt):
        display(HTML(box(say("Work done so far is kept. Run the cell again to continue."), BLUE, say("Stopped"))))
    # The first frame is the shell's own, the second the cell: a name missing any deeper is a fault of the code.
    elif trace.tb_next is None or trace.tb_next.tb_next is None:
        text = say(
            "“{name}” is not defined yet: an earlier cell defines it. Run all cells above this one (menu Run, Run All "
            "Above Selected Cell), then run this cell again.",
            name=error.name,
        )
        display(HTML(box(text, AMBER)))
    else:
        shell.showtraceback((kind, error, trace), tb_offset)
