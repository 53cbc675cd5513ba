"""A grid in a cell: how many pictures are painted, then the labelled sheet."""

from __future__ import annotations

from collections.abc import Iterable

from lorakit.grid import Done, Painted


def show(painting: Iterable[Painted | Done]) -> None:
    """Paint a grid in the foreground of a cell and show it: `show(grid(run, x, y, ...))`."""
    from IPython.display import HTML, Image, display

    view = display(HTML(""), display_id=True)
    for event in painting:
        if isinstance(event, Painted):
            view.update(HTML(f"picture {event.done} / {event.total}"))
        else:
            view.update(Image(filename=str(event.picture)))
