"""Errors for people, shown below a cell as a sentence instead of a traceback."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from lorakit.errors import UserError
from widgets.i18n import say
from widgets.page import RED, box


def plain_errors() -> None:
    """From here on a UserError is shown as what it says; the cell has failed all the same, and Run All ends there."""
    from IPython import get_ipython

    if (shell := get_ipython()) is not None:
        shell.set_custom_exc((UserError,), _show)


def _show(
    shell: Any, kind: type[UserError], error: UserError, trace: TracebackType, tb_offset: int | None = None
) -> None:
    from IPython.display import HTML, display

    display(HTML(box(str(error), RED, say("This cannot go on like that"))))
