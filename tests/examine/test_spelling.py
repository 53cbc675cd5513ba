"""What people paste into captions is found and fixed; what only looks like it stays; every fix can be undone."""

from __future__ import annotations

import pytest
from spoiled import Healthy

from lorakit.data import DataConfig
from lorakit.examine.encodings import likely_encoding
from lorakit.examine.fixes import apply_fix
from lorakit.examine.spelling import one_spelling, without_doubles, without_syntax
from lorakit.tags.editor import CaptionEditor

SYNTAX = {
    "mofu, (red hair:1.3), girl": "mofu, red hair, girl",
    "mofu, ((smile)), (((hat)))": "mofu, smile, hat",
    "mofu, (red hair, blue eyes: 1.2)": "mofu, red hair, blue eyes",
    "mofu, {{masterpiece}}, [glasses], 1.5::hat ::": "mofu, masterpiece, glasses, hat",
    "girl <lora:style:0.8>, <lyco:x:1>, smile": "girl, smile",
    "girl BREAK red hair, BREAK, hat": "girl, red hair, hat",
    r"mofurin \(series name\), saber \(fate\/zero\)": r"mofurin (series name), saber (fate\/zero)",
    "mofu, {red|blue} shirt, __color__, [a:b:0.5] hat": "mofu, shirt, hat",
    "mofu, girl, negative prompt: lowres, Steps: 20, Sampler: Euler a": "mofu, girl",
    "mofu, girl, Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1": "mofu, girl",
}
PLAIN = (
    r"\(^o^)/, (o)_(o), ^_^, :(, >:), <o>_<o>, ||_||",
    "saber (fate), year 2024, 1:1 ratio, steps, breakfast, re:zero, 2b (nier:automata)",
    "[trigger], [name] smiles, mofu ||| hat;;;shoes, 1,000 yen, long__hair",
    "A girl (left) holds a sign: “BREAKFAST”, and smiles.",
)


@pytest.mark.parametrize("caption", SYNTAX)
def test_prompt_syntax_becomes_plain_text(caption):
    assert without_syntax(caption) == SYNTAX[caption] == without_syntax(SYNTAX[caption])


@pytest.mark.parametrize("caption", PLAIN)
def test_what_is_no_prompt_syntax_stays_to_the_letter(caption):
    assert without_syntax(caption) == caption


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("mofu, smile, hat, smile", "mofu, smile, hat"),
        ("mofu, long_hair, Smile, long hair, smile", "mofu, long hair, smile"),
        ("mofu,smile ,hat", "mofu,smile ,hat"),
        ("o_o, O_o, ^_^, ^^", "o_o, O_o, ^_^, ^^"),
        ("A girl, in a hat, smiles. girl, girl", "A girl, in a hat, smiles., girl"),
    ],
)
def test_each_tag_stands_once_at_its_first_place(caption, expected):
    assert without_doubles(caption) == expected


def test_one_spelling_is_that_of_most_captions_or_of_the_trigger():
    captions = [["long_hair", "Mofu"], ["long hair", "mofu"], ["long_hair", "mofu"], ["smile", "Smile"], ["smile"]]
    assert one_spelling(captions, "Mofu") == {"long hair": "long_hair", "mofu": "Mofu"}
    assert one_spelling([["A_b"], ["a b"]]) == {"A_b": "a b"}


@pytest.mark.parametrize(
    ("encoding", "captions"),
    [
        ("cp1251", ["mofurin, девочка, улыбка", "синяя рубашка", "ночное небо"]),
        ("koi8-r", ["mofurin, девочка, улыбка", "синяя рубашка", "ночное небо"]),
        ("cp1252", ["une fille souriante au café", "ciel étoilé", "à contre-jour", "Mädchen, süß"]),
        ("cp1250", ["dziewczyna, uśmiech", "łąka, świątynia", "żółta sukienka"]),
        ("cp932", ["1girl, 笑顔", "白いパーカー", "青い空"]),
        ("gb18030", ["女孩, 微笑", "蓝色眼睛", "站立"]),
        ("big5", ["女孩, 紅色帽子", "藍色眼睛", "長髮"]),
        ("cp949", ["소녀, 모자", "빨간 머리", "하늘"]),
        ("cp1253", ["κορίτσι, καπέλο", "κόκκινο", "ουρανός"]),
        ("cp1252", ["a girl who doesn’t smile"]),
    ],
)
def test_the_encoding_of_all_captions_together_is_named(encoding, captions):
    assert likely_encoding([text.encode(encoding) for text in captions]) == encoding


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("prompt-syntax", "mofu, (smile:1.3), hat", "mofu, smile, hat"),
        ("doubled-tags", "mofu, smile, hat, smile", "mofu, smile, hat"),
        ("mixed-spelling", "mofu, Smile, hat", "mofu, smile, hat"),
        ("quality-tags", "mofu, masterpiece, smile, Best_Quality", "mofu, smile"),
        ("trigger-late", "smile, hat, mofu", "mofu, smile, hat"),
        ("trigger-missing", "A girl, in a hat, smiles.", "mofu, A girl, in a hat, smiles."),
    ],
)
def test_a_fix_changes_its_captions_is_done_with_one_call_and_can_be_undone(kind, before, after, tmp_path):
    healthy = Healthy(tmp_path / "project")
    healthy.caption(3, before)
    config, file = DataConfig(**healthy.data), healthy.folder / "03.txt"
    assert apply_fix(healthy.project, config, healthy.examine().find(kind)).changed == 1
    assert file.read_text().strip() == after and healthy.examine().find(kind) is None
    CaptionEditor(healthy.project, config).undo()
    assert file.read_text() == before


def test_captions_that_are_all_in_one_old_encoding_are_named_and_fixed(tmp_path):
    healthy = Healthy(tmp_path / "project")
    for number, file in enumerate(sorted(healthy.folder.glob("*.txt"))):
        file.write_bytes(f"mofu, девочка, улыбка {number}".encode("cp1251"))
    report = healthy.examine()
    finding = report.find("caption-encoding")
    assert report.find("unusable") and "cp1251" in finding.why and len(finding.images) == 16
    apply_fix(healthy.project, DataConfig(**healthy.data), finding, finding.fields["encoding"])
    assert healthy.examine().is_fine() and "девочка" in (healthy.folder / "03.txt").read_text()


def test_a_trigger_word_per_folder_is_what_the_button_writes(tmp_path):
    healthy = Healthy(tmp_path / "project")
    for number, folder in ((3, "2_rin"), (4, "2_mofu")):
        (healthy.folder / folder).mkdir()
        for ending in (".png", ".txt"):
            (healthy.folder / f"{number:02d}{ending}").rename(healthy.folder / folder / f"{number:02d}{ending}")
        (healthy.folder / folder / f"{number:02d}.txt").write_text("smile, hat")
    healthy.data["triggers"] = {"2_rin": "rin, cat ears"}
    finding = healthy.examine().find("trigger-missing")
    assert finding.fields["trigger"] == "mofu / rin, cat ears"
    apply_fix(healthy.project, DataConfig(**healthy.data), finding)
    texts = {file.parent.name: file.read_text().strip() for file in healthy.folder.glob("2_*/*.txt")}
    assert texts == {"2_rin": "rin, cat ears, smile, hat", "2_mofu": "mofu, smile, hat"}
