"""`model check`: what model files on disk are, whether they are complete, what is missing; only headers are read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from lorakit.files.disk import disk_error
from lorakit.hub.files import (
    INDEXES,
    WEIGHTS,
    part_folders,
    part_weights,
    read_index,
    verify_folder,
    verify_part,
    weight_files,
)
from lorakit.hub.header import ModelFileError
from lorakit.lora.file import describe
from lorakit.lora.names import LoraFileError
from lorakit.lora.warm_start import startable
from lorakit.models.files.fitness import CANNOT, unfit_file, unfit_folder, unfit_weights, without
from lorakit.models.files.kinds import LORA, file_kind, lora_family, lora_title, title_of_folder
from lorakit.models.files.marks import PREFIX, FileKind, all_marks
from lorakit.models.files.weights import PICKLED, tensor_header

SEARCHED = (".safetensors", ".gguf", *PICKLED)
# Files of trainers that have the suffix of a model.
STATE = re.compile(r"(optimizer|scheduler|scaler|training_args|random_states|rng_state).*")
# Files of a project of lorakit: training states, and cached latents and texts, which are named by a hash.
PROJECT_FILE = re.compile(r"state\.pt|[0-9a-f]{40}\.safetensors")
# What browsers and download tools append to the name of an unfinished file.
UNFINISHED = (".part", ".crdownload", ".download", ".incomplete", ".aria2", ".tmp")
DTYPES = {"BF16": "bf16", "F16": "fp16", "F32": "fp32", "F64": "fp64", "F8_E4M3": "fp8", "F8_E5M2": "fp8"}
BLOCKS = re.compile(r"(?:model\.)?(?:blocks|layers|transformer_blocks|joint_blocks|double_blocks)\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """One model file, or one folder that is a model.

    kind     what it is, in words
    size     bytes
    dtypes   types of its weights that make up at least 1 %, the most frequent first
    blocks   number of transformer blocks, 0 when there are none
    holds    title of a family -> the parts of it in this file
    problem  why it cannot be used, "" when it is complete
    unfit    why no run can start from it although it is whole: "cannot be trained on: ..."; "" when that is its use or
             nobody expects it
    """

    path: Path
    kind: str
    size: int
    dtypes: tuple[str, ...] = ()
    blocks: int = 0
    holds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    problem: str = ""
    unfit: str = ""

    def __str__(self) -> str:
        facts = [_size_text(self.size), *self.dtypes]
        facts += [f"{self.blocks} blocks"] if self.blocks else []
        notes = "".join(f"\n  ! {note}" for note in (self.problem, self.unfit) if note)
        return f"{self.path}: {self.kind}, {', '.join(facts)}{notes}"


def _size_text(size: int) -> str:
    units = ((1e9, "GB", 2), (1e6, "MB", 1), (1e3, "kB", 1))
    return next((f"{size / unit:.{digits}f} {name}" for unit, name, digits in units if size >= unit), f"{size} bytes")


def check(paths: Iterable[Path | str]) -> list[ModelFile]:
    """What each file is; of a folder, every model in it and in the folders below."""
    return [_examine(model) for path in paths for model in _models(Path(path).expanduser(), set())]


def missing(files: Iterable[ModelFile]) -> list[str]:
    """What is missing beside these files to train, by family, with the source of each part; [] when nothing is."""
    lines = []
    whole = [file for file in files if not file.problem]
    for family in all_marks().values():
        have = {part for file in whole for part in file.holds.get(family.title, ())}
        # a VAE alone does not say that someone wants to train this family
        if have - {"VAE"}:
            present = ", ".join(part for part in family.parts if part in have)
            lacking = [part for part in family.parts if part not in have]
            lines += [f"{family.title}: {present} found, {part} missing: {family.parts[part]}" for part in lacking]
    return lines


def _models(path: Path, seen: set[Path]) -> Iterator[Path]:
    """The model files and model folders at `path` and below, sorted by name; no folder twice, as links may loop."""
    try:
        if not path.is_dir():
            yield path
            return
        inside = sorted(path.iterdir())
        folders = [folder for folder in inside if folder.is_dir()]
        here = path.resolve()
    except (OSError, RuntimeError):
        # unreadable, or a loop of links: `_examine` reports it
        yield path
        return
    if here in seen:
        return
    seen.add(here)
    # a folder is one model (whole, or a part), or it holds models
    files = [file.name for file in inside if file not in folders]
    is_part = "config.json" in files and bool(weight_files(files))
    is_whole_model = not {*INDEXES}.isdisjoint(files)
    if is_part or is_whole_model:
        yield path
    for name in files:
        # model.safetensors.part is reported as an unfinished model.safetensors
        bare = name.removesuffix(next(filter(name.endswith, UNFINISHED), ""))
        is_of_trainer = PROJECT_FILE.fullmatch(name) or (bare.endswith(PICKLED) and STATE.fullmatch(name))
        is_of_part = is_part and (WEIGHTS.fullmatch(name) or name.endswith(PICKLED))
        if bare.endswith(SEARCHED) and not is_of_part and not is_of_trainer:
            yield path / name
    for folder in folders:
        if not (is_whole_model or folder.name.startswith(".")):
            yield from _models(folder, seen)


def _examine(path: Path) -> ModelFile:
    size = 0
    try:
        if path.is_dir():
            # raises PermissionError when it may not be read
            next(path.iterdir(), None)
            is_diffusers = any((path / name).is_file() for name in INDEXES)
            return _diffusers_folder(path) if is_diffusers else _part_folder(path)
        if not path.exists():
            raise ModelFileError(f"There is no {path}.")
        size = path.stat().st_size
        if path.name.endswith(UNFINISHED):
            raise ModelFileError("Its download is not finished: resume it, or download it again.")
        if path.suffix == ".gguf":
            kind = "a GGUF file, which is too coarse to train on: use the .safetensors of that model"
            return ModelFile(path=path, kind=kind, size=size)
        return _described(path, size, tensor_header(path))
    except ModelFileError as error:
        # what is wrong with one file must not hide the others
        return ModelFile(path=path, kind="no usable model", size=size, problem=str(error))
    except OSError as error:
        return ModelFile(path=path, kind="no usable model", size=size, problem=str(disk_error(error) or error))


def _described(path: Path, size: int, header: Mapping[str, Any]) -> ModelFile:
    """By the names, types and shapes of its tensors."""
    name, kind = file_kind(header)
    is_lora = name == LORA
    text, unfit = _lora(header) if is_lora else (name, unfit_file(name, kind, header))
    holds = _holds(name, kind, header)
    if kind:
        text += kind.detail + "".join(f", {flag}" for tensor, flag in kind.flags.items() if tensor in header)
    if kind and kind.width:
        end, expected = kind.width
        width = next((header[n]["shape"][-1] for n in header if n.endswith(end) and header[n]["shape"]), 0)
        text += f" of width {width}"
        if width != expected:
            text, holds = f"{text} ({' and '.join(holds)}'s has {expected})", {}
    if unfit_weights(header):
        holds = {}
    return ModelFile(
        path=path,
        kind=text,
        size=size,
        dtypes=_dtypes(header),
        blocks=_blocks(header, kind.inner if kind else ""),
        holds=holds,
        unfit=unfit if is_lora or not unfit else f"{CANNOT}: {unfit}",
    )


def _holds(name: str, kind: FileKind | None, header: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Title of a family -> the parts of it in a file of this kind."""
    holds = {}
    for family in all_marks().values():
        if kind in family.kinds:
            holds[family.title] = tuple(
                part for part, start in kind.holds.items() if any(tensor.startswith(start) for tensor in header)
            )
        elif name in family.shared:
            holds[family.title] = (family.shared[name],)
    return holds


