"""The form in which the settings of a project's next run are chosen, made from the config classes."""

from __future__ import annotations

from typing import Any

import ipywidgets

from lorakit import models, presets
from lorakit.config import ConfigError
from lorakit.data import DataConfig
from lorakit.data.listing import count_images
from lorakit.errors import UserError
from lorakit.project import Project, Run
from lorakit.run.config import RunConfig
from lorakit.run.create import save_config
from lorakit.run.resume import RunChanged
from widgets.fields import Row, help_html, problem_html
from widgets.i18n import say
from widgets.page import AMBER
from widgets.plain import show
from widgets.project import draft as drafts
from widgets.project.draft import Draft
from widgets.project.labels import labelled
from widgets.training import machine
from widgets.training.as_code import code
from widgets.training.header import Header
from widgets.training.problems import problems_of, warnings_of, worded
from widgets.training.rows import SettingRows
from widgets.training.vram import VramRow


class Form:
    """The next run of a project, as a form: `form = Form(project)` at the end of a cell shows it.

    Every change is in the project's settings.yaml at once; a new kernel or another notebook shows the same. Without a
    front-end it holds settings all the same: `form.set("adapter.rank", 32)`. `name` is the run's, empty for the last.
    """

    def __init__(self, project: Project, name: str = ""):
        # Asked before Draft, which may write the file.
        is_new = not (project.folder / drafts.FILE).exists()
        self.draft = Draft(project, name)
        # A GPU preset is proposed once: where there are runs already, their settings hold.
        if is_new and not any(project.runs()):
            gpu_presets = models.config_class(self.draft.choice.family).gpu_presets
            self.draft.choice.gpu_preset = machine.fitting_gpu_preset(gpu_presets)
        # path -> what is wrong with the text typed there; the setting keeps its last right value
        self._wrong: dict[str, str] = {}
        # by the preset chosen last: {path: (old, new)}, and paths that kept what was set by hand
        self.changes: tuple[dict[str, tuple[Any, Any]], list[str]] = ({}, [])
        self.images = dataset_size(self.draft)
        self.widget = ipywidgets.VBox(layout=ipywidgets.Layout(width="100%", max_width="1240px"))
        self._make()

    # ---- the run that it describes -----------------------------------------------------------------------------------

    @property
    def value(self) -> RunConfig:
        """The config. Raises ConfigError with a sentence for everything that is wrong or missing."""
        if wrong := [reason for path, reason in self._wrong.items() if path]:
            raise ConfigError("\n".join(wrong))
        return self.draft.value

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that were chosen, by part; `configure` makes the config of them and the GPU preset."""
        return self.draft.settings

    def code(self) -> str:
        """Python, and a line for a terminal, that start the same run without a form. Raises ConfigError as `value`."""
        self.value  # noqa: B018 - raises what is wrong
        return code(self.draft)

    def run(self) -> Run:
        """Save the config as the run's and return the run, ready to be trained.

        Once a run has trained, only its memory, save and sample settings may change: RunChanged lists what differs.
        Raises ConfigError as `value`.
        """
        # Epochs that another cell has added meanwhile are part of the run.
        self.draft.follow()
        try:
            save_config(self.draft.run, self.value)
        except RunChanged as error:
            self.refuse("", str(error))
            raise
        self._refresh()
        return self.draft.run

    # ---- changes -----------------------------------------------------------------------------------------------------

    def set(self, path: str, value: Any) -> None:
        """Set one setting by hand, as its field does; raises ConfigError, and changes nothing, for a wrong value."""
        if path == "model.family":
            self.choose(family=value)
            return
        self.draft.set(path, value)
        self._clear(path)
        self._refresh()

    def reset(self, path: str) -> None:
        """Forget the value set by hand: that of the preset, the GPU preset or the family holds again."""
        self.draft.reset(path)
        self._clear(path)
        self._refresh()

    def refuse(self, path: str, reason: str) -> None:
        """Show what is wrong with the text in a field ("run": the name; "": all of it) until that is changed."""
        self._wrong[path] = reason
        self._refresh()

    def choose(self, **changes: Any) -> None:
        """Choose `run` (its name), `family`, `gpu_preset`, `purpose`, `size` or `expert`; what was set by hand stays.

        A purpose without a size takes the size that fits the number of images. Raises ConfigError for unknown names.
        """
        choice = self.draft.choice
        if {"purpose", "size", "family"} & changes.keys():
            self.images = dataset_size(self.draft)
            # Images, and images per epoch: presets are computed from the second, which counts repeats.
            images, changes["images"] = self.images
            purpose, family = changes.get("purpose", choice.purpose), changes.get("family", choice.family)
            if "size" not in changes:
                changes["size"] = (presets.size_for(family, purpose, images) or "middle") if purpose else ""
        changed = self.draft.choose(**changes)
        self._clear(*(changes.keys() & {"run"}))
        if {"purpose", "size", "gpu_preset"} & changes.keys():
            self.changes = changed
        # another family has other settings, so that its form is made anew
        if self.draft.choice.family != choice.family:
            self.changes = {}, []
            self._wrong.clear()
            self._make()
        self._refresh()

    def _clear(self, *paths: str) -> None:
        """Drop the problems at these paths, and the one about all of the form."""
        for path in (*paths, ""):
            self._wrong.pop(path, None)

    # ---- how it is shown ---------------------------------------------------------------------------------------------

    @property
    def rows(self) -> dict[str, Row]:
        """Path -> row of every setting that is shown, or was before."""
        return self._rows.by_path

    def _ipython_display_(self) -> None:

        show(self.widget)

    def __repr__(self) -> str:
        choice = self.draft.choice
        return f"Form({str(self.draft.project.folder)!r}, run {choice.run!r}, {choice.family})"

    def _make(self) -> None:
        """The widgets of the chosen family."""
        self._rows = SettingRows(self.draft.choice.family, self._changed, lambda row: self.reset(row.path))
        self.header = Header(self, self._rows.layouts)
        self._rows.by_path["model.source"].put_first(self.header.family)
        self.top, self.end = ipywidgets.HTML(), ipywidgets.HTML()
        self._expert = ipywidgets.Checkbox(description=say("All settings"), indent=False)
        self._expert.observe(lambda change: self.choose(expert=change["new"]), "value")
        # The base model is the first basic setting; the preset stands below it, as its choices depend on the family.
        source, *rest = [row.widget for row in self._rows.basic]
        self.vram = VramRow(self, self._rows.layouts)
        rows = [self.header.name, source, self.header.preset, *rest, self.vram.widget]
        self.widget.children = [self.top, *rows, self._expert, self._rows.accordion, self.end]
        self._refresh()

    def _changed(self, row: Row) -> None:
        """Take over what was typed; what is wrong with it is shown there, and the last right value holds."""
        try:
            value = row.control.read()
            # A package may be installed and still fail on this machine.
            if row.path == "optimizer.name" and (reason := machine.why_unusable(value)):
                raise ConfigError(reason)
            self.set(row.path, value)
        except UserError as error:
            self.refuse(row.path, str(error))

    def _refresh(self) -> None:
        """Show what holds now. Only what changed is sent to the page."""
        # What was typed wrongly comes last: it is newer than a conflict of the same field.
        draft, problems = self.draft, problems_of(self.draft) | self._wrong
        # of a run that has started nothing but memory, saves and samples can change
        warnings = {} if draft.run.record_file.exists() else warnings_of(draft, self.images[1])
        self._rows.show(draft, problems, warnings, set(self._wrong))
        self.vram.refresh()
        self._expert.value = draft.choice.expert
        self.header.show(self._wrong.get("run", ""))
        # Problems of a group that may be closed, and of no single field, stand at the top.
        beside = {"run", *(row.path for row in self._rows.basic)}
        elsewhere, doubtful = (
            [worded(path, text, draft.choice.family) for path, text in texts.items() if path not in beside]
            for texts in (problems, warnings)
        )
        notes = [problem_html(labelled(note, draft.choice.family), AMBER) for note in draft.notes]
        doubts = [problem_html(text, AMBER) for text in doubtful]
        self.top.value = "".join([*notes, *map(problem_html, elsewhere), *doubts])
        self.end.value = ending(len(problems))


def ending(problems: int) -> str:
    """The last line of the form, as HTML: whether a run can be trained, and where the settings are."""
    saved = say("Every change is saved in {file}.", file=drafts.FILE)
    if not problems:
        return help_html(f"✓ {say('The settings are complete.')} {saved}")
    if problems == 1:
        text = say("1 setting needs fixing before training.")
    else:
        text = say("{n} settings need fixing before training.", n=problems)
    return problem_html(text, AMBER) + help_html(saved)


def dataset_size(draft: Draft) -> tuple[int, int]:
    """(images, images per epoch) of the dataset, counted by the names of files and folders."""
    shown = draft.shown
    # Only these two decide the count; the other settings may be in conflict at the moment.
    config = DataConfig(folder=shown["data.folder"], repeats=shown["data.repeats"])
    return count_images(config, draft.project.folder)
