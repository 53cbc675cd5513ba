"""Suspicious tags and suggestions: scores, colours, rare and implied tags, tags of nearly all images."""

from __future__ import annotations

import pytest

from lorakit.tags.suspects import (
    SUGGESTIONS,
    SUSPICIOUS,
    Suggestion,
    SuspiciousTag,
    TaggerScores,
    suspicious_tags,
    tags_for_trigger,
    tags_to_keep,
)
from widgets.i18n import translations

GENERAL = ("smile", "boots", "red hair", "hat", "fox ears")
CATEGORIES = {**dict.fromkeys(GENERAL, "general"), "mofurin": "character"}


def scores_of_a(**scores) -> TaggerScores:
    """A tagger's scores of image "a": tags with underscores for spaces."""
    return TaggerScores({"a": {tag.replace("_", " "): score for tag, score in scores.items()}}, CATEGORIES)


def kinds(suspects) -> dict[str, str]:
    """Tag -> kind, of image "a"."""
    return {suspect.tag: suspect.kind for suspect in suspects if suspect.image == "a"}


@pytest.mark.parametrize(
    "score, kind", [(0.0, "unseen"), (0.29, "unseen"), (0.31, "close"), (0.39, "close"), (0.41, "")]
)
def test_a_tag_is_suspicious_while_its_score_is_below_or_near_the_threshold(score, kind):
    assert (
        kinds(suspicious_tags({"a": "mofurin, smile"}, scores_of_a(smile=score), trigger="mofurin")).get("smile", "")
        == kind
    )


@pytest.mark.parametrize("score, kind", [(0.95, "missing"), (0.5, ""), (0.33, "nearly"), (0.2, "")])
def test_a_tag_that_others_have_is_missing_where_the_tagger_is_sure_of_it(score, kind):
    captions = {"a": "mofurin", "b": "smile", "c": "smile"}
    assert kinds(suspicious_tags(captions, scores_of_a(smile=score))).get("smile", "") == kind


def test_a_tag_that_most_captions_leave_out_is_not_missing():
    scores = {name: {"fox ears": 0.99} for name in "abcd"}
    captions = {"a": "", "b": "", "c": "", "d": "fox ears"}
    assert not suspicious_tags(captions, TaggerScores(scores, CATEGORIES))[1:], "but one image alone has it"
    captions |= {"b": "fox ears", "c": "fox ears"}
    assert kinds(suspicious_tags(captions, TaggerScores(scores, CATEGORIES))) == {"fox ears": "missing"}


def test_a_tag_that_no_caption_has_or_that_is_implied_is_not_missing():
    captions = {"a": "red boots", "b": "boots", "c": "boots"}
    assert not kinds(suspicious_tags(captions, scores_of_a(fox_ears=0.99, boots=0.99)))


def test_characters_have_their_own_threshold_and_unknown_words_none():
    suspects = kinds(suspicious_tags({"a": "mofurin, by hand"}, scores_of_a(mofurin=0.7)))
    assert suspects == {"mofurin": "unseen"}
    assert not suspicious_tags({"a": "mofurin, by hand"}, scores_of_a(mofurin=0.7), trigger="mofurin")


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
def test_a_colour_word_is_suspicious_only_when_that_colour_is_absent(tag, colours, is_wrong):
    suspects = suspicious_tags({"a": tag}, colours={"a": colours})
    assert [suspect.kind for suspect in suspects] == ["colour"] * is_wrong


def test_a_tag_used_once_is_suspicious_unless_the_dataset_is_tiny():
    captions = {"a": "hat, smile", "b": "smile", "c": "smile", "d": "smile"}
    assert kinds(suspicious_tags(captions)) == {"hat": "once"}
    assert not suspicious_tags({"a": "hat", "b": "smile"})


def test_implied_tags_are_suspicious():
    assert kinds(suspicious_tags({"a": "red boots, boots, red footwear"})) == {
        "boots": "implied",
        "red footwear": "implied",
    }
    assert not suspicious_tags({"a": "red hair, blue dress"})


def test_a_sentence_in_a_caption_is_no_tag():
    captions = {"a": "smile, A girl with red hair looks at the sea.", "b": "smile", "c": "smile", "d": "smile"}
    assert not suspicious_tags(captions, colours={"a": {"white": 1.0}})


def test_the_most_severe_come_first():
    captions = {"a": "red hair, smile, hat", "b": "smile, hat", "c": "smile", "d": "smile"}
    suspects = suspicious_tags(captions, scores_of_a(smile=0.36, red_hair=0.9, hat=0.1), {"a": {"white": 1.0}})
    assert [suspect.kind for suspect in suspects] == ["colour", "unseen", "close", "once"]


def test_within_a_kind_the_largest_disagreement_comes_first():
    captions = {"a": "smile, hat", "b": "boots, fox ears"}
    scores = {"a": {"smile": 0.2, "hat": 0.1, "boots": 0.92, "fox ears": 0.98}, "b": {"boots": 0.9, "fox ears": 0.9}}
    suspects = suspicious_tags(captions, TaggerScores(scores, CATEGORIES))
    assert [suspect.tag for suspect in suspects] == ["hat", "smile", "fox ears", "boots"]


def test_tags_of_nearly_all_images_are_for_the_trigger_unless_users_want_to_change_them():
    captions = {f"{i}": "mofurin, 1girl, fox ears, white background" for i in range(20)}
    captions["0"] += ", smile, blue dress"
    captions["1"] += ", smile, closed eyes"
    captions["2"] += ", closed eyes, blue eyes"
    captions["3"] += ", blue eyes"
    assert [suggestion.tag for suggestion in tags_for_trigger(captions, "mofurin")] == ["fox ears"]
    kept = {suggestion.tag: suggestion.kind for suggestion in tags_to_keep(captions, "mofurin")}
    assert kept == {"white background": "fixed", "smile": "keep", "closed eyes": "keep"}


def test_ninety_percent_of_the_images_are_not_enough():
    captions = {f"{i}": "fox ears" if i else "" for i in range(10)}
    assert not tags_for_trigger(captions) and tags_for_trigger({**captions, "0": "fox ears"})


def test_every_kind_explains_itself():
    fields = {"colour": "red", "score": 0.1, "by": "x"}
    for kind, (severity, _) in SUSPICIOUS.items():
        suspect = SuspiciousTag(kind, "smile", "a", fields)
        assert "“smile”" in suspect.reason and "{" not in suspect.reason
        assert suspect.severity == severity in ("warning", "tip")
    for kind in SUGGESTIONS:
        reason = Suggestion(kind, "smile", 9, 10).reason
        assert "“smile” is in 9 of 10 images" in reason and "{" not in reason


def test_every_sentence_has_its_chinese():
    assert set(translations()["suspects"]) == {
        *SUGGESTIONS.values(),
        *(sentence for _, sentence in SUSPICIOUS.values()),
    }


def test_no_captions_or_empty_ones_give_no_suggestions():
    for captions in ({}, dict.fromkeys("abcde", "")):
        assert not suspicious_tags(captions) and not tags_for_trigger(captions) and not tags_to_keep(captions)
