"""Captions as they lie beside images: read right or reported, whatever encoding and form they have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from corpus import CHINESE, READ, REPORTED, SMALL

from lorakit.data import DataConfig
from lorakit.data.caption_files import UnknownEncoding, decode, read_caption, read_caption_json, read_captions
from lorakit.data.scan import Scan, scan
from lorakit.randomness import rng

TAGS = (
    "帽子 红色头发 蓝色眼睛 微笑 白色背景 连衣裙 双马尾 站立 室外 天空 一个女孩 看着观众 长发 校服 百褶裙 领带".split()
)
TAGS += "猫耳 猫 笑 帽 小学 坐 女孩 剑 红色 侧面".split()
WORDS = {
    "cp1252": "café crème brûlée Mädchen süß größe élève garçon señorita año coração maçã fête naïve öl".split(),
    "cp1251": "девушка шляпа красный улыбка небо волосы глаза платье собака кошка лиса море лес".split(),
    "koi8-r": "девушка шляпа красный улыбка небо волосы глаза платье собака кошка лиса море лес".split(),
    "cp1253": "κορίτσι καπέλο κόκκινο χαμόγελο ουρανός μαλλιά μάτια γάτα".split(),
    "cp1250": "dívka klobouk červený úsměv obloha dziewczyna kapelusz uśmiech łąka świątynia".split(),
    "cp1256": "فتاة قبعة أحمر ابتسامة سماء شعر عيون".split(),
    "cp1255": "ילדה כובע אדום חיוך שמיים שיער עיניים".split(),
    "cp874": "เด็กผู้หญิง หมวก สีแดง ยิ้ม ท้องฟ้า ผมยาว ดวงตา".split(),
    "big5": "女孩 紅色帽子 微笑 藍色眼睛 長髮 天空 白色背景 連身裙 看著觀眾 雙馬尾".split(),
    "cp932": "女の子 帽子 笑顔 青空 赤い髪 制服 猫耳 長髪 教室 ワンピース".split(),
    "euc-jp": "女の子 帽子 笑顔 青空 赤い髪 制服 猫耳 長髪 教室 ワンピース".split(),
    "euc-kr": "소녀 모자 빨간 미소 하늘 머리 눈 교복 고양이 귀 배경 긴머리".split(),
}


def said(files: dict[str, bytes], root: Path, **settings) -> Scan:
    """The scan of a data folder with these files; an image for each name that ends in .png."""
    for name, data in files.items():
        path = root / "dataset" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data or (SMALL if name.endswith(".png") else b""))
    return scan(DataConfig(**settings), root)


# ---- encodings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "encoding"), READ)
def test_what_is_certain_is_read_right(text, encoding):
    assert decode(text.encode(encoding))[0] == text


@pytest.mark.parametrize(("text", "encoding"), REPORTED)
def test_what_might_be_something_else_is_reported_with_what_to_do(text, encoding):
    with pytest.raises(UnknownEncoding, match="save it as UTF-8"):
        decode(text.encode(encoding))


@pytest.mark.parametrize("encoding", WORDS)
def test_no_text_in_another_encoding_is_taken_for_chinese(encoding):
    random = rng("words", encoding)
    for _ in range(400):
        words = random.sample(WORDS[encoding], random.randint(1, 5))
        data = random.choice((", ", " ", ",", "\n")).join(words).encode(encoding)
        if random.random() < 0.2:
            data = b"1girl, " + data
        try:
            text, found = decode(data)
            assert found == "utf-8" and text.encode() == data, (words, text, found)
        except UnknownEncoding:
            continue


def test_captions_in_gbk_are_read_right_or_reported_and_nearly_all_long_ones_are_read():
    random, read = rng("gbk"), 0
    for number in range(400):
        text = ", ".join(random.sample(TAGS, random.randint(1, 3) if number % 2 else random.randint(4, 9)))
        try:
            decoded, encoding = decode(text.encode("gbk"))
            assert (decoded, encoding) == (text, "gb18030")
            read += number % 2 == 0
        except UnknownEncoding:
            continue
    assert read > 190


def test_utf16_of_anything_is_read_right_with_its_mark_and_never_wrong_without():
    random = rng("utf-16")
    for _ in range(400):
        text = ", ".join(random.sample([*TAGS, "1girl", "red hat", "smile", *WORDS["cp932"]], random.randint(1, 6)))
        for encoding in ("utf-16-le", "utf-16-be"):
            mark = "\ufeff".encode(encoding)
            assert decode(mark + text.encode(encoding))[0] == text
            if "," in text:
                try:
                    assert decode(text.encode(encoding))[0] == text
                except UnknownEncoding:
                    continue


def test_a_short_chinese_caption_is_read_as_the_others_of_its_folder_are(tmp_path):
    files = [tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "c.txt", tmp_path / "other" / "a.txt"]
    files[3].parent.mkdir()
    for file, text in zip(files, (CHINESE, "狐狸", "", "狐狸"), strict=True):
        file.write_bytes(text.encode("gbk"))
    (tmp_path / "d.txt").write_bytes("café, crème".encode("latin-1"))
    found = read_captions([*files, tmp_path / "d.txt"])
    assert [found[file].text for file in files] == [CHINESE, "狐狸", "", ""]
    assert "perhaps GBK" in found[files[3]].error and "perhaps Latin-1" in found[tmp_path / "d.txt"].error
    assert read_caption(files[1]).error and read_caption(files[0]).encoding == "gb18030"


def test_a_caption_in_an_unknown_encoding_is_shown_as_it_would_be_read_in_each(tmp_path):
    (tmp_path / "a.txt").write_bytes("mofurin, smile, a café\n, crème".encode("latin-1"))
    assert "Latin-1 (cp1252: “e, a café , crème”)" in read_caption(tmp_path / "a.txt").error
    (tmp_path / "b.txt").write_bytes("狐狸".encode("gbk"))
    assert "GBK (gb18030: “狐狸”) or " in read_caption(tmp_path / "b.txt").error


def test_utf8_of_every_language_is_read_as_it_always_was():
    random = rng("utf-8")
    words = (
        [word for found in WORDS.values() for word in found] + TAGS + "5 µm, 45 °C, ½, n°, o céu é azul, да, я".split()
    )
    for _ in range(3000):
        text = random.choice((", ", " ")).join(random.sample(words, random.randint(2, 6)))
        assert decode(text.encode()) == (text, "utf-8"), text


def test_a_letter_between_other_words_is_a_word_of_its_own():
    for text in ("una ragazza è seduta", "ela é alta, o vestido é azul", "un gatto e un cane ö un"):
        assert decode(text.encode()) == (text, "utf-8"), text


def test_plain_english_is_never_taken_for_utf16():
    for text in ("hair", "Bush hid the facts", "this app can break", "^_^", "=^P[", "a"):
        assert decode(text.encode()) == (text, "utf-8"), text


# ---- JSON --------------------------------------------------------------------------------------------------------

KEYS = ["a", "a.png", "2_mofu/a", "2_mofu/a.png", "/content/train/2_mofu/a.png", r"C:\train\2_mofu\a.png", "./2_mofu/a"]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("where", ["", "2_mofu/"])
@pytest.mark.parametrize("name", ["captions.json", "captions-2.json", "meta_cap.json", "mine.json"])
def test_a_key_is_an_image_however_its_path_is_written(key, where, name, tmp_path):
    files = {"2_mofu/a.png": b"", "3_other/b.png": b"", f"{where}{name}": json.dumps({key: "a hat"}).encode()}
    found = said(files, tmp_path)
    assert {sample.name: sample.written for sample in found.samples} == {"2_mofu/a.png": "a hat", "3_other/b.png": ""}
    assert found.samples[0].is_captioned and found.samples[0].caption_file.name == "a.txt"
    assert [note.kind for note in found.notes] == ["no caption"]


@pytest.mark.parametrize("key", ["3_other/a", "/x/7_gone/a.png", "a", "a.jpg", "", "/", "..", "2_mofu", "A.PNG"])
def test_a_key_that_might_be_another_image_is_counted_and_not_used(key, tmp_path):
    files = {"2_mofu/a.png": b"", "4_mofu/a.png": b"", "captions.json": json.dumps({key: "a hat"}).encode()}
    found = said(files, tmp_path)
    assert {sample.written for sample in found.samples} == {""}
    assert [note.text for note in found.notes if note.kind == "caption json"] == [
        f"1 of its 1 captions fit no image, such as {key!r}."
    ]


@pytest.mark.parametrize(
    ("value", "caption"),
    [
        ("1girl, hat", "1girl, hat"),
        ("a girl.\nShe smiles.", "a girl., She smiles."),
        (["1girl", " hat, ", ""], "1girl, hat"),
        ({"caption": "a girl", "tags": "1girl, hat"}, "a girl, 1girl, hat"),
        ({"tags": "1girl, hat", "train_resolution": [512, 512]}, "1girl, hat"),
        ({"caption": 3}, ""),
        (7, ""),
        ([1, 2], ""),
        (None, ""),
        ("", ""),
        ("\ud800", ""),
    ],
)
def test_a_caption_in_json_is_text_or_tags_or_what_kohyas_scripts_write(value, caption, tmp_path):
    file = tmp_path / "captions.json"
    file.write_text(json.dumps({"a": value}))
    assert read_caption_json(file).entries == ({"a": caption} if caption else {})


def test_a_caption_file_wins_over_json_the_nearer_json_over_the_other_and_each_choice_is_told(tmp_path):
    files = {
        "1_x/a.png": b"",
        "1_x/a.txt": b"file",
        "1_x/b.png": b"",
        "1_x/c.png": b"",
        "1_x/d.png": b"",
        "1_x/d.txt": b"",
        "1_x/mine.json": b'{"a": "json", "b": "near", "d": "json"}',
        "captions.json": b'{"a": "file", "b": "far", "c": "far"}',
    }
    found = said(files, tmp_path)
    assert [sample.written for sample in found.samples] == ["file", "near", "far", ""]
    shown = {(note.kind, note.name): note.text for note in found.notes}
    assert set(shown) == {
        ("caption choice", "1_x/mine.json"),
        ("caption choice", "captions.json"),
        ("empty caption", "1_x/d.png"),
    }
    assert shown["caption choice", "1_x/mine.json"].startswith("2 of its captions are left out")
    assert shown["caption choice", "captions.json"].startswith("1 of its captions are left out")


def test_strangers_in_json_are_one_note_with_an_example(tmp_path):
    entries = {"a": "hat", **{f"gone{number}": "x" for number in range(500)}}
    found = said({"a.png": b"", "captions.json": json.dumps(entries).encode()}, tmp_path)
    (note,) = found.notes
    assert (note.kind, note.text) == ("caption json", "500 of its 501 captions fit no image, such as 'gone0'.")


def test_images_of_one_stem_share_a_caption_in_json_as_they_share_a_file(tmp_path):
    found = said({"a.png": b"", "a.jpg": SMALL, "captions.json": b'{"a": "hat"}'}, tmp_path)
    assert [sample.written for sample in found.samples] == ["hat", "hat"]


def test_a_name_is_the_same_whether_its_accents_stand_apart_or_not(tmp_path):
    found = said({"e\u0301.png": b"", "captions.json": json.dumps({"\u00e9": "hat"}).encode()}, tmp_path)
    assert [sample.written for sample in found.samples] == ["hat"]
