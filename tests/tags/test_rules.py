"""Rules change what they name and nothing else; words that imply others are known."""

import random

import pytest

from lorakit.data.captions import tags_of
from lorakit.tags.rules import Add, Merge, Remove, Rename, merged
from lorakit.tags.vocabulary import KAOMOJI, KINDS, THINGS, implied, kind, safety, spelled

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
def test_a_rule_that_was_followed_has_nothing_more_to_do(rule):
    for caption in captions():
        once = rule.apply(caption)
        assert rule.apply(once) == once


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_caption_without_what_a_rule_names_stays_as_it_is_spaces_and_all(rule):
    caption = "mofurin ,smile,  someone,"
    assert rule.apply(caption) == caption or rule == RULES[3]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_patterns_spare_the_trigger_and_order_stays(rule):
    for caption in captions():
        before, after = tags_of(caption), tags_of(rule.apply(caption))
        assert ("mofurin" in before) == ("mofurin" in after)
        stay = [tag for tag in before if tag in after]
        assert (
            [tag for tag in after if tag in stay] == stay
            or len(set(before)) < len(before)
            or rule.apply("smile") != "smile"
        )


def test_rules_do_what_they_say():
    assert Add("x").apply("") == "x" and Add("x").apply("a") == "a, x" and Add(" ").apply("a") == "a"
    assert Add("x", "start").apply("t, a") == "x, t, a" and Add("x", "start", "t").apply("t, a") == "t, x, a"
    assert Remove("boots").apply("boots, red boots") == "red boots"
    assert Remove("mofurin", trigger="mofurin").apply("mofurin, a") == "a"
    assert Remove("* footwear").apply("red footwear, footwear, a") == "footwear, a"
    assert Rename("a", "b").apply("c, a, a, d") == "c, b, d" and Rename("a", "b").apply("b, a") == "b"
    assert Rename("a", "x, y").apply("a, c") == "x, y, c"
    assert Merge(("boots", "red footwear"), "red boots").apply("1girl, boots, red footwear") == "1girl, red boots"
    assert Remove("a*b").apply("a*b, axxb, ab, b") == "b" and Remove("(o)_(o)").apply("(o)_(o), o") == "o"


def test_two_edits_of_one_caption_are_both_kept():
    assert merged("a, b", "a, b, mine", "a, b, yours") == "a, b, yours, mine"
    assert merged("a, b", "b", "a, b, yours") == "b, yours"
    assert merged("a, b", "first, a, b", "b") == "first, b"
    assert merged("a", "a, x", "a, x") == "a, x" and merged("a", "b", "a") == "b"


def test_what_another_tag_says_already_is_implied():
    assert implied(["boots", "red footwear", "red boots"]) == {"boots": "red boots", "red footwear": "red boots"}
    assert implied(["footwear", "boots", "black knee boots"]) == dict.fromkeys(
        ["footwear", "boots"], "black knee boots"
    )
    assert implied(["long hair", "very long hair"]) == {"long hair": "very long hair"}
    longest = dict.fromkeys(["long hair", "very long hair"], "absurdly long hair")
    assert implied(["long hair", "very long hair", "absurdly long hair"]) == longest
    assert implied(["headwear", "hat", "witch hat"]) == dict.fromkeys(["headwear", "hat"], "witch hat")
    assert implied(["blue footwear", "red boots"]) == {} == implied(["boots", "red footwear"])
    assert implied(["1girl", "girl", "hair", "hair bow", "looking at viewer", "viewer"]) == {}


def test_no_tag_is_implied_by_itself_or_by_what_goes():
    tags = [word.replace("_", " ") for things in THINGS.values() for word in things.split()]
    tags += [f"red {tag}" for tag in tags] + [word.replace("_", " ") for word in THINGS]
    for order in (tags, tags[::-1]):
        found = implied(order)
        assert found and not set(found) & set(found.values())
        assert implied([tag for tag in order if tag not in found]) == {}


def test_underscores_become_spaces_but_in_faces():
    assert spelled("red_boots") == "red boots" and spelled("hatsune_miku_(vocaloid)") == "hatsune miku (vocaloid)"
    assert all(spelled(face) == face for face in KAOMOJI) and spelled("score_9") == "score_9"


def test_each_tag_has_a_kind_of_the_order():
    wanted = {
        **{"masterpiece": "quality", "score_7": "quality", "newest": "year", "year 2024": "year", "2girls": "count"},
        **{"solo": "count", "6+girls": "count", "no humans": "count", "@someone": "artist", "@_@": "general"},
        **{"red boots": "general", "old man": "general", "safe": "safety", "nsfw": "safety"},
    }
    assert {tag: kind(tag) for tag in wanted} == wanted
    assert [kind("x", category) for category in ("copyright", "rating", "character", "general", "meta")] == [
        *("series", "safety", "character", "general", "meta")
    ]
    assert kind("old", "general") == "general" and safety("questionable") == "nsfw" and len(KINDS) == 9
