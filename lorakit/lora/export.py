"""A run's LoRA files as ComfyUI, A1111/Forge and diffusers read them: written with metadata, read back, proved."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.files.disk import disk_errors
from lorakit.hub.header import verify_safetensors
from lorakit.lora import file as lora_file
from lorakit.lora.hashes import LEGACY, front
from lorakit.lora.names import LoraFileError

if TYPE_CHECKING:
    import torch

    from lorakit.lora.adapter import Adapter
    from lorakit.lora.change import Change

# Bytes that are read at a time.
BLOCK = 1 << 22
DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


def write(file: Path, adapter: Adapter, model: Any, metadata: dict[str, str], dtype: str, key_layout: str) -> int:
    """Write the adapter in a key layout (`kohya` or `comfy`), prove the file, and return its number of modules.

    dtype     a key of DTYPES
    metadata  texts by name, for the file's header

    Raises LoraFileError, and leaves no file, when a number is not finite or the file does not hold what was trained.
    """
    import torch
    from safetensors.torch import save

    tensors = packed(adapter, model, dtype, key_layout, "cpu")
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise LoraFileError(
            f"{file.name} was not written: {len(broken)} tensors are not finite in {dtype}, the first is {broken[0]}."
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    part_file = file.with_suffix(".part")
    # save_file would make a file that only its owner may read, and a webui may run as another user
    saved = memoryview(save(tensors))
    data = saved[8 + int.from_bytes(saved[:8], "little") :]
    header = {**json.loads(bytes(saved[8 : len(saved) - len(data)])), "__metadata__": metadata}
    with disk_errors(file), open(part_file, "wb") as opened:
        opened.write(front(header, hashlib.sha256(data).hexdigest(), bytes(data[: LEGACY.stop])))
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())
    try:
        modules = prove(part_file, adapter, model, dtype)
    except LoraFileError:
        part_file.unlink()
        raise
    # Only a proved file gets its name, as other programs may load it at once.
    os.replace(part_file, file)
    return modules


def copy_described(file: Path, target: Path, metadata: Mapping[str, str], left_out: Collection[str] = ()) -> None:
    """Copy a LoRA file with other metadata: entries that are given replace its own, those named in `left_out` go.

    Tensors are as they were, and so are the hashes of them.
    """
    header = verify_safetensors(file)
    kept = {name: text for name, text in header.get("__metadata__", {}).items() if name not in left_out}
    header["__metadata__"] = kept | metadata
    with open(file, "rb") as source, open(target, "wb") as copy:
        start = 8 + int.from_bytes(source.read(8), "little")
        source.seek(start)
        digest = hashlib.sha256()
        while block := source.read(BLOCK):
            digest.update(block)
        source.seek(start)
        beginning = source.read(LEGACY.stop)
        copy.write(front(header, digest.hexdigest(), beginning) + beginning)
        shutil.copyfileobj(source, copy, BLOCK)
        copy.flush()
        os.fsync(copy.fileno())


def packed(adapter: Adapter, model: Any, dtype: str, key_layout: str, device: str) -> dict[str, torch.Tensor]:
    """All tensors of the adapter's LoRA file by name, on a device; on "meta" they have their shapes alone."""
    import torch

    tensors: dict[str, torch.Tensor] = {}
    for key, trained in adapter.modules():
        module = model.names(*key)[key_layout]
        moved = {role: tensor.detach().to(device) for role, tensor in trained.items()}
        tensors |= adapter.variant.pack(key_layout, module, moved, adapter.config.scale, getattr(torch, DTYPES[dtype]))
    return tensors


def prove(file: Path, adapter: Adapter, model: Any, dtype: str) -> int:
    """Read a file back, compare each module's change with the trained one, and return the number of modules.

    Compared are the factors of the change, number by number, with alpha / rank in the factor that takes it (wherever
    the file has it): of plain LoRA A, and alpha / rank * B. A number x may be off by r |x| for the rounding, or by the
    dtype's smallest number (times the scale, if that is above 1): r = 2^-21 for float32's rounding of the scale, and
    for fp16 2^-11, for bf16 2^-8 more. Each number of plain LoRA's change, a sum of `rank` products, is then off by
    about 2 r times the sum of their sizes at most.

    Raises LoraFileError when a module is missing, left over, of another rank, or off by more.
    """
    import torch

    changes = _read(file, adapter, model)
    # eps / 2: the largest relative error of rounding. smallest_normal * eps: the smallest number above 0.
    limits, scale = torch.finfo(getattr(torch, DTYPES[dtype])), adapter.config.scale
    relative, absolute = limits.eps / 2 + 2**-21, limits.smallest_normal * limits.eps
    for key, own in adapter.modules():
        for role, weight in own.items():
            stored, trained, least = changes[key].tensors[role].float(), weight.detach().cpu(), absolute
            if role == adapter.variant.scaled_role(own):
                stored, trained, least = changes[key].scale * stored, scale * trained, absolute * max(1, scale)
            stored, trained = stored.flatten(1), trained.flatten(1)
            # allclose is false for NaN
            if stored.shape != trained.shape or not torch.allclose(stored, trained, rtol=relative, atol=least):
                raise LoraFileError(f"{file.name}: the change of {key[1]} is not the trained one.")
    return len(changes)


def weights(file: Path, adapter: Adapter, model: Any) -> dict[str, torch.Tensor]:
    """A file's tensors under the adapter's own names, float32, for `Adapter.load`.

    A file without alpha has the scale in one of its factors; there it is taken out again, so that the change stays the
    same. Raises LoraFileError when the file was made for another base, with other modules, another rank or another
    alpha / rank.
    """
    tensors = {}
    rank, scale = adapter.config.rank, adapter.config.scale
    for key, change in _read(file, adapter, model).items():
        if change.rank not in (None, rank):
            raise LoraFileError(f"{file.name}: the rank is {change.rank}, the run's is {rank}.")
        # files hold alpha in float32
        if change.alpha is not None and not math.isclose(change.scale, scale, rel_tol=1e-6):
            raise LoraFileError(f"{file.name}: alpha / rank is {change.alpha:g} / {rank}, the run's is {scale:g}.")
        for role, tensor in change.tensors.items():
            has_scale = change.alpha is None and role == adapter.variant.scaled_role(change.tensors)
            tensors[adapter.name(key, role)] = tensor.float() / scale if has_scale else tensor.float()
    return tensors


def _read(file: Path, adapter: Adapter, model: Any) -> dict[tuple[str, str], Change]:
    """The changes of exactly the adapter's modules, each with tensors in the roles that are trained."""
    changes = lora_file.read(file, model, adapter.layers)
    if len(changes) < len(adapter.layers):
        raise LoraFileError(f"{file.name} holds {len(changes)} of {len(adapter.layers)} modules.")
    for key, own in adapter.modules():
        if (roles := changes[key].tensors.keys()) != own.keys():
            raise LoraFileError(
                f"{file.name}: {key[1]} has {', '.join(sorted(roles))}; expected are {', '.join(own)}, as the run has."
            )
    return changes
