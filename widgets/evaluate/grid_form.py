"""A form that collects what a grid compares: two axes, their values, and what holds everywhere else."""

from __future__ import annotations

import html
from dataclasses import replace
from typing import Any

import ipywidgets

from lorakit.config import ConfigError
from lorakit.data.caption_files import one_line
from lorakit.data.caption_parts import tags_of
from lorakit.data.captions import trained_caption, without_separators
from lorakit.data.listing import REG_FOLDERS
from lorakit.diffusion.prompts import escaped
from lorakit.errors import UserError
from lorakit.generation.generator import OFF
from lorakit.generation.grid import Axis, grid
from lorakit.project import Run
from lorakit.run.config import RunConfig, read_config
from widgets.evaluate.grid import ShownGrid
from widgets.i18n import say
from widgets.page import GREY, RED
from widgets.plain import show
from widgets.project.labels import labelled

# axis of a grid -> its label
NAMES = {"checkpoint": "Checkpoints", "strength": "Strengths", "prompt": "Prompts", "seed": "Seeds"}
COLUMNS = 8  # checkpoints that are compared unless the user chooses otherwise
CAPTIONS = 2  # captions of the dataset among the suggested prompts
UNSEEN = "full body, spacesuit, holding a flag, on the moon"  # a scene that no dataset has


def grid_form(run: Run) -> GridForm:
    """Show the form. The next cell generates the grid: `show_grid(choice.grid())`."""

    form = GridForm(run)
    show(form.widget)
    return form


