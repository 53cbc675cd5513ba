"""The draft of a project's next run: the choices kept in its settings.yaml, and the config that they make."""

from __future__ import annotations

import dataclasses
import difflib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import yaml

from lorakit import models, other_trainers, presets
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
# Fields of Choice as files of version 0.1 call them -> their names now.
RENAMED = {"pictures": "images", "card": "gpu_preset"}
HEAD = "# The settings of the next run; the form writes this file on every change.\n"


@dataclass
class Choice:
    """What the user chose, as it is on disk; everything else follows from it.

    images      per epoch (with repeats) when the preset was chosen; 0: unknown
    settings    path -> value of everything set by hand, without the base model's settings
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


def config_parts(family: str) -> Iterator[tuple[str, type[Config]]]:
    """(part of a run, its Config) for a family, in the order of RunConfig; the run's own settings last, under "".

    The adapter is repeated for each variant that can be trained, with that variant's own options.
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


def all_settings(family: str) -> dict[str, tuple[type[Config], str]]:
    """Path -> (Config, name) of every setting of a run of a family, with those that the family does not support."""
    settings: dict[str, tuple[type[Config], str]] = {}
    for part, config_class in config_parts(family):
        for f in fields(config_class):
            if "variants" not in f.metadata and f"{part}.{f.name}" != "model.family":
                # The options that all variants of the adapter share come first; a variant's inherited copy is no other.
                settings.setdefault(f"{part}.{f.name}".lstrip("."), (config_class, f.name))
    return settings


def supported_settings(family: str) -> dict[str, tuple[type[Config], str]]:
    """Those of `all_settings` that the family supports and has a part for: SD 1.5 has no second text encoder."""
    config_class = models.config_class(family)
    without = {f"optimizer.{rate}" for rate in RATES if rate not in config_class.rates.values()}
    without |= set(config_class.unsupported)
    return {path: place for path, place in all_settings(family).items() if path not in without}


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Settings by path as `configure` takes them: {"adapter.rank": 8} -> {"adapter": {"rank": 8}}."""
    settings: dict[str, Any] = {}
    for path, value in flat.items():
        part, _, name = path.rpartition(".")
        # lists, as YAML has no tuples
        (settings.setdefault(part, {}) if part else settings)[name] = list(value) if isinstance(value, tuple) else value
    return settings


def flattened(settings: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `nested`: {"adapter": {"rank": 8}} -> {"adapter.rank": 8}."""
    flat = {}
    for part, values in settings.items():
        flat |= {f"{part}.{name}": v for name, v in values.items()} if isinstance(values, dict) else {part: values}
    return flat


