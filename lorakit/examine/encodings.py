"""Caption files that are not UTF-8: which they are, and the encoding in which all of them most likely are."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from lorakit.data import DataConfig
from lorakit.data.caption_files import Caption
from lorakit.data.caption_sources import CaptionSources
from lorakit.data.listing import Listing

# Python's names of encodings; editors use nearly the same. The first of equally likely ones is taken: the common signs
# of Korean are among those of Chinese.
ENCODINGS = (
    *("utf-8", "cp949", "gb18030", "big5", "cp932", "cp1252", "cp1251", "koi8-r", "cp1250", "cp1253", "cp1254"),
    *("cp1255", "cp1256", "cp1257", "cp874", "cp866", "mac-roman", "utf-16"),
)
# The bytes that begin the common characters of double-byte encodings: levels one of their standards, and kana.
COMMON = {
    "gb18030": (range(0xB0, 0xD8), range(0xA1, 0xA4)),
    "big5": (range(0xA4, 0xC7), range(0xA1, 0xA4)),
    "cp932": (range(0x88, 0x98), range(0x81, 0x84)),
    "cp949": (range(0xB0, 0xC9), range(0xA1, 0xA4)),
}


def unread_captions(root: Path, config: DataConfig) -> dict[str, Caption]:
    """Image -> what was made of its caption file, for all whose encoding is not certain."""
    listing = Listing(root, config.repeats, config.reading)
    captions = CaptionSources(listing, config.caption_extension, config.reading).captions
    return {listing.name(image): caption for image, caption in captions.items() if caption.error}


def likely_encoding(texts: list[bytes]) -> str:
    """The one of ENCODINGS in which all of these texts make most sense together, "" when they are text in none."""
    data = b"\n".join(texts)
    scores = {encoding: _sense(data, encoding) for encoding in ENCODINGS if encoding != "utf-16"}
    best = max(scores, key=scores.__getitem__)
    return best if scores[best] > 0 else ""


def _sense(data: bytes, encoding: str) -> float:
    """Share (0 to 1) of the characters beyond ASCII that are usual in texts of an encoding; 0 for other bytes."""
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return 0.0
    if encoding in COMMON:
        characters = [char.encode(encoding) for char in text if ord(char) > 127]
        usual = [len(own) > 1 and any(own[0] in rows for rows in COMMON[encoding]) for own in characters]
        # one sign at the end of an English word is an apostrophe with the letter behind it: “doesn稚 smile”
        swallowed = len(re.findall(r"(?<=[A-Za-z])[^\x00-\x7f](?![^\x00-\x7f])", text))
        return max(0.0, (sum(usual) - swallowed) / max(1, len(usual)))
    words = re.findall(r"[^\W\d_]+", text)
    strange = [word for word in words if not word.isascii() and not _is_word(word)]
    beyond = [char for char in text if ord(char) > 127]
    letters = [char for char in beyond if char.isalpha() or unicodedata.category(char) in ("Mn", "Pi", "Pf", "Pd")]
    return max(0.0, (len(letters) - sum(map(len, strange))) / max(1, len(beyond)))


def _is_word(word: str) -> bool:
    """Whether letters may be a word: of one script, in upper case at most at the beginning."""
    scripts = {unicodedata.name(char, "").split(" ")[0] for char in word}
    return len(scripts) == 1 and word[1:] == word[1:].lower() and not (len(word) == 1 and word.isupper())
