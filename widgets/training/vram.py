"""Whether a run fits into VRAM: computed for the GPU at hand, with the settings that save enough where it does not."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

import ipywidgets

from lorakit.errors import UserError
from lorakit.machine.gpu import GPUS, Gpu, at_hand
from lorakit.run.config import RunConfig
from lorakit.run.fits import ROOM, Fit, descend, first_that_fits
from widgets.fields import help_html, problem_html, value_text
from widgets.i18n import say
from widgets.layouts import Layouts
from widgets.page import AMBER, GREEN, RED, aside, box, facts
from widgets.project.labels import labelled

# Parts of a run that decide its need.
PARTS = ("model", "data", "adapter", "optimizer", "loop", "memory", "sample", "stages")


def need_html(config: RunConfig) -> str:
    """What a run needs and whether it fits, as HTML; takes seconds. Without a GPU: which size is enough."""
    gpu = at_hand()
    rungs = descend(config, gpu.capability) if gpu else descend(config)
    if gpu is None:
        as_set = next(rungs)
        return "".join([_figures(as_set), box(_enough(as_set), GREEN), *_notes(as_set)])
    as_set, first = first_that_fits(rungs, gpu.memory)
    return "".join([_figures(as_set), _verdict(as_set, first, gpu), *_notes(as_set)])


class VramRow:
    """A row of the form with a button that computes the need, and the answer until a setting changes it."""

    def __init__(self, form: Any, layouts: Layouts):
        self._form, self._shown_for = form, None
        self.button = ipywidgets.Button(description=say("Will it fit?"), layout=ipywidgets.Layout(width="auto"))
        self.button.on_click(lambda _: self.compute())
        self.answer, about = layouts.text(), layouts.text()
        about.value = help_html(html.escape(say("Computes the VRAM that this run needs; takes some seconds.")))
        middle = ipywidgets.VBox([self.button, self.answer])
        self.widget = layouts.as_row(layouts.text(say("VRAM")), middle, about)

    def compute(self) -> None:
        """Show the need of the settings as they are now."""
        self.button.disabled = True
        try:
            config = self._form.value
            self.answer.value = aside(say("Computing…"))
            self.answer.value, self._shown_for = need_html(config), _deciding(config)
        except UserError as error:
            self.answer.value = problem_html(labelled(str(error)), AMBER)
        finally:
            self.button.disabled = False

    def refresh(self) -> None:
        """Clear an answer that no longer holds."""
        if not self.answer.value:
            return
        try:
            holds = self._shown_for == _deciding(self._form.value)
        except UserError:
            holds = False
        if not holds:
            self.answer.value = ""


def _deciding(config: RunConfig) -> list[Any]:
    return [getattr(config, part) for part in PARTS]


# ---- sentences -------------------------------------------------------------------------------------------------------


def _figures(fit: Fit) -> str:
    need = fit.need
    texts = [say("caching {n} GB", n=_gb(need.caching))] if need.caching else []
    texts.append(say("training {n} GB", n=_gb(need.training)))
    if need.sampling:
        text = say("samples {n} GB ({m} GB in tiles)", n=_gb(need.sampling), m=_gb(need.tiled))
        texts.append(text if need.tiled < need.sampling else say("samples {n} GB", n=_gb(need.sampling)))
    return facts([say("VRAM needed"), *texts])


def _verdict(as_set: Fit, first: Fit | None, gpu: Gpu) -> str:
    fields = {"gpu": gpu.name, "memory": _gb(gpu.memory)}
    if first is as_set and as_set.need.least <= ROOM * gpu.memory:
        return box(say("It fits: {gpu} has {memory} GB.", **fields), GREEN)
    if first is as_set:
        return box(
            say("It barely fits: {gpu} has {memory} GB. Close other programs that use the GPU.", **fields), AMBER
        )
    title = say("It does not fit: {gpu} has {memory} GB", **fields)
    if first is None:
        return box(say("Take a smaller resolution, or a GPU with more memory."), RED, title)
    settings = " · ".join(f"{labelled(name)} {value_text(value)}" for name, value in first.changes.items())
    return box(
        say("With these settings it needs {n} GB: {settings}", n=_gb(first.need.least), settings=settings), AMBER, title
    )


def _enough(fit: Fit) -> str:
    sizes = [size for size in GPUS if fit.need.least <= ROOM * 1e9 * size]
    if not sizes:
        return say("No GPU is here; it needs one with more than {n} GB.", n=max(GPUS))
    return say("No GPU is here; one with {n} GB is enough ({gpus}).", n=sizes[0], gpus=GPUS[sizes[0]])


def _notes(fit: Fit) -> Iterator[str]:
    yield aside(say("Computed from the model's shapes, not measured on a GPU; about 1 GB for CUDA itself is included."))
    if fit.is_usual:
        yield aside(say("The base model is not on this machine: the sizes are those of the usual one."))


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f}"
