"""A form to draw boxes on the images of a dataset, with the mouse, a finger or sliders; preparation crops by them."""

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
from widgets.data.canvas import EDGES, SHOWN, Canvas
from widgets.data.thumbnails import Thumbnails
from widgets.i18n import say
from widgets.page import AMBER, GREY, RED, box
from widgets.plain import show
from widgets.project.draft import Draft
from widgets.project.labels import labelled

SIDE = 960  # px of the longer side of the image that is drawn on


def draw_boxes(project: Project) -> None:
    """Show the images one at a time to draw boxes on; each box is saved at once, in the project's boxes.yaml."""
    from IPython.display import HTML, display

    try:
        show(BoxForm(project).widget)
    except (DataError, UserError) as error:
        display(HTML(box(labelled(str(error)), AMBER)))


class BoxForm:
    """The form; `widget` is to be displayed. Raises UserError without images, or for a damaged boxes.yaml.

    A drag gives an image without boxes its first one; after that it redraws the chosen box.
    """

    def __init__(self, project: Project):
        self.project, self._silent = project, False
        self.stored = Boxes(project)
        # Boxes belong to the originals, also while the next run trains on prepared copies.
        samples = scan(config_of_originals(project, Draft(project).data), project.folder).samples
        self.samples = {sample.name: sample for sample in samples}
        # Name of the shown image, and index of its chosen box.
        self.name, self.chosen = samples[0].name, 0
        self._thumbnails = Thumbnails(project)
        self.canvas = Canvas(self._drawn)
        self._make()
        self._turn(self.name)

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Boxes of the shown image, read from disk."""
        # Another notebook may have changed the file.
        self.stored.refresh()
        return self.stored.of(self.name)

    # ---- the user's actions -----------------------------------------------------------------------------------------

    def turn(self, by: int) -> None:
        """Show the image `by` places further."""
        names = list(self.samples)
        self._turn(names[(names.index(self.name) + by) % len(names)])

    def add(self) -> None:
        """Add a box in the middle, to be redrawn or moved."""
        sample = self._sample
        # left, top, width, height in px of the upright image: a quarter from each edge.
        middle = Box(sample.width // 4, sample.height // 4, sample.width // 2, sample.height // 2)
        self.chosen = len(self.boxes)
        self._change((*self.boxes, middle.within(sample.width, sample.height)))

    def place(self, where: Box) -> None:
        """Move the chosen box, or create the first. Raises BoxError for one outside the image."""
        where = where.within(self._sample.width, self._sample.height)
        boxes = list(self.boxes) or [where]
        self.chosen = min(self.chosen, len(boxes) - 1)
        boxes[self.chosen] = Box(where.left, where.top, where.width, where.height, boxes[self.chosen].name)
        self._change(tuple(boxes))

    def remove(self, index: int) -> None:
        """Delete a box."""
        boxes = self.boxes
        # The chosen box stays chosen when one before it goes.
        self.chosen = max(0, self.chosen - (index <= self.chosen))
        self._change(boxes[:index] + boxes[index + 1 :])

    def rename(self, index: int, name: str) -> None:
        """Name a box; its cropped image gets that name."""
        boxes = list(self.boxes)
        old = boxes[index]
        boxes[index] = Box(old.left, old.top, old.width, old.height, name.strip())
        self._change(tuple(boxes))

    def choose(self, index: int) -> None:
        """Choose the box that drags and sliders change."""
        self.chosen = index
        self._draw()

    def undo(self) -> None:
        """Undo the last change and show its image; a second call redoes it."""
        # The last change may be of another image than the shown one, or of one that is no longer in the dataset.
        changed = [name for name in self.stored.undo() if name in self.samples]
        service.start(self.project)
        self._turn(self.name if self.name in changed or not changed else changed[0])

    # ---- inside ------------------------------------------------------------------------------------------------------

    @property
    def _sample(self) -> Sample:
        return self.samples[self.name]

    def _change(self, boxes: tuple[Box, ...]) -> None:
        self.stored.set(self.name, boxes)
        service.start(self.project)
        self._draw()

    def _turn(self, name: str) -> None:
        if name != self.name:
            self.name, self.chosen = name, 0
        [source] = self._thumbnails.sources([self._sample], SIDE)
        self.canvas.show(self._sample, source)
        self._draw()

    def _drawn(self, drawn: Box) -> None:
        """A box was dragged; one that is too small was a click by mistake."""
        if min(drawn.width, drawn.height) < MIN_SIDE:
            self._draw()
        else:
            self._act(lambda: self.place(drawn))

    def _act(self, action: Callable[[], None]) -> None:
        """Run an action of the user; show the error if it fails."""
        if self._silent:
            return
        self.problem.value = ""
        try:
            action()
        except UserError as error:
            self._draw()
            self.problem.value = f'<div style="color:{RED};line-height:1.5">{html.escape(labelled(str(error)))}</div>'

    # ---- drawing -----------------------------------------------------------------------------------------------------

    def _make(self) -> None:
        row = {"flex_flow": "row wrap", "align_items": "center", "width": "100%"}
        self.names = ipywidgets.Dropdown(layout=ipywidgets.Layout(flex="1 1 160px", width="auto", min_width="0"))
        self.names.observe(lambda change: self._act(lambda: self._turn(change["new"])), "value")
        self.text, self.problem = ipywidgets.HTML(), ipywidgets.HTML()
        self.sliders = {edge: _slider(label) for edge, label in zip(EDGES, _labels(), strict=True)}
        for slider in self.sliders.values():
            slider.observe(
                lambda _: self._act(lambda: self.place(Box(*(self.sliders[edge].value for edge in EDGES)))), "value"
            )
        self.rows = ipywidgets.VBox(layout=ipywidgets.Layout(width="100%"))
        head = [
            _button("", "chevron-left", lambda: self._act(lambda: self.turn(-1)), say("previous image"), "38px"),
            self.names,
            _button("", "chevron-right", lambda: self._act(lambda: self.turn(1)), say("next image"), "38px"),
        ]
        buttons = [
            _button(say("Add box"), "plus", lambda: self._act(self.add), "", "auto"),
            _button(
                say("Undo"),
                "undo",
                lambda: self._act(self.undo),
                say("undo the last change; press again to redo"),
                "auto",
            ),
        ]
        children = [
            ipywidgets.HBox(head, layout=ipywidgets.Layout(**row)),
            self.text,
            self.canvas.widget,
            *self.sliders.values(),
            ipywidgets.HBox(buttons, layout=ipywidgets.Layout(**row)),
            self.problem,
            self.rows,
            self.canvas.clicks.widget,
        ]
        self.widget = ipywidgets.VBox(children, layout=ipywidgets.Layout(width="100%", max_width=f"{SHOWN + 4}px"))

    def _draw(self) -> None:
        boxes = self.boxes
        self.chosen = min(self.chosen, max(0, len(boxes) - 1))
        self._silent = True
        try:
            # New options make ipywidgets choose the first one, which is no choice of the user: hence `_silent`.
            self.names.options = [(f"{'✓' if self.stored.of(name) else '·'} {name}", name) for name in self.samples]
            self.names.value = self.name
            # Without a box the sliders stand on the whole image.
            selected = boxes[self.chosen] if boxes else Box(0, 0, self._sample.width, self._sample.height)
            _set_sliders(self.sliders, selected, self._sample)
        finally:
            self._silent = False
        with_boxes = sum(name in self.samples for name in self.stored.names())
        self.text.value = _help_html(self._sample, bool(boxes), with_boxes, len(self.samples))
        self.canvas.draw(boxes, self.chosen)
        self.rows.children = [_row(self, index, one) for index, one in enumerate(boxes)]


def _row(form: BoxForm, index: int, one: Box) -> Any:
    """One box of the list: choose, name or delete it."""
    label = f"{index + 1} · {one.width} × {one.height} px"
    chooser = _button(label, "check" if index == form.chosen else "", lambda: form.choose(index), "", "160px")
    name = ipywidgets.Text(
        one.name,
        placeholder=say("name (optional)"),
        continuous_update=False,
        layout=ipywidgets.Layout(flex="1 1 80px", width="auto", min_width="60px"),
    )
    name.observe(lambda change: form._act(lambda: form.rename(index, change["new"])), "value")
    delete = _button("", "trash", lambda: form._act(lambda: form.remove(index)), say("delete this box"), "38px")
    return ipywidgets.HBox([chooser, name, delete], layout=ipywidgets.Layout(width="100%", align_items="center"))


def _labels() -> tuple[str, ...]:
    """Labels of the sliders, in the order of EDGES."""
    return say("left"), say("top"), say("width"), say("height")


def _slider(label: str) -> Any:
    return ipywidgets.IntSlider(
        description=label,
        continuous_update=False,
        style={"description_width": "64px"},
        layout=ipywidgets.Layout(width="98%"),
    )


def _set_sliders(sliders: dict[str, Any], shown: Box, sample: Sample) -> None:
    """Put the sliders on a box, within the size of its image."""
    for edge, slider in sliders.items():
        side = sample.width if edge in ("left", "width") else sample.height
        # min is first set to 0, so that min and max never cross
        slider.min, slider.max = 0, side
        slider.min = MIN_SIDE if edge in ("width", "height") else 0
        slider.value = getattr(shown, edge)


def _help_html(sample: Sample, has_box: bool, with_boxes: int, total: int) -> str:
    text = say("{n} of {total} images have boxes.", n=with_boxes, total=total)
    if has_box:
        text += " " + say("Drag to redraw the selected box.")
    else:
        text += " " + say("Drag on the image to draw a box; without one the whole image is used.")
    return (
        f'<div style="line-height:1.5">{html.escape(text)} '
        f'<span style="color:{GREY}">{sample.width} × {sample.height} px</span></div>'
    )


def _button(words: str, icon: str, act: Callable[[], None], tooltip: str, width: str) -> Any:
    button = ipywidgets.Button(
        description=words, icon=icon, tooltip=tooltip, layout=ipywidgets.Layout(width=width, flex="0 0 auto")
    )
    button.on_click(lambda _: act())
    return button