def suggested(run: Run, config: RunConfig) -> list[str]:
    """Prompts that show what a LoRA has learned.

    The trigger word alone, captions of the dataset, sample prompts, a scene that is in no dataset, and a caption
    without the trigger word: if the subject shows there, it leaks.
    """
    data, trigger = config.data, config.data.trigger
    folder = run.project.folder / data.folder
    # captions of regularization images say nothing about the subject
    files = sorted(file for file in folder.rglob(f"*{data.caption_extension}") if not {*REG_FOLDERS} & {*file.parts})
    # of alternatives the first
    is_one = data.caption_lines == "one"
    seen = [
        one_line(file.read_text(encoding="utf-8", errors="replace").splitlines()[: None if is_one else 1])
        for file in files[:: len(files) // CAPTIONS or 1]
    ]
    seen = [trained_caption([caption], trigger, data) for caption in dict.fromkeys(seen) if caption][:CAPTIONS]
    triggers, seen = tags_of(trigger), [without_separators(caption) for caption in seen]
    without = [", ".join(tag for tag in tags_of(caption) if tag not in triggers) for caption in seen[:1]]
    unseen = [f"{trigger}, {UNSEEN}"] if trigger else []
    # Brackets are letters in captions, and weights in prompts.
    first, last = ([escaped(text) for text in texts] for texts in ([trigger, *seen], [*unseen, *without]))
    prompts = [*first, *config.sample.prompts[:CAPTIONS], *last]
    # without empty ones and doubles, in this order
    return list(dict.fromkeys(prompt for prompt in prompts if prompt))


class GridForm:
    """Display `widget`; `axes()` and `grid()` return what is chosen in it."""

    def __init__(self, run: Run):
        self.run, self.config = run, read_config(run)
        self.steps = run.lora_steps()
        names = [(say(label), name) for name, label in NAMES.items()]
        sampling, prompts = self.config.sample, suggested(run, self.config)
        checkpoints = [(say("step {n}", n=step), step) for step in reversed(self.steps)]
        checkpoints.append((say("without LoRA"), OFF))
        self.x = _field(ipywidgets.Dropdown(options=names, value="checkpoint"), say("Columns"))
        self.y = _field(ipywidgets.Dropdown(options=names, value="strength"), say("Rows"))
        self.every = _field(
            ipywidgets.IntSlider(self._spacing(), 1, max(2, len(self.steps))), say("Every nth checkpoint")
        )
        self.off = _field(ipywidgets.Checkbox(True), say("Also without LoRA"))
        self.strengths = _field(ipywidgets.Text("0.6, 0.8, 1"), say("Strengths"))
        self.prompts = _field(ipywidgets.Textarea("\n".join(prompts), rows=8), say("Prompts"))
        self.seeds = _field(ipywidgets.Text(", ".join(str(sampling.seed + i) for i in range(3))), say("Seeds"))
        self.checkpoint = _field(ipywidgets.Dropdown(options=checkpoints), say("Checkpoint"))
        self.strength = _field(ipywidgets.FloatSlider(1.0, min=0, max=2, step=0.05), say("Strength"))
        # The first suggestion is the trigger word alone, which is a poor prompt for a comparison.
        self.prompt = _field(ipywidgets.Textarea((prompts[1:] or prompts or [""])[0], rows=3), say("Prompt"))
        self.seed = _field(ipywidgets.IntText(sampling.seed), say("Seed"))
        self.width = _field(ipywidgets.IntText(sampling.width), say("Width, px"))
        self.height = _field(ipywidgets.IntText(sampling.height), say("Height, px"))
        self.sampling_steps = _field(ipywidgets.IntSlider(sampling.steps, 1, 100), say("Sampling steps"))
        self.summary = ipywidgets.HTML()
        # Axis -> (its fields, the fields that are shown instead while it is not an axis).
        self.values = {
            "checkpoint": ([self.every, self.off], [self.checkpoint]),
            "strength": ([self.strengths], [self.strength]),
            "prompt": ([self.prompts], [self.prompt]),
            "seed": ([self.seeds], [self.seed]),
        }
        fields = [self.x, self.y, *(field for pair in self.values.values() for fields in pair for field in fields)]
        fields += [self.width, self.height, self.sampling_steps]
        for field in fields:
            field.observe(self._changed, "value")
        self.widget = ipywidgets.VBox([*fields, self.summary], layout=ipywidgets.Layout(max_width="720px"))
        self._changed(None)

    def axes(self) -> tuple[Axis, Axis]:
        """Columns and rows. Raises ConfigError for values that cannot be generated."""
        if self.x.value == self.y.value:
            raise ConfigError(say("Columns and rows are the same. Choose two different ones."))
        return self._axis(self.x.value), self._axis(self.y.value)

    def grid(self) -> ShownGrid:
        """The grid, ready to be shown: `show_grid(choice.grid())`. Images that exist are kept.

        Raises ConfigError for values that cannot be generated.
        """
        x, y = self.axes()
        sampling = replace(
            self.config.sample,
            width=self.width.value,
            height=self.height.value,
            steps=self.sampling_steps.value,
            seed=self.seed.value,
        )
        events = grid(
            self.run,
            x,
            y,
            prompt=self.prompt.value.strip(),
            sampling=sampling,
            checkpoint=self.checkpoint.value,
            strength=self.strength.value,
            # the folder below grids/; the same two axes reuse its images
            name=f"{x.name}-{y.name}",
        )
        return ShownGrid(x, y, events)

    def _spacing(self) -> int:
        """One checkpoint in so many is compared at first, which makes at most COLUMNS of them."""
        # Rounded up.
        return max(1, -(-len(self.steps) // COLUMNS))

    def _axis(self, name: str) -> Axis:
        # Counted from the newest checkpoint, which is never left out.
        if name == "checkpoint":
            chosen = self.steps[::-1][:: self.every.value][::-1]
            return Axis(name, (*([OFF] if self.off.value else []), *chosen))
        if name == "prompt":
            return Axis(name, tuple(line.strip() for line in self.prompts.value.splitlines() if line.strip()))
        field, kind = (self.strengths, float) if name == "strength" else (self.seeds, int)
        return Axis(name, tuple(_numbers(field.description, field.value, kind)))

    def _changed(self, _: Any) -> None:
        chosen = {self.x.value, self.y.value}
        for name, pair in self.values.items():
            for fields, is_shown in zip(pair, (name in chosen, name not in chosen), strict=True):
                for field in fields:
                    field.layout.display = "" if is_shown else "none"
        try:
            x, y = self.axes()
        except UserError as error:
            self.summary.value = f'<div style="color:{RED};line-height:1.5">{html.escape(labelled(str(error)))}</div>'
            return
        text = say(
            "{x} columns × {y} rows = {n} images. Generate them in the next cell: {code}",
            x=len(x.values),
            y=len(y.values),
            n=len(x.values) * len(y.values),
            code="show_grid(choice.grid())",
        )
        # Prompts would fill the line.
        columns = " · ".join(x.label(value) for value in x.values) if x.name != "prompt" else ""
        self.summary.value = (
            f'<div style="line-height:1.5"><div>{html.escape(text)}</div>'
            f'<div style="color:{GREY}">{html.escape(columns)}</div></div>'
        )


def _field(widget: Any, label: str) -> Any:
    """A field as wide as the form, its label beside it."""
    widget.description = label
    widget.style.description_width = "112px"
    widget.layout.width = "98%"
    return widget


def _numbers(what: str, text: str, kind: type) -> list[float]:
    """Numbers separated by commas, ASCII or Chinese. Raises ConfigError."""
    numbers = []
    for part in text.replace("，", ",").split(","):
        try:
            numbers.append(kind(part.strip()))
        except ValueError:
            raise ConfigError(
                say(
                    "{what}: {part} is not a number. Write numbers such as 1, 2, 3.", what=what, part=repr(part.strip())
                )
            ) from None
    return numbers
