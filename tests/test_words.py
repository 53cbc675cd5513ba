"""The field's words, in code and on the screen: what this code once called by private names does not come back."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILES = [path for package in ("lorakit", "widgets") for path in sorted((ROOT / package).rglob("*.py"))]
# What is said instead is in brackets.
DIALECT = re.compile(
    r"""\b(?:
    told | tells?\ of | is\ asked | are\ asked                           # (shown, reported, returns)
    | goes\ on | gone\ on | going\ on | go\ on                           # (resumes, continues)
    | passed\ over | passes\ over                                        # (skipped)
    | (?<!")sittings?(?!\ standing)                                     # (session; a pose is no session)
    | lets?\ go\ of                                                      # (releases, frees)
    | paint(?:s|ed|er|ers|ing)?                                          # (generate, generator)
    | pictures?                                                          # (image)
    | mend(?:s|ed|ing)?                                                  # (fix)
    | without\ a\ word | as\ it\ was | is\ wanted | are\ wanted
    | learned\ by\ heart                                                 # (overfitting)
    | data\ sets?                                                        # (dataset)
    | sets?\ aside                                                       # (excluded from dataset)
    )\b""",
    re.VERBOSE | re.IGNORECASE,
)
VAGUE = {"told", "said", "found", "made", "known", "mine"}  # name what it holds; in a comprehension they may stand
# Stored values and file names of earlier versions, which must stay readable.
STORED = re.compile(r'"pictures"|set-aside|"home"|home\.json|dataset-pictures')
# The demo's drawn world paints pixels for real, and draws its pictures.
DEMO = ROOT / "lorakit" / "demo"
DOTTED = re.compile(
    r"(?<![\w/.])(?:model|data|adapter|loss|optimizer|schedule|loop|memory|save|sample)\.[a-z_]+\b(?!\()"
)


def texts(file: Path) -> list[tuple[int, str]]:
    """(line, text) of every string and comment of a Python file."""
    tokens = tokenize.generate_tokens(io.StringIO(file.read_text(encoding="utf-8")).readline)
    return [(token.start[0], token.string) for token in tokens if token.type in (tokenize.STRING, tokenize.COMMENT)]


def in_comprehensions(tree: ast.Module) -> set[int]:
    """Ids of the nodes that are targets of comprehensions."""
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.comprehension)]
    return {id(name) for loop in loops for name in ast.walk(loop.target)}


def vague_names(file: Path) -> list[str]:
    """Where a variable, parameter or function of a file has a name that says nothing."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    short = in_comprehensions(tree)
    where = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in short:
            name = node.id
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            name = node.name
        else:
            continue
        if name.lstrip("_") in VAGUE:
            where.append(f"{file.relative_to(ROOT)}:{node.lineno} {name}")
    return where


@pytest.mark.parametrize("room", sorted({path.parent.relative_to(ROOT).as_posix() for path in FILES}))
def test_no_text_speaks_the_old_dialect(room):
    found = [
        f"{file.relative_to(ROOT)}:{line} {hit[0]!r}"
        for file in FILES
        if file.parent == ROOT / room and DEMO not in (file.parent, *file.parents)
        for line, text in texts(file)
        for hit in DIALECT.finditer(STORED.sub("", text))
    ]
    assert not found, "\n".join(found)


def test_no_variable_has_a_name_that_says_nothing():
    assert not (where := [line for file in FILES for line in vague_names(file)]), "\n".join(where)


def test_translations_and_notebooks_speak_it_no_more():
    pages = [*(ROOT / "widgets" / "zh").glob("*.yaml"), *(ROOT / "notebooks").glob("*.ipynb"), *ROOT.glob("*.md")]
    found = [
        f"{page.relative_to(ROOT)}: {hit[0]!r} in {text[max(0, hit.start() - 30) : hit.end() + 20]!r}"
        for page in pages
        for text in [STORED.sub("", page.read_text(encoding="utf-8"))]
        for hit in DIALECT.finditer(text)
    ]
    assert not found, "\n".join(found)


def test_no_setting_is_called_by_its_dotted_name_on_the_screen():
    found = []
    for page in (ROOT / "widgets" / "zh").glob("*.yaml"):
        for section, entries in yaml.safe_load(page.read_text(encoding="utf-8")).items():
            if section in ("settings", "parts", "messages"):  # these go by the dotted name, and show the label
                continue
            found += [f"{page.name}, {section}: {text}" for text in entries if DOTTED.search(text)]
    assert not found, "\n".join(found)
