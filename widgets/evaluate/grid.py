"""A grid in a cell: its contact sheet, shown while the images are generated."""

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

from lorakit.data.listing import Note
from lorakit.generation.contact_sheet import labelled
from lorakit.generation.grid import Axis, Cell, Done, Rendered
from widgets.i18n import say
from widgets.images import bounded, source
from widgets.page import AMBER, BLUE, WIDTH, aside, bar, box, facts, span

REDRAW = 2.0  # s between two drawings at least
# The sheet as shown is at most so many px wide and so many bytes large; base64 adds a third to the bytes.
SHEET, SHEET_BYTES = 1600, 440_000
EMPTY = "#e5e5e5"  # a place whose image is not there yet


@dataclass(frozen=True)
class ShownGrid:
    """The events of a grid with its axes, so that the sheet has its labels from the first image on."""

    x: Axis
    y: Axis
    events: Iterator[Rendered | Done]

    def __iter__(self) -> Iterator[Rendered | Done]:
        return self.events


def show_grid(events: Iterable[Rendered | Done]) -> None:
    """Generate a grid in this cell and show it as it grows: `show_grid(choice.grid())`, `show_grid(grid(...))`.

    The interrupt button stops it without an error; images are kept, and the same cell continues from there.
    """
    from IPython.display import HTML, display

    view = display(HTML(say("Loading the base model…")), display_id=True)
    # The button may be pressed once more while the base model is freed.
    with suppress(KeyboardInterrupt):
        _show(events, lambda shown: view.update(HTML(shown)))


def _show(events: Iterable[Rendered | Done], draw: Callable[[str], None]) -> None:
    # (time in s, images done) of the newest images, from which the time left follows.
    drawn, pace, notes = 0.0, deque(maxlen=8), []
    # Small copies only: the full images are in the project already.
    with tempfile.TemporaryDirectory() as folder:
        sheet = Sheet(Path(folder), events)
        try:
            for event in events:
                if isinstance(event, Note):
                    notes.append(str(event))
                    draw(box("\n".join(notes), AMBER))
                    continue
                if isinstance(event, Done):
                    draw(_finished(event) + (box("\n".join(notes), AMBER) if notes else ""))
                    continue
                sheet.put(event)
                pace.append((time.monotonic(), event.done))
                if time.monotonic() - drawn >= REDRAW and event.done < event.total:
                    draw(_growing(sheet, pace))
                    drawn = time.monotonic()
        except KeyboardInterrupt:
            draw(_interrupted(sheet))
        finally:
            _free(events)


class Sheet:
    """The images so far, each in its place, as small copies in a folder of their own."""

    def __init__(self, folder: Path, events: Iterable[Rendered | Done]):
        axes = (events.x, events.y) if isinstance(events, ShownGrid) else None
        # Labels of the columns and rows.
        self.columns, self.rows = ([axis.label(v) for v in axis.values] for axis in axes) if axes else ([], [])
        # `places`: (column, row) -> file of the small copy.
        self.folder, self.places, self.done, self.total = folder, {}, 0, 0

    def put(self, image: Rendered) -> None:
        """Add an image."""
        cell: Cell = image.cell
        # Events without axes: columns and rows are added as their images come.
        self.columns += [""] * (cell.column + 1 - len(self.columns))
        self.rows += [""] * (cell.row + 1 - len(self.rows))
        self.done, self.total = image.done, image.total
        with Image.open(image.file) as opened:
            small = opened.convert("RGB")
        side = max(64, SHEET // len(self.columns))
        small.thumbnail((side, side))
        file = self.places[cell.column, cell.row] = self.folder / f"{cell.column}-{cell.row}.png"
        # PNG, as the sheet becomes a JPEG once more; level 1 is the fastest.
        small.save(file, compress_level=1)

    def image(self) -> bytes:
        """JPEG of the sheet with empty places for what is missing."""
        empty = self.folder / "empty.png"
        # All images of a grid have one size.
        with Image.open(next(iter(self.places.values()))) as one:
            Image.new("RGB", one.size, EMPTY).save(empty)
        places = [(column, row) for row in range(len(self.rows)) for column in range(len(self.columns))]
        files = [self.places.get(place, empty) for place in places]
        return bounded(labelled(files, self.columns, self.rows), SHEET, SHEET_BYTES)


def _growing(sheet: Sheet, pace: deque[tuple[float, int]]) -> str:
    texts = [say("image {done} / {total}", done=sheet.done, total=sheet.total)]
    # time and image of the first and of the last of the newest images
    (begun, first), (now, last) = pace[0], pace[-1]
    if last > first:
        texts.append(say("{span} left", span=span((now - begun) / (last - first) * (sheet.total - last))))
    progress = f'<div style="margin:6px 0">{bar(last / sheet.total)}</div>'
    head = f'<div style="max-width:{WIDTH}px">{facts(texts)}{progress}</div>'
    return head + _image_html(sheet.image())


def _interrupted(sheet: Sheet) -> str:
    text = say("Images generated before are kept. Run the cell again to continue.")
    if sheet.places:
        text = say(
            "{done} of {total} images are generated and kept. Run the cell again to continue.",
            done=sheet.done,
            total=sheet.total,
        )
    return box(text, BLUE, say("Stopped")) + (_image_html(sheet.image()) if sheet.places else "")


def _finished(done: Done) -> str:
    with Image.open(done.image) as image:
        data = bounded(image.convert("RGB"), SHEET, SHEET_BYTES)
    return _image_html(data) + aside(say("Full size: {file}", file=done.image))


def _image_html(data: bytes) -> str:
    return f'<img alt="{html.escape(say("Grid"))}" style="max-width:100%" src="{source(data)}">'


def _free(events: Iterable[Rendered | Done]) -> None:
    """Free the base model, in memory and on the GPU."""
    events = events.events if isinstance(events, ShownGrid) else events
    # Closing a generator runs its `finally`, which lets the model go out of scope.
    if isinstance(events, Iterator) and hasattr(events, "close"):
        events.close()
    # Reference counting alone leaves a model in memory: its layers refer to each other.
    gc.collect()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        torch.cuda.empty_cache()
