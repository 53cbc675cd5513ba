"""The history of the captions: every change with time, author and images, and a diff against the first captions."""

from __future__ import annotations

import base64
import html

import ipywidgets

from lorakit.files import write_atomic
from lorakit.tags.authors import PERSON
from lorakit.tags.edits import Change
from widgets.i18n import say
from widgets.page import RED, WIDTH, aside, box
from widgets.tags.state import EditorState

MAX_CHANGES = 40  # the newest
MAX_LINES = 200  # of the diff that are shown
FILE = "difference.txt"  # in the project's tags/


class HistoryPanel:
    """The widget: a list of changes, and a button that exports a diff."""

    def __init__(self, state: EditorState):
        self._state = state
        self.list, self.diff = ipywidgets.HTML(), ipywidgets.HTML()
        button = ipywidgets.Button(description=say("Export diff"))
        button.layout = ipywidgets.Layout(width="auto", align_self="flex-start")
        button.on_click(lambda _: self.export())
        self.widget = ipywidgets.VBox([self.list, button, self.diff], layout=ipywidgets.Layout(width="100%"))

    def draw(self) -> None:
        """Show the current changes, newest first, and hide a diff that may be outdated."""
        changes = self._state.editor.history()
        rows = "".join(map(_row, reversed(changes[-MAX_CHANGES:])))
        hidden = len(changes) - MAX_CHANGES
        more = aside(say("and {n} more", n=hidden)) if hidden > 0 else ""
        self.list.value = (
            f'<div style="font-size:13px;line-height:1.5;max-width:{WIDTH}px">'
            f"{rows or aside(say('No changes yet.'))}{more}</div>"
        )
        self.diff.value = ""

    def export(self) -> None:
        """Write the diff against the first captions to the project's tags/difference.txt, and show it."""
        text = self._state.editor.diff()
        file = self._state.project.folder / "tags" / FILE
        note = aside(str(file))
        try:
            write_atomic(file, text)
        except OSError as error:
            # The download link below works all the same.
            note = box(f"{file}: {error.strerror}", RED)
        lines = text.splitlines()
        # The file is inside the link, so that the download works in Colab and in VS Code, too.
        encoded = base64.b64encode(text.encode()).decode()
        visible = "\n".join(lines[:MAX_LINES])
        more = aside(say("and {n} more", n=len(lines) - MAX_LINES)) if len(lines) > MAX_LINES else ""
        self.diff.value = (
            f'{note}<a download="{FILE}" href="data:text/plain;charset=utf-8;base64,{encoded}">'
            f"{html.escape(say('Download'))}</a>"
            f'<pre style="font-size:12px;max-height:320px;overflow:auto;white-space:pre-wrap;background:none">'
            f"{html.escape(visible)}</pre>{more}"
        )


def summary(change: Change) -> list[str]:
    """What a change did, in how many images, and how many were left unchanged, as plain texts."""
    labels = {"lock": say("locked"), "unlock": say("unlocked"), "changed elsewhere": say("changed elsewhere")}
    # An image counts once, also where its caption and its lock changed.
    images = len(change.old.keys() | change.new.keys() | {*change.locked, *change.unlocked})
    skipped = [say("{n} left unchanged", n=len(change.skipped))] if change.skipped else []
    return [labels.get(change.what, change.what), say("{n} images", n=images), *skipped]


def _row(change: Change) -> str:
    """A change; an undone one is struck through."""
    what, *rest = summary(change)
    more = " · ".join([*rest, say("undone")] if change.undone else rest)
    by = say("person") if change.by == PERSON else change.by
    style = "opacity:0.5;text-decoration:line-through" if change.undone else ""
    return (
        f'<div style="padding:2px 0"><span style="opacity:0.65">{change.number} · {html.escape(change.at)} · '
        f'{html.escape(by)}</span> <span style="overflow-wrap:anywhere;{style}">{html.escape(what)}</span> '
        f'<span style="opacity:0.65">{html.escape(more)}</span></div>'
    )
