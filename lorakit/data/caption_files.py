"""Captions as they lie beside images: text files in whatever encoding is certain, kohya's metadata, captions.json."""

from __future__ import annotations

import codecs
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_CAPTION_BYTES = 1_000_000  # of a caption file
MAX_BOOK = 64_000_000  # bytes of a file with the captions of many images
MARKS = (  # what a file may begin with, and the encoding that it then has
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
ADVICE = "save it as UTF-8"
MARK = "\ufeff"  # that a file is UTF-8
METADATA = ("meta_lat.json", "meta_clean.json", "meta_cap.json")  # kohya's, the latest first


@dataclass(frozen=True)
class Caption:
    """What a file says of an image, on one line. With `error`, why it was not read, the text is ""."""

    text: str = ""
    source: Path | None = None  # None: nothing says anything of it
    encoding: str = ""
    error: str = ""


class UnknownEncoding(ValueError):
    """Bytes that are text in no encoding, or in more than one; the message says which might be meant."""


def read_captions(files: Iterable[Path]) -> dict[Path, Caption]:
    """What each caption file says. A short one that is Chinese if the others of its folder are is read as they are."""
    captions = {file: read_caption(file) for file in files}
    chinese = {file.parent for file, caption in captions.items() if caption.encoding == "gb18030"}
    undecided = [file for file, caption in captions.items() if caption.error and file.parent in chinese]
    return captions | {file: read_caption(file, among_chinese=True) for file in undecided}


def read_caption(file: Path, *, among_chinese: bool = False) -> Caption:
    """The text of one caption file on one line; encodings that could be mistaken are reported, never guessed."""
    try:
        if file.stat().st_size > MAX_CAPTION_BYTES:
            return Caption("", file, "", f"it has more than {MAX_CAPTION_BYTES / 1e6:.0f} MB, too much for a caption")
        text, encoding = decode(file.read_bytes(), among_chinese=among_chinese)
    except OSError as error:
        return Caption("", file, "", f"it cannot be read ({error.strerror})")
    except UnknownEncoding as error:
        return Caption("", file, "", str(error))
    return Caption(one_line(text.splitlines()), file, encoding)


def one_line(parts: Iterable[str]) -> str:
    """Lines or tags as one line, parted by commas; empty ones left out."""
    stripped = (part.strip().rstrip(",") for part in parts)
    return ", ".join(part for part in stripped if part)


def decode(data: bytes, *, among_chinese: bool = False) -> tuple[str, str]:
    """The text of some bytes and its encoding: by its mark, else UTF-8, UTF-16 or GB 18030 where nothing else is
    possible, of the last also what is likely `among_chinese` files. Raises Undecided.
    """
    for mark, encoding in MARKS:
        if data.startswith(mark):
            try:
                return data.decode(encoding), encoding
            except UnicodeDecodeError:
                raise UnknownEncoding(
                    f"it begins as {encoding.upper()} but continues as something else: {ADVICE}"
                ) from None
    if b"\0" in data:
        return _unmarked_utf16(data)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = ""
    if text.encode() == data and not (_is_chance(text) and _is_chinese(data, among_chinese=True)):
        return text, "utf-8"
    if _is_chinese(data, among_chinese):
        return data.decode("gb18030"), "gb18030"
    if text:
        raise UnknownEncoding(f"it can be read in more than one way, as {_perhaps(data)}: {ADVICE} with a mark (BOM)")
    raise UnknownEncoding(f"it is not UTF-8 text, perhaps {_perhaps(data)}: {ADVICE}")


def with_bom(text: str) -> str:
    """A text for a file in UTF-8, with a mark where `decode` would take it for another encoding, as of a single "é"."""
    if text.isascii():
        return text
    try:
        return text if decode(text.encode("utf-8", "surrogateescape"))[1] == "utf-8" else MARK + text
    except UnknownEncoding:
        return MARK + text


def _is_chance(text: str) -> bool:
    """Whether UTF-8 makes no words of what is not ASCII: mixed scripts, signs that there are not, letters alone.
    Some short Chinese captions in GBK happen to be such UTF-8 ("微笑" would be an unknown sign and a Cyrillic letter);
    a letter between words of ASCII, as in "una ragazza è seduta", is one.
    """
    if text.isascii() or max(text) > "\u07ff":  # more than two bytes: nobody's chance
        return False
    text = re.sub(r"(?<=[A-Za-z] )[^\W\d_](?= [A-Za-z])", "", text)
    words = [word for word in re.findall(r"[^\W\d_]+", text) if word.isalpha() and not word.isascii()]
    scripts = [{unicodedata.name(char, "").split(" ")[0] for char in word if not char.isascii()} for word in words]
    is_unknown = any(unicodedata.category(char) == "Cn" for char in text)
    is_short = words and all(len(word) <= 2 and not re.search("[A-Za-z]", word) for word in words)
    return bool(is_unknown or is_short or any(len(found) > 1 for found in scripts))


def _unmarked_utf16(data: bytes) -> tuple[str, str]:
    """UTF-16 without a mark: the way round in which all of it is text, and more of it letters and commas of ASCII."""
    readings = []
    for encoding in ("utf-16-le", "utf-16-be"):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if all(char.isprintable() or char in "\r\n\t\u3000" for char in text):
            readings.append((sum(char.isascii() for char in text), text, encoding))
    readings.sort(reverse=True)
    if not readings or readings[0][0] == (readings[1][0] if readings[1:] else 0):
        raise UnknownEncoding(f"it is no text, or UTF-16 that is not whole: {ADVICE}")
    return readings[0][1:]


def _is_chinese(data: bytes, among_chinese: bool) -> bool:
    """Whether bytes that are no UTF-8 can be nothing but GBK (or GB 18030), the Chinese encoding of Windows.

    Accented letters, Thai, Japanese, Big5 and Korean may decode as Chinese too, mostly as rare characters. So nearly
    all must be among the 3,755 common ones (rows B0 to D7 of GB 2312, in the order of pinyin). Among other files that
    are Chinese that is enough; else there must be four of them, some byte that is no letter in one-byte encodings
    (below C0), and some row that holds no Korean syllable, common Big5 or common Japanese (from D0).
    """
    try:
        pairs = [char.encode("gb18030") for char in data.decode("gb18030") if ord(char) > 127]
    except UnicodeDecodeError:
        return False
    if not all(len(pair) == 2 and pair[1] >= 0xA1 and pair[0] in (0xA1, 0xA3, *range(0xB0, 0xF8)) for pair in pairs):
        return False
    signs = [pair for pair in pairs if pair[0] >= 0xB0]
    common = [pair for pair in signs if pair[0] <= 0xD7]
    if not common or len(common) < 0.7 * len(signs):
        return False
    is_certain = len(common) >= 4 and min(map(min, signs)) < 0xC0 and max(common)[0] >= 0xD0
    return among_chinese or is_certain


def _perhaps(data: bytes) -> str:
    """The encodings, as editors call them, that these bytes are valid in, with what they read as in each."""
    paths = {
        "utf-8": "UTF-8",
        "gb18030": "GBK",
        "big5": "Big5",
        "cp932": "Shift-JIS",
        "cp949": "Korean",
        "cp1252": "Latin-1",
    }
    meant = []
    for encoding, name in paths.items():
        try:
            text = " ".join(data.decode(encoding).split())
            meant.append(f"{name} ({encoding}: “{_around(text)}”)")
        except UnicodeDecodeError:
            continue
    return " or ".join(meant) or "no text at all"


def _around(text: str) -> str:
    """Some of a text from before its first letter that is not ASCII, by which people see whether it was read right."""
    first = next((place for place, char in enumerate(text) if not char.isascii()), 0)
    return text[max(0, first - 8) : first + 12]


# ---- captions of many images in one file ---------------------------------------------------------------------------


@dataclass(frozen=True)
class CaptionJson:
    """The captions of one JSON file by their keys, which are paths, names or stems of images as somebody wrote them;
    `error` when it cannot be read.
    """

    file: Path
    entries: dict[str, str] = field(default_factory=dict)
    error: str = ""


class ImageNames:
    """What the images below one folder may be called in a JSON file there."""

    def __init__(self, folder: Path, images: Iterable[Path]):
        self._whole: dict[str, list[Path]] = {}  # path from the folder, with and without its ending
        self._bare: dict[str, list[Path]] = {}  # name alone
        for image in images:
            if folder in image.parents:
                inside = image.relative_to(folder)
                for name in (inside, inside.with_suffix("")):
                    self._whole.setdefault(_spelled(name.as_posix()), []).append(image)
                    self._bare.setdefault(_spelled(name.name), []).append(image)

    def meant(self, key: str) -> list[Path]:
        """The images that a key means, several of one stem among them: its end is their path from the folder; or it
        is a bare name that only one folder has.
        """
        parts = [part for part in _spelled(key).split("/") if part]
        for first in range(len(parts)):
            if matches := self._whole.get("/".join(parts[first:])):
                return matches
        matches = self._bare.get(parts[0], []) if len(parts) == 1 else []
        return matches if len({image.parent for image in matches}) == 1 else []


def _spelled(name: str) -> str:
    """A path as it compares: Windows' strokes are others, and macOS takes accents apart."""
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def read_caption_json(file: Path) -> CaptionJson:
    """A JSON file of captions: {path or stem: a caption, a list of tags, or kohya's {"caption": ..., "tags": ...}}.

    Values that are something else are no entries. Source of the format: finetune/ in kohya's sd-scripts.
    """
    try:
        if file.stat().st_size > MAX_BOOK:
            return CaptionJson(file, error=f"it has more than {MAX_BOOK / 1e6:.0f} MB")
        content = json.loads(decode(file.read_bytes())[0])
    except OSError as error:
        return CaptionJson(file, error=f"it cannot be read ({error.strerror})")
    except UnknownEncoding as error:
        return CaptionJson(file, error=str(error))
    except RecursionError:
        return CaptionJson(file, error="it is nested too deep")
    except ValueError as error:
        return CaptionJson(file, error=f"it is broken ({error})")
    entries = {key: _entry_text(value) for key, value in content.items()} if isinstance(content, dict) else {}
    return CaptionJson(file, {key: text for key, text in entries.items() if text})


def _entry_text(value: Any) -> str:
    """The caption that an entry's value is; "" when it is none."""
    if isinstance(value, dict):
        value = [value[name] for name in ("caption", "tags") if isinstance(value.get(name), str)]
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        return ""
    text = one_line(line for part in parts for line in part.splitlines())
    return text if text.encode("utf-8", "replace").decode() == text else ""  # half a character, as "\\ud800"