class Draft:
    """The next run of a project as it is chosen now; every change is on disk before the method returns.

    A value set by hand wins over the preset, which wins over the GPU preset, which wins over the family's defaults.
    `notes` are sentences about damage in the file when it was read.
    """

    def __init__(self, project: Project, name: str = ""):
        self.project = project
        self.file = project.folder / FILE
        self.notes: list[str] = []
        self.choice = self._read()
        if name and name != self.choice.run:
            self.choose(run=name)
        self.follow()

    # ---- what the choices make -------------------------------------------------------------------------------------

    @property
    def run(self) -> Run:
        """The run of the chosen name, which need not exist."""
        return self.project.run(self.choice.run)

    @property
    def by_hand(self) -> dict[str, Any]:
        """Path -> value of everything set by hand that the family and the adapter type support."""
        of_model = {f"model.{name}": value for name, value in self.choice.models.get(self.choice.family, {}).items()}
        supported, settings = supported_settings(self.choice.family), {**of_model, **self.choice.settings}
        # Options of another adapter type stay in the file, for when it is chosen again, but do not count now.
        adapter = variants.config_class(settings.get("adapter.type", AdapterConfig.type))
        return {
            path: value
            for path, value in settings.items()
            if path in supported and (not path.startswith("adapter.") or issubclass(adapter, supported[path][0]))
        }

    @property
    def settings(self) -> dict[str, Any]:
        """The settings for `configure`, by part: of the preset and set by hand, without the GPU preset."""
        # Later entries win over earlier ones.
        family = {"model.family": self.choice.family}
        return nested({**family, **_preset(self.choice), **self.by_hand})

    @property
    def value(self) -> RunConfig:
        """The config. Raises ConfigError with a sentence for everything that is missing or in conflict."""
        return configure(self.settings, self.choice.gpu_preset)

    @property
    def shown(self) -> dict[str, Any]:
        """Path -> value that holds now, for every usable setting; "" for a source that is not chosen yet."""
        return {**preset_values(self.choice), **self.by_hand}

    @property
    def data(self) -> DataConfig:
        """The data settings that hold now. Raises ConfigError when they are in conflict."""
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
        value = checked(path, value, supported_settings(self.choice.family))
        self._kept_in(path)[path.removeprefix("model.")] = value
        self.save()

    def reset(self, path: str) -> None:
        """Forget the value set by hand: that of the preset, the GPU preset or the family holds again."""
        self._kept_in(path).pop(path.removeprefix("model."), None)
        self.save()

    def _kept_in(self, path: str) -> dict[str, Any]:
        """The table that keeps a setting: those of the base model are kept by family."""
        is_model = path.startswith("model.")
        return self.choice.models.setdefault(self.choice.family, {}) if is_model else self.choice.settings

    def choose(self, **changes: Any) -> tuple[dict[str, tuple[Any, Any]], list[str]]:
        """Change fields of the choice, except `settings` and `models`.

        Returns {path: (old, new)} of the settings that changed, and the paths that kept a value set by hand which the
        new preset would have changed. The name of an existing run brings that run's settings. Raises ConfigError or
        ProjectError, and changes nothing, for an unknown family, GPU preset, purpose or size, or an impossible name.
        """
        choice = replace(self.choice, **changes)
        if "family" in changes and choice.gpu_preset not in models.config_class(choice.family).gpu_presets:
            choice.gpu_preset = ""
        _check(choice)
        run = self.project.run(choice.run)
        # such as a run that was created from the weights of another
        if choice.run != self.choice.run and run.config_file.exists():
            choice = self._of_run(run)
        old, by_hand, old_presets = self.shown, self.by_hand, preset_values(self.choice)
        self.choice = choice
        self.save()
        new = preset_values(choice)
        # Only settings where the new preset has another value than the old one, and another than the user's.
        kept = [path for path, value in by_hand.items() if path in new and old_presets.get(path) != new[path] != value]
        changed = {path: (old.get(path), value) for path, value in self.shown.items() if old.get(path) != value}
        return changed, kept

    def follow(self) -> None:
        """Take over the settings of the chosen run if it has trained and was changed since the last choice.

        More epochs and further stages are added to the run itself; this brings them into the form, too.
        """
        run = self.run
        if not run.record_file.exists():
            return
        # 0: without a file the run is always newer.
        last_choice = self.file.stat().st_mtime_ns if self.file.exists() else 0
        if run.config_file.stat().st_mtime_ns <= last_choice:
            return
        config = read_config(run)
        try:
            # Only what affects the result is compared: a run may take over memory, saving and sample settings at any
            # time.
            same = training_settings(config) == training_settings(self.value)
        except ConfigError:
            same = False
        if not same:
            self.choice = self._of_run(run)
            self.save()

    def _of_run(self, run: Run) -> Choice:
        """The choice that makes a run's config, with the base models chosen for other families."""
        choice = choice_of(run)
        return replace(choice, expert=self.choice.expert, models={**self.choice.models, **choice.models})

    # ---- the file ----------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the choice; of two forms of one project the later one wins."""
        stored = {f.name: getattr(self.choice, f.name) for f in fields(Choice)}
        stored["settings"] = nested(self.choice.settings)
        stored["models"] = {family: nested(values) for family, values in self.choice.models.items() if values}
        self.project.folder.mkdir(parents=True, exist_ok=True)
        # Never half a file, even when the kernel dies while it is written.
        write_atomic(self.file, HEAD + yaml.safe_dump(stored, sort_keys=False, allow_unicode=True))

    def _read(self) -> Choice:
        """The choice on disk; without a file that of the newest run, so that a new machine shows the same."""
        if self.file.exists():
            try:
                choice, problems = read_choice(read_yaml(self.file))
                self.project.run(choice.run)  # raises ProjectError for an impossible name
            except UserError as error:
                # The first line says what is wrong; the rest may be pages of YAML's own words.
                choice, problems = Choice(), str(error).splitlines()[:1]
            if problems:
                # Renamed, not deleted: choices of hours may be in it.
                damaged = self.file.with_name(f"settings-damaged-{time.strftime('%Y%m%d-%H%M%S')}.yaml")
                self.file.replace(damaged)
                self.notes = [
                    say("{file} was damaged and is kept as {copy}.", file=FILE, copy=damaged.name),
                    *problems,
                ]
            return choice
        runs = sorted(self.project.runs(), key=lambda run: run.config_file.stat().st_mtime)
        return choice_of(runs[-1]) if runs else Choice()


