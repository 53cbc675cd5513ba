"""Prompts are read as A1111 reads them, flags as kohya's scripts, and what is not done is named."""

from __future__ import annotations

import random

import pytest

from lorakit.diffusion import prompts
from lorakit.diffusion.prompts import escaped, literal, parse

# Prompt -> its windows, as `parse_prompt_attention` of A1111 1.10 reads it: [text, weight] of neighbours, BREAK between
# windows. Without empty pieces, which A1111 leaves where brackets are empty.
READ = [
    ("1girl, solo", [[("1girl, solo", 1.0)]]),
    ("a (hat) b", [[("a ", 1.0), ("hat", 1.1), (" b", 1.0)]]),
    ("a ((hat)) b", [[("a ", 1.0), ("hat", 1.2100000000000002), (" b", 1.0)]]),
    ("(((hat)))", [[("hat", 1.3310000000000004)]]),
    ("(hat:1.3)", [[("hat", 1.3)]]),
    ("(hat:0.5), smile", [[("hat", 0.5), (", smile", 1.0)]]),
    ("(hat: 1.3 )", [[("hat", 1.3)]]),
    ("(hat:+1.3)", [[("hat", 1.3)]]),
    ("(hat:-0.5)", [[("hat", -0.5)]]),
    ("(hat:.7)", [[("hat", 0.7)]]),
    ("(hat:1)", [[("hat", 1.0)]]),
    ("(hat:1.)", [[("hat", 1.0)]]),
    ("a ((hat:1.2)) b", [[("a ", 1.0), ("hat", 1.32), (" b", 1.0)]]),
    ("(a (b:1.5) c:1.2)", [[("a ", 1.2), ("b", 1.7999999999999998), (" c", 1.2)]]),
    ("(a, b, c:1.1), d", [[("a, b, c", 1.1), (", d", 1.0)]]),
    ("(a:1.2)(b:1.2)", [[("ab", 1.2)]]),
    ("(a:1.2) (b:0.8)", [[("a", 1.2), (" ", 1.0), ("b", 0.8)]]),
    ("[hat]", [[("hat", 0.9090909090909091)]]),
    ("[[hat]]", [[("hat", 0.8264462809917354)]]),
    ("a [hat] b [cap]", [[("a ", 1.0), ("hat", 0.9090909090909091), (" b ", 1.0), ("cap", 0.9090909090909091)]]),
    ("([hat])", [[("hat", 1.0)]]),
    ("[(hat)]", [[("hat", 1.0)]]),
    ("[(hat:1.3)]", [[("hat", 1.1818181818181819)]]),
    ("(a [b] c)", [[("a ", 1.1), ("b", 1.0), (" c", 1.1)]]),
    ("[a (b) c]", [[("a ", 0.9090909090909091), ("b", 1.0), (" c", 0.9090909090909091)]]),
    ("\\(hat\\)", [[("(hat)", 1.0)]]),
    ("hatsune miku \\(vocaloid\\)", [[("hatsune miku (vocaloid)", 1.0)]]),
    ("(hatsune miku \\(vocaloid\\):1.2)", [[("hatsune miku (vocaloid)", 1.2)]]),
    ("(hatsune miku \\(vocaloid\\))", [[("hatsune miku (vocaloid)", 1.1)]]),
    ("\\[hat\\]", [[("[hat]", 1.0)]]),
    ("(\\[a\\]:1.4)", [[("[a]", 1.4)]]),
    ("a \\\\ b", [[("a \\ b", 1.0)]]),
    ("a\\b", [[("ab", 1.0)]]),
    ("C:\\x", [[("C:x", 1.0)]]),
    ("\\", [[("", 1.0)]]),
    ("\\\\(hat)", [[("\\", 1.0), ("hat", 1.1)]]),
    ("(hat", [[("hat", 1.1)]]),
    ("(hat, (cap", [[("hat, ", 1.1), ("cap", 1.2100000000000002)]]),
    ("[hat", [[("hat", 0.9090909090909091)]]),
    ("a) b", [[("a) b", 1.0)]]),
    ("a] b", [[("a] b", 1.0)]]),
    ("hat:1.3)", [[("hat:1.3)", 1.0)]]),
    ("hat:1.3", [[("hat:1.3", 1.0)]]),
    ("(hat:big)", [[("hat:big", 1.1)]]),
    ("(hat:)", [[("hat:", 1.1)]]),
    ("(:1.3)", [[("", 1.0)]]),
    ("()", [[("", 1.0)]]),
    ("[]", [[("", 1.0)]]),
    ("(a:b:1.2)", [[("a:b", 1.2)]]),
    ("a: b, c:d", [[("a: b, c:d", 1.0)]]),
    ("(a: b)", [[("a: b", 1.1)]]),
    (": )", [[(": )", 1.0)]]),
    (
        "(score_9:1.05), (score_8_up:0.95), source_anime",
        [[("score_9", 1.05), (", ", 1.0), ("score_8_up", 0.95), (", source_anime", 1.0)]],
    ),
    (
        "masterpiece, (best quality:1.2), [lowres], (hat \\(cone\\):1.1)",
        [
            [
                ("masterpiece, ", 1.0),
                ("best quality", 1.2),
                (", ", 1.0),
                ("lowres", 0.9090909090909091),
                (", ", 1.0),
                ("hat (cone)", 1.1),
            ]
        ],
    ),
    ("a BREAK b", [[("a", 1.0)], [("b", 1.0)]]),
    ("a, BREAK, b", [[("a,", 1.0)], [(", b", 1.0)]]),
    ("a BREAK b BREAK c", [[("a", 1.0)], [("b", 1.0)], [("c", 1.0)]]),
    ("BREAK", [[("", 1.0)], [("", 1.0)]]),
    ("BREAK a", [[("", 1.0)], [("a", 1.0)]]),
    ("a BREAK", [[("a", 1.0)], [("", 1.0)]]),
    ("(a:1.2) BREAK (b:0.8)", [[("a", 1.2)], [("b", 0.8)]]),
    ("b", [[("b", 1.0)]]),
    ("aBREAK b", [[("aBREAK b", 1.0)]]),
    ("breakfast, BREAKFAST", [[("breakfast, BREAKFAST", 1.0)]]),
    ("a break b", [[("a break b", 1.0)]]),
    ("((a:1.1) (b:1.2):1.5)", [[("a", 1.6500000000000001), (" ", 1.5), ("b", 1.7999999999999998)]]),
    ("(a:1.2)b(c)", [[("a", 1.2), ("b", 1.0), ("c", 1.1)]]),
    ("(日本 \\(x\\):1.25), 猫", [[("日本 (x)", 1.25), (", 猫", 1.0)]]),
    ("a (b)) c", [[("a ", 1.0), ("b", 1.1), (") c", 1.0)]]),
    ("(a (b) c", [[("a ", 1.1), ("b", 1.2100000000000002), (" c", 1.1)]]),
    ("[a (b] c)", [[("a ", 0.9090909090909091), ("b", 1.0), (" c", 1.1)]]),
    (
        "1girl, (from behind:0.8), [[blurry]], (detailed eyes)",
        [
            [
                ("1girl, ", 1.0),
                ("from behind", 0.8),
                (", ", 1.0),
                ("blurry", 0.8264462809917354),
                (", ", 1.0),
                ("detailed eyes", 1.1),
            ]
        ],
    ),
    ("@artist, (#tag:1.2)", [[("@artist, ", 1.0), ("#tag", 1.2)]]),
]


