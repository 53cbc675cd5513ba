"""A caption as its parts: tags, and sentences that stay whole with their commas."""

from __future__ import annotations

import re
from collections.abc import Sequence

# kohya's separators: everything before the first stays in place under shuffling, the second holds tags together.
KEEP_SEPARATOR, TAG_SEPARATOR = "|||", ";;;"
# Of a tag; longer ones are sentences.
MAX_WORDS = 5
# A comma between tags, but not the one in a number such as 1,000.
COMMA = re.compile(r",(?!(?<=\d,)\d{3}(?!\w))")
# Marks that may end a sentence: "steins;gate." does, "k.o" does not.
END = re.compile(r"(?:(?<![.!?…])[.!?…]+[\"'”’)\]]{0,9}(?=[\s,]|$))|[。！？]+[”’」』]*")
# Characters of a sentence: how far back its beginning is looked for.
LONGEST = 600
# Words with a full stop that ends no sentence, as in "dr. stone".
ABBREVIATION = re.compile(r"(?:^|[\s(])(?:dr|mr|mrs|ms|st|no|vol|vs|jr|sr|prof|feat|ft|ver|etc|e\.g|i\.e|\w)\.$", re.I)
# Words that begin sentences but hardly any tag; only the second kind is trusted in lower case.
STARTS = set(
    "the in on at under behind beside with her his their its two three four several while as from over near inside "
    "outside both one during against between beneath above around".split()
)
LOWER_STARTS = set("a an this there here she he they it".split())


def pieces_of(caption: str) -> list[str]:
    """What the commas of a caption part, stripped, without empty ones; "1,000" is not split."""
    return [piece.strip() for piece in COMMA.split(caption) if piece.strip()]


def parts_of(text: str) -> list[str]:
    """The tags of a text in order; sentences in a row are one of them. Without sentences the same as `pieces_of`."""
    if not END.search(text):
        return pieces_of(text)
    parts: list[str] = []
    # Where the text begins that is in no part yet, and where the sentences in a row that end there do.
    rest, first = 0, None
    for mark in END.finditer(text):
        # in a text of a megabyte not from its beginning each time
        from_here = rest
        if mark.end() - rest > LONGEST:
            from_here = text.find(",", mark.end() - LONGEST, mark.end()) + 1 or mark.end()
        begin = _beginning(text[from_here : mark.end()])
        if begin is None:
            continue
        before = pieces_of(text[rest : from_here + begin])
        if first is None or before:
            first = from_here + begin
            parts += [*before, ""]
        parts[-1] = text[first : mark.end()].strip(" ,")
        rest = mark.end()
    return parts + pieces_of(text[rest:])


def tags_of(caption: str) -> list[str]:
    """The tags of a caption in order, stripped; a sentence, or several in a row, counts as one.

    Separators (`|||`, `;;;`) and lines part tags as commas do.
    """
    segments = re.split(r"\|\|\||\n", caption)
    return [tag for text in segments for part in parts_of(text) for tag in map(str.strip, part.split(";;;")) if tag]


def is_sentence(part: str) -> bool:
    """Whether a part of a caption is no tag but a sentence: it ends as one, or has many words."""
    return part.endswith((".", "。")) or len(part.split()) > MAX_WORDS


def are_alternatives(lines: Sequence[str]) -> bool:
    """Whether each line may be a caption of its own: no paragraphs, no list of single tags, not sentences alone."""
    if len(lines) < 2 or not all(lines):
        return False
    parts = [parts_of(line) for line in lines]
    is_list = all(len(own) == 1 and not is_sentence(own[0]) for own in parts)
    return not is_list and not all(line.endswith((".", "!", "?", "。")) for line in lines)


def _beginning(text: str) -> int | None:
    """Where the sentence begins that ends at the end of a text, whose tags may stand before it; None if none ends."""
    if ABBREVIATION.search(text):
        return None
    places = [0, *(comma.end() for comma in COMMA.finditer(text))]
    units = [(place, text[place:end].split()) for place, end in zip(places, [*places[1:], len(text)], strict=True)]
    last = len(units) - 1
    for number, (place, words) in enumerate(units):
        if _begins(words, number == last, sum(len(own) for _, own in units[number:])):
            return place
    return None


def _begins(words: list[str], is_last: bool, length: int) -> bool:
    """Whether these words between two commas begin a sentence.

    is_last   whether it ends before the next comma
    length    words of the sentence that it would be
    """
    if not words:
        return False
    first, count = words[0].lower(), len(words)
    if not words[0].isascii():
        return is_last
    if first in LOWER_STARTS | STARTS and words[0][0].isupper():
        return count >= (3 if is_last else 2)
    if first in LOWER_STARTS:
        return count >= 3 if is_last else count >= 2 and length >= 8
    return count >= (4 if words[0][0].isupper() else MAX_WORDS)
