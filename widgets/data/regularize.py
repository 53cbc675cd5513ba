"""Regularization images in a cell: what will be made, how far it is, and the newest image."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from lorakit.errors import UserError
from lorakit.generation.regularize import Generated, Planned, RegularizeConfig, plan
from lorakit.generation.regularize import regularize as regularizing
from lorakit.project import Project
from lorakit.sync import service
from widgets.i18n import say
from widgets.images import thumbnail
from widgets.page import AMBER, BLUE, GREEN, RED, WIDTH, aside, bar, box, facts, span
from widgets.project.draft import Draft
from widgets.project.labels import labelled

REDRAW = 1.0  # s between two drawings at least
SIDE = 320  # px of the newest image
NOTES = 8  # lines at most


def regularize(
    project: Project, class_name: str = "1girl", *, use_captions: bool = True, seed: int = 420, generate: bool = True
) -> None:
    """Generate a regularization image for each training image with the base model of the form; with `generate=False`
    only show what would be generated, since it takes long and later runs train on the result.

    Each prompt is the image's caption without the trigger word, or `class_name` for all. The interrupt button stops
    without an error: finished images are kept, and running the cell again continues.
    """
    from IPython.display import HTML, display

    view = display(HTML(say("reading the images…")), display_id=True)
    try:
        with suppress(KeyboardInterrupt):  # pressed again while the model is freed
            how = RegularizeConfig(class_name=class_name, use_captions=use_captions, seed=seed)
            shown_view = View(project, how, lambda shown: view.update(HTML(shown)))
            shown_view.follow() if generate else shown_view.tell()
    except UserError as error:
        view.update(HTML(box(labelled(str(error)), RED)))


class View:
    """What the cell shows while images are made."""

    def __init__(self, project: Project, how: RegularizeConfig, draw: Callable[[str], None]):
        self.project, self.how, self.draw = project, how, draw
        self.config = Draft(project).value
        self.planned = plan(project, self.config, how)
        self.newest: Generated | None = None
        self.notes: list[str] = []
        self.new, self.began = 0, 0.0  # images generated in this session; when the first was finished

    def tell(self) -> None:
        """Show what would be made."""
        self.draw(self._page(say("Nothing is generated yet: set generate=True and run the cell again."), BLUE))

    def follow(self) -> None:
        """Make all images, or as many as there are until the interrupt button is pressed."""
        self.draw(self._page())
        events, drawn = regularizing(self.project, self.config, self.how), 0.0
        try:
            for event in events:
                if isinstance(event, Generated):
                    self._take(event)
                else:
                    self.notes.append(str(event))
                if time.monotonic() - drawn >= REDRAW:
                    self.draw(self._page())
                    drawn = time.monotonic()
            self.draw(self._page(self._done(), GREEN))
        except KeyboardInterrupt:
            self.draw(self._page(say("Stopped. Finished images are kept: run the cell again to continue."), AMBER))
        finally:
            events.close()
            _give_back()
            service.start(self.project)

    def _take(self, event: Generated) -> None:
        self.newest = event
        if event.is_new:
            self.new += 1
            self.began = self.began or time.monotonic()

    def _left(self) -> list[str]:
        """How long it takes yet, once two images tell."""
        if self.new < 2:
            return []
        each = (time.monotonic() - self.began) / (self.new - 1)
        return [say("{span} left", span=span(each * (self.newest.total - self.newest.done)))]

    def _done(self) -> str:
        if not self.newest:
            return say("No image could be made.")
        return say(
            "{n} regularization images are there, {new} of them new. New runs train on them as well, in twice as "
            "many steps.",
            n=self.newest.total,
            new=self.new,
        )

    def _page(self, text: str = "", colour: str = "") -> str:
        newest = self.newest
        sizes = sorted({(one.sampling.width, one.sampling.height) for one in self.planned})
        size = f"{sizes[0][0]} × {sizes[0][1]} px" if len(sizes) == 1 else say("{n} sizes", n=len(sizes))
        head = [
            say("{n} regularization images", n=len(self.planned)),
            size,
            str(self.planned[0].file.parent.name) + "/",
        ]
        parts = [facts(head)]
        if any(run.record_file.exists() for run in self.project.runs()):
            parts.append(
                aside(say("Runs started without them can be resumed only while the folder reg/ is moved elsewhere."))
            )
        if newest:
            parts.append(f'<div style="margin:6px 0">{bar(newest.done / newest.total)}</div>')
            left = [] if text else self._left()
            parts.append(facts([say("image {done} / {total}", done=newest.done, total=newest.total), *left]))
            parts.append(_image(newest.planned))
        if not text and not self.new:
            parts.append(aside(say("loading the base model…")))
        parts += [box(text, colour)] if text else []
        parts += [aside(note) for note in self.notes[:NOTES]]
        return f'<div style="max-width:{WIDTH}px">{"".join(parts)}</div>'


def _image(one: Planned) -> str:
    """An image above the prompt that it was generated from."""
    shown = f'<img alt="" style="max-width:100%;display:block;margin:6px 0" src="{thumbnail(one.file, SIDE)}">'
    return shown + aside(one.prompt)


def _give_back() -> None:
    """Release the base model, on the GPU, too."""
    gc.collect()  # a model's layers refer to each other
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        torch.cuda.empty_cache()
