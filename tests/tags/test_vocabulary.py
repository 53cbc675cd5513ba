"""The vocabulary of tags: implications, spelling and kinds."""

from lorakit.tags.vocabulary import KAOMOJI, KINDS, THINGS, implied, kind, safety, spelled


def test_general_tags_are_implied_by_specific_ones():
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


def test_no_tag_is_implied_by_itself_or_by_another_implied_one():
    tags = [word.replace("_", " ") for things in THINGS.values() for word in things.split()]
    tags += [f"red {tag}" for tag in tags] + [word.replace("_", " ") for word in THINGS]
    for order in (tags, tags[::-1]):
        redundant = implied(order)
        assert redundant and not set(redundant) & set(redundant.values())
        assert implied([tag for tag in order if tag not in redundant]) == {}


def test_underscores_become_spaces_except_in_kaomoji():
    assert spelled("red_boots") == "red boots" and spelled("hatsune_miku_(vocaloid)") == "hatsune miku (vocaloid)"
    assert all(spelled(face) == face for face in KAOMOJI) and spelled("score_9") == "score_9"


def test_each_tag_has_a_kind():
    expected = {
        **{"masterpiece": "quality", "score_7": "quality", "newest": "year", "year 2024": "year", "2girls": "count"},
        **{"solo": "count", "6+girls": "count", "no humans": "count", "@someone": "artist", "@_@": "general"},
        **{"red boots": "general", "old man": "general", "safe": "safety", "nsfw": "safety"},
    }
    assert {tag: kind(tag) for tag in expected} == expected
    assert [kind("x", category) for category in ("copyright", "rating", "character", "general", "meta")] == [
        *("series", "safety", "character", "general", "meta")
    ]
    assert kind("old", "general") == "general" and safety("questionable") == "nsfw" and len(KINDS) == 9
