"""The form for tagging: which tagger, its settings, how its results become captions, and buttons that run it."""

from __future__ import annotations

import html
from dataclasses import MISSING, fields, replace
from typing import Any

import ipywidgets

from lorakit import taggers
from lorakit.config import Config, ConfigError, check, from_dict
from lorakit.errors import UserError
from lorakit.project import Project
from lorakit.tags.tagging import TaggingConfig, read_tagging, write_tagging
from widgets.fields import Row, help_html, is_basic
from widgets.i18n import say
from widgets.layouts import Layouts
from widgets.page import AMBER, RED, aside, box
from widgets.plain import show
from widgets.project.draft import Draft
from widgets.project.labels import labelled
from widgets.tags.tagging import show_tagging

# The settings of TaggingConfig that matter for taggers that write sentences; all others are about tags.
FOR_SENTENCES = ("which", "mix", "profile")


def tag_images(project: Project) -> None:
    """Show the form in which a tagger is selected, set and run; `run_tagger(project)` runs it without the form."""
    from IPython.display import HTML, display

    try:
        show(TaggingForm(project).widget)
    except UserError as error:
        display(HTML(box(labelled(str(error)), RED)))


class TaggingForm:
    """The form; display its `widget`. Every change is written to the project's tagging.yaml at once.

    rows   setting, such as "wd14.source" or "tagging.profile" -> its row
    """

    def __init__(self, project: Project):
        self.project, self._layouts = project, Layouts()
        wide = ipywidgets.Layout(width="auto")
        self.button = ipywidgets.Button(description=say("Tag images"), button_style="primary", layout=wide)
        self.button.on_click(lambda _: self.run(preview=False))
        tooltip = say("Scores all images; the tag editor then shows what the tagger sees.")
        self.preview = ipywidgets.Button(description=say("Preview (writes nothing)"), tooltip=tooltip, layout=wide)
        self.preview.on_click(lambda _: self.run(preview=True))
        self.status, self.trigger_text = ipywidgets.HTML(), ipywidgets.HTML()
        self.trigger = ipywidgets.Text(continuous_update=False, layout=ipywidgets.Layout(width="200px"))
        self.trigger.observe(self._set_trigger, "value")
        options = [(name, name) for name in taggers.names()]
        self.tagger = ipywidgets.Dropdown(options=options, layout=self._layouts.wide)
        self.tagger.observe(lambda change: self._select(change["new"]), "value")
        self._about = self._layouts.text()
        self.widget = ipywidgets.VBox(layout=ipywidgets.Layout(width="100%", max_width="1240px"))
        self._build()

    def run(self, preview: bool) -> None:
        """Run the tagger below the form; after an interruption, pressing the button again continues."""
        show_tagging(self.project, preview, lambda text: setattr(self.status, "value", text))

    def set(self, path: str, value: Any) -> None:
        """Set one setting, such as "wd14.source" or "tagging.profile".

        Raises ConfigError, and stores nothing, for a wrong value.
        """
        owner, _, field = path.partition(".")
        if owner == "tagging":
            self.config = replace(self.config, **{field: check(TaggingConfig, field, value)})
        else:
            config_class = taggers.config_class(owner)
            settings = {**self.settings, field: check(config_class, field, value)}
            # a secret that was typed into the wrong field must not be written to disk
            if problem := _problems(config_class, settings).get(field):
                raise ConfigError(problem)
            self.settings = settings
        self._store()

    def reset(self, path: str) -> None:
        """Set one setting back to its default."""
        owner, _, field = path.partition(".")
        if owner == "tagging":
            self.config = replace(self.config, **{field: getattr(TaggingConfig(), field)})
        else:
            self.settings = {name: value for name, value in self.settings.items() if name != field}
        self._store()

    def _store(self) -> None:
        # YAML has no tuples.
        plain = {name: [*value] if isinstance(value, tuple) else value for name, value in self.settings.items()}
        write_tagging(self.project, self.name, plain, self.config)
        self._draw()

    def _select(self, name: str) -> None:
        if name == self.name:
            return
        try:
            # Each tagger's settings are kept in the file, also while another one is selected.
            write_tagging(self.project, name, read_tagging(self.project, name)[1], self.config)
            self._build()
        except ConfigError as error:
            self.status.value, self.tagger.value = box(labelled(str(error)), RED), self.name

    def _build(self) -> None:
        """Make the rows of the selected tagger and of TaggingConfig; advanced ones are folded away."""
        self.name, self.settings, self.config = read_tagging(self.project)
        self.tagger.value = self.name
        self.rows: dict[str, Row] = {}
        layouts = self._layouts
        # An invisible button, as the rows below have one: the fields end at the same place.
        line = ipywidgets.HBox([self.tagger, ipywidgets.Button(layout=layouts.no_button)], layout=layouts.line)
        basic, advanced = [layouts.as_row(layouts.text(say("Tagger")), ipywidgets.VBox([line]), self._about)], []
        for owner, config_class in ((self.name, taggers.config_class(self.name)), ("tagging", TaggingConfig)):
            for f in fields(config_class):
                if owner == "tagging" and taggers.output(self.name) == "sentence" and f.name not in FOR_SENTENCES:
                    continue
                path = f"{owner}.{f.name}"
                row = Row(layouts, path, (config_class, f.name), self._changed, lambda row: self.reset(row.path))
                self.rows[path] = row
                (basic if is_basic(config_class, f.name) else advanced).append(row.widget)
        folded = ipywidgets.Accordion(children=[ipywidgets.VBox(advanced)], selected_index=None)
        # The method, as ipywidgets 7 has no `titles`.
        folded.set_title(0, say("More settings"))
        wrapped = ipywidgets.Layout(flex_flow="row wrap", align_items="center")
        trigger = ipywidgets.HBox([self.trigger_text, self.trigger], layout=wrapped)
        buttons = ipywidgets.HBox([self.button, self.preview], layout=wrapped)
        self.widget.children = [*basic, folded, trigger, buttons, self.status]
        self._draw()

    def _changed(self, row: Row) -> None:
        try:
            self.set(row.path, row.control.read())
        except ConfigError as error:
            row.show(None, by_hand=True, problem=labelled(str(error)), keeps=True)

    def _set_trigger(self, change: dict[str, Any]) -> None:
        if not change["new"].strip():
            return
        try:
            Draft(self.project).set("data.trigger", change["new"].strip())
        except UserError as error:
            self.status.value = box(labelled(str(error)), RED)
        self._draw()

    def _draw(self) -> None:
        self._about.value = help_html(html.escape(say(taggers.about(self.name))))
        trigger = Draft(self.project).data.trigger
        text = say("Captions start with the trigger word: {trigger}", trigger=trigger)
        self.trigger_text.value = aside(text if trigger else say("No trigger word yet. Set it here:"))
        self.trigger.layout.display = "none" if trigger else ""
        config_class = taggers.config_class(self.name)
        problems = _problems(config_class, self.settings)
        values = {self.name: {**defaults(config_class), **self.settings}, "tagging": vars(self.config)}
        usual = {self.name: defaults(config_class), "tagging": vars(TaggingConfig())}
        for path, row in self.rows.items():
            owner, _, field = path.partition(".")
            value = values[owner][field]
            problem = problems.get(field, "") if owner == self.name else ""
            row.show(value, by_hand=value != usual[owner][field], problem=problem, colour=AMBER)
        self.button.disabled = self.preview.disabled = bool(problems)


def defaults(config_class: type[Config]) -> dict[str, Any]:
    """The default of each setting; "" for those that must be set."""
    values = {
        f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in fields(config_class)
    }
    return {name: "" if value is MISSING else value for name, value in values.items()}


def _problems(config_class: type[Config], settings: dict[str, Any]) -> dict[str, str]:
    """Setting -> what is wrong with it or missing; "" -> what is wrong with several together.

    Missing settings count as empty, so that the others are checked before they are there.
    """
    try:
        from_dict(config_class, {**defaults(config_class), **settings})
    except ConfigError as error:
        names = {f.name for f in fields(config_class)}
        lines = str(error).splitlines()
        # each line begins with the name of its setting
        words = [line.partition(" ")[0].rstrip(":.") for line in lines]
        return {word if word in names else "": line for word, line in zip(words, lines, strict=True)}
    return {}
