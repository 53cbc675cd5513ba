"""Every sentence of the widgets has its Chinese one, and no translation is left over."""

import ast
import errno
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from each import each

from lorakit.config import check
from lorakit.errors import UserError
from lorakit.files.disk import disk_error
from lorakit.lora.variants import AdapterConfig
from lorakit.sync.service import Pace, SyncService
from widgets import i18n
from widgets.project.labels import labelled

WIDGETS = Path(i18n.__file__).parent
SOURCES = {
    ".".join(path.relative_to(WIDGETS).with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(WIDGETS.rglob("*.py"))
}
# Sections of sentences that other tests compare with the data that they translate.
DATA = {*i18n.BY_PATH, i18n.MESSAGES, "rows", "advice", "places", "doctor", "examine", "suspects", "taggers"}


@pytest.fixture
def chinese():
    before = i18n.language()
    i18n.use("zh")
    yield
    i18n.use(before)


def calls(tree: ast.Module) -> list[ast.Call]:
    """All calls of say() in a file."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [node for node in nodes if getattr(node.func, "id", getattr(node.func, "attr", "")) == "say"]


def literals(tree: ast.AST) -> set[str]:
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def sentences(tree: ast.Module) -> set[str]:
    """The literals given to say(), also by `say("a" if ... else "b")`."""
    texts = set()
    for call in calls(tree):
        text = call.args[0]
        options = [text.body, text.orelse] if isinstance(text, ast.IfExp) else [text]
        texts |= {option.value for option in options if isinstance(option, ast.Constant)}
    return texts


def fields(text: str) -> set[str]:
    return set(re.findall(r"\{(\w+)", text))


@each([name for name in SOURCES if name != "i18n"])
def test_every_sentence_of_a_module_has_its_chinese(module):
    translated = i18n.translations().get(module, {})
    assert not sorted(sentences(SOURCES[module]) - set(translated)), f"missing in section {module!r} of zh/"


@each([name for name in SOURCES if name != "i18n"])
def test_no_sentence_is_put_together_before_it_is_translated(module):
    composed = [ast.unparse(c) for c in calls(SOURCES[module]) if isinstance(c.args[0], (ast.JoinedStr, ast.BinOp))]
    assert not composed, "give say() the sentence with {fields} in it, and the fields by name"


@each(sorted(set(i18n.translations()) - DATA))
def test_no_translation_is_left_over(section):
    assert section in SOURCES, "a section is named like a file of widgets/"
    left = set(i18n.translations()[section]) - literals(SOURCES[section])
    assert not left, f"section {section!r} of zh/ translates what that file does not say"


@each(sorted(set(i18n.translations()) - set(i18n.BY_PATH)))
def test_a_translation_has_the_fields_of_its_sentence(section):
    entries = i18n.translations()[section]
    # a message may leave a field out, such as a setting's English help, which the form shows in Chinese already
    extra = (fields(z) - fields(e) if section == i18n.MESSAGES else fields(z) ^ fields(e) for e, z in entries.items())
    assert not [sorted(names) for names in extra if names]
    assert all(z.strip() for z in entries.values())


def test_a_sentence_is_translated_one_way_only():
    translations = {}
    for section in set(i18n.translations()) - set(i18n.BY_PATH):
        for english, chinese in i18n.translations()[section].items():
            translations.setdefault(english, set()).add(chinese)
    assert not {english: ways for english, ways in translations.items() if len(ways) > 1}


def test_no_key_stands_twice_in_a_section():
    trees = [yaml.compose(file.read_text(encoding="utf-8")) for file in (WIDGETS / "zh").glob("*.yaml")]
    pairs = [pair for tree in trees for pair in tree.value]
    sections = [section.value for section, _ in pairs]
    assert len(sections) == len(set(sections))
    for section, entries in pairs:
        keys = [key.value for key, _ in entries.value]
        assert len(keys) == len(set(keys)), (
            f"in section {section.value}: {sorted(k for k in keys if keys.count(k) > 1)}"
        )


def test_texts_are_in_the_chosen_language(chinese, monkeypatch):
    monkeypatch.setattr(i18n, "_sentences", lambda: {"{n} steps of {name}": "{name}：{n} 步"})
    assert i18n.say("{n} steps of {name}", n=3, name="a") == "a：3 步"
    assert i18n.say("100% of {x} untranslated", x=1) == "100% of 1 untranslated"
    i18n.use("en")
    assert i18n.say("{n} steps of {name}", n=3, name="a") == "3 steps of a"


def test_an_unknown_language_is_refused_and_changes_nothing():
    before = i18n.language()
    with pytest.raises(UserError, match="'fr'.*en, zh"):
        i18n.use("fr")
    assert i18n.language() == before


# ---- messages of lorakit ---------------------------------------------------------------------------------------------


def test_every_translated_message_is_still_one_of_lorakit():
    """Its fixed pieces stand in lorakit's texts; a reworded message needs its key in zh/messages.yaml reworded."""
    package = WIDGETS.parent / "lorakit"
    texts = "\0".join(
        text for path in package.rglob("*.py") for text in literals(ast.parse(path.read_text(encoding="utf-8")))
    )
    texts += "\0".join(literals(SOURCES["project.draft"]))
    pieces = {english: re.split(r"\{\w+\}|[.;:?] ?", english) for english in i18n.translations()[i18n.MESSAGES]}
    lost = {english: [p for p in fixed if p.strip() not in texts] for english, fixed in pieces.items()}
    assert not {english: strange for english, strange in lost.items() if strange}


def test_a_message_of_lorakit_is_translated_with_its_values_and_labels(chinese):
    with pytest.raises(UserError) as caught:
        check(AdapterConfig, "rank", 0)
    assert labelled(f"adapter.{caught.value}") == "“维度”的值是 0，允许范围：1 到 768。"
    lost = "Saved up to step 4; the 2 steps after it will be done again. Train it again: it resumes after step 4."
    assert i18n.message(lost) == "已保存到第 4 步，之后的 2 步会重新训练。再次训练即可：从第 4 步之后继续。"
    assert i18n.message("unknown\nThe last lines of its log:") == "unknown\n日志的最后几行："
    i18n.use("en")
    assert i18n.message(lost) == lost


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ENOTCONN])
def test_errors_of_a_disk_are_translated_whole(chinese, number):
    error = disk_error(OSError(number, "", "/p/x.png"))
    trouble = SyncService._sentence(SimpleNamespace(trouble=(error.reason, error.advice), count=2, size=3, pace=Pace()))
    for text in (str(error), trouble):
        shown = i18n.message(text)
        assert "/p/x.png" in shown and not re.search(r"[A-Za-z]{2,} [a-z]{2,}", shown), shown