def _dtypes(header: Mapping[str, Any]) -> tuple[str, ...]:
    elements: Counter[str] = Counter()
    for entry in header.values():
        elements[DTYPES.get(entry["dtype"], entry["dtype"].lower())] += prod(entry["shape"])
    return tuple(name for name, count in elements.most_common() if 100 * count >= elements.total())


def _blocks(names: Iterable[str], inner: str) -> int:
    """How many transformer blocks tensors of these names belong to; `inner` comes before their own names."""
    own = (PREFIX.sub("", name).removeprefix(inner) for name in names)
    return len({match[1] for match in map(BLOCKS.match, own) if match})


def _lora(header: Mapping[str, Any]) -> tuple[str, str]:
    """(what a LoRA file is, why no run can start from it)."""
    try:
        lora = describe(header)
    except LoraFileError as error:
        return LORA, str(error)
    rank = " to ".join(f"{rank}" for rank in sorted({*lora.ranks[:1], *lora.ranks[-1:]})) or "none"
    family = lora_title(lora_family(lora.shapes)) or "an unknown family"
    layout = f"{lora.key_layout} key layout"
    text = f"a LoRA for {family} ({', '.join(lora.variants)}, rank {rank}, {lora.modules} modules, {layout})"
    text += "".join(f"; left out: {what}" for what in lora.left_out)
    try:
        startable("It", header)
    except LoraFileError as error:
        return text, str(error)
    return text, ""


def _diffusers_folder(path: Path) -> ModelFile:
    index = read_index(path)
    name = index.get("_class_name", "no class")
    kind, family = f"a diffusers folder with {name}", title_of_folder(name)
    files = [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    header: dict[str, Any] = {}
    try:
        verify_folder(path)
        for part, inner in part_folders(index).items():
            if not (path / inner).is_dir():
                raise ModelFileError(f"Its index names the {part}, but there is no folder {inner}: download it again.")
            if (path / inner / "config.json").is_file():
                weights = part_weights(path / inner)
                if part in ("unet", "transformer"):
                    header = {key: entry for file in weights for key, entry in _header_of(file).items()}
        reason = _unfit_folder(path, index)
    except ModelFileError as error:
        return ModelFile(path=path, kind=kind, size=size, problem=str(error))
    return ModelFile(
        path=path,
        kind=kind + (f" ({family})" if family else ""),
        size=size,
        dtypes=_dtypes(header),
        blocks=_blocks(header, ""),
        holds={m.title: tuple(m.parts) for m in all_marks().values() if m.title == family and not reason},
        unfit=reason and f"{CANNOT}: {reason}",
    )


def _unfit_folder(path: Path, index: Mapping[str, Any]) -> str:
    """Why no run can start from a folder of a family; "" of another model's."""
    family = next((marks for marks in all_marks().values() if marks.folder == index.get("_class_name")), None)
    parts = part_folders(index)
    denoiser = next((parts[part] for part in ("unet", "transformer") if part in parts), None)
    if family is None or denoiser is None:
        return ""
    return unfit_folder(path / denoiser, family) or ("" if "vae" in parts else without(family, "VAE"))


def _header_of(weights: Path) -> dict[str, Any]:
    """As `tensor_header`, but nothing for .bin files, which have to be read whole."""
    return tensor_header(weights) if weights.suffix == ".safetensors" else {}


def _part_folder(path: Path) -> ModelFile:
    verify_part(path)
    weights = part_weights(path)
    size = sum(file.stat().st_size for file in weights)
    return _described(path, size, {key: entry for file in weights for key, entry in _header_of(file).items()})
