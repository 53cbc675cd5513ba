"""Boxes drawn on the images of a dataset with the mouse, a finger or sliders: what preparation crops by."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import ipywidgets

from lorakit.data.scan import DataError, Sample, scan
from lorakit.errors import UserError
from lorakit.prepare.boxes import MIN_SIDE, Box, Boxes
from lorakit.prepare.crop import config_of_originals
from lorakit.project import Project
from lorakit.sync import service
from widgets.clicks import Clicks
from widgets.data.thumbnails import Thumbnails
from widgets.i18n import say
from widgets.page import AMBER, BLUE, GREY, RED, box
from widgets.project.draft import Draft

SIDE = 960  # px of the longer side of the image that is drawn on
SHOWN = 560  # px of its longer side on the page at most
EDGES = ("left", "top", "width", "height")
# Where the pointer is, as shares of the image; `this` is the element around it.
_AT = (
    "const r = this.getBoundingClientRect(); const at = [(event.clientX - r.left) / r.width, "
    "(event.clientY - r.top) / r.height].map((share) => Math.min(1, Math.max(0, share))); "
)
_DOWN = _AT + "event.preventDefault(); this.setPointerCapture(event.pointerId); this.begun = at; this.drawn = null;"
_MOVE = (
    "if (!this.begun) return; " + _AT + "const b = this.begun; if (!this.drawn) this.dataset.drag = Date.now(); "
    "this.drawn = [Math.min(at[0], b[0]), Math.min(at[1], b[1]), Math.abs(at[0] - b[0]), Math.abs(at[1] - b[1])]; "
    "['left', 'top', 'width', 'height'].forEach((edge, i) => { "
    "this.lastElementChild.style[edge] = 100 * this.drawn[i] + '%'; });"
)
_UP = "const drawn = this.drawn; this.begun = this.drawn = null; if (!drawn) return; "
_CANCEL = "this.begun = this.drawn = null; this.lastElementChild.style.width = 0;"


def boxes(project: Project) -> None:
    """Show the images one after the other, to draw boxes on; each is on disk at once, in the project's boxes.yaml."""
    from IPython.display import HTML, display

    try:
        display(BoxForm(project).widget)
    except (DataError, UserError) as error:
        display(HTML(box(str(error), AMBER)))


