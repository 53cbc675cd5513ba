"""What tags mean: how they are spelled, which say the same as others, and in which order models want them."""

from __future__ import annotations

from collections.abc import Iterable


def spelled(tag: str) -> str:
    """A tagger's raw name as captions have it: spaces for underscores, kaomoji such as ^_^ as they are."""
    raise NotImplementedError


def implied(tags: Iterable[str]) -> dict[str, str]:
    """Tag -> the tag among `tags` that says it already: boots and red footwear by red boots."""
    raise NotImplementedError
