"""Configs: settings with help, unit and range, checked on construction, written to and read from YAML."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from lorakit import other_trainers
from lorakit.errors import UserError
from lorakit.files.disk import DamagedFile, DiskError, read_file
from lorakit.secrets import without_secrets
from lorakit.typed import Typed, resolved

SETTINGS_BYTES = 1 << 24  # a file of settings has a few kilobytes
# Settings that had another name in an earlier version -> their name now, dotted. What earlier versions stored
# (config.yaml and fingerprint.json of a run, settings.yaml of a project) is read with it, and so is `--set`.
RENAMED = {"adapter.kind": "adapter.type", "save.form": "save.key_layout"}


class ConfigError(UserError):
    """One or more settings are wrong; the message names each with what was given and what is allowed."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """How a form shows a setting."""

    label: str = ""  # empty: its name
    basic: bool = False  # shown to beginners
    # Never shown: written by commands alone.
    hidden: bool = False
    # another field of the same Config, and its values for which this one matters
    when: tuple[str, tuple] | None = None
    suggestions: tuple[str, ...] = ()  # texts to choose from; any other is allowed
    lines: int = 1  # height of a text field


@dataclass(frozen=True)
class Slider(Field):
    """A slider over the usual range of a number; its ends are no limits."""

    # Without defaults although Field has some: those of Field are keyword-only, so these come first.
    low: float
    high: float
    # On a logarithmic slider in units of log10.
    step: float
    log: bool = False


def setting(
    default: Any = MISSING,
    *,
    help: str,
    unit: str = "",
    range: tuple[float | None, float | None] = (None, None),
    choices: Callable[[], typing.Iterable[Any]] | tuple | None = None,
    ui: Field = Field(),  # noqa: B008 - frozen
) -> Any:
    """A field of a Config.

    help        one short sentence with the consequence, without a full stop
    unit        such as "px" or "steps", shown behind the value
    range       lowest and highest allowed value, None for no limit
    choices     allowed values: a tuple, or a function without arguments that returns a tuple or a registry of rows
                (called when needed, so that the registry may be imported later)
    ui          how a form shows it
    """
    # Metadata of the dataclass field: forms, checks and the terminal all read it from there.
    described = {"help": help, "unit": unit, "range": range, "choices": choices, "ui": ui}
    # Dataclasses refuse a mutable default; each instance gets a copy.
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata=described)
    return field(default=default, metadata=described)


def part(
    config_class: type[Config] | None = None,
    *,
    tag: str = "",
    variants: Callable[[str], type[Config]] | None = None,
    help: str,
    free: bool = False,
) -> Any:
    """A field that holds another Config.

    tag, variants   with `variants`, the value of the part's own field `tag` chooses its class (each model family has
                    a Config of its own); a `config_class` beside it is their common base, and its default of `tag`
                    is used where none is given
    free            the part does not affect the result, so it may change between the sessions of a run
    """
    described = {"help": help, "tag": tag, "variants": variants, "free": free}
    return field(default_factory=config_class, metadata=described) if config_class else field(metadata=described)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all configs: frozen, keyword-only, checked on construction (ConfigError names every problem).

    `unsupported`: settings that people know from other trainers -> why there are none of that name here.
    `later`: settings that earlier versions did not have, see `for_hash`.
    """

    unsupported: ClassVar[dict[str, str]] = {}
    later: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        expected = types_of(type(self))
        problems = [
            problem
            for f in dataclasses.fields(self)
            for problem in _problems(f, expected[f.name], getattr(self, f.name))
        ]
        # Conflicts compare values, so they are looked for only when all types are right.
        problems = problems or self.conflicts()
        if problems:
            raise ConfigError("\n".join(problems))

    def conflicts(self) -> list[str]:
        """Sentences about settings that contradict each other; overridden by a Config."""
        return []


@cache
def types_of(config_class: type) -> dict[str, Any]:
    """Name -> type of every field of a Config."""
    # Annotations are stored as text (`from __future__ import annotations`); resolving them takes time.
    return typing.get_type_hints(config_class)


def check(config_class: type[Config], name: str, value: Any) -> Any:
    """One value, parsed as its Config holds it (lists as tuples, 1e-4 as a number).

    Raises ConfigError when the value is wrong by itself; conflicts with other settings are not checked.
    """
    f, expected = config_class.__dataclass_fields__[name], types_of(config_class)[name]
    value = _parse(value, f, expected, name)
    if problems := _problems(f, expected, value):
        raise ConfigError("\n".join(problems))
    return value


