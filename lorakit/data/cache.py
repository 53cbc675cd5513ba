"""Encoded images and captions on disk, named by what they were made from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Tensors = dict[str, "torch.Tensor"]


class Cache:
    """A folder of small safetensors files; the name of each is the hash of everything its content depends on.

    So nothing in it can be stale: a changed image, caption, model or size has another name.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, *parts: object) -> Path:
        """The file for content made from `parts` (bytes hashes, sizes, texts, flags)."""
        name = hashlib.sha256(repr(parts).encode()).hexdigest()[:40]
        return self.folder / name[:2] / f"{name}.safetensors"

    def read(self, path: Path) -> Tensors | None:
        """The tensors of one file; None when it is missing or damaged, so that it is made again."""
        import safetensors
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (FileNotFoundError, safetensors.SafetensorError):
            return None

    def write(self, path: Path, tensors: Tensors) -> None:
        """Store tensors whole: aside, then renamed."""
        from safetensors.torch import save_file

        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part)
        os.replace(part, path)

    def missing(self, paths: Iterable[Path]) -> list[Path]:
        """Those of `paths` that are not there whole, each once, in order."""
        return [path for path in dict.fromkeys(paths) if self.read(path) is None]

    def get(self, path: Path, make: Callable[[], Tensors]) -> Tensors:
        """The tensors of `path`, made and stored when they are not there."""
        tensors = self.read(path)
        if tensors is None:
            self.write(path, make())
            tensors = self.read(path)
        return tensors
