"""Errors as people see them, below a cell or below the form that was clicked: a sentence instead of a traceback."""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import ipywidgets

from lorakit.errors import UserError
from lorakit.reports import shown
from widgets.i18n import say
from widgets.page import AMBER, BLUE, RED, aside, box

KIT = tuple(f"{Path(__file__).parents[1] / package}/" for package in ("lorakit", "widgets"))
# Every form on the page -> the line below it that shows what went wrong with a click on it.
_LINES: weakref.WeakKeyDictionary[ipywidgets.Widget, ipywidgets.HTML] = weakref.WeakKeyDictionary()


def plain_errors(worded: Callable[[str], str] = str) -> None:
    """From now on show errors below a cell as a sentence; the cell has failed all the same, and Run All stops.

    These are all errors of lorakit (its text, passed through `worded`): a UserError, one of a disk, and a fault with
    the file of its report; a name that cells above define which were not run; and the interrupt button. The user's own
    code keeps its tracebacks. An error of a click is shown below the form, which must have been shown by `show`.
    """
    from IPython import get_ipython

    if (shell := get_ipython()) is not None:
        shell.set_custom_exc((Exception, KeyboardInterrupt), partial(_show_of_cell, worded))
        # ipywidgets 7 and 8 both end a failed click, and a failed change of a field, by calling this
        shell.showtraceback = partial(_show_of_click, worded, type(shell).showtraceback.__get__(shell))


def show(widget: ipywidgets.Widget) -> None:
    """Display a form, with a line below it for errors of clicks."""
    from IPython.display import display

    line = ipywidgets.HTML()
    _LINES[widget] = line
    display(widget)
    display(line)


def in_words(error: BaseException, worded: Callable[[str], str] = str) -> str:
    """The HTML of an error: what happened and what to do."""
    error_text = shown(error)
    heading = say("Fault of lorakit") if error_text.is_fault else say("Fix this, then run the cell again")
    return box(worded(error_text.text), RED, heading)


def _show_of_cell(
    worded: Callable[[str], str],
    shell: Any,
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType,
    tb_offset: int | None = None,
) -> None:
    from IPython.display import HTML, display

    if isinstance(error, UserError) or (isinstance(error, Exception) and _is_of_kit(trace)):
        display(HTML(in_words(error, worded)))
    elif isinstance(error, KeyboardInterrupt):
        display(HTML(box(say("Work done so far is kept. Run the cell again to continue."), BLUE, say("Stopped"))))
    # The first frame is the shell's own, the second the cell: a name missing any deeper is a fault of the code.
    elif isinstance(error, NameError) and (trace.tb_next is None or trace.tb_next.tb_next is None):
        text = say(
            "“{name}” is not defined yet: an earlier cell defines it. Run all cells above this one (menu Run, Run All "
            "Above Selected Cell), then run this cell again.",
            name=error.name,
        )
        display(HTML(box(text, AMBER)))
    else:
        shell.showtraceback((kind, error, trace), tb_offset)


def _show_of_click(
    worded: Callable[[str], str], otherwise: Callable, exc_tuple: tuple | None = None, *arguments: Any, **options: Any
) -> None:
    error = exc_tuple[1] if exc_tuple else sys.exc_info()[1]
    line = next((_LINES[form] for widget in _clicked(error) for form in [*_LINES] if _holds(form, widget)), None)
    if line is None or not isinstance(error, Exception):
        otherwise(exc_tuple, *arguments, **options)
    else:
        # the time, as the line stays there while other clicks succeed
        line.value = in_words(error, worded) + aside(time.strftime("%H:%M:%S"))


def _frames(trace: TracebackType | None) -> Iterator[Any]:
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _is_of_kit(trace: TracebackType) -> bool:
    """Whether an error came up inside lorakit: a frame of its files is among those that it passed."""
    return any(frame.f_code.co_filename.startswith(KIT) for frame in _frames(trace))


def _clicked(error: BaseException | None) -> Iterator[ipywidgets.Widget]:
    """The widgets whose message was being answered when the error came up, the outermost call first."""
    for frame in _frames(error.__traceback__ if error else None):
        for value in (frame.f_locals.get("self"), *(frame.f_locals.get("args") or ())):
            if isinstance(value, ipywidgets.Widget):
                yield value


def _holds(form: ipywidgets.Widget, widget: ipywidgets.Widget) -> bool:
    return form is widget or any(_holds(child, widget) for child in getattr(form, "children", ()))
