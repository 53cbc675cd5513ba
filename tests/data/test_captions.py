"""What a caption becomes in training: trigger, shuffle, dropout, and the texts that have to be cached."""

from __future__ import annotations

from collections import Counter

import pytest

from lorakit.data import DataConfig
from lorakit.data.caption_parts import tags_of
from lorakit.data.captions import possible_captions, training_caption, variant, variant_count, with_trigger

CAPTION = "mofu, girl, hat, red scarf, smile, 帽子, outdoors, looking at viewer"
TAGS = tags_of(CAPTION)


@pytest.mark.parametrize(
    ("caption", "trigger", "expected"),
    [
        ("girl, hat", "", "girl, hat"),
        ("girl, hat", "mofu", "mofu, girl, hat"),
        ("girl, mofu", "mofu", "girl, mofu"),
        ("mofumofu, girl", "mofu", "mofu, mofumofu, girl"),
        ("", "mofu", "mofu"),
        ("", "", ""),
    ],
)
def test_the_trigger_stands_first_where_it_is_missing(caption, trigger, expected):
    assert with_trigger(caption, trigger) == expected


def test_tags_are_stripped_and_empty_ones_left_out():
    assert tags_of(" a,, b c ,\t, d") == ["a", "b c", "d"]
    assert tags_of("year 2024,1girl,2boys") == ["year 2024", "1girl", "2boys"]


def test_the_comma_of_a_thousand_parts_no_tags():
    assert tags_of("A hall with 1,000,000 books, 1, 000") == ["A hall with 1,000,000 books", "1", "000"]


def test_a_caption_stays_as_it_was_written_when_nothing_varies():
    config = DataConfig()
    written = " a girl ,, in a hat. "
    assert variant_count(config) == 1 and possible_captions(written, config, seed=1) == [written]
    assert {training_caption(written, config, 1, step, 0) for step in range(9)} == {written}


@pytest.mark.parametrize("keep", [0, 1, 3, 64])
@pytest.mark.parametrize(("shuffle", "dropout"), [(True, 0.0), (False, 0.5), (True, 0.5), (True, 1.0)])
def test_kept_tags_stay_in_place_and_the_others_are_shuffled_or_dropped(keep, shuffle, dropout):
    config = DataConfig(
        shuffle_caption=shuffle, caption_tag_dropout_rate=dropout, keep_tokens=keep, caption_variants=100
    )
    made = [tags_of(variant(CAPTION, i, config, seed=1)) for i in range(100)]
    rests = [tags[keep:] for tags in made]
    assert all(tags[:keep] == TAGS[:keep] for tags in made)
    assert all(Counter(rest) <= Counter(TAGS[keep:]) for rest in rests)
    if not dropout:
        assert all(sorted(rest) == sorted(TAGS[keep:]) for rest in rests)
    if not shuffle:
        assert all(rest == [tag for tag in TAGS if tag in rest] for rest in rests)
    if keep < len(TAGS):
        assert sum(map(len, rests)) / 100 / len(TAGS[keep:]) == pytest.approx(1 - dropout, abs=0.1)
        assert dropout == 1 or len({tuple(rest) for rest in rests}) > 20


def test_a_variant_depends_on_seed_caption_and_index_alone():
    config = DataConfig(shuffle_caption=True)
    made = {variant(CAPTION, i, config, seed) for i in range(8) for seed in (1, 2)}
    assert len(made) == 16 and variant(CAPTION, 3, config, 1) == variant(CAPTION, 3, config, 1)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"shuffle_caption": True},
        {"caption_tag_dropout_rate": 0.3, "caption_variants": 3},
        {"caption_dropout_rate": 0.2},
        {"shuffle_caption": True, "caption_tag_dropout_rate": 0.3, "caption_dropout_rate": 0.2},
    ],
)
def test_every_text_that_is_drawn_was_cached_and_every_cached_text_is_drawn(settings):
    config = DataConfig(**settings)
    assert {training_caption(CAPTION, config, 5, step, place) for step in range(200) for place in range(2)} == set(
        possible_captions(CAPTION, config, 5)
    )


def test_caption_dropout_takes_its_share_and_leaves_the_other_draws_alone():
    without, with_dropout = (DataConfig(shuffle_caption=True, caption_dropout_rate=rate) for rate in (0.0, 0.25))
    pairs = [
        (training_caption(CAPTION, without, 5, step, 0), training_caption(CAPTION, with_dropout, 5, step, 0))
        for step in range(1000)
    ]
    assert sum(text == "" for _, text in pairs) / 1000 == pytest.approx(0.25, abs=0.04)
    assert all(text in ("", before) for before, text in pairs)
