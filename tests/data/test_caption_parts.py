"""A caption is parsed once into tags and sentences; sentences stay whole in training, and old runs as they were."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from lorakit.data import DataConfig
from lorakit.data.caption_parts import are_alternatives, parts_of, pieces_of, tags_of
from lorakit.data.captions import (
    possible_captions,
    too_long_captions,
    trained_caption,
    training_caption,
    trigger_first,
    variant,
    with_trigger,
)

COAT = "A young woman, dressed in a long white coat, stands in the rain. Her hair, which is wet, sticks to her face."
RAIN, TREE = "Hatsune Miku stands in the rain, smiling. She looks up.", "a woman, dressed in red, stands under a tree."
SENTENCES = {  # caption: its parts
    f"{COAT}, mofurin, 1girl, rain": [COAT, "mofurin", "1girl", "rain"],
    f"mofurin, 1girl, {COAT}": ["mofurin", "1girl", COAT],
    "In the night, under a light, mofurin waits for the bus. 1girl, bus stop": [
        "In the night, under a light, mofurin waits for the bus.",
        "1girl",
        "bus stop",
    ],
    "Hatsune Miku stands in the rain, smiling. She looks up.": [
        "Hatsune Miku stands in the rain, smiling. She looks up."
    ],
    "mofu, a woman, dressed in a coat, stands under a tree.": [
        "mofu",
        "a woman, dressed in a coat, stands under a tree.",
    ],
    "Miku, A girl, smiling.": ["Miku", "A girl, smiling."],
    "一个女孩，站在雨中。她在笑。, 1girl": ["一个女孩，站在雨中。她在笑。", "1girl"],
    "Two girls sit by 1,000 books, reading. solo": ["Two girls sit by 1,000 books, reading.", "solo"],
}
TAGS = (
    "dr. stone, 1girl, mr. x, no. 5, vol. 3",
    "yes! precure 5, love live! sunshine!!, k-on!, 1girl, arms up, blue sky.",
    "gochuumon wa usagi desu ka?, steins;gate, d.va (overwatch), a.b.a, ...",
    "1girl, Hatsune Miku, the legend of zelda, a hat, ^_^, :d, 1,000 yen",
    " a,, b c ,\t, d",
)


@pytest.mark.parametrize("caption", SENTENCES)
def test_a_sentence_stays_whole_under_shuffling_dropout_and_keep_tokens(caption):
    parts = SENTENCES[caption]
    assert tags_of(caption) == parts == parts_of(caption)
    for keep, rate in ((0, 0.0), (1, 0.0), (1, 0.6)):
        config = DataConfig(shuffle_caption=True, keep_tokens=keep, caption_tag_dropout_rate=rate)
        for index in range(30):
            trained = tags_of(variant(caption, index, config, seed=3))
            # two sentences that come to stand together are read as one
            whole = Counter(" ".join(trained).split())
            assert whole <= Counter(" ".join(parts).split()) and trained[:keep] == parts[:keep]
            assert all(part in ", ".join(trained) for part in parts if part.endswith((".", "。")))


@pytest.mark.parametrize("caption", TAGS)
def test_without_sentences_the_parts_and_their_order_are_those_of_every_earlier_run(caption):
    assert tags_of(caption) == parts_of(caption) == pieces_of(caption)
    for settings in ({"shuffle_caption": True}, {"shuffle_caption": True, "caption_tag_dropout_rate": 0.4}):
        new, old = (DataConfig(**settings, reading=reading) for reading in (2, 1))
        ends = [part for part in pieces_of(caption) if part.endswith(".") or len(part.split()) > 5]
        for index in range(20):
            # a tag with a full stop at its end is not dropped any more
            if not (ends and settings.get("caption_tag_dropout_rate")):
                assert variant(caption, index, new, 7) == variant(caption, index, old, 7)


def test_a_run_that_began_before_cuts_its_sentences_as_it_did():
    config = DataConfig(shuffle_caption=True, keep_tokens=1, reading=1)
    assert variant("Miku, A girl, smiling. x|||y", 0, config, 1).count(",") == 2
    assert sorted(pieces_of(variant(COAT, 4, config, 1))) == sorted(pieces_of(COAT))
    assert trained_caption(["a girl called mofu"], "mofu", config) == "mofu, a girl called mofu"
    assert trained_caption(["[trigger], hat ||| x"], "mofu", config) == "mofu, [trigger], hat ||| x"


@pytest.mark.parametrize(
    ("written", "trigger", "expected"),
    [
        ("[trigger] stands in a meadow, [Name] smiles", "mofu", "mofu stands in a meadow, mofu smiles"),
        ("a drawing of [trigger] with a shirt", "", "a drawing of [trigger] with a shirt"),
        ("a close-up of Mofu, who smiles", "mofu", "a close-up of Mofu, who smiles"),
        ("mofumofu, mofu_hat", "mofu", "mofu, mofumofu, mofu_hat"),
        ("少女站在雨中", "少女", "少女站在雨中"),
        ("mofu, wolf girl, smile", "mofu, wolf girl", "mofu, wolf girl, smile"),
        ("smile, wolf girl", "mofu, wolf girl", "mofu, wolf girl, smile"),
        ("smile", "mofu, wolf girl", "mofu, wolf girl, smile"),
        ("1boy, mofu&&&hat++shoes", "mofu", "1boy, mofu|||hat;;;shoes"),
        ("", "mofu", "mofu"),
    ],
)
def test_the_trigger_is_filled_in_and_looked_for_as_a_word_and_each_of_its_tags_is_there_once(
    written, trigger, expected
):
    config = DataConfig(keep_tokens_separator="&&&", secondary_separator="++")
    assert trained_caption([written], trigger, config) == expected
    assert with_trigger(expected, trigger) == expected or "[trigger]" in written


def test_what_stands_before_the_separator_stays_and_what_is_held_together_moves_together():
    caption = "mofu, hat ||| a, b;;;c, d ||| last"
    config = DataConfig(shuffle_caption=True, keep_tokens=0)
    trained = [variant(caption, index, config, 1) for index in range(40)]
    assert all(text.startswith("mofu, hat, ") and text.endswith(", last") and "b, c" in text for text in trained)
    assert len(set(trained)) > 3 and not any(mark in text for text in trained for mark in "|;")
    assert variant(caption, 0, DataConfig(), 1) == "mofu, hat, a, b, c, d, last"
    assert tags_of(caption) == ["mofu", "hat", "a", "b", "c", "d", "last"]
    assert trigger_first("1boy, hat, mofu ||| a, b", "mofu") == "mofu, 1boy, hat ||| a, b"
    assert too_long_captions([("a.png", caption)], lambda text: text[-6:]) == [("a.png", "last")]


def test_each_step_trains_one_of_the_alternatives_and_all_of_them_are_cached():
    config = DataConfig(caption_lines="alternatives", shuffle_caption=True, caption_variants=2)
    caption = trained_caption(["hat, red", "mofu smiles", "a cat"], "mofu", config)
    assert caption.split("\n") == ["mofu, hat, red", "mofu smiles", "mofu, a cat"]
    drawn = {training_caption(caption, config, 5, step, 0) for step in range(200)}
    assert drawn == set(possible_captions(caption, config, 5)) and "mofu smiles" in drawn
    assert not any("\n" in text for text in drawn)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["mofu, hat", "mofu", "a drawing of mofu under a blue sky"], True),
        (["A girl smiles.", "She sits."], False),
        (["A portrait of mofu.", "", "Style: flat colours, thick lines"], False),
        (["mofu", "1girl", "smile"], False),
        (["mofu, hat"], False),
    ],
)
def test_lines_that_are_captions_of_their_own_are_told_from_paragraphs_and_lists(lines, expected):
    assert are_alternatives(lines) is expected


@pytest.mark.parametrize("piece", ["a! ", "!", ", ", "a|||", "A girl stands. ", "(", "1", " "])
def test_a_caption_of_any_length_takes_no_time_that_grows_with_its_square(piece):
    began = time.monotonic()
    caption = "x" + piece * (60_000 // len(piece)) + "y"
    for config in (DataConfig(), DataConfig(shuffle_caption=True)):
        variant(trained_caption([caption], "mofu", config), 0, config, 1)
    tags_of(caption)
    assert time.monotonic() - began < 10
