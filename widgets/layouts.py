"""Layouts and styles that the rows of a form share."""

from __future__ import annotations

from typing import Any

import ipywidgets


class Layouts:
    """One set of layouts for a form: each would be an object of the page, and a form has up to a hundred rows.

    On a wide page a row has three columns; on a narrow one they stand below each other.
    """

    def __init__(self):
        layout = ipywidgets.Layout
        # Not a shared layout: each row can be hidden by itself.
        self._row = {"flex_flow": "row wrap", "align_items": "flex-start", "width": "100%", "margin": "0 0 6px 0"}
        # the three columns
        self.label = layout(flex="0 0 170px", width="auto", margin="2px 8px 0 0")
        self.middle = layout(flex="0 1 400px", width="auto", min_width="240px", max_width="100%")
        self.note = layout(flex="1 1 300px", width="auto", min_width="240px", margin="2px 0 0 10px")
        # fields
        self.line, self.wide = layout(width="100%"), layout(width="auto", flex="1 1 auto", min_width="0")
        self.short = layout(width="150px")
        self.slider = layout(flex="1 1 120px", min_width="80px", width="auto")
        self.number = layout(width="92px", flex="0 0 92px")
        # A hidden button keeps its place, so that nothing moves below a hand that drags.
        button = {"width": "34px", "flex": "0 0 34px"}
        self.button, self.no_button = layout(**button), layout(**button, visibility="hidden")
        # Styles are widgets as well: shared, as each would be one more object of the page.
        self._text, self.button_style = ipywidgets.HTML().style, ipywidgets.Button().style

    def text(self, value: str = "") -> Any:
        """A widget that shows HTML."""
        return ipywidgets.HTML(value, style=self._text)

    def as_row(self, label: Any, middle: Any, note: Any) -> Any:
        """Three widgets as a row of the form."""
        label.layout, middle.layout, note.layout = self.label, self.middle, self.note
        return ipywidgets.HBox([label, middle, note], layout=ipywidgets.Layout(**self._row))