@pytest.mark.parametrize(("text", "windows"), READ)
def test_a_prompt_is_read_as_by_a1111(text, windows):
    assert [list(window) for window in parse(text).windows] == windows


def test_break_in_brackets_is_a_break_too():
    # A1111 tokenises it as a word there, with a negative weight
    assert parse("(a BREAK b:1.2)").windows == ((("a", 1.2),), (("b", 1.2),))


@pytest.mark.parametrize("text", ["(a:.)", "(a:1.2.3)"])
def test_a_number_that_is_none_is_letters(text):
    ((part, weight),) = parse(text).windows[0]
    assert part == text[1:] and weight == 1.1


@pytest.mark.parametrize(
    "text", ["", " ", "1girl, solo", "  a ", "hat's {x}", "a--b", "@artist, #tag", "日本", "a\nb", "a: b"]
)
def test_a_prompt_without_syntax_is_encoded_as_the_caption_of_that_text(text):
    prompt = parse(text)
    assert prompt.is_plain and prompt.text == text and prompt.key == literal(text).key == (text,)
    assert prompt.flags == () and prompt.notes == ()


def test_weights_of_one_are_no_weights():
    assert parse("(a:1) \\(b\\)").key == ("a (b)",)
    assert parse("(a:1.1)").key != parse("a").key and parse("a BREAK b").key != parse("a  b").key


