"""Clicks on plain HTML that reach the kernel: a hidden text field, and attributes that write into it."""

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
    "field.value = JSON.stringify([Date.now() + Math.random(), said]); "
    "for (const kind of ['input', 'change']) field.dispatchEvent(new Event(kind, {{bubbles: true}}));"
)
_CLICK = "((said) => {{ {send} }})({message})"
_NEAREST = "const hit = event.target.closest('[data-say]'); if (!hit) return; event.preventDefault(); {say}"
_KEY = "if (event.key !== 'Enter' && event.key !== ' ') return; event.stopPropagation(); "


class Clicks:
    """A hidden field, `widget`, to be displayed beside the HTML; `told(message)` is called for each click.

    Front-ends that strip scripts out of HTML do nothing on a click: what matters needs another way, too.
    """

    def __init__(self, told: Callable[[Any], None]):
        self._told = told
        self.name = f"lorakit-{uuid.uuid4().hex[:12]}"  # of this field alone in the page
        self.widget = ipywidgets.Text(layout=ipywidgets.Layout(display="none"))
        self.widget.add_class(self.name)
        self.widget.observe(self._changed, "value")

    def attributes(self) -> str:
        """For an element around many that carry `data-say="…"` (see `said`): a click, or Enter, on one of them tells
        what it carries."""
        say = _CLICK.format(send=_SEND.format(name=self.name), message="JSON.parse(hit.dataset.say)")
        listen = "((event) => {{ {before}{nearest} }})(event)"
        nearest = _NEAREST.format(say=say)
        return (
            f'onclick="{html.escape(listen.format(before="", nearest=nearest))}" '
            f'onkeydown="{html.escape(listen.format(before=_KEY, nearest=nearest))}"'
        )

    def script(self, message: str) -> str:
        """JavaScript for an event attribute; it tells the value of `message`, a JavaScript expression."""
        return _CLICK.format(send=_SEND.format(name=self.name), message=message)

    def _changed(self, change: dict) -> None:
        try:
            _, said = json.loads(change["new"])
        except (ValueError, TypeError):
            return  # half a text, or one that a person typed
        self._told(said)


def said(message: Any) -> str:
    """The attribute of an element that tells `message` (anything that JSON can hold) when it is clicked."""
    return f'data-say="{html.escape(json.dumps(message))}" role="button" tabindex="0"'
