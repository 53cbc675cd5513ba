"""The shape of the code: imports point down only, notebooks only read, and the README's map is complete."""

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import architecture
import pytest

ROOT = Path(__file__).parents[1]
# From the ground up: a file or a room may import those before it, and what stands in its own room.
ORDER = """
    secrets errors typed other_trainers randomness
    files config events machine project hub layers lora diffusion
    optimizers schedules presets guide_tables
    models data run sync training prepare generation taggers tags examine
    demo doctor reports api cli __main__
""".split()
WIDGETS = """
    i18n page plot plain images clicks waiting layouts choices controls fields project data tags training evaluate
    bootstrap
""".split()
MOST_FILES = 15  # in a room
MOST_METHODS = 16  # in a class
MOST_LINES = 60  # in a function
HEAVY = ["torch", "diffusers", "transformers", "peft", "accelerate", "matplotlib", "ipywidgets", "IPython"]


def modules() -> dict[str, Path]:
    """Every module of the two packages by its dotted name."""
    files = [path for package in ("lorakit", "widgets") for path in sorted((ROOT / package).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imports(path: Path) -> set[str]:
    """Dotted names imported anywhere in a file, inside functions too; `from a import b` counts as a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            base = ".".join([*package, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def graph() -> dict[str, set[str]]:
    """Which of our modules each of our modules imports."""
    known = modules()
    arrows = {}
    for name, path in known.items():
        targets = {target if target in known else target.rpartition(".")[0] for target in imports(path)}
        arrows[name] = (targets & set(known)) - {name, "lorakit", "widgets"}
    return arrows


def place(module: str) -> int:
    """How far from the ground a module's room is; every room of widgets lies above every one of lorakit."""
    package, _, rest = module.partition(".")
    room = rest.partition(".")[0]
    return ORDER.index(room) if package == "lorakit" else len(ORDER) + WIDGETS.index(room)


def notebooks(kind: str = "code") -> list[tuple[str, dict]]:
    """Every code (or markdown) cell of every notebook, with where it is."""
    found = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        found += [(f"{path.name}, cell {i}", cell) for i, cell in enumerate(cells) if cell["cell_type"] == kind]
    return found


def test_imports_point_down_only():
    upward = [
        f"{name} imports {target}"
        for name, targets in graph().items()
        for target in sorted(targets)
        if name not in ("lorakit", "widgets") and place(target) > place(name)
    ]
    assert not upward, "\n".join(upward)


def test_no_room_is_overfull():
    rooms = Counter(path.parent.relative_to(ROOT) for path in modules().values() if path.stem != "__init__")
    assert not {str(room): files for room, files in rooms.items() if files > MOST_FILES}


def test_no_class_and_no_function_is_overfull():
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    wrong = []
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                count = sum(isinstance(each, functions) for each in node.body)
                wrong += [f"{name}.{node.name}: {count} methods"] if count > MOST_METHODS else []
            elif isinstance(node, functions):
                lines = node.end_lineno - node.lineno + 1
                wrong += [f"{name}.{node.name}: {lines} lines"] if lines > MOST_LINES else []
    assert not wrong, "\n".join(wrong)


def test_no_two_modules_import_each_other_even_by_a_detour():
    open_arrows = graph()
    while free := {name for name, targets in open_arrows.items() if not targets & set(open_arrows)}:
        open_arrows = {name: targets for name, targets in open_arrows.items() if name not in free}
    ring = {name: sorted(targets & set(open_arrows)) for name, targets in open_arrows.items()}
    assert not ring, f"in a ring, or leaning on one: {ring}"


def test_lorakit_knows_nothing_of_notebook_frontends():
    frontends = {"widgets", "ipywidgets", "IPython", "google"}
    known = [
        f"{path.relative_to(ROOT)} imports {target}"
        for name, path in modules().items()
        if name.partition(".")[0] == "lorakit"
        for target in imports(path)
        if target.partition(".")[0] in frontends
    ]
    assert not known, "\n".join(known)


@pytest.mark.parametrize("module", ["lorakit", "lorakit.cli"])
def test_importing_loads_nothing_heavy(module):
    if module not in modules():
        pytest.skip(f"there is no {module} yet")
    code = f"import sys, {module}; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_no_file_is_named_for_whatever_fits_nowhere():
    vague = re.compile(r"utils?|commons?|helpers?|managers?|misc")
    named = [name for name in modules() if any(vague.fullmatch(word) for word in re.split(r"[._]", name))]
    assert not named


def test_every_file_opens_with_its_sentence():
    silent = [name for name, path in modules().items() if not ast.get_docstring(ast.parse(path.read_text("utf-8")))]
    assert not silent


def test_notebooks_are_committed_without_outputs():
    full = [where for where, cell in notebooks() if cell["outputs"] or cell["execution_count"] is not None]
    assert not full


def test_every_text_in_the_notebooks_is_one_line_of_english_and_one_of_chinese():
    wrong = []
    for where, cell in notebooks("markdown"):
        *_, english, chinese = [line for line in "".join(cell["source"]).splitlines() if line]
        is_chinese = [bool(re.search("[\u4e00-\u9fff]", line)) for line in (english, chinese)]
        wrong += [where] if is_chinese != [False, True] or not english.endswith("<br>") else []
    assert not wrong, wrong


def test_notebook_cells_are_short_define_nothing_and_have_no_loops():
    wrong = []
    for where, cell in notebooks():
        lines = "".join(cell["source"]).splitlines()
        plain = "\n".join(re.sub(r"^(\s*)[%!].*", r"\1pass", line) for line in lines)
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.For, ast.While)
        count = len([line for line in lines if line.strip()])
        # The first cell, which is folded, has to find the kit before it can import it.
        longest = 12 if cell["metadata"] else 9
        wrong += [f"{where}: {count} lines"] if count > longest else []
        found = [type(node).__name__ for node in ast.walk(ast.parse(plain)) if isinstance(node, kinds)]
        wrong += [f"{where}: {', '.join(found)}"] if found else []
    assert not wrong, "\n".join(wrong)


def test_the_architecture_page_lists_every_room_and_file():
    assert architecture.page(ORDER, WIDGETS) == architecture.PAGE.read_text(encoding="utf-8"), "run `make map`"
