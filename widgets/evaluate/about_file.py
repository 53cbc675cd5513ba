"""The form for what a run's LoRA files say about themselves: author, description, licence, tags, hint, thumbnail."""

from __future__ import annotations

from dataclasses import replace

import ipywidgets

from lorakit.config import check
from lorakit.errors import UserError
from lorakit.project import Run
from lorakit.run.checkpoint import SaveConfig
from lorakit.run.config import read_config
from lorakit.run.create import save_config
from widgets.fields import Row
from widgets.i18n import say
from widgets.layouts import Layouts
from widgets.page import aside
from widgets.plain import show
from widgets.project.labels import labelled

FIELDS = ("author", "description", "license", "tags", "usage_hint", "thumbnail", "dataset_details")


def about_file(run: Run) -> None:
    """Show the form; what it holds is written into the files that are exported from now on."""
    show(AboutFile(run).widget)


class AboutFile:
    """The form; display its `widget`. Every change is stored in the run's settings at once.

    rows   name of a `save` setting -> its row
    """

    def __init__(self, run: Run):
        self.run, layouts = run, Layouts()
        self.rows = {
            name: Row(layouts, f"save.{name}", (SaveConfig, name), self._changed, self._undone) for name in FIELDS
        }
        intro = ipywidgets.HTML(aside(say("Sites and programs show this. It may be changed after training, too.")))
        self.widget = ipywidgets.VBox([intro, *(row.widget for row in self.rows.values())])
        self._draw()

    def set(self, name: str, value: object) -> None:
        """Store one setting. Raises ConfigError, and stores nothing, for a wrong value."""
        config = read_config(self.run)
        save = replace(config.save, **{name: check(SaveConfig, name, value)})
        save_config(self.run, replace(config, save=save))
        self._draw()

    def _changed(self, row: Row) -> None:
        name = row.path.partition(".")[2]
        try:
            self.set(name, row.control.read())
        except UserError as error:
            self._draw(name, labelled(str(error)))

    def _undone(self, row: Row) -> None:
        name = row.path.partition(".")[2]
        self.set(name, getattr(SaveConfig(), name))

    def _draw(self, wrong: str = "", problem: str = "") -> None:
        save, plain = read_config(self.run).save, SaveConfig()
        for name, row in self.rows.items():
            value, is_wrong = getattr(save, name), name == wrong
            row.show(value, by_hand=value != getattr(plain, name), problem=problem * is_wrong, keeps=is_wrong)
