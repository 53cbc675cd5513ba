"""A run's LoRA files as ComfyUI, A1111/Forge and diffusers read them: written with metadata, read back, proved."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.lora import file as lora_file
from lorakit.lora.file import LoraFileError

if TYPE_CHECKING:
    import torch

    from lorakit.lora.adapter import Adapter
    from lorakit.lora.kinds import Change

DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


def write(file: Path, adapter: Adapter, model: Any, metadata: dict[str, str], dtype: str, form: str) -> str:
    """Write the adapter in a form of LoRA files (see `lora_file.pack`) and prove the file.

    Returns "matched/all" modules, e.g. "192/192". Raises LoraFileError, and leaves no file, when a number is not finite
    or the file does not hold what was trained.
    """
    import torch
    from safetensors.torch import save

    tensors: dict[str, torch.Tensor] = {}
    for key, (down, up) in adapter.pairs():
        name = model.names(*key)[form]
        tensors |= lora_file.pack(form, name, down, up, adapter.config.scale, getattr(torch, DTYPES[dtype]))
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise LoraFileError(
            f"{file.name} was not written: {len(broken)} tensors are not finite in {dtype}, the first is {broken[0]}."
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    part_file = file.with_suffix(".part")
    with open(part_file, "wb") as written:  # not by save_file, whose files nobody else may read, such as a webui's user
        written.write(save(tensors, metadata))
        written.flush()
        os.fsync(written.fileno())
    try:
        matched = prove(part_file, adapter, model, dtype)
    except LoraFileError:
        part_file.unlink()
        raise
    os.replace(part_file, file)
    return matched


def prove(file: Path, adapter: Adapter, model: Any, dtype: str) -> str:
    """Read a file back and compare each module's change with the trained one; returns "matched/all".

    Compared are the factors of alpha / rank * B A, number by number: A, and alpha / rank * B, wherever the file has the
    scale. A number x may be off by r |x| for the rounding, or by the dtype's smallest number (times the scale, if that
    is above 1): r = 2^-21 for float32's rounding of the scale, and for fp16 2^-11, for bf16 2^-8 more. Each number of
    the change, a sum of `rank` products, is then off by about 2 r times the sum of their sizes at most. Raises
    LoraFileError when a module is missing, left over, of another rank, or off by more.
    """
    import torch

    changes = _read(file, adapter, model)
    kind, scale = torch.finfo(getattr(torch, DTYPES[dtype])), adapter.config.scale
    relative, absolute = kind.eps / 2 + 2**-21, kind.smallest_normal * kind.eps
    for key, (down, up) in adapter.pairs():
        stored = {role: tensor.float() for role, tensor in changes[key].tensors.items()}
        sides = (
            (stored["down"], down, absolute),
            (changes[key].scale * stored["up"], scale * up, absolute * max(1, scale)),
        )
        for found, trained, least in sides:
            found, trained = found.flatten(1), trained.flatten(1)
            # NaN is never close
            if found.shape != trained.shape or not torch.allclose(found, trained, rtol=relative, atol=least):
                raise LoraFileError(f"{file.name}: the change of {key[1]} is not the trained one.")
    return f"{len(changes)}/{len(adapter.layers)}"


def weights(file: Path, adapter: Adapter, model: Any) -> dict[str, torch.Tensor]:
    """A file's tensors under the adapter's own names, float32, for `Adapter.load`.

    A file without alpha has the scale in lora_B; there it is taken out again, so that the change stays as it is. Raises
    LoraFileError when the file was made for another base, with other modules, another rank or another alpha / rank.
    """
    found = {}
    rank, scale = adapter.config.rank, adapter.config.scale
    for (part, module), change in _read(file, adapter, model).items():
        if change.rank != rank:
            raise LoraFileError(f"{file.name}: the rank is {change.rank}, the run's is {rank}.")
        if change.alpha is not None and not math.isclose(change.scale, scale, rel_tol=1e-6):  # alpha is float32 there
            raise LoraFileError(f"{file.name}: alpha / rank is {change.alpha:g} / {rank}, the run's is {scale:g}.")
        up = change.tensors["up"].float()
        found[f"{part}.{module}.lora_A.weight"] = change.tensors["down"].float()
        found[f"{part}.{module}.lora_B.weight"] = up / scale if change.alpha is None else up
    return found


def _read(file: Path, adapter: Adapter, model: Any) -> dict[tuple[str, str], Change]:
    """The changes of exactly the adapter's modules, plain LoRA all."""
    changes = lora_file.read(file, model, adapter.layers)
    if len(changes) < len(adapter.layers):
        raise LoraFileError(f"{file.name} holds {len(changes)} of {len(adapter.layers)} modules.")
    for (_, module), change in changes.items():
        if change.tensors.keys() != {"down", "up"}:
            raise LoraFileError(
                f"{file.name}: {module} has {', '.join(sorted(change.tensors))}; down and up are wanted."
            )
    return changes
