"""Settings that know their help, unit and range; a Config that checks itself; YAML both ways."""

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

from lorakit.errors import UserError

# Settings that had another name in an earlier version -> their name now, dotted. What earlier versions stored
# (config.yaml and fingerprint.json of a run, settings.yaml of a project) is read with it, and so is `--set`.
RENAMED = {"adapter.kind": "adapter.type"}


class ConfigError(UserError):
    """One or more settings are wrong; the message names each with what was given and what is allowed."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """How a form shows a setting."""

    label: str = ""  # empty: its name
    basic: bool = False  # shown to beginners
    hidden: bool = False  # never shown: written by commands alone
    # another field of the same Config, and its values for which this one matters
    when: tuple[str, tuple] | None = None
    suggestions: tuple[str, ...] = ()  # texts to choose from; any other is allowed
    lines: int = 1  # height of a text field


@dataclass(frozen=True)
class Slider(Field):
    """A slider over the usual range of a number; its ends are no limits."""

    low: float
    high: float
    step: float  # log10 units on a logarithmic slider
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
    """A field of a Config: its default, one line of help, unit, closed range and allowed values.

    `choices` is a tuple, or a function of no argument that returns one or a registry of rows (read when needed).
    """
    described = {"help": help, "unit": unit, "range": range, "choices": choices, "ui": ui}
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

    With `variants`, the value of the part's own field `tag` chooses its class (a model family owns its Config). A
    `config_class` beside it is the class they all derive from; its own default of `tag` holds where none is given.
    A `free` part may change between the sessions of one run: it does not decide the result.
    """
    described = {"help": help, "tag": tag, "variants": variants, "free": free}
    return field(default_factory=config_class, metadata=described) if config_class else field(metadata=described)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all configs: frozen, keyword-only, checked on construction (ConfigError names every problem).

    `unsupported`: settings that people know from other trainers -> why there are none of that name here.
    """

    unsupported: ClassVar[dict[str, str]] = {}

    def __post_init__(self) -> None:
        wanted = types_of(type(self))
        problems = [
            problem for f in dataclasses.fields(self) for problem in _problems(f, wanted[f.name], getattr(self, f.name))
        ]
        problems = problems or self.conflicts()  # which compare values of the right types only
        if problems:
            raise ConfigError("\n".join(problems))

    def conflicts(self) -> list[str]:
        """Sentences about settings that do not go together; a Config overrides this."""
        return []


@cache
def types_of(config_class: type) -> dict[str, Any]:
    """Name -> type of every field of a Config."""
    return typing.get_type_hints(config_class)


def check(config_class: type[Config], name: str, value: Any) -> Any:
    """One setting as its Config holds it (lists as tuples, 1e-4 as a number).

    Raises ConfigError with a sentence when the value alone is wrong; what goes together, a whole Config checks.
    """
    f, wanted = config_class.__dataclass_fields__[name], types_of(config_class)[name]
    value = _parse(value, f, wanted, name)
    if problems := _problems(f, wanted, value):
        raise ConfigError("\n".join(problems))
    return value


def _problems(f: dataclasses.Field, wanted: Any, value: Any) -> list[str]:
    meta = f.metadata
    if not _fits(value, wanted):
        return [f"{f.name} is {value!r}, but {_type_name(wanted)} is wanted: {meta['help']}."]
    if isinstance(value, Config):
        return []
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = meta["range"]
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
    """The allowed values of a field, or None when any value of its type and range will do."""
    choices = f.metadata["choices"]
    return tuple(choices()) if callable(choices) else choices


def helps_of(f: dataclasses.Field) -> dict[Any, str]:
    """Allowed value -> its row's line of help, of a field whose choices are a registry; empty for others."""
    choices = f.metadata["choices"]
    rows = choices() if callable(choices) else None
    return {name: row.help for name, row in rows.items()} if isinstance(rows, Mapping) else {}


def label_of(f: dataclasses.Field) -> str:
    """What a field is called in a form."""
    return f.metadata["ui"].label or f.name.replace("_", " ")


def _fits(value: Any, wanted: Any) -> bool:
    origin = typing.get_origin(wanted)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(wanted))
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, typing.get_args(wanted)[0]) for item in value)
    if dict in (origin, wanted):
        return isinstance(value, dict) and _is_data(value)
    if wanted is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, wanted)


