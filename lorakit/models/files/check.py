"""What model files on disk are, whether they are whole, and what is missing to train; only headers are read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from lorakit.hub.files import (
    INDEXES,
    WEIGHTS,
    ModelFileError,
    part_folders,
    part_weights,
    read_index,
    verify_folder,
    verify_safetensors,
    weight_files,
)
from lorakit.lora.file import LoraFileError, describe
from lorakit.models.files.anima import HUB_FILES
from lorakit.models.files.anima_names import (
    ADAPTER,
    BARE_DIT,
    CONDITIONER,
    DIT,
    PREFIX,
    QWEN,
    VAE,
    anima_kind,
    quantised,
)
from lorakit.models.files.weights import read_pickle

PICKLED = (".ckpt", ".pt", ".pth", ".bin")
SEARCHED = (".safetensors", ".gguf", *PICKLED)
STATE = re.compile(r"(optimizer|scheduler|scaler|training_args|random_states|rng_state).*")  # of trainers, no models
UNFINISHED = (".part", ".crdownload", ".download", ".incomplete", ".aria2", ".tmp")  # behind the file's own suffix
ANIMA_WIDTH = 1024  # of the texts, as Qwen3-0.6B gives them
DTYPES = {"BF16": "bf16", "F16": "fp16", "F32": "fp32", "F64": "fp64", "F8_E4M3": "fp8", "F8_E5M2": "fp8"}
BLOCKS = re.compile(r"(?:model\.)?(?:blocks|layers|transformer_blocks|joint_blocks|double_blocks)\.(\d+)\.")
SD_PARTS = {  # part -> how its tensors begin in single files
    "unet": "model.diffusion_model.",
    "text encoder": ("cond_stage_model.", "conditioner.embedders.0."),
    "VAE": "first_stage_model.",
}
# family -> part -> where it comes from, as `lorakit.hub.fetch` takes it
CHECKPOINT = "it is inside the whole checkpoint of that model"
NEEDED: dict[str, dict[str, str]] = {
    "Anima": {
        "DiT": HUB_FILES["transformer"],
        "LLM adapter": f"inside {HUB_FILES['text_conditioner']}",
        "text encoder": HUB_FILES["text_encoder"],
        "VAE": HUB_FILES["vae"],
    },
    "SDXL": {"unet": CHECKPOINT, "text encoder": CHECKPOINT, "VAE": "madebyollin/sdxl-vae-fp16-fix"},
    "SD 1.5": {"unet": CHECKPOINT, "text encoder": CHECKPOINT, "VAE": "stabilityai/sd-vae-ft-mse"},
}
CONTENTS: dict[str, dict[str, tuple[str, ...]]] = {  # kind -> family -> what of its parts it holds
    DIT: {"Anima": ("DiT", "LLM adapter")},
    BARE_DIT: {"Anima": ("DiT",)},
    CONDITIONER: {"Anima": ("LLM adapter",)},
    QWEN: {"Anima": ("text encoder",)},
    VAE: {"Anima": ("VAE",)},
    "a VAE alone": {"SDXL": ("VAE",), "SD 1.5": ("VAE",)},  # their VAEs differ in their numbers alone
}
CHECKPOINTS = {
    "a Stable Diffusion XL checkpoint": "SDXL",
    "an SDXL diffusion model without text encoders": "SDXL",
    "a Stable Diffusion 1.x checkpoint": "SD 1.5",
}
FOLDERS = {  # class of a diffusers folder -> family
    "StableDiffusionPipeline": "SD 1.5",
    "StableDiffusionXLPipeline": "SDXL",
    "AnimaModularPipeline": "Anima",
}
LORA_FAMILIES = {"anima": "Anima", "sdxl": "SDXL", "sd15": "SD 1.5", "sd2": "SD 2"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One model file, or one folder that is a model.

    kind     what it is, in words
    size     bytes
    dtypes   types of its weights, the most frequent first, that hold at least one in a hundred
    blocks   transformer blocks, 0 where there are none
    holds    family -> what it holds of the parts that are needed to train on that
    trouble  why it is of no use, "" when it is whole
    """

    path: Path
    kind: str
    size: int
    dtypes: tuple[str, ...] = ()
    blocks: int = 0
    holds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    trouble: str = ""

    def __str__(self) -> str:
        told = [_told_size(self.size), *self.dtypes]
        told += [f"{self.blocks} blocks"] if self.blocks else []
        return f"{self.path}: {self.kind}, {', '.join(told)}" + (f"\n  ! {self.trouble}" if self.trouble else "")


