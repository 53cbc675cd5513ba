"""Rules change the tags that they name and nothing else."""

import random

import pytest

from lorakit.data.caption_parts import tags_of
from lorakit.tags.rules import Add, Merge, Remove, Rename, merged

WORDS = ["mofurin", "boots", "red boots", "red footwear", "blue footwear", "smile", "a*b", "1girl"]
RULES = [
    Add("smile"),
    Add("smile", "start", trigger="mofurin"),
    Remove("boots"),
    Remove("*", trigger="mofurin"),
    Rename("red footwear", "red boots"),
    Rename("* footwear", "boots", trigger="mofurin"),
    Merge(("boots", "* footwear"), "red boots"),
]


def captions():
    rng = random.Random(0)
    return [", ".join(rng.choices(WORDS, k=rng.randrange(7))) for _ in range(60)]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_applying_a_rule_twice_changes_nothing_more(rule):
    for caption in captions():
        once = rule.apply(caption)
        assert rule.apply(once) == once


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_caption_without_the_named_tags_stays_the_same_to_the_letter(rule):
    caption = "mofurin ,smile,  someone,"
    assert rule.apply(caption) == caption or rule == RULES[3]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_patterns_never_match_the_trigger_and_the_order_stays(rule):
    for caption in captions():
        before, after = tags_of(caption), tags_of(rule.apply(caption))
        assert ("mofurin" in before) == ("mofurin" in after)
        stay = [tag for tag in before if tag in after]
        assert (
            [tag for tag in after if tag in stay] == stay
            or len(set(before)) < len(before)
            or rule.apply("smile") != "smile"
        )


def test_each_rule_by_example():
    assert Add("x").apply("") == "x" and Add("x").apply("a") == "a, x" and Add(" ").apply("a") == "a"
    assert Add("x", "start").apply("t, a") == "x, t, a" and Add("x", "start", "t").apply("t, a") == "t, x, a"
    assert Remove("boots").apply("boots, red boots") == "red boots"
    assert Remove("mofurin", trigger="mofurin").apply("mofurin, a") == "a"
    assert Remove("* footwear").apply("red footwear, footwear, a") == "footwear, a"
    assert Rename("a", "b").apply("c, a, a, d") == "c, b, d" and Rename("a", "b").apply("b, a") == "b"
    assert Rename("a", "x, y").apply("a, c") == "x, y, c"
    assert Merge(("boots", "red footwear"), "red boots").apply("1girl, boots, red footwear") == "1girl, red boots"
    assert Remove("a*b").apply("a*b, axxb, ab, b") == "b" and Remove("(o)_(o)").apply("(o)_(o), o") == "o"


def test_a_merge_keeps_two_edits_of_one_caption():
    assert merged("a, b", "a, b, mine", "a, b, yours") == "a, b, yours, mine"
    assert merged("a, b", "b", "a, b, yours") == "b, yours"
    assert merged("a, b", "first, a, b", "b") == "first, b"
    assert merged("a", "a, x", "a, x") == "a, x" and merged("a", "b", "a") == "b"
