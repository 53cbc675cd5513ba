"""Model files on disk: which files of a folder are its weights, and whether they are complete."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from lorakit.hub.header import ModelFileError, verify_safetensors
from lorakit.hub.settings import read_settings, verify_settings

# Indexes of diffusers folders: of pipelines, of modular pipelines.
INDEXES = ("model_index.json", "modular_model_index.json")
# How files of a part end that are settings or belong to a tokenizer.
SETTINGS = (".json", ".txt", ".model", ".jinja")
# Parts of diffusers folders that training does not need.
UNUSED_PARTS = ("safety_checker", "feature_extractor", "image_encoder")
WEIGHTS = re.compile(
    r"(diffusion_pytorch_model|pytorch_model|model)(-\d+-of-\d+)?(\.(?P<variant>\w+))?(-\d+-of-\d+)?"
    r"\.(safetensors|bin)"
)


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
            settings = [name for name in inside if name.endswith(SETTINGS)]
            kept += [f"{part}/{name}" for name in settings + weight_files(inside)]
    return kept


def read_index(folder: Path) -> dict:
    """The index of a diffusers folder: part -> [library, class], in modular ones also a dict with its origin.

    Raises ModelFileError if there is none, or it cannot be read.
    """
    file = next((folder / name for name in INDEXES if (folder / name).is_file()), None)
    if file is None:
        raise ModelFileError(f"{folder} is not a diffusers folder (it has no {' or '.join(INDEXES)}).")
    index = read_settings(file)
    if not all(map(_is_entry, index.values())) or not isinstance(index.get("_class_name", ""), str):
        raise ModelFileError(f"{file} is no index of a diffusers folder: download it again.")
    return index


def _is_entry(value: object) -> bool:
    """Whether a value is valid in the index of a diffusers folder, where lists are parts."""
    if not isinstance(value, list):
        return True
    origin = value[2] if len(value) > 2 else {}
    if not value or not isinstance(origin, dict):
        return False
    inner = origin.get("subfolder") or ""
    # nothing outside of the folder is read for it
    return isinstance(inner, str) and not Path(inner).is_absolute() and ".." not in Path(inner).parts


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
    """Check all that a diffusers folder is loaded from: headers of weights, settings. Raises ModelFileError.

    Of a folder that is a model itself, such as a tagger's, only the headers are checked.
    """
    _verify_weights(folder)
    for part in folder.iterdir():
        if part.is_dir() and part.name not in UNUSED_PARTS:
            verify_part(part)


def verify_part(folder: Path) -> None:
    """The same for the folder of one part."""
    for file in sorted(folder.iterdir()):
        if file.name.endswith(SETTINGS):
            verify_settings(file)
    _verify_weights(folder)


def _verify_weights(folder: Path) -> None:
    for name in weight_files(sorted(file.name for file in folder.iterdir())):
        if name.endswith(".safetensors"):
            verify_safetensors(folder / name)
