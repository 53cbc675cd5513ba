"""What may be wrong in captions is found, and only that: scores, colours, rare tags, what is always there."""

from __future__ import annotations

import pytest

from lorakit.tags import suspects
from lorakit.tags.suspects import KINDS, TaggerScores, absorb, must_stay, suspicious
from widgets.i18n import translations

GENERAL = ("smile", "boots", "red hair", "hat", "fox ears")
CATEGORIES = {**dict.fromkeys(GENERAL, "general"), "mofurin": "character"}


def opinion(**scores) -> TaggerScores:
    """A tagger's scores of image "a": tags with underscores for spaces."""
    return TaggerScores({"a": {tag.replace("_", " "): score for tag, score in scores.items()}}, CATEGORIES)


def kinds(found) -> dict[str, str]:
    return {hint.tag: hint.kind for hint in found if hint.image == "a"}


@pytest.mark.parametrize(
    "score, kind", [(0.0, "unseen"), (0.29, "unseen"), (0.31, "close"), (0.39, "close"), (0.41, "")]
)
def test_a_tag_is_suspicious_while_its_score_is_below_or_near_the_threshold(score, kind):
    assert kinds(suspicious({"a": "mofurin, smile"}, opinion(smile=score), trigger="mofurin")).get("smile", "") == kind


@pytest.mark.parametrize("score, kind", [(0.95, "missed"), (0.5, ""), (0.33, "nearly"), (0.2, "")])
def test_a_tag_that_others_have_is_missed_where_the_tagger_is_sure_of_it(score, kind):
    captions = {"a": "mofurin", "b": "smile", "c": "smile"}
    assert kinds(suspicious(captions, opinion(smile=score))).get("smile", "") == kind


def test_what_most_captions_leave_out_is_not_missed():
    scores = {name: {"fox ears": 0.99} for name in "abcd"}
    captions = {"a": "", "b": "", "c": "", "d": "fox ears"}
    assert not suspicious(captions, TaggerScores(scores, CATEGORIES))[1:], "but one image alone has it"
    captions |= {"b": "fox ears", "c": "fox ears"}
    assert kinds(suspicious(captions, TaggerScores(scores, CATEGORIES))) == {"fox ears": "missed"}


def test_what_no_caption_has_or_a_finer_tag_says_is_not_missed():
    captions = {"a": "red boots", "b": "boots", "c": "boots"}
    assert not kinds(suspicious(captions, opinion(fox_ears=0.99, boots=0.99)))


def test_characters_have_a_threshold_of_their_own_and_unknown_words_none():
    found = kinds(suspicious({"a": "mofurin, by hand"}, opinion(mofurin=0.7)))
    assert found == {"mofurin": "unseen"}
    assert not suspicious({"a": "mofurin, by hand"}, opinion(mofurin=0.7), trigger="mofurin")


@pytest.mark.parametrize(
    "tag, colours, is_wrong",
    [
        ("red hair", {"black": 0.5, "white": 0.4}, True),
        ("red hair", {"black": 0.5, "red": 0.02}, False),
        ("red hair", {"black": 0.5, "orange": 0.02}, False),
        ("long red hair", {"black": 0.5}, True),
        ("red eyes", {"black": 0.5}, False),  # a few pixels
        ("hair", {"black": 0.5}, False),
        ("striped dress", {"black": 0.5}, False),
    ],
)
def test_a_colour_word_is_doubted_only_when_that_colour_is_practically_absent(tag, colours, is_wrong):
    found = suspicious({"a": tag}, colours={"a": colours})
    assert [hint.kind for hint in found] == ["colour"] * is_wrong


def test_a_tag_of_one_image_is_named_in_a_data_set_of_some_size():
    captions = {"a": "hat, smile", "b": "smile", "c": "smile", "d": "smile"}
    assert kinds(suspicious(captions)) == {"hat": "once"}
    assert not suspicious({"a": "hat", "b": "smile"})


def test_what_another_tag_says_already_is_named():
    assert kinds(suspicious({"a": "red boots, boots, red footwear"})) == {"boots": "double", "red footwear": "double"}
    assert not suspicious({"a": "red hair, blue dress"})


def test_a_sentence_in_a_caption_is_no_tag():
    captions = {"a": "smile, A girl with red hair looks at the sea.", "b": "smile", "c": "smile", "d": "smile"}
    assert not suspicious(captions, colours={"a": {"white": 1.0}})


def test_the_gravest_come_first():
    captions = {"a": "red hair, smile, hat", "b": "smile, hat", "c": "smile", "d": "smile"}
    found = suspicious(captions, opinion(smile=0.36, red_hair=0.9, hat=0.1), {"a": {"white": 1.0}})
    assert [hint.kind for hint in found] == ["colour", "unseen", "close", "once"]


def test_what_differs_most_comes_first_among_its_like():
    captions = {"a": "smile, hat", "b": "boots, fox ears"}
    scores = {"a": {"smile": 0.2, "hat": 0.1, "boots": 0.92, "fox ears": 0.98}, "b": {"boots": 0.9, "fox ears": 0.9}}
    found = suspicious(captions, TaggerScores(scores, CATEGORIES))
    assert [hint.tag for hint in found] == ["hat", "smile", "fox ears", "boots"]


def test_what_is_always_there_is_for_the_trigger_unless_it_should_be_switchable():
    captions = {f"{i}": "mofurin, 1girl, fox ears, white background" for i in range(20)}
    captions["0"] += ", smile, blue dress"
    captions["1"] += ", smile, closed eyes"
    captions["2"] += ", closed eyes, blue eyes"
    captions["3"] += ", blue eyes"
    assert [hint.tag for hint in absorb(captions, "mofurin")] == ["fox ears"]
    stay = {hint.tag: hint.kind for hint in must_stay(captions, "mofurin")}
    assert stay == {"white background": "fixed", "smile": "stay", "closed eyes": "stay"}


def test_at_ninety_percent_nothing_is_always_there_yet():
    captions = {f"{i}": "fox ears" if i else "" for i in range(10)}
    assert not absorb(captions) and absorb({**captions, "0": "fox ears"})


def test_every_kind_of_hint_says_its_reason():
    facts = {"colour": "red", "score": 0.1, "n": 9, "all": 10, "by": "x"}
    for kind, (severity, _) in KINDS.items():
        hint = suspects.Hint(kind, "smile", "a", facts)
        assert "“smile”" in hint.reason and "{" not in hint.reason and hint.severity == severity in ("look", "tip")


def test_every_sentence_has_its_chinese():
    assert set(translations()["hints"]) == {sentence for _, sentence in KINDS.values()}


def test_no_captions_or_empty_ones_give_no_hints():
    for captions in ({}, dict.fromkeys("abcde", "")):
        assert not suspicious(captions) and not absorb(captions) and not must_stay(captions)
