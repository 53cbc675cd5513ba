"""A choice whose labels change, as counts do, while the chosen value stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets


class Choice:
    """One of several values, as toggle buttons or in another `widget` with options.

    `on_choice(value)` is called when the user picks another value, not when `draw` changes the widget.
    """

    def __init__(self, on_choice: Callable[[str], None], widget: ipywidgets.DOMWidget | None = None):
        self.widget = widget or ipywidgets.ToggleButtons(
            style={"button_width": "auto"}, layout=ipywidgets.Layout(width="auto")
        )
        self._on_choice = on_choice
        self._is_drawing = False
        self.widget.observe(self._changed, "value")

    def draw(self, options: list[tuple[str, str]], value: str) -> None:
        """Show (label, value) pairs, with `value` chosen."""
        # when its options change, ipywidgets picks the first one: that is not the user's choice
        self._is_drawing = True
        # Equal options are not sent again: the page would rebuild all buttons.
        if list(self.widget.options) != options:
            self.widget.options = options
        self.widget.value = value
        self._is_drawing = False

    def _changed(self, change: dict[str, Any]) -> None:
        if not self._is_drawing:
            self._on_choice(change["new"])
