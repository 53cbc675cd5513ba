"""The header of a safetensors file, checked before any other code believes it."""

from __future__ import annotations

import json
import stat
import struct
from math import prod
from pathlib import Path
from typing import Any

from lorakit.errors import UserError

# Bytes; the limit of the safetensors library.
MAX_HEADER = 100_000_000
# Bits of one element, of all types that the safetensors library knows.
ITEM_BITS = {
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
# Most dimensions of a tensor; the widest in any model, the kernel of a video VAE, has 5.
MAX_DIMENSIONS = 8
# First bytes of files that are often saved under the name of a model, and what they are.
FOREIGN = (
    (b"<", "a web page: the download got an HTML page instead of the file; download the file itself"),
    (b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull` in that folder, or download the file itself"),
    (b"GGUF", "a GGUF file, too coarse to train on: use the .safetensors of that model"),
    (b"PK\x03\x04", "a zip archive; if it is a PyTorch checkpoint, give it the suffix .ckpt"),
    (b"\x80\x02", "a Python pickle; if it is a PyTorch checkpoint, give it the suffix .ckpt"),
)


class ModelFileError(UserError):
    """A model file cannot be used: truncated, empty, another kind of file, another kind of model."""


def verify_safetensors(path: Path) -> dict:
    """The header of a safetensors file: {name: {dtype, shape, data_offsets}} and `__metadata__` {name: text}.

    Reads only the header. Each name occurs once, each tensor has a known type and takes exactly the bytes of its shape,
    and the tensors follow one another from the header's end to the file's, without holes and overlaps. Raises
    ModelFileError for everything else, and for what is no plain file: a pipe is not waited for. Format: 8 bytes of
    header length (little endian), header as JSON, data (https://github.com/huggingface/safetensors).
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise ModelFileError(f"{path} is {what}; a .safetensors file was expected.")
    size = status.st_size
    text = _header_text(path, size)
    data = size - 8 - len(text)
    try:
        # decoded here, as json would take bytes for UTF-16, too
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
        ends = _laid_out(header)
    except (ValueError, AttributeError, LookupError, TypeError, RecursionError) as error:
        raise ModelFileError(
            f"{path} has no readable .safetensors header ({str(error)[:160]}): it is damaged or another kind of file; "
            "copy or download it again."
        ) from error
    if ends != data:
        state = "truncated" if data < ends else "longer than it should be"
        raise ModelFileError(f"{path} is {state}: {size} of {size - data + ends} bytes; copy or download it again.")
    return header


def _header_text(path: Path, size: int) -> bytes:
    """The JSON of a header. Raises ModelFileError when the file's first bytes are of another kind of file."""
    if size == 0:
        raise ModelFileError(f"{path} is empty (0 bytes); a .safetensors file was expected: copy or download it again.")
    with open(path, "rb") as file:
        start = file.read(64)
        # a header of 60 bytes begins with "<", too: its JSON follows the eight bytes of its length
        for magic, what in FOREIGN if start[8:9] != b"{" else ():
            if start.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(magic):
                raise ModelFileError(f"{path} is not a .safetensors file but {what}.")
        length = struct.unpack("<Q", start[:8])[0] if size >= 8 else 0
        if not 2 <= length <= MAX_HEADER:
            raise ModelFileError(
                f"{path} ({size} bytes) does not begin like a .safetensors file: it is damaged or another "
                "kind of file; copy or download it again."
            )
        # checked before reading: a damaged length could ask for gigabytes
        if 8 + length > size:
            raise ModelFileError(
                f"{path} is truncated inside its header ({size} of more than {8 + length} bytes); copy or download it "
                "again."
            )
        file.seek(8)
        return file.read(length)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON in which no name occurs twice: of two, libraries take different ones. Raises ValueError."""
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name in table:
            raise ValueError(f"{name[:60]!r} occurs twice")
        # raises for half of a surrogate pair, which cannot be written or printed
        name.encode()
        table[name] = value
    return table


def _laid_out(header: dict) -> int:
    """Where the last tensor ends, in bytes after the header. Raises LookupError, TypeError or ValueError when an entry
    is no tensor's, and for holes and overlaps.
    """
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise TypeError("__metadata__ is no table of texts")
    entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    end = 0
    for start, stop, name in sorted((*_span(name, entry), name) for name, entry in entries):
        if start != end:
            what = "overlaps the tensor before it" if start < end else "leaves a hole before it"
            raise ValueError(f"the data of {name[:80]} {what}: it begins at byte {start} instead of {end}")
        end = stop
    return end


def _span(name: str, entry: dict) -> tuple[int, int]:
    """Where the data of a header's entry begins and ends. Raises LookupError, TypeError or ValueError for an invalid
    entry.
    """
    dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not isinstance(shape, list):
        raise TypeError(f"{name} has dtype {str(dtype)[:40]}, shape {str(shape)[:40]}")
    # `type(...) is not int`, as isinstance(True, int) holds
    if any(type(number) is not int or number < 0 for number in (*shape, start, end)):
        raise TypeError(f"{name} has shape {str(shape)[:40]}, data_offsets {start} to {end}")
    if dtype not in ITEM_BITS:
        raise ValueError(f"{name} is of type {dtype[:40]}, which is not known here")
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{name} has {len(shape)} dimensions, at most {MAX_DIMENSIONS} are sane")
    if 8 * (end - start) != prod(shape) * ITEM_BITS[dtype]:
        raise ValueError(f"{name} is {dtype} of shape {shape} in {end - start} bytes")
    return start, end
