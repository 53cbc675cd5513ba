"""Model files on disk: which files of a folder are its weights, and whether they are complete."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable
from math import prod
from pathlib import Path

from lorakit.errors import UserError

# Indexes of diffusers folders: of pipelines, of modular pipelines.
INDEXES = ("model_index.json", "modular_model_index.json")
# Parts of diffusers folders that training does not need.
UNUSED_PARTS = ("safety_checker", "feature_extractor", "image_encoder")
# Bytes; the limit of the safetensors library.
MAX_HEADER = 100_000_000
# Bytes of one element, of the types that fill whole bytes.
ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
WEIGHTS = re.compile(
    r"(diffusion_pytorch_model|pytorch_model|model)(-\d+-of-\d+)?(\.(?P<variant>\w+))?(-\d+-of-\d+)?"
    r"\.(safetensors|bin)"
)
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
    """The header of a safetensors file: {name: {dtype, shape, data_offsets}} and `__metadata__`.

    Reads only the header and checks its length and that of the data. Raises ModelFileError for anything that is not a
    complete safetensors file. Format: 8 bytes of header length (little endian), header as JSON, data
    (https://github.com/huggingface/safetensors).
    """
    size = path.stat().st_size
    if size == 0:
        raise ModelFileError(f"{path} is empty (0 bytes); a .safetensors file was expected: download it again.")
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
                "kind of file; download it again."
            )
        # checked before reading: a damaged length could ask for gigabytes
        if 8 + length > size:
            raise ModelFileError(
                f"{path} is truncated inside its header ({size} of more than {8 + length} bytes); download it again."
            )
        file.seek(8)
        text = file.read(length)
    try:
        header = json.loads(text)
        end = max((_end(entry) for name, entry in header.items() if name != "__metadata__"), default=0)
        if not isinstance(header.get("__metadata__", {}), dict):
            raise TypeError("__metadata__ is no object")
    except (ValueError, AttributeError, LookupError, TypeError, RecursionError) as error:
        raise ModelFileError(
            f"{path} has no readable .safetensors header: it is damaged or another kind of file; download it again."
        ) from error
    if 8 + length + end != size:
        state = "truncated" if size < 8 + length + end else "longer than it should be"
        raise ModelFileError(f"{path} is {state}: {size} of {8 + length + end} bytes; download it again.")
    return header


def _end(entry: dict) -> int:
    """Where the data of a header's entry ends. Raises LookupError, TypeError or ValueError for an invalid entry."""
    dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not isinstance(shape, list):
        raise TypeError(f"dtype {dtype}, shape {shape}")
    # `type(...) is not int`, as isinstance(True, int) holds
    if any(type(number) is not int or number < 0 for number in (*shape, start, end)):
        raise TypeError(f"shape {shape}, data_offsets {start} to {end}")
    if end - start != prod(shape) * ITEM_BYTES[dtype] if dtype in ITEM_BYTES else end < start:
        raise ValueError(f"{dtype} of shape {shape} in {end - start} bytes")
    return end


def weight_files(names: Iterable[str]) -> list[str]:
    """The weights among the file names in one part's folder: one format, one variant, all its shards.

    Prefers .safetensors to .bin, and files without a variant, as diffusers does, to fp16, bf16 and then all others.
    """
    by_order: dict[tuple, list[str]] = {}
    for name in names:
        if match := WEIGHTS.fullmatch(name):
            variant = match["variant"] or ""
            order = ("", "fp16", "bf16").index(variant) if variant in ("", "fp16", "bf16") else 3
            # False sorts before True: .safetensors come first.
            by_order.setdefault((name.endswith(".bin"), order, variant), []).append(name)
    files = sorted(by_order[min(by_order)]) if by_order else []
    # a whole file wins over shards of the same weights
    return [name for name in files if "-of-" not in name] or files


def all_shards(files: list[str]) -> bool:
    """Whether the weight files of a part are complete: a single file, or as many shards as their names say."""
    shards = re.search(r"-of-(\d+)\.", files[0]) if files else None
    return len(files) == int(shards[1]) if shards else bool(files)


def part_weights(folder: Path) -> list[Path]:
    """The weight files in one part's folder: its shards, or the one file. Raises ModelFileError if one is missing."""
    present = sorted(file.name for file in folder.glob("*"))
    names = weight_files(present)
    if not all_shards(names):
        raise ModelFileError(
            f"{folder} lacks weights (diffusion_pytorch_model.safetensors, model.safetensors or all of their shards); "
            f"it has {', '.join(present) or 'nothing'}: download it again."
        )
    return [folder / name for name in names]


def folder_files(names: Iterable[str]) -> list[str]:
    """The files of a diffusers repository that are needed: settings, tokenizers, one set of weights per part."""
    parts: dict[str, list[str]] = {}
    for name in names:
        part, _, inside = name.rpartition("/")
        parts.setdefault(part, []).append(inside)
    kept = [name for name in INDEXES if name in parts.get("", ())]
    for part, inside in sorted(parts.items()):
        if part and "/" not in part and part not in UNUSED_PARTS and any(name.endswith(".json") for name in inside):
            settings = [name for name in inside if name.endswith((".json", ".txt", ".model", ".jinja"))]
            kept += [f"{part}/{name}" for name in settings + weight_files(inside)]
    return kept


def read_index(folder: Path) -> dict:
    """The index of a diffusers folder: part -> [library, class], in modular ones also a dict with its origin.

    Raises ModelFileError if there is none, or it cannot be read.
    """
    file = next((folder / name for name in INDEXES if (folder / name).is_file()), None)
    if file is None:
        raise ModelFileError(f"{folder} is not a diffusers folder (it has no {' or '.join(INDEXES)}).")
    try:
        index = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{file} is not readable JSON ({error}): download it again.") from error
    if (
        not isinstance(index, dict)
        or not all(map(_is_entry, index.values()))
        or not isinstance(index.get("_class_name", ""), str)
    ):
        raise ModelFileError(f"{file} is no index of a diffusers folder: download it again.")
    return index


def _is_entry(value: object) -> bool:
    """Whether a value is valid in the index of a diffusers folder, where lists are parts."""
    if not isinstance(value, list):
        return True
    origin = value[2] if len(value) > 2 else {}
    return bool(value) and isinstance(origin, dict) and isinstance(origin.get("subfolder") or "", str)


def part_folders(index: dict) -> dict[str, str]:
    """part -> its folder inside the diffusers folder, of all parts in `index` that training uses."""
    named = {part: value for part, value in index.items() if isinstance(value, list) and part not in UNUSED_PARTS}
    origins = {part: value[2] if len(value) > 2 else {} for part, value in named.items() if value[0] is not None}
    return {part: origin.get("subfolder") or part for part, origin in origins.items()}


def is_whole(folder: Path) -> bool:
    """Whether a diffusers folder has the configuration and all weights of every part."""
    try:
        parts = part_folders(read_index(folder))
    except ModelFileError:
        return False
    for part in parts.values():
        names = [file.name for file in (folder / part).glob("*")]
        if not any(name.endswith(".json") for name in names):
            return False
        if "config.json" in names and not all_shards(weight_files(names)):
            return False
    return True


def verify_folder(folder: Path) -> None:
    """Check every safetensors file that a diffusers folder is loaded from. Raises ModelFileError."""
    for part in folder.iterdir():
        if part.is_dir() and part.name not in UNUSED_PARTS:
            for name in weight_files(file.name for file in part.iterdir()):
                if name.endswith(".safetensors"):
                    verify_safetensors(part / name)
