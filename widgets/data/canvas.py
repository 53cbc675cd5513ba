"""An image to draw boxes on with the mouse or a finger: the browser's part of the box form."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets

from lorakit.data.scan import Sample
from lorakit.prepare.boxes import Box
from widgets.clicks import Clicks
from widgets.page import BLUE

SHOWN = 560  # px of the longer side of the image on the page at most
EDGES = ("left", "top", "width", "height")
# Position of the pointer as shares of the image; `this` is the element around it.
_AT = (
    "const r = this.getBoundingClientRect(); const at = [(event.clientX - r.left) / r.width, "
    "(event.clientY - r.top) / r.height].map((share) => Math.min(1, Math.max(0, share))); "
)
# The pointer is captured so that a drag that leaves the image still ends in it.
_DOWN = _AT + "event.preventDefault(); this.setPointerCapture(event.pointerId); this.begun = at; this.drawn = null;"
# A drag has a number, the time of its first move, by which the kernel's answer finds it.
_MOVE = (
    "if (!this.begun) return; " + _AT + "const b = this.begun; if (!this.drawn) this.dataset.drag = Date.now(); "
    "this.drawn = [Math.min(at[0], b[0]), Math.min(at[1], b[1]), Math.abs(at[0] - b[0]), Math.abs(at[1] - b[1])]; "
    "['left', 'top', 'width', 'height'].forEach((edge, i) => { "
    "this.lastElementChild.style[edge] = 100 * this.drawn[i] + '%'; });"
)
# A click without a move draws nothing.
_UP = "const drawn = this.drawn; this.begun = this.drawn = null; if (!drawn) return; "
_CANCEL = "this.begun = this.drawn = null; this.lastElementChild.style.width = 0;"


class Canvas:
    """An image with boxes above it; `on_box` is called with each box that was dragged, in px of the image.

    `widget` is to be displayed, and `clicks.widget` somewhere near it.
    """

    def __init__(self, on_box: Callable[[Box], None]):
        self.on_box, self.clicks = on_box, Clicks(self._dragged)
        self.sample: Sample | None = None
        self._drag = 0  # number of the last drag that was received
        # Two layers: boxes change often and are small, the image is large and is sent once.
        self.image, self.over = ipywidgets.HTML(), ipywidgets.HTML()
        # Both in one cell of the grid, so that they lie above each other.
        for layer in (self.image, self.over):
            layer.layout = ipywidgets.Layout(grid_area="1 / 1 / 2 / 2", width="auto", margin="0", min_width="0")
        self.over.add_class(f"{self.clicks.name}-over")
        self.widget = ipywidgets.GridBox(
            [self.image, self.over],
            layout=ipywidgets.Layout(grid_template_columns="100%", width="100%", margin="6px 0", overflow="hidden"),
        )

    def show(self, sample: Sample, source: str) -> None:
        """Show another image; `source` is its address, e.g. a data URL."""
        self.sample = sample
        scale = SHOWN / max(sample.width, sample.height)
        self.widget.layout.max_width = f"{max(120, round(sample.width * scale))}px"
        self.image.value = (
            f'<div style="{self._shape()};touch-action:none;user-select:none;cursor:crosshair" {self._events()}>'
            f'<img src="{source}" draggable="false" style="width:100%;height:100%;display:block;margin:0" '
            f'alt="{html.escape(sample.name)}">'
            f'<div class="lorakit-rubber" style="position:absolute;width:0;box-sizing:border-box;'
            f'border:2px solid {BLUE};box-shadow:0 0 0 1px white"></div></div>'
        )

    def draw(self, boxes: Sequence[Box], chosen: int) -> None:
        """Draw the boxes above the image, everything outside the chosen one darkened."""
        name, sample = self.clicks.name, self.sample
        shapes = ""
        # The chosen box comes first: its shadow darkens the image but not the boxes drawn after it.
        for index, one in sorted(enumerate(boxes), key=lambda pair: pair[0] != chosen):
            dark = ",0 0 0 9999px rgba(0,0,0,.4)" if index == chosen else ""
            # In percent of the image, so that boxes fit at every width of the page.
            shares = zip(EDGES, (sample.width, sample.height) * 2, strict=True)
            place = "".join(f"{edge}:{100 * getattr(one, edge) / side:.3f}%;" for edge, side in shares)
            shapes += (
                f'<div class="lorakit-box" style="position:absolute;box-sizing:border-box;{place}'
                f'border:2px solid {BLUE};box-shadow:0 0 0 1px white{dark}">'
                f'<span style="background-color:{BLUE};color:white;font-size:11px;line-height:1.3;padding:0 4px;'
                f'position:absolute;left:0;top:0">{html.escape(one.name or str(index + 1))}</span></div>'
            )
        # The rubber band of the drag that made a box is hidden: the box itself is drawn now.
        style = (
            f".{name}-over, .{name}-over * {{pointer-events:none}} "
            f'[data-drag="{self._drag}"] > .lorakit-rubber {{display:none}}'
        )
        self.over.value = f'<style>{style}</style><div style="{self._shape()}">{shapes}</div>'

    def _shape(self) -> str:
        return f"position:relative;overflow:hidden;width:100%;aspect-ratio:{self.sample.width}/{self.sample.height}"

    def _events(self) -> str:
        send = self.clicks.script("{drag: this.dataset.drag, box: drawn}")
        scripts = {"down": _DOWN, "move": _MOVE, "up": _UP + send, "cancel": _CANCEL}
        return " ".join(f'onpointer{name}="{html.escape(script)}"' for name, script in scripts.items())

    def _dragged(self, message: Any) -> None:
        """A drag has ended; its box arrives as shares of the image."""
        self._drag = int(message["drag"])
        # Shares of left, top, width, height to px of the image.
        sizes = (self.sample.width, self.sample.height) * 2
        self.on_box(Box(*(round(share * size) for share, size in zip(message["box"], sizes, strict=True))))