def _problems(f: dataclasses.Field, expected: Any, value: Any) -> list[str]:
    meta = f.metadata
    if not _fits(value, expected):
        return [f"{f.name} is {value!r}, expected {_type_name(expected)}: {meta['help']}."]
    # A part has checked itself when it was constructed.
    if isinstance(value, Config):
        return []
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = meta["range"]
        # YAML reads .nan and .inf as numbers, and a range without limits would let them pass.
        infinite = isinstance(value, float) and not math.isfinite(value)
        if infinite or (low is not None and value < low) or (high is not None and value > high):
            return [
                f"{f.name} is {value!r}; allowed is {_range(low, high)}{' ' + meta['unit'] if meta['unit'] else ''}: "
                f"{meta['help']}."
            ]
    allowed = choices_of(f)
    if allowed is not None and value not in allowed:
        hint = difflib.get_close_matches(str(value), [str(a) for a in allowed], n=1)
        return [
            f"{f.name} is {value!r}; allowed are {', '.join(map(str, allowed))}."
            + (f" Did you mean {hint[0]}?" if hint else "")
        ]
    return []


def choices_of(f: dataclasses.Field) -> tuple | None:
    """The allowed values of a field, or None when any value of its type and range is allowed."""
    choices = f.metadata["choices"]
    return tuple(choices()) if callable(choices) else choices


def helps_of(f: dataclasses.Field) -> dict[Any, str]:
    """Allowed value -> help of its row, for a field whose choices are a registry; {} for others."""
    choices = f.metadata["choices"]
    rows = choices() if callable(choices) else None
    return {name: row.help for name, row in rows.items()} if isinstance(rows, Mapping) else {}


def label_of(f: dataclasses.Field) -> str:
    """The label of a field in a form: its own, or its name with spaces."""
    return f.metadata["ui"].label or f.name.replace("_", " ")


def _fits(value: Any, expected: Any) -> bool:
    origin = typing.get_origin(expected)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(expected))
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, typing.get_args(expected)[0]) for item in value)
    # A table has no schema of its own (optimizer arguments, stages): any plain data will do.
    if dict in (origin, expected):
        return isinstance(value, dict) and _is_data(value)
    # In Python True is an int; in a setting that is a mistake.
    if expected is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, expected)


def _is_data(value: Any) -> bool:
    """Whether a table survives YAML unchanged: no dates, no NaN, names that are texts."""
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_data(item) for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_data, value))
    return value is None or isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))


def _type_name(expected: Any) -> str:
    names = {
        int: "an integer",
        float: "a number",
        str: "text (in quotes where YAML would read a number, a date or yes/no)",
        bool: "true or false",
        dict: "a table of names and values (numbers, texts in quotes, lists)",
    }
    if typing.get_origin(expected) is tuple:
        return f"a list, each item {_type_name(typing.get_args(expected)[0])}"
    return names[expected] if expected in names else expected.__name__


def _range(low: float | None, high: float | None) -> str:
    if low is None:
        return "any finite number" if high is None else f"at most {high}"
    return f"at least {low}" if high is None else f"{low} to {high}"


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested dict of a config, ready for YAML or JSON (tuples become lists)."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def for_hash(config: Config) -> dict[str, Any]:
    """As `to_dict`, without the settings in `later` that have their default: what was made before there were such
    settings keeps its hash.
    """
    fields = config.__dataclass_fields__
    unset = {name for name in config.later if getattr(config, name) == fields[name].default}
    return {name: value for name, value in to_dict(config).items() if name not in unset}


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return to_dict(value)
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def from_dict(config_class: type, data: dict[str, Any], path: str = "") -> Any:
    """A config from nested data. Raises ConfigError naming every unknown name and wrong value with its path."""
    if not isinstance(data, dict):
        raise ConfigError(f"{path.rstrip('.') or 'the configuration'} is {data!r}, expected a table of settings.")
    fields = {f.name: f for f in dataclasses.fields(config_class)}
    # All problems are collected, so that a user can fix them in one go.
    problems = [_unknown(name, config_class, path) for name in data if name not in fields]
    values = {}
    hints = types_of(config_class)
    for name, f in fields.items():
        try:
            if name in data:
                values[name] = _parse(data[name], f, hints[name], f"{path}{name}")
            elif f.default is MISSING and f.default_factory is MISSING:
                problems.append(f"{path}{name} is missing: {f.metadata['help']}.")
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    try:
        return config_class(**values)
    except ConfigError as error:
        raise ConfigError("\n".join(_placed(line, path, fields) for line in str(error).splitlines())) from None


def current_names(settings: dict[str, Any]) -> dict[str, Any]:
    """A run's settings, by part, with the present name of each that was renamed (see RENAMED).

    Raises ConfigError when a setting is given under both of its names.
    """
    settings = {part: dict(values) if isinstance(values, dict) else values for part, values in settings.items()}
    for part, values in settings.items():
        if isinstance(values, Typed):
            # a whole part, or the stages, typed as YAML
            settings[part] = load_yaml(values, f"{part}={values}")
    for old, new in RENAMED.items():
        (old_part, old_name), (new_part, new_name) = old.split("."), new.split(".")
        if not isinstance(settings.get(old_part), dict) or old_name not in settings[old_part]:
            continue
        target = settings.setdefault(new_part, {})
        if new_name in target:
            raise ConfigError(f"{old} is called {new} now, and both are set; remove {old}.")
        target[new_name] = settings[old_part].pop(old_name)
    return settings