def _check(choice: Choice) -> None:
    """Raise ConfigError for an unknown family, GPU preset, purpose or size."""
    gpu_presets = tuple(models.config_class(choice.family).gpu_presets)
    for name, allowed in (("gpu_preset", gpu_presets), ("purpose", presets.PURPOSES), ("size", presets.SIZES)):
        if (value := getattr(choice, name)) not in ("", *allowed):
            raise ConfigError(f"{name} is {value!r}; allowed are {', '.join(allowed)}.")


def preset_values(choice: Choice) -> dict[str, Any]:
    """Path -> value, before anything is set by hand, of every setting that the family supports."""
    family = models.config_class(choice.family)
    values = {path: _default(*setting) for path, setting in supported_settings(choice.family).items()}
    # each layer wins over those before it
    for layer in (
        flattened(family.defaults),
        flattened(family.gpu_presets.get(choice.gpu_preset, {})),
        _preset(choice),
    ):
        values |= layer
    return values


def _preset(choice: Choice) -> dict[str, Any]:
    row = presets.find(choice.family, choice.purpose, choice.size)
    return flattened(presets.settings_for(row, choice.images)) if row else {}


def _default(config_class: type[Config], name: str) -> Any:
    f = config_class.__dataclass_fields__[name]
    if f.default_factory is not dataclasses.MISSING:
        return f.default_factory()
    return "" if f.default is dataclasses.MISSING else f.default


def read_choice(stored: dict[str, Any]) -> tuple[Choice, list[str]]:
    """The choice in a file's table, and a sentence for each setting that is left out as unknown or wrong.

    Raises UserError when nothing of it can be used.
    """
    stored = {RENAMED.get(name, name): value for name, value in stored.items()}
    default = Choice()
    for name, value in stored.items():
        if not hasattr(default, name) or type(value) is not type(getattr(default, name)):
            raise ConfigError(f"{name} is {value!r}, which a form does not write.")
    choice = replace(default, **{**stored, "settings": {}, "models": {}})
    _check(choice)
    # Settings that were renamed since the file was written get their current names.
    settings = flattened(current_names(stored.get("settings", {})))
    choice.settings, problems = _sound(settings, all_settings(choice.family))
    for family, values in stored.get("models", {}).items():
        sound, wrong = _sound(flattened({"model": values}), all_settings(family))
        choice.models[family] = {path.removeprefix("model."): value for path, value in sound.items()}
        problems += wrong
    return choice, problems


def _sound(values: dict[str, Any], allowed: dict[str, tuple[type[Config], str]]) -> tuple[dict[str, Any], list[str]]:
    """The settings (path -> value) that are right, and a sentence for each of the others."""
    sound, wrong = {}, []
    for path, value in values.items():
        try:
            sound[path] = checked(path, value, allowed)
        except ConfigError as error:
            wrong.append(say("{path} was left out: {reason}", path=path, reason=error))
    return sound, wrong


def checked(path: str, value: Any, allowed: dict[str, tuple[type[Config], str]]) -> Any:
    """A setting as its Config holds it. Raises ConfigError when it is unknown or its value is wrong by itself."""
    if path not in allowed:
        part, dot, name = path.rpartition(".")
        if elsewhere := other_trainers.answer(name, part + dot):
            raise ConfigError(f"{path} {elsewhere}")
        hint = difflib.get_close_matches(path, allowed, n=1)
        raise ConfigError(f"{path} is not a setting here." + (f" Did you mean {hint[0]}?" if hint else ""))
    return check(*allowed[path], value)


def choice_of(run: Run) -> Choice:
    """The choice that makes a run's config, e.g. on a new machine, which has only the run."""
    settings = settings_of(run)
    choice = Choice(run=run.name, family=settings["model"]["family"])
    defaults, allowed = preset_values(choice), all_settings(choice.family)
    values, _ = _sound({path: v for path, v in flattened(settings).items() if path != "model.family"}, allowed)
    # Values that equal the family's defaults were not set by hand, as far as a run can tell.
    by_hand = {path: value for path, value in values.items() if value != defaults.get(path)}
    choice.models[choice.family] = {p.removeprefix("model."): v for p, v in by_hand.items() if p.startswith("model.")}
    choice.settings = {path: value for path, value in by_hand.items() if not path.startswith("model.")}
    return choice
