"""How captions are spelled: prompt syntax, doubled tags, spellings that vary; each rule is a check and a fix."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from lorakit.data.caption_parts import is_sentence, parts_of, tags_of
from lorakit.data.captions import PLACEHOLDER
from lorakit.examine.facts import Facts
from lorakit.examine.finding import CheckResult
from lorakit.tags.vocabulary import KAOMOJI

# What image generators read as syntax, and what stands there without it; applied in this order.
SYNTAX = (
    # the rest of a pasted text with settings: "Negative prompt: ... Steps: 20, Sampler: ..."
    (re.compile(r"[\s,]{0,9}\bnegative prompt\s{0,9}:.*", re.I | re.DOTALL), ""),
    (
        re.compile(
            r"[\s,]{0,9}\bSteps:\s{0,9}\d{1,9}\s{0,9},\s{0,9}(?:Sampler|Schedule|CFG|Seed|Size|Model)\b.*", re.DOTALL
        ),
        "",
    ),
    # <lora:name:0.8>, and BREAK between parts
    (re.compile(r"<\w{1,20}:[^<>]*>"), ""),
    (re.compile(r"[\s,]{0,9}\bBREAK\b[\s,]{0,9}"), ", "),
    # {red|blue} and __color__ stand for something that only a prompt decides
    (re.compile(r"\{[^{}]*\|[^{}]*\}|\[[^\[\]]*[|:][^\[\]]*\]|__[\w/*-]+__"), ""),
    # 1.2::tag::
    (re.compile(r"-?\d{0,4}\.?\d{1,4}::(.+?)::"), r"\1"),
    # (tag:1.3), ((tag)), {{tag}}, [tag]
    (re.compile(r"(?<!\\)\(([^()]*?)\s{0,9}:\s{0,9}-?\d{0,4}\.?\d{1,4}\s{0,9}\)"), r"\1"),
    (re.compile(r"(?<!\\)\({2,}([^()]+?)(?<!\\)\){2,}"), r"\1"),
    (re.compile(r"\{+([^{}|]+)\}+"), r"\1"),
    (re.compile(r"\[+(?!(?:trigger|name)\])([^\[\]|:]+)\]+", re.I), r"\1"),
    # \( and \)
    (re.compile(r"\\([(\[{])(?=[\w\s'\".])|(?<=[\w\s'\".!?])\\([)\]}])"), r"\1\2"),
)
QUALITY = set(
    "masterpiece,best quality,high quality,good quality,normal quality,low quality,worst quality,amazing quality,"
    "very aesthetic,aesthetic,absurdres,highres,ultra detailed,extremely detailed,8k,4k,8k wallpaper,uhd,hdr,"
    "ultra high res,very awa,newest,recent".split(",")
)
WATERMARK = set(
    "watermark,signature,artist name,web address,patreon username,twitter username,logo,dated,copyright notice,"
    "sample watermark,artist logo,patreon logo,instagram username,username,weibo username,pixiv id".split(",")
)
# Rounds in which nested syntax is taken off.
ROUNDS = 4


def without_syntax(caption: str) -> str:
    """A caption as a plain text, without the syntax of prompts."""
    if not any(pattern.search(_without_faces(caption)) for pattern, _ in SYNTAX):
        return caption
    parts = [(part, part in KAOMOJI) for part in re.split(r"(,\s*)", caption)]
    # faces such as \(^o^)/ are tags: they are put aside under a sign that no caption has
    faces = [part for part, is_face in parts if is_face]
    text = "".join("\0" if is_face else part for part, is_face in parts)
    for _ in range(ROUNDS):
        for pattern, plain in SYNTAX:
            text = pattern.sub(plain, text)
    text = re.sub(r"\0", lambda _: faces.pop(0), text)
    pieces = (re.sub(r"\s+", " ", piece).strip() for piece in text.split(","))
    return ", ".join(piece for piece in pieces if piece)


def _without_faces(caption: str) -> str:
    return ", ".join(part for part in re.split(r",\s*", caption) if part not in KAOMOJI)


def prompt_syntax(facts: Facts) -> CheckResult:
    """Captions with syntax that means something to image generators and nothing to training."""
    plain = {name: without_syntax(caption) for name, caption in facts.captions.items()}
    details = {name: f"{facts.captions[name]} → {text}" for name, text in plain.items() if text != facts.captions[name]}
    return CheckResult(tuple(details), details)


def same_tag(tag: str) -> str:
    """What tags have in common that differ in upper case and underscores alone."""
    return tag if tag in KAOMOJI else " ".join(tag.lower().replace("_", " ").split())


def without_doubles(caption: str) -> str:
    """A caption in which each tag stands once, at its first place."""
    parts = parts_of(caption)
    kept: dict[str, str] = {}
    for tag in parts:
        # at the first place, in the spelling that captions mostly have
        kept[same_tag(tag)] = max(kept.get(same_tag(tag), tag), tag, key=_plainness)
    return ", ".join(kept.values()) if len(kept) < len(parts) else caption


def _plainness(tag: str) -> tuple[bool, bool]:
    return "_" not in tag, tag == tag.lower()


def doubled_tags(facts: Facts) -> CheckResult:
    """Captions in which a tag stands twice, also in another spelling; not where lines may be alternatives."""
    details = {}
    for name, tags in facts.tags.items():
        if name in facts.alternatives:
            continue
        counts = Counter(map(same_tag, tags))
        twice = [tag for tag in tags if counts[same_tag(tag)] > 1]
        if twice:
            details[name] = ", ".join(twice)
    return CheckResult(tuple(details), details)


def one_spelling(captions: Iterable[list[str]], trigger: str = "") -> dict[str, str]:
    """Tag -> the spelling that most captions have, for every tag that is spelled in several ways."""
    # what stands twice in one caption is no custom of the others
    once = ({same_tag(tag): tag for tag in reversed(tags)} for tags in captions)
    counts = Counter(tag for tags in once for tag in tags.values() if not is_sentence(tag))
    groups: dict[str, list[str]] = {}
    for tag in counts:
        groups.setdefault(same_tag(tag), []).append(tag)
    chosen = {}
    for tags in (tags for tags in groups.values() if len(tags) > 1):
        # of equals the trigger word's, then the one with spaces, then in lower case
        best = max(tags, key=lambda tag: (tag in tags_of(trigger), counts[tag], *_plainness(tag)))
        chosen |= {tag: best for tag in tags if tag != best}
    return chosen


def mixed_spelling(facts: Facts) -> CheckResult:
    """Tags that other captions spell in another way."""
    chosen = one_spelling(facts.tags.values(), facts.triggers)
    images = {name: [tag for tag in tags if tag in chosen] for name, tags in facts.tags.items()}
    details = {name: ", ".join(f"{tag} → {chosen[tag]}" for tag in tags) for name, tags in images.items() if tags}
    return CheckResult(tuple(details), details, fields={"tags": len(chosen)})


def quality_tags(facts: Facts) -> CheckResult | None:
    """Captions that praise the image, for families whose base does not expect that."""
    if facts.model is not None and facts.model.family == "anima":
        return None
    return _having(facts.tags, QUALITY)


def watermarks(facts: Facts) -> CheckResult:
    """Images with a signature or watermark, by their tags."""
    return _having(facts.tags, WATERMARK)


def _having(tags: Mapping[str, list[str]], wanted: set[str]) -> CheckResult:
    having = {name: [tag for tag in own if same_tag(tag) in wanted] for name, own in tags.items()}
    details = {name: ", ".join(own) for name, own in having.items() if own}
    return CheckResult(tuple(details), details)


def placeholders(facts: Facts) -> CheckResult:
    """Captions with a placeholder for a trigger word that is not set."""
    bare = {sample.name for sample in facts.samples if not sample.trigger}
    details = {
        name: caption for name, caption in facts.captions.items() if name in bare and PLACEHOLDER.search(caption)
    }
    return CheckResult(tuple(details), details)
