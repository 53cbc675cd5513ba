"""Values typed as text, as by `--set`: the type of the setting decides what a text stands for."""

from __future__ import annotations

import re
import typing
from typing import Any

# An item of a list in brackets: quoted, or whatever stands before the next comma.
ITEM = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^,]*?)\s*(?:,|$)""")
FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class Typed(str):
    """A text that somebody typed as the value of a setting, whose type is not known yet."""


def typed_value(text: str, expected: Any) -> Any:
    """What a typed text means for a setting of this type; a text that does not fit stays a text, to be refused there.

    str         the text as it stands, nothing of it is YAML: `@name`, `2b #nier`, `yes`, `C:\\x`
    int, float  a number, also as 1e3; bool: true, yes, on, false, no, off
    tuple       of texts: `[a, "b, c"]`, an item with a comma in quotes; a text without brackets is the only item
    others      (tables, lists of tables) YAML; in a table of texts all values are texts

    Raises ValueError for broken YAML.
    """
    if expected is str:
        return str(text)
    if expected is bool:
        return FLAGS.get(text.strip().lower(), str(text))
    if expected in (int, float):
        return _number(text, expected)
    if typing.get_args(expected) == (str, str):
        return _table_of_texts(text)
    if typing.get_origin(expected) is tuple and typing.get_args(expected)[0] is str:
        inside = text.strip()
        if not (inside.startswith("[") and inside.endswith("]")):
            return (str(text),) if inside else ()
        return tuple(_items(inside[1:-1]))
    return plain(text)


def resolved(value: Any, expected: Any) -> Any:
    """A value of this type with what each typed text in it means. Raises ValueError for broken YAML."""
    if isinstance(value, Typed):
        return typed_value(value, expected)
    if isinstance(value, dict) and typing.get_args(expected) == (str, str):
        return {name: str(item) if isinstance(item, Typed) else item for name, item in value.items()}
    return plain(value)


def plain(value: Any) -> Any:
    """A value without any `Typed` in it, of which no type is known: such texts are read as YAML.

    Raises ValueError for broken YAML.
    """
    import yaml

    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if not isinstance(value, Typed):
        return value
    try:
        # YAML reads an empty value as null; here it means an empty text.
        return yaml.safe_load(value) if value else ""
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{value!r} is not YAML: {error}") from None


def _table_of_texts(text: str) -> Any:
    import yaml

    try:
        # BaseLoader keeps every value a text
        return yaml.load(text, Loader=yaml.BaseLoader) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r} is not YAML: {error}") from None


def _number(text: str, expected: type) -> Any:
    try:
        number = float(text)
    except ValueError:
        return str(text)
    # 1e3 is a whole number; digits are read as int, as float has only 53 bits
    if expected is int:
        return int(text) if re.fullmatch(r"\s*[-+]?\d+\s*", text) else int(number) if number.is_integer() else number
    return number


def _items(inside: str) -> list[str]:
    import yaml

    items = [match[1] for match in ITEM.finditer(inside)]
    # quoted as in YAML, for the sake of escapes
    return [yaml.safe_load(item) if item[:1] in ("'", '"') and len(item) > 1 else item for item in items if item]
