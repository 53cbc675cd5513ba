"""Reading captions: text files in any encoding that is certain, JSON and CSV files of captions."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorakit.files.disk import raise_if_failing, read_file

# bytes of one caption file
MAX_CAPTION_BYTES = 1_000_000
# bytes of a file with the captions of many images
MAX_BOOK = 64_000_000
# Byte order mark at the beginning of a file -> its encoding.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    # before UTF-16, whose mark is the beginning of this one
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
ADVICE = "save it as UTF-8"
# The byte order mark, as a character.
MARK = "\ufeff"
# kohya's metadata files, the latest step of its scripts first.
METADATA = ("meta_lat.json", "meta_clean.json", "meta_cap.json")
# Files with the captions of images.
BOOK_EXTENSIONS = (".json", ".jsonl", ".csv")
# In a table of captions: names of the column with the image, and of those with its caption.
IMAGE_KEYS = ("file_name", "filename", "file", "image", "image_path", "path", "img")
TEXT_KEYS = ("caption", "text", "tags")


@dataclass(frozen=True)
class Caption:
    """The caption of an image, on one line. With an `error` (why it was not read) the text is ""."""

    text: str = ""
    # the file it was read from; None: no file has a caption for the image
    source: Path | None = None
    encoding: str = ""
    error: str = ""
    lines: tuple[str, ...] = ()  # of the file, without empty ones; "" where an empty line parts others


class UnknownEncoding(ValueError):
    """Bytes that are text in no encoding, or in several; the message names the candidates."""


def read_captions(files: Iterable[Path]) -> dict[Path, Caption]:
    """The text of each caption file. Short files that could be GBK are read as GBK if others of their folder are."""
    captions = {file: read_caption(file) for file in files}
    # Short Chinese captions can be valid in several encodings; their neighbours decide.
    chinese = {file.parent for file, caption in captions.items() if caption.encoding == "gb18030"}
    undecided = [file for file, caption in captions.items() if caption.error and file.parent in chinese]
    return captions | {file: read_caption(file, among_chinese=True) for file in undecided}


def read_caption(file: Path, *, among_chinese: bool = False) -> Caption:
    """The text of one caption file on one line; encodings that could be mistaken are reported, never guessed."""
    try:
        if file.stat().st_size > MAX_CAPTION_BYTES:
            return Caption("", file, "", f"it has more than {MAX_CAPTION_BYTES / 1e6:.0f} MB, too much for a caption")
        text, encoding = decode(read_file(file), among_chinese=among_chinese)
    except OSError as error:
        raise_if_failing(error, file)
        return Caption("", file, "", f"it cannot be read ({error.strerror or error})")
    except UnknownEncoding as error:
        return Caption("", file, "", str(error))
    lines = [line.strip().rstrip(",") for line in text.strip().splitlines()]
    return Caption(one_line(lines), file, encoding, lines=tuple(lines))


def one_line(parts: Iterable[str]) -> str:
    """Lines or tags joined by commas, without empty ones."""
    stripped = (part.strip().rstrip(",") for part in parts)
    return ", ".join(part for part in stripped if part)


def decode(data: bytes, *, among_chinese: bool = False) -> tuple[str, str]:
    """The text of some bytes, and its encoding: by its byte order mark, else UTF-8, UTF-16 or GB 18030 if nothing
    else is possible; `among_chinese` files, also if GB 18030 is likely. Raises UnknownEncoding.
    """
    for mark, encoding in MARKS:
        if data.startswith(mark):
            try:
                return data.decode(encoding), encoding
            except UnicodeDecodeError:
                raise UnknownEncoding(
                    f"it begins as {encoding.upper()} but continues as something else: {ADVICE}"
                ) from None
    # No text has NUL bytes, but in UTF-16 every ASCII letter has one.
    if b"\0" in data:
        return _unmarked_utf16(data)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = ""
    # The round trip fails only for "" after an error above. Some short GBK texts are valid UTF-8 by chance.
    if text.encode() == data and not (_is_chance(text) and _is_chinese(data, among_chinese=True)):
        return text, "utf-8"
    if _is_chinese(data, among_chinese):
        return data.decode("gb18030"), "gb18030"
    if text:
        raise UnknownEncoding(f"it can be read in more than one way, as {_perhaps(data)}: {ADVICE} with a mark (BOM)")
    raise UnknownEncoding(f"it is not UTF-8 text, perhaps {_perhaps(data)}: {ADVICE}")


def with_bom(text: str) -> str:
    """A text to be saved as UTF-8, with a byte order mark if `decode` could mistake it, e.g. a single "é"."""
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
    # Characters of three or more bytes in UTF-8 do not come about by chance.
    if text.isascii() or max(text) > "\u07ff":
        return False
    # Remove single letters between ASCII words, as "è" or "à" in Italian.
    text = re.sub(r"(?<=[A-Za-z] )[^\W\d_](?= [A-Za-z])", "", text)
    words = [word for word in re.findall(r"[^\W\d_]+", text) if word.isalpha() and not word.isascii()]
    # The first word of a character's Unicode name is its script: LATIN, CYRILLIC, GREEK.
    scripts = [{unicodedata.name(char, "").split(" ")[0] for char in word if not char.isascii()} for word in words]
    # Cn: code points that Unicode has not assigned.
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
    # More ASCII characters win: in the wrong byte order they become rare Chinese characters.
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
    # Rows A1 and A3 are punctuation and full-width letters, B0 to F7 the characters of GB 2312.
    if not all(len(pair) == 2 and pair[1] >= 0xA1 and pair[0] in (0xA1, 0xA3, *range(0xB0, 0xF8)) for pair in pairs):
        return False
    signs = [pair for pair in pairs if pair[0] >= 0xB0]
    common = [pair for pair in signs if pair[0] <= 0xD7]
    # Names and rare words are allowed: 70 % common characters are enough.
    if not common or len(common) < 0.7 * len(signs):
        return False
    is_certain = len(common) >= 4 and min(map(min, signs)) < 0xC0 and max(common)[0] >= 0xD0
    return among_chinese or is_certain


def _perhaps(data: bytes) -> str:
    """The encodings in which these bytes are valid, as editors call them, each with a bit of the text."""
    # Python's codec -> name in the menus of editors.
    names = {
        "utf-8": "UTF-8",
        "gb18030": "GBK",
        "big5": "Big5",
        "cp932": "Shift-JIS",
        "cp949": "Korean",
        "cp1252": "Latin-1",
        "cp1251": "Cyrillic",
    }
    candidates = []
    for encoding, name in names.items():
        try:
            text = " ".join(data.decode(encoding).split())
            candidates.append(f"{name} ({encoding}: “{_around(text)}”)")
        except UnicodeDecodeError:
            continue
    return " or ".join(candidates) or "no text at all"


def _around(text: str) -> str:
    """A bit of a text around its first letter that is not ASCII, where wrong encodings show."""
    first = next((place for place, char in enumerate(text) if not char.isascii()), 0)
    return text[max(0, first - 8) : first + 12]


# ---- captions of many images in one file ---------------------------------------------------------------------------


@dataclass(frozen=True)
class CaptionJson:
    """The captions of one JSON, JSON lines or CSV file by key (path, name or stem of an image); `error` if it cannot be
    read.

    unread   key -> what it has instead of a caption
    """

    file: Path
    entries: dict[str, str] = field(default_factory=dict)
    error: str = ""
    unread: dict[str, str] = field(default_factory=dict)


class ImageNames:
    """Finds the images below a folder that a key of a JSON file there means."""

    def __init__(self, folder: Path, images: Iterable[Path]):
        # path from the folder, with and without extension -> images
        self._whole: dict[str, list[Path]] = {}
        # file name alone, with and without extension -> images
        self._bare: dict[str, list[Path]] = {}
        for image in images:
            if folder in image.parents:
                inside = image.relative_to(folder)
                for name in (inside, inside.with_suffix("")):
                    self._whole.setdefault(_spelled(name.as_posix()), []).append(image)
                    self._bare.setdefault(_spelled(name.name), []).append(image)

    def find(self, key: str) -> list[Path]:
        """The images that a key means: those whose path from the folder the key ends with, or a file name or stem that
        occurs in only one folder. Several images may have the same stem.
        """
        parts = [part for part in _spelled(key).split("/") if part]
        # Keys may be absolute paths of another machine: the longest end of the path that matches counts.
        for first in range(len(parts)):
            if matches := self._whole.get("/".join(parts[first:])):
                return matches
        matches = self._bare.get(parts[0], []) if len(parts) == 1 else []
        return matches if len({image.parent for image in matches}) == 1 else []


def _spelled(name: str) -> str:
    """A path for comparison: Windows has backslashes, and macOS stores accents as separate characters."""
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def read_caption_json(file: Path, image: str = "", reading: int = 2) -> CaptionJson:
    """A file of captions: JSON, {path or stem: a caption, a list of tags, or {"caption": ..., "tags": ...}}; JSON lines
    or CSV, a row for each image with its name and those.

    image     the only image that it is about, by which it is named
    reading   `DataConfig.reading`; 1 knows fewer shapes

    Source of the formats: finetune/ in kohya's sd-scripts; metadata.jsonl and .csv of Hugging Face's ImageFolder.
    """
    try:
        if file.stat().st_size > MAX_BOOK:
            return CaptionJson(file, error=f"it has more than {MAX_BOOK / 1e6:.0f} MB")
        text = decode(read_file(file))[0]
        content = _table(text, file.suffix.lower()) if file.suffix.lower() != ".json" else json.loads(text)
    except OSError as error:
        raise_if_failing(error, file)
        return CaptionJson(file, error=f"it cannot be read ({error.strerror or error})")
    except UnknownEncoding as error:
        return CaptionJson(file, error=str(error))
    # Thousands of nested brackets, as in a file made to break parsers.
    except RecursionError:
        return CaptionJson(file, error="it is nested too deep")
    except (ValueError, csv.Error) as error:
        return CaptionJson(file, error=f"it is broken ({error})")
    if image and reading > 1:
        content = {image: content}
    if not isinstance(content, dict):
        return CaptionJson(file)
    entries = {key: _entry_text(value, reading) for key, value in content.items()}
    unread = {key: _shape(value) for key, value in content.items() if not entries[key] and reading > 1}
    return CaptionJson(file, {key: text for key, text in entries.items() if text}, unread=unread)


def _table(text: str, ending: str) -> dict[str, Any]:
    """Image -> its row, of JSON lines or CSV. Raises ValueError, csv.Error."""
    if ending == ".csv":
        rows: list[Any] = list(csv.DictReader(io.StringIO(text.removeprefix(MARK)), strict=True))
    else:
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    table: dict[str, Any] = {}
    for row in rows:
        named = [row[key] for key in IMAGE_KEYS if isinstance(row, dict) and isinstance(row.get(key), str)]
        if named:
            table.setdefault(named[0], row)
    if rows and not table:
        raise ValueError(f"no column names the image: one of {', '.join(IMAGE_KEYS)} does")
    return table


def _entry_text(value: Any, reading: int) -> str:
    """The caption in an entry's value; "" if there is none."""
    if isinstance(value, dict):
        keys = TEXT_KEYS if reading > 1 else ("caption", "tags")
        texts = {key: value[key] for key in keys if isinstance(value.get(key), str | list if reading > 1 else str)}
        # a caption and a text are two names of the same
        texts.pop("text" if "caption" in texts else "", None)
        value = [part for item in texts.values() for part in (item if isinstance(item, list) else [item])]
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        return ""
    text = one_line(line for part in parts for line in part.splitlines())
    # A lone surrogate such as "\\ud800" is valid JSON, but cannot be written to a file or tokenized.
    return text if text.encode("utf-8", "replace").decode() == text else ""


def _shape(value: Any) -> str:
    """What an entry is instead of a caption, in words."""
    if isinstance(value, dict):
        return f"a table with {', '.join(map(repr, list(value)[:5]))}"
    return "nothing" if value in ("", None, []) else f"{json.dumps(value)[:40]}"
