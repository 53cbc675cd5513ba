"""Writes the lists of rooms and files in ARCHITECTURE.md from the first sentence of every file (`make map`)."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "ARCHITECTURE.md"


def sentence(file: Path) -> str:
    """The first sentence of a Python file's docstring, on one line."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<!e\.g\.)(?<!et al\.)(?<=[.!])\s", " ".join(text.split()))[0].rstrip(".")


def rooms(order: list[str], widgets: list[str]) -> str:
    """A line for each room, from the ground up; files that stand alone share a line."""
    lines = []
    for package, names in (("lorakit", order), ("widgets", widgets)):
        for name in names:
            room = ROOT / package / name / "__init__.py"
            file = ROOT / package / f"{name}.py"
            path, source = (f"{package}/{name}/", room) if room.exists() else (f"{package}/{name}.py", file)
            lines.append(f"- `{path}` {sentence(source)}")
    return "\n".join(lines)


def files() -> str:
    """A line for each file of both packages, below a line for each folder."""
    lines = []
    for package in ("lorakit", "widgets"):
        for folder in sorted({file.parent for file in (ROOT / package).rglob("*.py")}):
            lines += ["", f"**{folder.relative_to(ROOT)}/**", ""]
            lines += [f"- `{file.name}` {sentence(file)}" for file in sorted(folder.glob("*.py"))]
    return "\n".join(lines).strip()


def page(order: list[str], widgets: list[str]) -> str:
    """ARCHITECTURE.md as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    for name, content in (("rooms", rooms(order, widgets)), ("files", files())):
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, rest = text.split(start)
        text = f"{before}{start}\n{content}\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(ROOT / "tests"))
    from test_layers import ORDER, WIDGETS

    PAGE.write_text(page(ORDER, WIDGETS), encoding="utf-8")