def _is_data(value: Any) -> bool:
    """Whether all in a table can be written and is the same when read back: no dates, which YAML has, and no NaN."""
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_data(item) for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_data, value))
    return value is None or isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))


def _type_name(wanted: Any) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        str: "text (in quotes where YAML would read a number, a date or yes/no)",
        bool: "true or false",
        dict: "a table of names and values (numbers, texts in quotes, lists)",
    }
    if typing.get_origin(wanted) is tuple:
        return f"a list, each of its items {_type_name(typing.get_args(wanted)[0])},"
    return names[wanted] if wanted in names else wanted.__name__


def _range(low: float | None, high: float | None) -> str:
    if low is None:
        return "any finite number" if high is None else f"at most {high}"
    return f"at least {low}" if high is None else f"{low} to {high}"


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested dict of a config, ready for YAML or JSON (tuples become lists)."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return to_dict(value)
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def from_dict(config_class: type, data: dict[str, Any], path: str = "") -> Any:
    """The config that `data` describes. Raises ConfigError for unknown names and bad values, each with its path."""
    if not isinstance(data, dict):
        raise ConfigError(f"{path.rstrip('.') or 'the configuration'} is {data!r}, but a table of settings is wanted.")
    fields = {f.name: f for f in dataclasses.fields(config_class)}
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
    """A sentence about a Config with where that stands: before the field that it begins with, or before all of it."""
    begins = re.match(r"\w+", line)
    return path + line if not path or (begins and begins[0] in fields) else f"{path.rstrip('.')}: {line}"


def _unknown(name: str, config_class: type[Config], path: str) -> str:
    if name in config_class.unsupported:
        return f"{path}{name} cannot be set: {config_class.unsupported[name]}"
    known = [f.name for f in dataclasses.fields(config_class)]
    hint = difflib.get_close_matches(str(name), known, n=1)
    return f"{path}{name} is not a setting." + (
        f" Did you mean {path}{hint[0]}?" if hint else f" Known here: {', '.join(known)}."
    )


def _parse(value: Any, f: dataclasses.Field, wanted: Any, path: str) -> Any:
    if "variants" in f.metadata:
        inner = wanted
        if f.metadata["variants"] and isinstance(value, dict):
            tag = f.metadata["tag"]
            usual = getattr(wanted, tag, None)
            if tag not in value and usual is None:
                raise ConfigError(f"{path}.{tag} is missing: it says which kind of {path} this is.")
            inner = f.metadata["variants"](value.get(tag, usual))
        return from_dict(inner, value, path + ".")
    if isinstance(value, list):
        return tuple(value)
    return _with_numbers(value) if wanted in (float, dict) else value


def _with_numbers(value: Any) -> Any:
    """YAML reads 1e-4 as text; people mean the number, in tables too."""
    if isinstance(value, dict):
        return {name: _with_numbers(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    is_number = isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value)
    return float(value) if is_number else value


def to_yaml(config: Config) -> str:
    """YAML text of a config; `from_dict` makes an equal one of what `read_yaml` reads from it."""
    import yaml

    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file, not yet checked. Raises ConfigError when there is no such file or no table in it."""
    try:
        data = load_yaml(Path(path).read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a YAML file: {error}; save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    if data is not None and not isinstance(data, dict):
        raise ConfigError(f"{path} is not a table of settings; write lines such as `adapter: {{rank: 32}}`.")
    return data or {}


def load_yaml(text: str, source: str) -> Any:
    """What a YAML text says; `source` tells where it stands. Raises ConfigError when it is not YAML."""
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: something like a date that is none
        raise ConfigError(f"{source} is not YAML: {error}") from None


def assign(data: dict[str, Any], dotted: str, text: str) -> None:
    """Write one `--set key.sub=value` into nested settings; the value is read as YAML (1, true, [a, b], text)."""
    *tables, name = dotted.split(".")
    for table in tables:
        data = data.setdefault(table, {})
        if not isinstance(data, dict):
            raise ConfigError(f"{dotted} is not a setting: {table} is a value, not a table.")
    data[name] = load_yaml(text, f"--set {dotted}={text}") if text else ""  # an empty value empties a text


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Sentences `path: old -> new` for every leaf in which two nested dicts differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = list(old) + [name for name in new if name not in old]
        return [
            line
            for name in names
            for line in differences(old.get(name, "-"), new.get(name, "-"), f"{path}.{name}".lstrip("."))
        ]
    return [] if old == new else [f"{path}: {old} -> {new}"]
