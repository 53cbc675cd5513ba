"""Encoded images and captions on disk, each file named by a hash of its inputs."""

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
        # 40 hex digits are 160 bits, enough against collisions; 256 subfolders keep listings short.
        name = hashlib.sha256(repr(parts).encode()).hexdigest()[:40]
        return self.folder / name[:2] / f"{name}.safetensors"

    def read(self, path: Path) -> Tensors | None:
        """The tensors of one file; None when it is missing or damaged, so that it is encoded again."""
        import safetensors
        from safetensors.torch import load_file

        # Opening a pipe would wait for a writer.
        if not path.is_file():
            return None
        try:
            return load_file(path)
        # A damaged file is treated like a missing one: encoding again is always possible.
        except (FileNotFoundError, safetensors.SafetensorError):
            return None

    def write(self, path: Path, tensors: Tensors) -> None:
        """Store tensors under a temporary name, then rename the file: it is complete or not there."""
        from safetensors.torch import save_file

        path.parent.mkdir(parents=True, exist_ok=True)
        # With the process id: another process may write the same file at once.
        part = path.with_suffix(f".{os.getpid()}.part")
        # safetensors refuses tensors that are views of others or not contiguous.
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part)
        os.replace(part, path)

    def missing(self, paths: Iterable[Path]) -> list[Path]:
        """Those of `paths` that are missing or damaged, each once, in order."""
        # Reads each file: a file can exist and still be incomplete.
        return [path for path in dict.fromkeys(paths) if self.read(path) is None]

    def get(self, path: Path, make: Callable[[], Tensors]) -> Tensors:
        """The tensors of `path`; if they are missing, `make` computes them and they are stored."""
        # The stored tensors are returned in both cases, so cached and new ones have the same bits.
        tensors = self.read(path)
        if tensors is None:
            self.write(path, make())
            tensors = self.read(path)
        return tensors
