"""The head of the form: the run's name, the model family, and the preset with its purpose, size and GPU."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import ipywidgets

from lorakit import models, presets
from lorakit.errors import UserError
from widgets.fields import Layouts, help_html, label_and_help, problem_html, value_text
from widgets.i18n import say
from widgets.page import AMBER
from widgets.project.draft import usable

MARGIN = "2px 40px 2px 2px"  # ends where fields with a button beside them end
TOLD = 8  # changes told after a preset was chosen
PURPOSES = {"character": "character", "style": "style", "concept": "concept"}
SIZES = {"small": "few", "middle": "some", "large": "many"}  # images


class Header:
    """Its rows are `name` and `preset`; the dropdown `family` stands beside the base model. It acts on a Form."""

    def __init__(self, form: Any, layouts: Layouts):
        self._form, self._silent = form, True
        self._name = ipywidgets.Text(continuous_update=False, layout=ipywidgets.Layout(width="auto", margin=MARGIN))
        self._name.observe(lambda change: self._choose(run=change["new"].strip()), "value")
        self._begun, self._trouble, self._why = layouts.text(), layouts.text(), layouts.text()
        middle = ipywidgets.VBox([self._name, self._trouble])
        self.name = layouts.as_row(layouts.text(say("Run")), middle, self._begun)
        narrow = ipywidgets.Layout(width="90px", flex="0 0 90px")
        self.family = self._dropdown("family", {name: name for name in models.names()}, narrow)
        even = ipywidgets.Layout(width="auto", flex="1 1 104px", min_width="104px")
        self._purpose, self._size, self._gpu_preset = (
            self._dropdown(name, {}, even) for name in ("purpose", "size", "gpu_preset")
        )
        chosen = ipywidgets.HBox(
            [self._purpose, self._size, self._gpu_preset],
            layout=ipywidgets.Layout(width="auto", margin="0 38px 0 0", flex_flow="row wrap"),
        )
        self.preset = layouts.as_row(layouts.text(say("Preset")), ipywidgets.VBox([chosen]), self._why)

    def _dropdown(self, name: str, options: Mapping[str, str], layout: Any) -> Any:
        made = ipywidgets.Dropdown(options=[(text, value) for value, text in options.items()], layout=layout)
        made.observe(lambda change: self._choose(**{name: change["new"]}), "value")
        return made

    def _choose(self, **changes: Any) -> None:
        if self._silent:
            return
        try:
            self._form.choose(**changes)
        except UserError as error:  # only a name can be wrong; the others are chosen from what there is
            self._form.refuse("run", str(error))

    def show(self, trouble: str) -> None:
        """Show what is chosen, why a preset says what it says, what it changed, and what is wrong with the name."""
        choice = self._form.draft.choice
        self._silent = True
        try:
            if not trouble:
                self._name.value = choice.run
            self.family.value = choice.family
            for widget, options in (
                (self._purpose, self._purposes(choice.family)),
                (self._size, self._sizes(choice.family, choice.purpose)),
                (
                    self._gpu_preset,
                    {"": say("any GPU")}
                    | {gpu_preset: gpu_preset for gpu_preset in models.config_class(choice.family).gpu_presets},
                ),
            ):
                pairs = tuple((text, value) for value, text in options.items())
                if widget.options != pairs:
                    widget.options = pairs
            self._purpose.value, self._size.value, self._gpu_preset.value = (
                choice.purpose,
                choice.size,
                choice.gpu_preset,
            )
        finally:
            self._silent = False
        self._trouble.value = problem_html(trouble)
        self._begun.value = self._about_name()
        self._why.value = self._about_preset()

    def _purposes(self, family: str) -> dict[str, str]:
        known = {row.purpose for row in presets.presets(family)}
        return {"": say("no preset")} | {name: say(text) for name, text in PURPOSES.items() if name in known}

    def _sizes(self, family: str, purpose: str) -> dict[str, str]:
        found = {"": "–"} if not purpose else {}
        for row in presets.presets(family):
            if row.purpose == purpose:
                low, high = row.images
                found[row.size] = f"{say(SIZES[row.size])}: {low}–{high}" if high else f"{say(SIZES[row.size])}: {low}+"
        return found

    def _about_name(self) -> str:
        run = self._form.draft.run
        if run.record_file.exists():
            text = say(
                "This run has begun: only memory, save and sample settings may change. Another name is a new run."
            )
            return problem_html(text, AMBER)
        return help_html(html.escape(say("Its folder is {folder}.", folder=f"runs/{run.name}")))

    def _about_preset(self) -> str:
        choice, (images, an_epoch) = self._form.draft.choice, self._form.images
        row = presets.find(choice.family, choice.purpose, choice.size)
        there = say("There are {n} images, {m} an epoch.", n=images, m=an_epoch) if images else ""
        if row is None:
            return help_html(
                html.escape(f"{say('Settings of a guide for what is trained and how many images there are.')} {there}")
            )
        lines = [help_html(f"{html.escape(say(row.why))} <i>{html.escape(row.source)}</i>")]
        if images and an_epoch != choice.images:
            text = say(
                "Its epochs are for {m} images an epoch; now there are {n}: choose it again.",
                m=choice.images,
                n=an_epoch,
            )
            lines.append(problem_html(text, AMBER))
        elif there:
            lines.append(help_html(html.escape(there)))
        return "".join(lines) + self._changes()

    def _changes(self) -> str:
        """What the preset or GPU preset that was chosen last changed, and what it did not."""
        changed, stayed = self._form.changes
        places = usable(self._form.draft.choice.family)
        lines = [
            f"{label_and_help(path, *places[path])[0]} {value_text(old)} → {value_text(new)}"
            for path, (old, new) in changed.items()
        ]
        if len(lines) > TOLD:
            lines[TOLD:] = [say("and {n} more", n=len(lines) - TOLD)]
        kept = ", ".join(label_and_help(path, *places[path])[0] for path in stayed)
        found = [(say("Changed:"), " · ".join(lines)), (say("Stays as set by hand:"), kept)]
        return "".join(help_html(f"<b>{name}</b> {html.escape(text)}") for name, text in found if text)