def _placed(line: str, path: str, fields: dict[str, Any]) -> str:
    """A problem with its path: before the field name that the sentence begins with, or before the sentence."""
    begins = re.match(r"\w+", line)
    return path + line if not path or (begins and begins[0] in fields) else f"{path.rstrip('.')}: {line}"


def _unknown(name: str, config_class: type[Config], path: str) -> str:
    if name in config_class.unsupported:
        return f"{path}{name} cannot be set: {config_class.unsupported[name]}"
    if elsewhere := other_trainers.answer(str(name), path):
        return f"{path}{name} {elsewhere}"
    fields = dataclasses.fields(config_class)
    kinds = types_of(config_class)
    # a setting without its part: rank for adapter.rank
    owners = [f.name for f in fields if "variants" in f.metadata and name in kinds[f.name].__dataclass_fields__]
    if owners:
        return f"{path}{name} is called {' or '.join(f'{path}{owner}.{name}' for owner in owners)} here."
    # "adpter" -> "Did you mean adapter?"
    hint = difflib.get_close_matches(str(name), [f.name for f in fields], n=1)
    return f"{path}{name} is not a setting." + (
        f" Did you mean {path}{hint[0]}?" if hint else f" Settings here: {', '.join(f.name for f in fields)}."
    )


def _parse(value: Any, f: dataclasses.Field, expected: Any, path: str) -> Any:
    try:
        # settings of a part are read there, where their types are known
        if "variants" not in f.metadata or isinstance(value, Typed):
            value = resolved(value, expected)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; {f.metadata['help']}.") from None
    if "variants" in f.metadata:
        inner = expected
        if f.metadata["variants"] and isinstance(value, dict):
            tag = f.metadata["tag"]
            default = getattr(expected, tag, None)
            if tag not in value and default is None:
                raise ConfigError(f"{path}.{tag} is missing: it decides which settings {path} has.")
            inner = f.metadata["variants"](value.get(tag, default))
        return from_dict(inner, value, path + ".")
    # What is stored and shown has no password or token of an address; `hub.fetch` knows them.
    value = without_secrets(value)
    if isinstance(value, list):
        return tuple(value)
    return _with_numbers(value) if expected in (float, dict) else value


def _with_numbers(value: Any) -> Any:
    """Texts such as 1e-4 as numbers, in tables and lists too: YAML reads them as text."""
    if isinstance(value, dict):
        return {name: _with_numbers(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    is_number = isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value)
    return float(value) if is_number else value


def to_yaml(config: Config) -> str:
    """YAML text of a config; `from_dict(…, read_yaml(…))` gives an equal config back."""
    import yaml

    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file, unchecked. Raises ConfigError when it is missing or holds no table."""
    try:
        data = load_yaml(read_file(Path(path), SETTINGS_BYTES).decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a YAML file: {error}; save it as UTF-8.") from None
    except FileNotFoundError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except (DamagedFile, DiskError) as error:
        raise ConfigError(str(error)) from None
    if data is not None and not isinstance(data, dict):
        raise ConfigError(f"{path} is not a table of settings; write lines such as `adapter: {{rank: 32}}`.")
    return data or {}


def load_yaml(text: str, source: str) -> Any:
    """Parsed YAML; `source` names its origin in errors. Raises ConfigError when it is not YAML."""
    import yaml

    try:
        return yaml.safe_load(text)
    # ValueError: e.g. 2024-13-45, a date that does not exist; RecursionError: thousands of brackets
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not YAML: {error}") from None


def assign(data: dict[str, Any], dotted: str, text: str) -> None:
    """Write one `--set key.sub=text` into nested settings, in place; the setting's type decides what the text means.

    See `typed.typed_value`; `from_dict` and `check` read it so.
    """
    *tables, name = dotted.split(".")
    for table in tables:
        data = data.setdefault(table, {})
        if not isinstance(data, dict):
            raise ConfigError(f"{dotted} is not a setting: {table} is a value, not a table.")
    data[name] = Typed(text)


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Lines `path: old -> new`, one for every leaf in which two nested dicts differ; "-" for a missing one."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = list(old) + [name for name in new if name not in old]
        return [
            line
            for name in names
            for line in differences(old.get(name, "-"), new.get(name, "-"), f"{path}.{name}".lstrip("."))
        ]
    return [] if old == new else [f"{path}: {old} -> {new}"]
