"""The form in which the settings of a project's next run are chosen, made from the config classes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from typing import Any

import ipywidgets

from lorakit import models, presets
from lorakit.config import Config, ConfigError
from lorakit.data import DataConfig
from lorakit.data.listing import count_images
from lorakit.errors import UserError
from lorakit.machine.host import environment
from lorakit.optimizers import OPTIMIZERS
from lorakit.project import Project, Run
from lorakit.run.config import RunConfig
from lorakit.run.create import save_config
from lorakit.run.resume import RunChanged, recorded_config, training_settings
from widgets.fields import Layouts, Row, help_html, is_basic, problem_html, value_text
from widgets.i18n import say, words
from widgets.page import AMBER, RED
from widgets.project import draft as drafts
from widgets.project.draft import Draft, flattened, owners, usable
from widgets.project.guides import advice_tables
from widgets.training.as_code import code
from widgets.training.header import Header


class Form:
    """The next run of a project, as a form: `form = Form(project)` at the end of a cell shows it.

    Every change is in the project's settings.yaml at once; a new kernel or another notebook shows the same. Without a
    front-end it holds settings all the same: `form.set("adapter.rank", 32)`. `name` is the run's, empty for the last.
    """

    def __init__(self, project: Project, name: str = ""):
        is_new = not (project.folder / drafts.FILE).exists()
        self.draft = Draft(project, name)
        if is_new and not any(project.runs()):  # the settings of a run are those of its GPU preset
            self.draft.choice.gpu_preset = fitting_gpu_preset(models.config_class(self.draft.choice.family).gpu_presets)
        self._wrong: dict[str, str] = {}  # path -> what is wrong with what was typed there; the last right value holds
        self.changes: tuple[dict[str, tuple[Any, Any]], list[str]] = (
            {},
            [],
        )  # by the preset chosen last: what changed, what stayed
        self.images = self._count()
        self.widget = ipywidgets.VBox(layout=ipywidgets.Layout(width="100%", max_width="1240px"))
        self._make()

    # ---- what it stands for ------------------------------------------------------------------------------------------

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
        """Python, and a line for a terminal, that begins the same run without a form. Raises ConfigError as `value`."""
        self.value  # noqa: B018
        return code(self.draft)

    def run(self) -> Run:
        """Freeze the config as the run's and return it, ready to be trained.

        Of a run that has begun, only memory, save and sample settings may be others than before: RunChanged says what
        differs. Raises ConfigError as `value`.
        """
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
        """Set one setting by hand, as its field does; raises ConfigError, and changes nothing, for what is wrong."""
        if path == "model.family":
            self.choose(family=value)
            return
        self.draft.set(path, value)
        self._right(path)
        self._refresh()

    def reset(self, path: str) -> None:
        """Let go of what was set by hand: the preset, the GPU preset or the family decides again."""
        self.draft.reset(path)
        self._right(path)
        self._refresh()

    def refuse(self, path: str, reason: str) -> None:
        """Say what is wrong with what stands in a field ("run": the name; "": all of it) until that is changed."""
        self._wrong[path] = reason
        self._refresh()

    def _right(self, *paths: str) -> None:
        for path in (*paths, ""):
            self._wrong.pop(path, None)

    def choose(self, **changes: Any) -> None:
        """Choose `run` (its name), `family`, `gpu_preset`, `purpose`, `size` or `expert`; what was set by hand stays.

        A purpose without a size takes that of the images there are. Raises ConfigError for what there is not.
        """
        choice = self.draft.choice
        if {"purpose", "size", "family"} & changes.keys():
            self.images = self._count()
            images, changes["images"] = self.images
            purpose, family = changes.get("purpose", choice.purpose), changes.get("family", choice.family)
            if "size" not in changes:
                changes["size"] = (presets.size_for(family, purpose, images) or "middle") if purpose else ""
        changed = self.draft.choose(**changes)
        self._right(*(changes.keys() & {"run"}))
        if {"gpu_preset", "family"} & changes.keys():
            self._take_usable_optimizer()
        if {"purpose", "size", "gpu_preset"} & changes.keys():
            self.changes = changed
        if self.draft.choice.family != choice.family:
            self.changes = {}, []
            self._wrong.clear()
            self._make()
        self._refresh()

    def _take_usable_optimizer(self) -> None:
        """Take adamw by hand, and say so, where a GPU preset brings an optimizer that fails on this machine."""
        if "optimizer.name" not in self.draft.by_hand and (reason := untried(self.draft.shown["optimizer.name"])):
            self.draft.set("optimizer.name", "adamw")
            self.draft.notes = [
                say(
                    "The optimizer of this GPU preset does not work here; adamw is used instead: {reason}",
                    reason=reason,
                )
            ]

    # ---- how it is shown -------------------------------------------------------------------------------------------

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.widget)

    def __repr__(self) -> str:
        choice = self.draft.choice
        return f"Form({str(self.draft.project.folder)!r}, run {choice.run!r}, {choice.family})"

    def _make(self) -> None:
        """The widgets of the chosen family; those for experts only are made when they are first asked for."""
        self.rows: dict[str, Row] = {}
        self._layouts = Layouts()
        self.head = Header(self, self._layouts)
        self._basic = [path for path, place in usable(self.draft.choice.family).items() if is_basic(*place)]
        basic = [self._row(path).widget for path in self._basic]
        self._groups: list[tuple[str, list[Row]]] = []
        self._accordion = ipywidgets.Accordion(selected_index=None)
        self._top, self._end = ipywidgets.HTML(), ipywidgets.HTML()
        self._expert = ipywidgets.Checkbox(description=say("all settings"), indent=False)
        self._expert.observe(lambda change: self.choose(expert=change["new"]), "value")
        rows = [self.head.name, basic[0], self.head.preset, *basic[1:]]
        self.widget.children = [self._top, *rows, self._expert, self._accordion, self._end]
        self._refresh()

    def _row(self, path: str) -> Row:
        config_class, name = usable(self.draft.choice.family)[path]
        family = models.config_class(self.draft.choice.family)
        fewer = {"sample.sampler": family.samplers, "save.form": ("auto", *family.forms)}
        beside = (self.head.family,) if path == "model.source" else ()
        row = Row(
            self._layouts,
            path,
            config_class,
            name,
            self._changed,
            lambda row: self.reset(row.path),
            fewer.get(path, ()),
            beside,
        )
        self.rows[path] = row
        return row

    def _make_groups(self) -> None:
        places = usable(self.draft.choice.family)
        for owner, _ in owners(self.draft.choice.family):
            mine = [path for path in places if path.rpartition(".")[0] == owner and path not in self.rows]
            paths = [path for path in mine if not is_hidden(*places[path])]
            if paths:
                self._groups.append((owner, [self._row(path) for path in paths]))
        wide = ipywidgets.Layout(width="100%", min_width="0", overflow="auto")
        tables = ipywidgets.HTML(advice_tables(self.draft.choice.family, "settings"), layout=wide)
        self._accordion.children = [*(ipywidgets.VBox([r.widget for r in rows]) for _, rows in self._groups), tables]
        self._accordion.set_title(len(self._groups), say("What guides advise"))

    def _changed(self, row: Row) -> None:
        """Take over what was typed; what is wrong is said there, and the last right value holds."""
        try:
            value = row.control.read()
            if row.path == "optimizer.name" and (reason := untried(value)):
                raise ConfigError(reason)
            self.set(row.path, value)
        except UserError as error:
            self.refuse(row.path, str(error))

    def _refresh(self) -> None:
        """Show what holds now. Only what changed is sent to the page."""
        choice, problems = self.draft.choice, self._problems()
        if choice.expert and not self._groups:
            self._make_groups()
        shown, own = self.draft.shown, self.draft.by_hand
        for path, row in self.rows.items():
            trouble = problems.get(path, "")
            missing = trouble.startswith(f"{path} is missing")  # its help stands beside it
            row.show(
                shown[path],
                by_hand=path in own,
                trouble=trouble.partition(":")[0] if missing else trouble,
                colour=AMBER if missing else RED,
                keeps=path in self._wrong,
            )
            row.hide(bool(row.when) and shown.get(f"{path.rpartition('.')[0]}.{row.when[0]}") not in row.when[1])
        for place, (owner, rows) in enumerate(self._groups):
            self._accordion.set_title(place, group_title(owner, sum(row.path in own for row in rows)))
        self._accordion.layout.display = "" if choice.expert else "none"
        self._expert.value = choice.expert
        self.head.show(self._wrong.get("run", ""))
        far = [text for path, text in problems.items() if path not in (*self._basic, "run")]
        self._top.value = "".join(problem_html(text, AMBER) for text in self.draft.notes) + "".join(
            map(problem_html, far)
        )
        self._end.value = self._ending(len(problems))

    def _problems(self) -> dict[str, str]:
        """Path -> what is wrong there; "" -> what is wrong but at no single field."""
        found: dict[str, list[str]] = {}
        places = usable(self.draft.choice.family)
        try:
            self.draft.value  # noqa: B018
        except ConfigError as error:
            for line in str(error).splitlines():
                named = re.match(r"\w+(\.\w+)?", line)
                words_of = (named[0], named[0].partition(".")[0]) if named else ()
                found.setdefault(next((path for path in words_of if path in places), ""), []).append(line)
        return {path: "\n".join(lines) for path, lines in found.items()} | self._changed_since() | self._wrong

    def _changed_since(self) -> dict[str, str]:
        """Path -> what the run began with, where that decides its result and something else is chosen now."""
        begun = recorded_config(self.draft.run)
        old = flattened(training_settings(begun)) if begun else {}
        now = json.loads(json.dumps(self.draft.shown))  # lists for tuples, as above
        return {
            path: say(
                "This run was started with “{old}”. Change it back, or choose another run name.", old=value_text(value)
            )
            for path, value in old.items()
            if path in now and now[path] != value
        }

    def _ending(self, troubles: int) -> str:
        saved = say("Every change is saved in {file}.", file=drafts.FILE)
        if troubles:
            return problem_html(say("To put right before the run: {n}.", n=troubles), AMBER) + help_html(saved)
        return help_html(f"✓ {say('The settings are complete.')} {saved}")

    def _count(self) -> tuple[int, int]:
        """(images, images in an epoch) of the dataset, as far as names tell."""
        shown = self.draft.shown
        return count_images(
            DataConfig(folder=shown["data.folder"], repeats=shown["data.repeats"]), self.draft.project.folder
        )


def is_hidden(config_class: type[Config], name: str) -> bool:
    """Whether nobody sees a setting."""
    return config_class.__dataclass_fields__[name].metadata["ui"].hidden


def group_title(part: str, by_hand: int) -> str:
    """The title of a group of settings; `by_hand` of them were set by hand."""
    help = RunConfig.__dataclass_fields__[part].metadata["help"] if part else "what is trained after the first stage"
    label, told = words("parts", part or "run", part or "stages", help)
    return f"{label[:1].upper()}{label[1:]} – {told}" + (f" ({say('{n} set by hand', n=by_hand)})" if by_hand else "")


def untried(optimizer: str) -> str:
    """Why an optimizer of an optional package cannot be used here, after a step with it; "" when it can.

    The step is made by a process of its own, or a GPU's memory would stay with this one.
    """
    if not OPTIMIZERS[optimizer].package:
        return ""
    source = f"from lorakit.optimizers import why_unusable; print(why_unusable({optimizer!r}))"
    asked = [sys.executable, "-c", source]
    done = subprocess.run(asked, env=environment(), capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else done.stderr.strip().rpartition("\n")[2]


def fitting_gpu_preset(gpu_presets: dict[str, Any]) -> str:
    """The largest of the GPU presets (named like "16 GB") that this machine's GPU has the memory of; "" without one."""
    if not shutil.which("nvidia-smi"):
        return ""
    asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    told = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False).stdout.split()
    gigabytes = int(told[0]) * 2**20 / 1e9 if told and told[0].isdecimal() else 0.0
    fitting = [gpu_preset for gpu_preset in gpu_presets if float(gpu_preset.split()[0]) <= gigabytes]
    return max(fitting, key=lambda gpu_preset: float(gpu_preset.split()[0]), default="")
