"""A choice whose words change, as counts do, while what is chosen stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets


class Choice:
    """One of several values, as toggle buttons or in another `widget` with options; `chosen(value)` is called when a
    person takes another."""

    def __init__(self, chosen: Callable[[str], None], widget: ipywidgets.DOMWidget | None = None):
        self.widget = widget or ipywidgets.ToggleButtons(
            style={"button_width": "auto"}, layout=ipywidgets.Layout(width="auto")
        )
        self._chosen = chosen
        self._is_drawing = False
        self.widget.observe(self._changed, "value")

    def draw(self, options: list[tuple[str, str]], value: str) -> None:
        """Offer (words, value) pairs, with `value` taken."""
        self._is_drawing = True  # new options make ipywidgets take the first, which is nobody's choice
        if list(self.widget.options) != options:
            self.widget.options = options
        self.widget.value = value
        self._is_drawing = False

    def _changed(self, change: dict[str, Any]) -> None:
        if not self._is_drawing:
            self._chosen(change["new"])
