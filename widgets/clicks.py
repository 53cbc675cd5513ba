"""Clicks on plain HTML that reach the kernel, through a hidden text field that the click writes into."""

from __future__ import annotations

import html
import json
import uuid
from collections.abc import Callable
from typing import Any

import ipywidgets

# The field's change event is what ipywidgets 7 and 8 listen to; the time makes two equal clicks two changes.
_SEND = (
    "const field = document.querySelector('.{name} input'); if (!field) return; "
    "field.value = JSON.stringify([Date.now() + Math.random(), message]); "
    "for (const kind of ['input', 'change']) field.dispatchEvent(new Event(kind, {{bubbles: true}}));"
)
# A function of its own, so that its variables and its `return` do not affect the code around it.
_CLICK = "((message) => {{ {send} }})({message})"
# The click is on any element inside the one that has the message.
_NEAREST = "const hit = event.target.closest('[data-say]'); if (!hit) return; event.preventDefault(); {say}"
# Enter and space work like a click for people without a mouse; Jupyter must not take them as its own shortcuts.
_KEY = "if (event.key !== 'Enter' && event.key !== ' ') return; event.stopPropagation(); "


class Clicks:
    """A hidden field, `widget`, to be displayed beside the HTML; `clicked(message)` is called for each click.

    A front-end that strips scripts from HTML ignores such clicks, so that anything important needs a button as well.
    """

    def __init__(self, clicked: Callable[[Any], None]):
        self._clicked = clicked
        # Unique in the page, which may show several forms.
        self.name = f"lorakit-{uuid.uuid4().hex[:12]}"
        # Hidden, but in the page: a widget that is not displayed has no field that a script could find.
        self.widget = ipywidgets.Text(layout=ipywidgets.Layout(display="none"))
        # the class by which the script finds the field
        self.widget.add_class(self.name)
        self.widget.observe(self._changed, "value")

    def attributes(self) -> str:
        """Attributes of an element around many with a `data-say` (see `sends`): a click or Enter on one sends it."""
        say = _CLICK.format(send=_SEND.format(name=self.name), message="JSON.parse(hit.dataset.say)")
        listen = "((event) => {{ {before}{nearest} }})(event)"
        nearest = _NEAREST.format(say=say)
        return (
            # Handlers are attributes, as notebooks do not run <script> of an HTML widget. `onclick` on the parent
            # serves all children, so that hundreds of thumbnails stay small.
            f'onclick="{html.escape(listen.format(before="", nearest=nearest))}" '
            f'onkeydown="{html.escape(listen.format(before=_KEY, nearest=nearest))}"'
        )

    def script(self, message: str) -> str:
        """JavaScript for an event attribute; it sends the value of `message`, a JavaScript expression."""
        return _CLICK.format(send=_SEND.format(name=self.name), message=message)

    def _changed(self, change: dict) -> None:
        try:
            # (time, message)
            _, message = json.loads(change["new"])
        except (ValueError, TypeError):
            # The field holds something else than the message of a click.
            return
        self._clicked(message)


def sends(message: Any) -> str:
    """The attributes of an element that sends `message` (anything that JSON can hold) when it is clicked."""
    return f'data-say="{html.escape(json.dumps(message))}" role="button" tabindex="0"'
