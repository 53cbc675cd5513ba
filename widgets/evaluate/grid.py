"""Grids in a cell: a form that collects what is to be compared, and the sheet, shown while it is painted."""

from __future__ import annotations

import gc
import html
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lorakit.generation.contact_sheet import labelled
from lorakit.generation.grid import Axis, Cell, Done, Rendered
from widgets.i18n import say
from widgets.images import bounded, source
from widgets.page import BLUE, WIDTH, aside, bar, box, facts, span

REDRAW = 2.0  # s between two drawings at least
SHEET, SHEET_BYTES = 1600, 440_000  # px wide and bytes large at most, as shown; base64 makes a third more of them
EMPTY = "#e5e5e5"  # a place that is not painted yet


@dataclass(frozen=True)
class Painting:
    """A grid that is about to be painted, with its axes: the sheet can be labelled from the beginning."""

    x: Axis
    y: Axis
    events: Iterator[Rendered | Done]

    def __iter__(self) -> Iterator[Rendered | Done]:
        return self.events


def show_grid(painting: Iterable[Rendered | Done]) -> None:
    """Generate a grid in this cell and show it as it grows: `show_grid(choice.paint())`, `show_grid(grid(...))`.

    The interrupt button ends it without an error; what is painted is kept, and the same cell goes on there.
    """
    from IPython.display import HTML, display

    view = display(HTML(say("loading the base model…")), display_id=True)
    with suppress(KeyboardInterrupt):  # pressed again while what painted is let go
        _show(painting, lambda shown: view.update(HTML(shown)))


def _show(painting: Iterable[Rendered | Done], draw: Callable[[str], None]) -> None:
    drawn, pace = 0.0, deque(maxlen=8)
    with tempfile.TemporaryDirectory() as folder:
        sheet = Sheet(Path(folder), painting)
        try:
            for event in painting:
                if isinstance(event, Done):
                    draw(_finished(event))
                    continue
                sheet.put(event)
                pace.append((time.monotonic(), event.done))
                if time.monotonic() - drawn >= REDRAW and event.done < event.total:
                    draw(_growing(sheet, pace))
                    drawn = time.monotonic()
        except KeyboardInterrupt:
            draw(_interrupted(sheet))
        finally:
            _give_back(painting)


class Sheet:
    """The images painted so far, each in its place, as small copies in a folder of their own."""

    def __init__(self, folder: Path, painting: Iterable[Rendered | Done]):
        axes = (painting.x, painting.y) if isinstance(painting, Painting) else None
        self.columns, self.rows = ([axis.label(v) for v in axis.values] for axis in axes) if axes else ([], [])
        self.folder, self.places, self.done, self.total = folder, {}, 0, 0

    def put(self, painted: Rendered) -> None:
        """Take an image in."""
        cell: Cell = painted.cell
        self.columns += [""] * (cell.column + 1 - len(self.columns))  # of a grid whose axes nobody told
        self.rows += [""] * (cell.row + 1 - len(self.rows))
        self.done, self.total = painted.done, painted.total
        with Image.open(painted.file) as image:
            small = image.convert("RGB")
        side = max(64, SHEET // len(self.columns))
        small.thumbnail((side, side))
        file = self.places[cell.column, cell.row] = self.folder / f"{cell.column}-{cell.row}.png"
        small.save(file, compress_level=1)

    def image(self) -> bytes:
        """JPEG of the sheet with empty places for what is missing."""
        empty = self.folder / "empty.png"
        with Image.open(next(iter(self.places.values()))) as one:
            Image.new("RGB", one.size, EMPTY).save(empty)
        places = [(column, row) for row in range(len(self.rows)) for column in range(len(self.columns))]
        files = [self.places.get(place, empty) for place in places]
        return bounded(labelled(files, self.columns, self.rows), SHEET, SHEET_BYTES)


def _growing(sheet: Sheet, pace: deque[tuple[float, int]]) -> str:
    told = [say("image {done} / {total}", done=sheet.done, total=sheet.total)]
    (begun, first), (now, last) = pace[0], pace[-1]
    if last > first:
        told.append(say("{span} left", span=span((now - begun) / (last - first) * (sheet.total - last))))
    head = (
        f'<div style="max-width:{WIDTH}px">{facts(told)}<div style="margin:6px 0">{bar(last / sheet.total)}</div></div>'
    )
    return head + _shown(sheet.image())


def _interrupted(sheet: Sheet) -> str:
    told = say("What was painted before is kept. Run the cell again: it goes on there.")
    if sheet.places:
        told = say(
            "{done} of {total} images are painted and kept. Run the cell again: it goes on there.",
            done=sheet.done,
            total=sheet.total,
        )
    return box(told, BLUE, say("Stopped")) + (_shown(sheet.image()) if sheet.places else "")


def _finished(done: Done) -> str:
    with Image.open(done.image) as image:
        data = bounded(image.convert("RGB"), SHEET, SHEET_BYTES)
    return _shown(data) + aside(say("In full size: {file}", file=done.image))


def _shown(data: bytes) -> str:
    return f'<img alt="{html.escape(say("Grid"))}" style="max-width:100%" src="{source(data)}">'


def _give_back(painting: Iterable[Rendered | Done]) -> None:
    """Let go of the base model that painted, on the GPU, too."""
    events = painting.events if isinstance(painting, Painting) else painting
    if isinstance(events, Iterator) and hasattr(events, "close"):
        events.close()
    gc.collect()  # a model's layers refer to each other
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        torch.cuda.empty_cache()
