"""Why no run can train on a model that is whole: one reason for each kind, the same for everyone who asks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lorakit.hub.files import part_weights
from lorakit.hub.settings import read_settings
from lorakit.models.files.kinds import family_of_kind, quantised
from lorakit.models.files.marks import FileKind, Marks, all_marks
from lorakit.models.files.weights import tensor_header

COARSE = "its weights are in 8 bits or fewer (such as fp8), too coarse to train on: use it in bf16, fp16 or fp32"
WHOLE = "it is a part of a model alone: use the whole checkpoint, or a diffusers folder"
# Kinds of files that are taken for a base, and why they are none.
NO_BASE = {
    "a Stable Diffusion XL refiner": "a refiner only finishes images of the base: train on the base itself",
    "an SDXL derivative with EDM's noise (Playground 2.5, CosXL)": "it was trained on another noise schedule: use a "
    "model of the plain Stable Diffusion XL",
    "a Stable Diffusion 2 checkpoint": "Stable Diffusion 2 is no family here",
    "a Stable Diffusion 3 checkpoint": "Stable Diffusion 3 is no family here",
    "a Flux checkpoint": "Flux is no family here",
    "an SDXL diffusion model without text encoders": WHOLE,
    "a diffusion model without text encoder": WHOLE,
    "one part of a diffusers folder": "it is one part of a model: give its whole folder, the one with model_index.json",
}
CANNOT = "cannot be trained on"


def unfit_file(name: str, kind: FileKind | None, header: Mapping[str, Any], replaced: Collection[str] = ()) -> str:
    """Why no run can start from a single file, as the end of a sentence: "it holds no VAE ..."; "" when one can.

    name, kind   what `kinds.file_kind` says of it
    header       name -> {dtype, shape} of its tensors
    replaced     parts that come from elsewhere, under the names of `Marks.parts`
    """
    if reason := NO_BASE.get(name, "") or unfit_weights(header):
        return reason
    family = family_of_kind(name)
    return _lacking(family, kind, header, replaced) if family and kind else ""


def unfit_weights(header: Mapping[str, Any]) -> str:
    """The same by types and shapes alone, also for a denoiser in a folder."""
    if quantised(header):
        return COARSE
    expected = {name: count for marks in all_marks().values() for name, count in marks.inputs.items()}
    shapes = {name: header[name]["shape"] for name in expected.keys() & header.keys()}
    editing = (_editing(shape[1], expected[name]) for name, shape in shapes.items() if len(shape) == 4)
    return next(filter(None, editing), "")


def unfit_folder(folder: Path, family: Marks) -> str:
    """The same of the folder of a denoiser, by its settings and the headers of its weights."""
    count = read_settings(folder / "config.json").get("in_channels")
    for expected in {*family.inputs.values()} if count else ():
        if reason := _editing(count, expected):
            return reason
    # .bin files would have to be read whole
    files = [file for file in part_weights(folder) if file.suffix == ".safetensors"]
    return unfit_weights({name: entry for file in files for name, entry in tensor_header(file).items()})


def _editing(count: int, expected: int) -> str:
    if count == expected:
        return ""
    return (
        f"it is for inpainting or editing (its UNet takes {count} channels instead of {expected}): use the plain base "
        "model"
    )


def _lacking(family: Marks, kind: FileKind, header: Mapping[str, Any], replaced: Collection[str] = ()) -> str:
    """Which part a base of this kind lacks although others of it hold it, and what to do; "" when none is."""
    for part, start in kind.holds.items():
        if part not in replaced and not any(name.startswith(start) for name in header):
            return without(family, part)
    return ""


def without(family: Marks, part: str) -> str:
    """What to do about a base without a part, e.g. "it holds no VAE: set model.vae, e.g. to ..."."""
    return f"it holds no {part}: {family.parts[part]}"
