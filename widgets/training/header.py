"""The head of the form: the run's name, the model family, and the preset: purpose, number of images, GPU."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import ipywidgets

from lorakit import models, presets
from lorakit.errors import UserError
from lorakit.machine.gpu import GPUS, gigabytes
from widgets.fields import help_html, label_and_help, problem_html, value_text
from widgets.i18n import say
from widgets.layouts import Layouts
from widgets.page import AMBER
from widgets.project.draft import supported_settings

# Fields with this margin end where fields with a button beside them end.
MARGIN = "2px 40px 2px 2px"
MOST_CHANGES = 8  # that are listed after a preset was chosen
PURPOSES = {"character": "Character", "style": "Style", "concept": "Concept"}
SIZES = {"small": "Few images", "middle": "Some images", "large": "Many images"}


class Header:
    """Its rows are `name` and `preset`; the dropdown `family` stands beside the base model. It acts on a Form."""

    def __init__(self, form: Any, layouts: Layouts):
        # silent: a widget that is set from here is no choice of the user
        self._form, self._silent = form, True
        # On Enter or when the field is left: each typed letter would else name another run.
        self.run_name = ipywidgets.Text(continuous_update=False, layout=ipywidgets.Layout(width="auto", margin=MARGIN))
        self.run_name.observe(lambda change: self._choose(run=change["new"].strip()), "value")
        self.about_run, self.problem, self.about_preset = layouts.text(), layouts.text(), layouts.text()
        middle = ipywidgets.VBox([self.run_name, self.problem])
        self.name = layouts.as_row(layouts.text(say("Run name")), middle, self.about_run)
        narrow = ipywidgets.Layout(width="90px", flex="0 0 90px")
        self.family = self._dropdown("family", {name: name for name in models.names()}, narrow)
        even = ipywidgets.Layout(width="auto", flex="1 1 104px", min_width="104px")
        self.dropdowns = {name: self._dropdown(name, {}, even) for name in ("purpose", "size", "gpu_preset")}
        line = ipywidgets.HBox(
            list(self.dropdowns.values()),
            layout=ipywidgets.Layout(width="auto", margin="0 38px 0 0", flex_flow="row wrap"),
        )
        self.preset = layouts.as_row(layouts.text(say("Preset")), ipywidgets.VBox([line]), self.about_preset)

    def show(self, problem: str) -> None:
        """Show what is chosen, the preset's reason, what it changed, and what is wrong with the run's name."""
        choice = self._form.draft.choice
        options = {
            "purpose": self._purposes(choice.family),
            "size": self._sizes(choice.family, choice.purpose),
            "gpu_preset": self._gpu_presets(choice.family),
        }
        self._silent = True
        try:
            # A wrong name stays in the field until it is changed.
            if not problem:
                self.run_name.value = choice.run
            self.family.value = choice.family
            for name, dropdown in self.dropdowns.items():
                pairs = tuple((text, value) for value, text in options[name].items())
                # setting options resets the value, so only when they differ
                if dropdown.options != pairs:
                    dropdown.options = pairs
                dropdown.value = getattr(choice, name)
        finally:
            self._silent = False
        self.problem.value = problem_html(problem)
        self.about_run.value = self._about_run()
        self.about_preset.value = self._about_preset()

    def _dropdown(self, name: str, options: Mapping[str, str], layout: Any) -> Any:
        dropdown = ipywidgets.Dropdown(options=[(text, value) for value, text in options.items()], layout=layout)
        dropdown.observe(lambda change: self._choose(**{name: change["new"]}), "value")
        return dropdown

    def _choose(self, **changes: Any) -> None:
        if self._silent:
            return
        try:
            self._form.choose(**changes)
        except UserError as error:
            # Only the run's name is typed; everything else is chosen from lists.
            self._form.refuse("run", str(error))

    def _purposes(self, family: str) -> dict[str, str]:
        available = {row.purpose for row in presets.presets(family)}
        return {"": say("No preset")} | {name: say(text) for name, text in PURPOSES.items() if name in available}

    def _sizes(self, family: str, purpose: str) -> dict[str, str]:
        sizes = {"": "–"} if not purpose else {}
        # A preset names a range of images; without an upper end it is "100+".
        for row in presets.presets(family):
            if row.purpose == purpose:
                low, high = row.images
                sizes[row.size] = f"{say(SIZES[row.size])}: {low}–{high}" if high else f"{say(SIZES[row.size])}: {low}+"
        return sizes

    def _gpu_presets(self, family: str) -> dict[str, str]:
        names = models.config_class(family).gpu_presets
        # names of GPUs are the same in every language
        gpus = {name: GPUS[round(gigabytes(name))] for name in names}
        return {"": say("Any GPU")} | {n: say("{vram} VRAM ({gpus})", vram=n, gpus=gpus[n]) for n in names}

    def _about_run(self) -> str:
        run = self._form.draft.run
        if run.record_file.exists():
            text = say(
                "This run has started: only memory, saving and sample settings can change. "
                "For anything else choose a new run name."
            )
            return problem_html(text, AMBER)
        return help_html(html.escape(say("Saved in {folder}.", folder=f"runs/{run.name}")))

    def _about_preset(self) -> str:
        choice, (images, per_epoch) = self._form.draft.choice, self._form.images
        row = presets.find(choice.family, choice.purpose, choice.size)
        count = say("{n} images, {m} per epoch (with repeats).", n=images, m=per_epoch) if images else ""
        if row is None:
            about = say("Settings recommended by guides, by what is trained and the number of images.")
            return help_html(html.escape(f"{about} {count}"))
        lines = [help_html(f"{html.escape(say(row.why))} <i>{html.escape(row.source)}</i>")]
        # the preset's epochs were computed for another number of images
        if images and per_epoch != choice.images:
            text = say(
                "The number of epochs is for {m} images per epoch; now there are {n}. Choose the preset again.",
                m=choice.images,
                n=per_epoch,
            )
            lines.append(problem_html(text, AMBER))
        elif count:
            lines.append(help_html(html.escape(count)))
        return "".join(lines) + self._changes()

    def _changes(self) -> str:
        """What the preset or GPU preset that was chosen last changed, and which settings it left as set by hand."""
        changed, kept_by_hand = self._form.changes
        places = supported_settings(self._form.draft.choice.family)
        lines = [
            f"{label_and_help(path, *places[path])[0]} {value_text(old)} → {value_text(new)}"
            for path, (old, new) in changed.items()
        ]
        if len(lines) > MOST_CHANGES:
            lines[MOST_CHANGES:] = [say("and {n} more", n=len(lines) - MOST_CHANGES)]
        kept = ", ".join(label_and_help(path, *places[path])[0] for path in kept_by_hand)
        pieces = [(say("Changed:"), " · ".join(lines)), (say("Kept as set by hand:"), kept)]
        return "".join(help_html(f"<b>{name}</b> {html.escape(text)}") for name, text in pieces if text)