FLAGS = [
    ("a --n bad, (worse:1.2)", {"negative_prompt": "bad, (worse:1.2)"}),
    ("a --w 832 --h 1216 --d 7 --l 5.5 --s 30", dict(width=832, height=1216, seed=7, guidance_scale=5.5, steps=30)),
    ("a --W 64 --S 3", {"width": 64, "steps": 3}),
    ("a  --n x --ss euler --fs 3", {"negative_prompt": "x", "sampler": "euler", "shift": 3.0}),
    ("a --l 7", {"guidance_scale": 7.0}),
]


@pytest.mark.parametrize(("text", "flags"), FLAGS)
def test_flags_of_kohyas_sample_files_are_understood(text, flags):
    prompt = parse(text)
    assert dict(prompt.flags) == flags and prompt.text == "a" and prompt.notes == ()


NAMED = [
    ("a <lora:x:0.8> b", "<lora:x:0.8> is left out", "a  b"),
    ("a <lyco:y>", "<lyco:y> is left out", "a "),
    ("<hypernet:z:1>a", "<hypernet:z:1> is left out", "a"),
    ("a [cat:dog:0.5]", "[cat:dog:0.5] is read as “dog”", "a dog"),
    ("a [dog:10]", "[dog:10] is read as “dog”", "a dog"),
    ("a [cat::0.5]", "[cat::0.5] is read as “”", "a "),
    ("a [cat|dog]", "[cat|dog] is read as “cat”", "a cat"),
    ("a AND b", "AND is read as letters", "a AND b"),
    ("{a|b} c", "{a|b} is read as letters", "{a|b} c"),
    ("__hair__ c", "__hair__ is read as letters", "__hair__ c"),
    ("embedding:easynegative", "embedding:easynegative is read as letters", "embedding:easynegative"),
    ("Negative prompt: bad", "Negative prompt: is read as letters: write --n", "Negative prompt: bad"),
    ("a --cn pose.png", "--cn is not known and left out; the flags here are --n, --w", "a"),
    ("a --w wide", "--w wide is left out: it needs a number", "a"),
    ("a --l nan", "--l nan is left out: it needs a number", "a"),
    ("a --s 1.5", "--s 1.5 is left out: it needs a number", "a"),
]


@pytest.mark.parametrize(("text", "note", "words"), NAMED)
def test_what_is_not_done_is_named(text, note, words):
    prompt = parse(text)
    (only,) = prompt.notes
    assert note in only and only.endswith(".") and prompt.text == words and prompt.flags == ()


def test_no_text_is_an_error():
    draws = random.Random(3)
    pieces = (
        "(",
        ")",
        "[",
        "]",
        ":",
        "1.2",
        "\\",
        "a",
        " ",
        " --",
        "n ",
        "w ",
        "BREAK",
        "<lora:",
        ">",
        "|",
        "{",
        "}",
        "AND",
    )
    for _ in range(2000):
        prompt = parse("".join(draws.choice(pieces) for _ in range(12)))
        assert prompt.windows and all(window for window in prompt.windows)


@pytest.mark.parametrize("caption", ["1girl, hat", "miku (vocaloid), [x]", "a\\b", "(unclosed", ":)", ""])
def test_a_caption_as_a_prompt_has_its_own_letters(caption):
    assert parse(escaped(caption)).key == (caption,)


def test_a_caption_that_is_written_as_a_prompt_is_one():
    for caption in ("miku \\(vocaloid\\)", "(hat:1.2)", "a BREAK b", "a <lora:x:1>", "a --w 512"):
        assert escaped(caption) == caption
    assert prompts.parse(escaped("miku \\(vocaloid\\)")).text == "miku (vocaloid)"