def _told_size(size: int) -> str:
    units = ((1e9, "GB", 2), (1e6, "MB", 1), (1e3, "kB", 1))
    return next((f"{size / unit:.{digits}f} {name}" for unit, name, digits in units if size >= unit), f"{size} bytes")


def check(paths: Iterable[Path | str]) -> list[Finding]:
    """What each file is, and each model among the files in a folder and the folders in it."""
    return [_examine(found) for path in paths for found in _models(Path(path).expanduser(), set())]


def missing(findings: Iterable[Finding]) -> list[str]:
    """What these files together lack to train on, family by family, and where it comes from; [] when nothing."""
    told = []
    whole = [finding for finding in findings if not finding.trouble]
    for family, needed in NEEDED.items():
        have = {part for finding in whole for part in finding.holds.get(family, ())}
        if have - {"VAE"}:  # a VAE alone tells no family
            found = ", ".join(part for part in needed if part in have)
            lacking = [part for part in needed if part not in have]
            told += [f"{family}: {found} found, {part} missing: {needed[part]}" for part in lacking]
    return told


def _models(path: Path, seen: set[Path]) -> Iterator[Path]:
    """The model files and model folders at `path` and below, in the order of their names; `seen` folders only once."""
    try:
        if not path.is_dir():
            yield path
            return
        inside = sorted(path.iterdir())
        folders = [folder for folder in inside if folder.is_dir()]
        here = path.resolve()
    except (OSError, RuntimeError):  # of links in a circle; `_examine` says why it cannot be read
        yield path
        return
    if here in seen:
        return
    seen.add(here)
    files = [file.name for file in inside if file not in folders]
    is_part = "config.json" in files and bool(weight_files(files))
    is_whole_model = not {*INDEXES}.isdisjoint(files)
    if is_part or is_whole_model:
        yield path
    for name in files:
        bare = name.removesuffix(next(filter(name.endswith, UNFINISHED), ""))
        is_of_part = is_part and (WEIGHTS.fullmatch(name) or name.endswith(PICKLED))
        if bare.endswith(SEARCHED) and not is_of_part and not (bare.endswith(PICKLED) and STATE.fullmatch(name)):
            yield path / name
    for folder in folders:
        if not (is_whole_model or folder.name.startswith(".")):
            yield from _models(folder, seen)


def _examine(path: Path) -> Finding:
    size = 0
    try:
        if path.is_dir():
            next(path.iterdir(), None)  # an error when it may not be read
            is_diffusers = any((path / name).is_file() for name in INDEXES)
            return _diffusers_folder(path) if is_diffusers else _part_folder(path)
        if not path.is_file():
            raise ModelFileError(f"There is no {path}.")
        size = path.stat().st_size
        if path.name.endswith(UNFINISHED):
            raise ModelFileError("Its download is not finished: go on with it, or download it again.")
        if path.suffix == ".gguf":
            kind = "a GGUF file, which cannot be trained on (too coarse): use the .safetensors of that model"
            return Finding(path=path, kind=kind, size=size)
        return _described(path, size, _header(path))
    except ModelFileError as error:
        return Finding(path=path, kind="no usable model", size=size, trouble=str(error))
    except OSError as error:
        return Finding(path=path, kind="no usable model", size=size, trouble=f"It cannot be read: {error}.")


