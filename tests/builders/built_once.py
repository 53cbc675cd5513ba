"""Tiny models are built once for a version of their builder and of its libraries, then copied."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("torch", "diffusers", "transformers")


def built_once(build: Callable[..., Path]) -> Callable[..., Path]:
    """Decorates `build(folder, **options)`: it runs once for each set of options, for all tests on this machine.

    The copy is kept below the temporary folder, under a hash of the builder's own file and the libraries' versions; it
    is made beside and renamed, so two workers may build at once and a killed one leaves nothing that looks whole.
    """
    source = Path(inspect.getfile(build)).read_bytes()
    libraries = [f"{name} {version(name)}" for name in LIBRARIES]

    @functools.wraps(build)
    def copied(folder: Path, **options: object) -> Path:
        key = hashlib.sha256(source + repr((build.__name__, libraries, sorted(options.items()))).encode()).hexdigest()
        kept = Path(tempfile.gettempdir()) / f"lorakit-tiny-models-{os.getuid()}" / key[:16]
        if not kept.exists():
            kept.parent.mkdir(mode=0o700, exist_ok=True)
            beside = Path(tempfile.mkdtemp(dir=kept.parent))
            build(beside / "model", **options)
            try:
                os.rename(beside, kept)
            except OSError:  # another worker was quicker
                shutil.rmtree(beside)
        shutil.copytree(kept / "model", folder, dirs_exist_ok=True)
        return folder

    return copied