class BoxForm:
    """The widget: `widget` is to be displayed. Raises UserError without images, or for a damaged list of boxes.

    Drawing gives an image without boxes its first; afterwards it draws the chosen one anew.
    """

    def __init__(self, project: Project):
        self.project, self._silent = project, False
        self._kept = Boxes(project)
        found = scan(config_of_originals(project, Draft(project).data), project.folder).samples
        self.samples = {sample.name: sample for sample in found}
        self.name, self.chosen = found[0].name, 0
        self._thumbnails = Thumbnails(project)
        self._clicks = Clicks(self._drawn)
        self._drag = 0  # the last one that was heard of
        self._make()
        self._turn(self.name)

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Those of the image that is shown, as they are on disk."""
        self._kept.refresh()
        return self._kept.of(self.name)

    # ---- what its user does ------------------------------------------------------------------------------------------

    def turn(self, by: int) -> None:
        """Show another image, so many further."""
        names = list(self.samples)
        self._turn(names[(names.index(self.name) + by) % len(names)])

    def add(self) -> None:
        """One box more, in the middle, to be drawn anew or moved."""
        sample = self._sample
        middle = Box(sample.width // 4, sample.height // 4, sample.width // 2, sample.height // 2)
        self.chosen = len(self.boxes)
        self._change((*self.boxes, middle.within(sample.width, sample.height)))

    def place(self, where: Box) -> None:
        """Put the chosen box, or the first, elsewhere. Raises BoxError for one outside the image."""
        where = where.within(self._sample.width, self._sample.height)
        there = list(self.boxes) or [where]
        self.chosen = min(self.chosen, len(there) - 1)
        there[self.chosen] = Box(where.left, where.top, where.width, where.height, there[self.chosen].name)
        self._change(tuple(there))

    def remove(self, index: int) -> None:
        """Take a box away."""
        there = self.boxes
        self.chosen = max(0, self.chosen - (index <= self.chosen))
        self._change(there[:index] + there[index + 1 :])

    def rename(self, index: int, name: str) -> None:
        """Call a box something, which its image will be called by."""
        there = list(self.boxes)
        old = there[index]
        there[index] = Box(old.left, old.top, old.width, old.height, name.strip())
        self._change(tuple(there))

    def choose(self, index: int) -> None:
        """Let drawing and the sliders be about this box."""
        self.chosen = index
        self._draw()

    def undo(self) -> None:
        """Take the last change back, and go where it was; once more: make it again."""
        changed = [name for name in self._kept.undo() if name in self.samples]
        service.start(self.project)
        self._turn(self.name if self.name in changed or not changed else changed[0])

    # ---- what follows ------------------------------------------------------------------------------------------------

    @property
    def _sample(self) -> Sample:
        return self.samples[self.name]

    def _change(self, boxes: tuple[Box, ...]) -> None:
        self._kept.set(self.name, boxes)
        service.start(self.project)
        self._draw()

    def _turn(self, name: str) -> None:
        if name != self.name:
            self.name, self.chosen = name, 0
        [source] = self._thumbnails.sources([self._sample], SIDE)
        sample = self._sample
        scale = SHOWN / max(sample.width, sample.height)
        self._canvas.layout.max_width = f"{max(120, round(sample.width * scale))}px"
        self._image.value = (
            f'<div style="{self._shape()};touch-action:none;user-select:none;cursor:crosshair" {self._events()}>'
            f'<img src="{source}" draggable="false" style="width:100%;height:100%;display:block;margin:0" '
            f'alt="{html.escape(name)}">'
            f'<div class="lorakit-rubber" style="position:absolute;width:0;box-sizing:border-box;'
            f'border:2px solid {BLUE};box-shadow:0 0 0 1px white"></div></div>'
        )
        self._draw()

    def _shape(self) -> str:
        return f"position:relative;overflow:hidden;width:100%;aspect-ratio:{self._sample.width}/{self._sample.height}"

    def _events(self) -> str:
        tell = self._clicks.script("{drag: this.dataset.drag, box: drawn}")
        scripts = {"down": _DOWN, "move": _MOVE, "up": _UP + tell, "cancel": _CANCEL}
        return " ".join(f'onpointer{name}="{html.escape(script)}"' for name, script in scripts.items())

    def _drawn(self, told: Any) -> None:
        """A drag has ended: its box as shares of the image. What is too small was a slip of the hand."""
        self._drag = int(told["drag"])
        sizes = (self._sample.width, self._sample.height) * 2
        drawn = Box(*(round(share * size) for share, size in zip(told["box"], sizes, strict=True)))
        if min(drawn.width, drawn.height) < MIN_SIDE:
            self._draw()
        else:
            self._act(lambda: self.place(drawn))

    def _slid(self, change: dict) -> None:
        if not self._silent:
            self._act(lambda: self.place(Box(*(self._sliders[edge].value for edge in EDGES))))

    def _act(self, action: Callable[[], None]) -> None:
        """Do what was clicked; what cannot be done is told."""
        if self._silent:
            return
        self._trouble.value = ""
        try:
            action()
        except UserError as error:
            self._draw()
            self._trouble.value = f'<div style="color:{RED};line-height:1.5">{html.escape(str(error))}</div>'

    # ---- how it looks ------------------------------------------------------------------------------------------------

    def _make(self) -> None:
        row = {"flex_flow": "row wrap", "align_items": "center", "width": "100%"}
        self._names = ipywidgets.Dropdown(layout=ipywidgets.Layout(flex="1 1 160px", width="auto", min_width="0"))
        self._names.observe(lambda change: self._act(lambda: self._turn(change["new"])), "value")
        self._image, self._over, self._told, self._trouble = (ipywidgets.HTML() for _ in range(4))
        for layer in (self._image, self._over):  # one above the other
            layer.layout = ipywidgets.Layout(grid_area="1 / 1 / 2 / 2", width="auto", margin="0", min_width="0")
        self._over.add_class(f"{self._clicks.name}-over")
        self._canvas = ipywidgets.GridBox(
            [self._image, self._over],
            layout=ipywidgets.Layout(grid_template_columns="100%", width="100%", margin="6px 0", overflow="hidden"),
        )
        self._sliders = {edge: self._slider(words) for edge, words in zip(EDGES, _words(), strict=True)}
        self._list = ipywidgets.VBox(layout=ipywidgets.Layout(width="100%"))
        head = [
            _button("", "chevron-left", lambda: self._act(lambda: self.turn(-1)), say("the image before"), "38px"),
            self._names,
            _button("", "chevron-right", lambda: self._act(lambda: self.turn(1)), say("the next image"), "38px"),
        ]
        acts = [
            _button(say("One box more"), "plus", lambda: self._act(self.add), "", "auto"),
            _button(say("Undo"), "undo", lambda: self._act(self.undo), say("the last change; again: redo"), "auto"),
        ]
        children = [
            ipywidgets.HBox(head, layout=ipywidgets.Layout(**row)),
            self._told,
            self._canvas,
            *self._sliders.values(),
            ipywidgets.HBox(acts, layout=ipywidgets.Layout(**row)),
            self._trouble,
            self._list,
            self._clicks.widget,
        ]
        self.widget = ipywidgets.VBox(children, layout=ipywidgets.Layout(width="100%", max_width=f"{SHOWN + 4}px"))

    def _slider(self, words: str) -> Any:
        made = ipywidgets.IntSlider(
            description=words,
            continuous_update=False,
            style={"description_width": "64px"},
            layout=ipywidgets.Layout(width="98%"),
        )
        made.observe(self._slid, "value")
        return made

    def _draw(self) -> None:
        own = self.boxes
        self.chosen = min(self.chosen, max(0, len(own) - 1))
        self._silent = True
        try:
            self._names.options = [(f"{'✓' if self._kept.of(name) else '·'} {name}", name) for name in self.samples]
            self._names.value = self.name
            self._slide(own)
        finally:
            self._silent = False
        self._told.value = self._words(own)
        self._over.value = self._rectangles(own)
        self._list.children = [self._row(index, one) for index, one in enumerate(own)]

    def _slide(self, own: tuple[Box, ...]) -> None:
        sample = self._sample
        shown = own[self.chosen] if own else Box(0, 0, sample.width, sample.height)
        for edge, slider in self._sliders.items():
            side = sample.width if edge in ("left", "width") else sample.height
            slider.min, slider.max = 0, side  # never crossed, since the least is the same for all
            slider.min = MIN_SIDE if edge in ("width", "height") else 0
            slider.value = getattr(shown, edge)

    def _words(self, own: tuple[Box, ...]) -> str:
        n = sum(name in self.samples for name in self._kept.names())
        told = say("{n} of {total} images have boxes.", n=n, total=len(self.samples))
        if own:
            told += " " + say("Drawing places the chosen box anew.")
        else:
            told += " " + say("Without a box the whole image is used: draw one with the mouse or a finger.")
        sample = self._sample
        return (
            f'<div style="line-height:1.5">{html.escape(told)} '
            f'<span style="color:{GREY}">{sample.width} × {sample.height} px</span></div>'
        )

    def _rectangles(self, own: tuple[Box, ...]) -> str:
        """The boxes above the image, and what hides the one that was just dragged, as it is among them."""
        name, sample = self._clicks.name, self._sample
        shapes = ""
        # the chosen one first: it darkens all that is not in it, but for the others
        for index, one in sorted(enumerate(own), key=lambda pair: pair[0] != self.chosen):
            dark = ",0 0 0 9999px rgba(0,0,0,.4)" if index == self.chosen else ""
            shares = zip(EDGES, (sample.width, sample.height) * 2, strict=True)
            place = "".join(f"{edge}:{100 * getattr(one, edge) / side:.3f}%;" for edge, side in shares)
            shapes += (
                f'<div class="lorakit-box" style="position:absolute;box-sizing:border-box;{place}'
                f'border:2px solid {BLUE};box-shadow:0 0 0 1px white{dark}">'
                f'<span style="background-color:{BLUE};color:white;font-size:11px;line-height:1.3;padding:0 4px;'
                f'position:absolute;left:0;top:0">{html.escape(one.name or str(index + 1))}</span></div>'
            )
        style = (
            f".{name}-over, .{name}-over * {{pointer-events:none}} "
            f'[data-drag="{self._drag}"] > .lorakit-rubber {{display:none}}'
        )
        return f'<style>{style}</style><div style="{self._shape()}">{shapes}</div>'

    def _row(self, index: int, one: Box) -> Any:
        """A box in the list: chosen by a click, called something, taken away."""
        told = f"{index + 1} · {one.width} × {one.height} px"
        chooser = _button(told, "check" if index == self.chosen else "", lambda: self.choose(index), "", "160px")
        name = ipywidgets.Text(
            one.name,
            placeholder=say("name, if wanted"),
            continuous_update=False,
            layout=ipywidgets.Layout(flex="1 1 80px", width="auto", min_width="60px"),
        )
        name.observe(lambda change: self._act(lambda: self.rename(index, change["new"])), "value")
        away = _button("", "trash", lambda: self._act(lambda: self.remove(index)), say("take this box away"), "38px")
        return ipywidgets.HBox([chooser, name, away], layout=ipywidgets.Layout(width="100%", align_items="center"))


def _words() -> tuple[str, ...]:
    """What the sliders are called, in the order of EDGES."""
    return say("left"), say("top"), say("width"), say("height")


def _button(words: str, icon: str, act: Callable[[], None], tooltip: str, width: str) -> Any:
    made = ipywidgets.Button(
        description=words, icon=icon, tooltip=tooltip, layout=ipywidgets.Layout(width=width, flex="0 0 auto")
    )
    made.on_click(lambda _: act())
    return made
