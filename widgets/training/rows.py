"""All settings of a family as rows: a few for everybody, and the others in groups that open one by one."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets

from lorakit import models
from lorakit.config import Config
from widgets.fields import Row, is_basic
from widgets.i18n import say
from widgets.layouts import Layouts
from widgets.page import AMBER, RED
from widgets.project.draft import Draft, config_parts, supported_settings
from widgets.project.guides import advice_tables
from widgets.training.problems import is_missing, worded

# Part of a run -> title of its group; a part that is not here has its own name.
TITLES = {
    "model": "Base model",
    "data": "Dataset",
    "adapter": "Adapter",
    "loss": "Loss",
    "optimizer": "Optimizer",
    "schedule": "Learning rate schedule",
    "loop": "Steps and batch size",
    "memory": "Memory",
    "save": "Saving",
    "sample": "Samples",
    "": "Stages",
}


class SettingRows:
    """`basic` are the rows that beginners see; `accordion` holds the groups of the others, made when first shown.

    `changed(row)` and `undone(row)` are called when a row's user acts.
    """

    def __init__(self, family: str, changed: Callable[[Row], None], undone: Callable[[Row], None]):
        self.family, self.layouts = family, Layouts()
        self._changed, self._undone = changed, undone
        self._places = supported_settings(family)
        self.by_path: dict[str, Row] = {}
        self.basic = [self._add(path) for path, setting in self._places.items() if is_basic(*setting)]
        # Empty until “All settings” is chosen, so that the form appears at once.
        self._groups: list[tuple[str, list[Row]]] = []
        self.accordion = ipywidgets.Accordion(selected_index=None)

    def show(self, draft: Draft, problems: dict[str, str], warnings: dict[str, str], typed: set[str]) -> None:
        """Show what holds now, with what is wrong and what is doubtful at each path.

        Fields at the paths in `typed` keep what was typed, although it is wrong.
        """
        if draft.choice.expert and not self._groups:
            self._make_groups()
        shown, by_hand = draft.shown, draft.by_hand
        for path, row in self.by_path.items():
            problem = problems.get(path) or warnings.get(path, "")
            # What is missing yet and what is doubtful is amber, what is wrong is red.
            missing = is_missing(path, problem)
            row.show(
                shown[path],
                by_hand=path in by_hand,
                problem=say("Choose this first: {label}", label=row.label)
                if missing
                else worded(path, problem, self.family),
                colour=AMBER if missing or path not in problems else RED,
                keeps=path in typed,
            )
            # `when` is (name of another setting of the same part, its values for which this one matters).
            row.hide(bool(row.when) and shown.get(f"{path.rpartition('.')[0]}.{row.when[0]}") not in row.when[1])
        for place, (part, rows) in enumerate(self._groups):
            # the method and not `titles`, which ipywidgets 7 (Colab) does not have
            self.accordion.set_title(place, group_title(part, sum(row.path in by_hand for row in rows)))
        self.accordion.layout.display = "" if draft.choice.expert else "none"

    def _add(self, path: str) -> Row:
        config_class = models.config_class(self.family)
        # of these two a family has fewer choices than the setting itself
        fewer = {"sample.sampler": config_class.samplers, "save.key_layout": ("auto", *config_class.key_layouts)}
        row = Row(self.layouts, path, self._places[path], self._changed, self._undone, fewer.get(path, ()))
        self.by_path[path] = row
        return row

    def _make_groups(self) -> None:
        for part, _ in config_parts(self.family):
            rest = [path for path in self._places if path.rpartition(".")[0] == part and path not in self.by_path]
            if paths := [path for path in rest if not is_hidden(*self._places[path])]:
                self._groups.append((part, [self._add(path) for path in paths]))
        wide = ipywidgets.Layout(width="100%", min_width="0", overflow="auto")
        tables = ipywidgets.HTML(advice_tables(self.family, "settings"), layout=wide)
        self.accordion.children = [
            *(ipywidgets.VBox([row.widget for row in rows]) for _, rows in self._groups),
            tables,
        ]
        self.accordion.set_title(len(self._groups), say("What guides recommend"))


def is_hidden(config_class: type[Config], name: str) -> bool:
    """Whether a setting is written by commands alone and shown in no form."""
    return config_class.__dataclass_fields__[name].metadata["ui"].hidden


def group_title(part: str, by_hand: int) -> str:
    """The title of a group of settings; `by_hand` of them were set by hand."""
    title = say(TITLES[part]) if part in TITLES else part
    return f"{title} ({say('{n} set by hand', n=by_hand)})" if by_hand else title
