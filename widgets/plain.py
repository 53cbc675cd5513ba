"""Errors for people, shown below a cell as a sentence instead of a traceback."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from lorakit.errors import UserError
from widgets.i18n import say
from widgets.page import AMBER, BLUE, RED, box


def plain_errors() -> None:
    """From here on a UserError is shown as what it says, a name that a cell lacks as the cells above that were not run,
    and the interrupt button as a stop; the cell has failed all the same, and Run All ends there.
    """
    from IPython import get_ipython

    if (shell := get_ipython()) is not None:
        shell.set_custom_exc((UserError, NameError, KeyboardInterrupt), _show)


def _show(
    shell: Any, kind: type[BaseException], error: BaseException, trace: TracebackType, tb_offset: int | None = None
) -> None:
    from IPython.display import HTML, display

    if isinstance(error, UserError):
        display(HTML(box(str(error), RED, say("Put this right, then run the cell again"))))
    elif isinstance(error, KeyboardInterrupt):
        display(HTML(box(say("What was done is kept; run the cell again to go on."), BLUE, say("Stopped"))))
    elif trace.tb_next is None or trace.tb_next.tb_next is None:  # in the cell itself, below the shell's own frame
        told = say(
            "There is no “{name}” here yet: a cell above makes it. Run the cells above from the first one on (menu "
            "Run, Run All Above Selected Cell), then this one.",
            name=error.name,
        )
        display(HTML(box(told, AMBER)))
    else:
        shell.showtraceback((kind, error, trace), tb_offset)
