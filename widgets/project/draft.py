"""What is chosen for the next run of a project: kept in its settings.yaml, and the config that follows from it."""

from __future__ import annotations

import dataclasses
import difflib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import yaml

from lorakit import models, presets
from lorakit.config import Config, ConfigError, check, current_names, read_yaml, types_of
from lorakit.data import DataConfig
from lorakit.errors import UserError
from lorakit.files import write_atomic
from lorakit.lora import variants
from lorakit.lora.variants import AdapterConfig
from lorakit.optimizers import RATES
from lorakit.project import Project, Run
from lorakit.run.config import RunConfig, configure, read_config, settings_of
from lorakit.run.resume import training_settings
from widgets.i18n import say

FILE = "settings.yaml"
RENAMED = {"pictures": "images", "card": "gpu_preset"}  # fields of Choice in the files of version 0.1
HEAD = "# What is chosen for the next run; the form writes this file on every change.\n"


@dataclass
class Choice:
    """All that is on disk: what was chosen, not what follows from it.

    images    those of an epoch (repeats counted) when the preset was chosen, 0: unknown
    settings    path -> value, of all that was set by hand but the base model's
    models      family -> its `model` settings that were set by hand
    """

    run: str = "run1"
    family: str = "sd15"
    gpu_preset: str = ""
    purpose: str = ""
    size: str = ""
    images: int = 0
    expert: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)


def owners(family: str) -> Iterator[tuple[str, type[Config]]]:
    """(part of a run, its Config) for a family, in the run's order; the run's own settings last, under "".

    The adapter stands there once more for each variant that can be trained, with the variant's own options.
    """
    kinds = types_of(RunConfig)
    for f in fields(RunConfig):
        if f.name == "model":
            yield f.name, models.config_class(family)
        elif "variants" in f.metadata:
            yield f.name, kinds[f.name]
        if f.name == "adapter":
            yield from ((f.name, variants.config_class(name)) for name in variants.trainable())
    yield "", RunConfig


def places(family: str) -> dict[str, tuple[type[Config], str]]:
    """Path -> (Config, name) of every setting of a run of a family, also of those that the family refuses."""
    found: dict[str, tuple[type[Config], str]] = {}
    for owner, config_class in owners(family):
        for f in fields(config_class):
            if "variants" not in f.metadata and f"{owner}.{f.name}" != "model.family":
                # what all variants of the adapter have comes first, and is not replaced by what one inherits
                found.setdefault(f"{owner}.{f.name}".lstrip("."), (config_class, f.name))
    return found