def _header(path: Path) -> dict[str, Any]:
    """name -> {dtype, shape} of the tensors in a file, by name."""
    if path.suffix not in PICKLED:
        return {name: entry for name, entry in verify_safetensors(path).items() if name != "__metadata__"}
    names = {"torch.float16": "F16", "torch.bfloat16": "BF16", "torch.float32": "F32", "torch.float64": "F64"}
    return {
        name: {"dtype": names.get(str(tensor.dtype), str(tensor.dtype)), "shape": list(tensor.shape)}
        for name, tensor in read_pickle(path).items()
    }


def _described(path: Path, size: int, header: Mapping[str, Any]) -> Finding:
    """By the names, types and shapes of its tensors."""
    names = list(header)
    kind = anima_kind(names)
    told, holds = kind, CONTENTS.get(kind, {})
    if kind in CHECKPOINTS:
        parts = tuple(part for part, start in SD_PARTS.items() if any(name.startswith(start) for name in names))
        holds = {CHECKPOINTS[kind]: parts}
        told += ", with v prediction" if "v_pred" in header else ""
        told += ", with zero terminal SNR" if "ztsnr" in header else ""
    elif kind.startswith("a LoRA"):
        told = _lora(header)
    elif kind == QWEN:
        shape = next(header[name]["shape"] for name in names if name.endswith("embed_tokens.weight"))
        width = shape[-1] if shape else 0
        told += f" of width {width}"
        if width != ANIMA_WIDTH:
            told, holds = f"{told} (Anima's has {ANIMA_WIDTH})", {}
    elif kind == DIT:
        told += " with its LLM adapter inside"
    if quantised(header) and not kind.startswith("a LoRA"):
        told, holds = f"{told}, in 8 bits or fewer: too coarse to train on", {}
    return Finding(path=path, kind=told, size=size, dtypes=_dtypes(header), blocks=_blocks(names, kind), holds=holds)


def _dtypes(header: Mapping[str, Any]) -> tuple[str, ...]:
    elements: Counter[str] = Counter()
    for entry in header.values():
        elements[DTYPES.get(entry["dtype"], entry["dtype"].lower())] += prod(entry["shape"])
    return tuple(name for name, count in elements.most_common() if 100 * count >= elements.total())


def _blocks(names: list[str], kind: str) -> int:
    own = (PREFIX.sub("", name) for name in names)
    if kind == CONDITIONER:
        own = (name.removeprefix(ADAPTER) for name in own)
    return len({found[1] for found in map(BLOCKS.match, own) if found})


def _lora(header: Mapping[str, Any]) -> str:
    try:
        lora = describe(header)
    except LoraFileError as error:
        return f"a LoRA of a form that is not known here ({error})"
    rank = " to ".join(f"{rank}" for rank in sorted({*lora.ranks[:1], *lora.ranks[-1:]})) or "none"
    family = LORA_FAMILIES.get(lora.family, "a family that its names do not tell")
    return f"a LoRA for {family} ({', '.join(lora.kinds)}, rank {rank}, {lora.modules} modules, {lora.form} form)"


def _diffusers_folder(path: Path) -> Finding:
    index = read_index(path)
    name = index.get("_class_name", "no class")
    kind, family = f"a diffusers folder with {name}", FOLDERS.get(name, "")
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
    except ModelFileError as error:
        return Finding(path=path, kind=kind, size=size, trouble=str(error))
    return Finding(
        path=path,
        kind=kind + (f" ({family})" if family else ""),
        size=size,
        dtypes=_dtypes(header),
        blocks=_blocks(list(header), kind),
        holds={family: tuple(NEEDED[family])} if family else {},
    )


def _header_of(weights: Path) -> dict[str, Any]:
    """As `_header`; of .bin, which is as slow to look into as it is large, nothing."""
    return _header(weights) if weights.suffix == ".safetensors" else {}


def _part_folder(path: Path) -> Finding:
    weights = part_weights(path)
    size = sum(file.stat().st_size for file in weights)
    return _described(path, size, {key: entry for file in weights for key, entry in _header_of(file).items()})
