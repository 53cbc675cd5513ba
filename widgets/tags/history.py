"""The history of the captions: every change with when, what and who, and their difference from the beginning."""

from __future__ import annotations

import base64
import html

import ipywidgets

from lorakit.files import write_atomic
from lorakit.tags.authors import PERSON
from lorakit.tags.edits import Change
from widgets.i18n import say
from widgets.page import RED, WIDTH, aside, box
from widgets.tags.state import State

CHANGES = 40  # the newest, at most
LINES = 200  # of the difference that are shown
FILE = "difference.txt"  # in the project's tags/


class Past:
    """The widget: a list of changes, and a button that exports the difference."""

    def __init__(self, state: State):
        self._state = state
        self.list, self.difference = ipywidgets.HTML(), ipywidgets.HTML()
        button = ipywidgets.Button(description=say("export the difference"))
        button.layout = ipywidgets.Layout(width="auto", align_self="flex-start")
        button.on_click(lambda _: self.export())
        self.widget = ipywidgets.VBox([self.list, button, self.difference], layout=ipywidgets.Layout(width="100%"))

    def draw(self) -> None:
        """Show the changes as they are now; a difference shown before would be an old one."""
        changes = self._state.book.history()
        rows = "".join(map(_row, reversed(changes[-CHANGES:])))
        more = aside(say("and {n} more", n=len(changes) - CHANGES)) if len(changes) > CHANGES else ""
        self.list.value = (
            f'<div style="font-size:13px;line-height:1.5;max-width:{WIDTH}px">'
            f"{rows or aside(say('Nothing was changed yet.'))}{more}</div>"
        )
        self.difference.value = ""

    def export(self) -> None:
        """Write what changed since the beginning to the project's tags/difference.txt, and show it."""
        text = self._state.book.diff()
        file = self._state.project.folder / "tags" / FILE
        told = aside(str(file))
        try:
            write_atomic(file, text)
        except OSError as error:  # the difference can be had all the same
            told = box(f"{file}: {error.strerror}", RED)
        lines = text.splitlines()
        packed = base64.b64encode(text.encode()).decode()
        shown = "\n".join(lines[:LINES])
        more = aside(say("and {n} more", n=len(lines) - LINES)) if len(lines) > LINES else ""
        self.difference.value = (
            f'{told}<a download="{FILE}" href="data:text/plain;charset=utf-8;base64,{packed}">'
            f"{html.escape(say('download'))}</a>"
            f'<pre style="font-size:12px;max-height:320px;overflow:auto;white-space:pre-wrap;background:none">'
            f"{html.escape(shown)}</pre>{more}"
        )


def told(change: Change) -> list[str]:
    """What was done, in how many images, and how many were left alone, as plain texts."""
    words = {"lock": say("locked"), "unlock": say("unlocked"), "changed elsewhere": say("changed elsewhere")}
    images = len(change.old.keys() | change.new.keys() | {*change.locked, *change.unlocked})
    kept = [say("left as they were: {n}", n=len(change.skipped))] if change.skipped else []
    return [words.get(change.what, change.what), say("images: {n}", n=images), *kept]


def _row(change: Change) -> str:
    """A change: an undone one stands back."""
    what, *rest = told(change)
    more = " · ".join([*rest, say("undone")] if change.undone else rest)
    by = say("person") if change.by == PERSON else change.by
    style = "opacity:0.5;text-decoration:line-through" if change.undone else ""
    return (
        f'<div style="padding:2px 0"><span style="opacity:0.65">{change.number} · {html.escape(change.at)} · '
        f'{html.escape(by)}</span> <span style="overflow-wrap:anywhere;{style}">{html.escape(what)}</span> '
        f'<span style="opacity:0.65">{html.escape(more)}</span></div>'
    )