def usable(family: str) -> dict[str, tuple[type[Config], str]]:
    """Those of `places` that make sense with the family: neither refused nor the rate of a part that it has not."""
    chosen = models.config_class(family)
    without = {f"optimizer.{rate}" for rate in RATES if rate not in chosen.rates.values()} | set(chosen.unsupported)
    return {path: place for path, place in places(family).items() if path not in without}


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Settings by path as `configure` takes them: {"adapter.rank": 8} -> {"adapter": {"rank": 8}}."""
    found: dict[str, Any] = {}
    for path, value in flat.items():
        owner, _, name = path.rpartition(".")
        (found.setdefault(owner, {}) if owner else found)[name] = list(value) if isinstance(value, tuple) else value
    return found


def flattened(settings: dict[str, Any]) -> dict[str, Any]:
    """The other way round."""
    found = {}
    for owner, values in settings.items():
        found |= {f"{owner}.{name}": v for name, v in values.items()} if isinstance(values, dict) else {owner: values}
    return found


class Draft:
    """The next run of a project as it is chosen now; every change is on disk before the method returns.

    What is set by hand wins over the preset, which wins over the GPU preset, which wins over the family's defaults.
    `notes` are sentences about what was amiss in the file when it was read.
    """

    def __init__(self, project: Project, name: str = ""):
        self.project = project
        self.file = project.folder / FILE
        self.notes: list[str] = []
        self.choice = self._read()
        if name and name != self.choice.run:
            self.choose(run=name)
        self.follow()

    # ---- what follows from the choice --------------------------------------------------------------------------------

    @property
    def run(self) -> Run:
        """The run of the chosen name, which need not exist."""
        return self.project.run(self.choice.run)

    @property
    def by_hand(self) -> dict[str, Any]:
        """Path -> value of all that was set by hand and makes sense with the family and the adapter type."""
        own = {f"model.{name}": value for name, value in self.choice.models.get(self.choice.family, {}).items()}
        known, settings = usable(self.choice.family), {**own, **self.choice.settings}
        adapter = variants.config_class(settings.get("adapter.type", AdapterConfig.type))
        return {
            path: value
            for path, value in settings.items()
            if path in known and (not path.startswith("adapter.") or issubclass(adapter, known[path][0]))
        }

    @property
    def settings(self) -> dict[str, Any]:
        """What `configure` makes the config of, with `choice.gpu_preset`: the preset's and those by hand."""
        family = {"model.family": self.choice.family}
        return nested({**family, **_preset(self.choice), **self.by_hand})

    @property
    def value(self) -> RunConfig:
        """The config. Raises ConfigError with a sentence for everything that is missing or does not go together."""
        return configure(self.settings, self.choice.gpu_preset)

    @property
    def shown(self) -> dict[str, Any]:
        """Path -> value that holds now, for every usable setting; "" for a source that is not chosen yet."""
        return {**underneath(self.choice), **self.by_hand}

    @property
    def data(self) -> DataConfig:
        """The data settings that hold now. Raises ConfigError when they do not go together."""
        shown = self.shown
        return DataConfig(**{f.name: shown[f"data.{f.name}"] for f in fields(DataConfig) if f"data.{f.name}" in shown})

    # ---- changes -----------------------------------------------------------------------------------------------------

    def set(self, path: str, value: Any) -> None:
        """Set one setting by hand, e.g. `set("adapter.rank", 32)`.

        Raises ConfigError, and changes nothing, when there is no such setting or its value alone is wrong.
        """
        unsupported = models.config_class(self.choice.family).unsupported
        if reason := unsupported.get(path, unsupported.get(path.removeprefix("model."))):
            raise ConfigError(f"{path} cannot be used with {self.choice.family}: {reason}")
        value = checked(path, value, usable(self.choice.family))
        self._own(path)[path.removeprefix("model.")] = value
        self.save()

    def reset(self, path: str) -> None:
        """Let go of what was set by hand: the preset, the GPU preset or the family decides again."""
        self._own(path).pop(path.removeprefix("model."), None)
        self.save()

    def _own(self, path: str) -> dict[str, Any]:
        """Where a setting is kept: those of the base model go with its family."""
        is_model = path.startswith("model.")
        return self.choice.models.setdefault(self.choice.family, {}) if is_model else self.choice.settings

    def choose(self, **changes: Any) -> tuple[dict[str, tuple[Any, Any]], list[str]]:
        """Change fields of the choice but `settings` and `models`: {path: (old, new)} and paths that stayed by hand.

        The name of a run that there is brings its settings. Raises ConfigError or ProjectError, and changes nothing,
        when there is no such family, GPU preset, purpose or size, or when the name cannot be a run's.
        """
        wanted = replace(self.choice, **changes)
        if "family" in changes and wanted.gpu_preset not in models.config_class(wanted.family).gpu_presets:
            wanted.gpu_preset = ""
        _allowed(wanted)
        run = self.project.run(wanted.run)
        if wanted.run != self.choice.run and run.config_file.exists():  # such as one from another's weights
            wanted = self._taken(run)
        shown, own, under = self.shown, self.by_hand, underneath(self.choice)
        self.choice = wanted
        self.save()
        new = underneath(wanted)
        stayed = [path for path, value in own.items() if path in new and under.get(path) != new[path] != value]
        changed = {path: (shown.get(path), v) for path, v in self.shown.items() if shown.get(path) != v}
        return changed, stayed

    def follow(self) -> None:
        """Take over the settings of the chosen run when it has begun and was changed elsewhere since the last choice.

        So more epochs and further stages, which are given to the run itself, are in the form too.
        """
        run = self.run
        if not run.record_file.exists():
            return
        chosen = self.file.stat().st_mtime_ns if self.file.exists() else 0  # nothing was, and the run's settings hold
        if run.config_file.stat().st_mtime_ns <= chosen:
            return
        held = read_config(run)
        try:
            same = training_settings(held) == training_settings(self.value)
        except ConfigError:
            same = False
        if not same:
            self.choice = self._taken(run)
            self.save()

    def _taken(self, run: Run) -> Choice:
        """The choice that a run's config says, beside what is kept of other families' base models."""
        taken = choice_of(run)
        return replace(taken, expert=self.choice.expert, models={**self.choice.models, **taken.models})

    # ---- the file ----------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the choice; of two forms of one project the later one wins."""
        told = {f.name: getattr(self.choice, f.name) for f in fields(Choice)}
        told["settings"] = nested(self.choice.settings)
        told["models"] = {family: nested(values) for family, values in self.choice.models.items() if values}
        self.project.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.file, HEAD + yaml.safe_dump(told, sort_keys=False, allow_unicode=True))

    def _read(self) -> Choice:
        """The choice on disk; without one that of the newest run, so that a new machine asks nothing again."""
        if self.file.exists():
            try:
                choice, trouble = read_choice(read_yaml(self.file))
                self.project.run(choice.run)  # refuses what cannot be a name
            except UserError as error:
                choice, trouble = Choice(), str(error).splitlines()[:1]
            if trouble:
                aside = self.file.with_name(f"settings-damaged-{time.strftime('%Y%m%d-%H%M%S')}.yaml")
                self.file.replace(aside)
                self.notes = [
                    say("{file} could not be used as it was; that is kept as {aside}.", file=FILE, aside=aside.name),
                    *trouble,
                ]
            return choice
        runs = sorted(self.project.runs(), key=lambda run: run.config_file.stat().st_mtime)
        return choice_of(runs[-1]) if runs else Choice()


def _allowed(choice: Choice) -> None:
    """Refuse (ConfigError) a family, GPU preset, purpose or size that there is not."""
    gpu_presets = tuple(models.config_class(choice.family).gpu_presets)
    for name, allowed in (("gpu_preset", gpu_presets), ("purpose", presets.PURPOSES), ("size", presets.SIZES)):
        if (given := getattr(choice, name)) not in ("", *allowed):
            raise ConfigError(f"There is no {name} {given!r}; there are {', '.join(allowed)}.")


def underneath(choice: Choice) -> dict[str, Any]:
    """Path -> value that holds where nothing is set by hand, for every usable setting."""
    family = models.config_class(choice.family)
    found = {path: _default(*place) for path, place in usable(choice.family).items()}
    for layer in (
        flattened(family.defaults),
        flattened(family.gpu_presets.get(choice.gpu_preset, {})),
        _preset(choice),
    ):
        found |= layer
    return found


def _preset(choice: Choice) -> dict[str, Any]:
    row = presets.find(choice.family, choice.purpose, choice.size)
    return flattened(presets.settings_for(row, choice.images)) if row else {}


def _default(config_class: type[Config], name: str) -> Any:
    f = config_class.__dataclass_fields__[name]
    if f.default_factory is not dataclasses.MISSING:
        return f.default_factory()
    return "" if f.default is dataclasses.MISSING else f.default


def read_choice(told: dict[str, Any]) -> tuple[Choice, list[str]]:
    """The choice that a file tells, and a sentence for each of its settings that is left out as unknown or wrong.

    Raises UserError when nothing of it can be used.
    """
    told = {RENAMED.get(name, name): value for name, value in told.items()}
    plain = Choice()
    for name, value in told.items():
        if not hasattr(plain, name) or type(value) is not type(getattr(plain, name)):
            raise ConfigError(f"{name} is {value!r}, which a form does not write.")
    choice = replace(plain, **{**told, "settings": {}, "models": {}})
    _allowed(choice)
    given = flattened(current_names(told.get("settings", {})))
    choice.settings, trouble = _sound(given, places(choice.family))
    for family, values in told.get("models", {}).items():
        sound, wrong = _sound(flattened({"model": values}), places(family))
        choice.models[family] = {path.removeprefix("model."): value for path, value in sound.items()}
        trouble += wrong
    return choice, trouble


def _sound(given: dict[str, Any], known: dict[str, tuple[type[Config], str]]) -> tuple[dict[str, Any], list[str]]:
    """Those of some settings that are right, checked, and a sentence for each of the others."""
    sound, wrong = {}, []
    for path, value in given.items():
        try:
            sound[path] = checked(path, value, known)
        except ConfigError as error:
            wrong.append(say("{path} was left out: {reason}", path=path, reason=error))
    return sound, wrong


def checked(path: str, value: Any, known: dict[str, tuple[type[Config], str]]) -> Any:
    """A setting as its Config holds it. Raises ConfigError when it is not among the known ones or wrong in itself."""
    if path not in known:
        hint = difflib.get_close_matches(path, known, n=1)
        raise ConfigError(f"{path} is not a setting here." + (f" Did you mean {hint[0]}?" if hint else ""))
    return check(*known[path], value)


def choice_of(run: Run) -> Choice:
    """The choice that a run's config says, e.g. on a new machine that knows nothing else."""
    settings = settings_of(run)
    choice = Choice(run=run.name, family=settings["model"]["family"])
    under, known = underneath(choice), places(choice.family)
    given, _ = _sound({path: v for path, v in flattened(settings).items() if path != "model.family"}, known)
    own = {path: value for path, value in given.items() if value != under.get(path)}
    choice.models[choice.family] = {p.removeprefix("model."): v for p, v in own.items() if p.startswith("model.")}
    choice.settings = {path: value for path, value in own.items() if not path.startswith("model.")}
    return choice
