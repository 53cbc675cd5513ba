"""What this machine has, what training will use of it, and what to do about what is missing."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

REQUIRED = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "huggingface-hub",
    "pillow",
    "numpy",
    "pyyaml",
    "requests",
    "ipython",
    "ipywidgets",
    "matplotlib",
)
OPTIONAL = {"bitsandbytes": "optimizer adamw8bit", "prodigyopt": "optimizer prodigy", "onnxruntime": "taggers"}
LOW_DISK_GB = 5


@dataclass(frozen=True)
class Finding:
    """One line of the report; `cure` is "" when all is well."""

    name: str
    value: str
    cure: str = ""


def examine(folder: Path) -> list[Finding]:
    """Versions, GPU (with a real calculation on it), precision, memory and the disk below `folder`."""
    return [Finding("Python", platform.python_version()), *_packages(), *_device(), _memory(), _disk(folder)]


def _packages() -> list[Finding]:
    found = []
    for name in (*REQUIRED, *OPTIONAL):
        try:
            found.append(Finding(name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            use = OPTIONAL.get(name)
            found.append(Finding(name, "not installed", f"pip install {name}" + (f"  (only for {use})" if use else "")))
    return found


def _device() -> list[Finding]:
    import torch

    from lorakit.precision import choose

    if not torch.cuda.is_available():
        return [
            Finding(
                "GPU",
                "none",
                "training on the CPU is for the demo; in Colab choose Runtime > Change runtime type > GPU",
            ),
            Finding("precision", choose("auto").name),
        ]
    major, minor = torch.cuda.get_device_capability()
    name = f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}"
    try:
        ones = torch.ones(1, 8, 16, 16, device="cuda")
        torch.nn.functional.conv2d(ones, torch.ones(8, 8, 3, 3, device="cuda")).flatten(1).square().sum().item()
    except RuntimeError as error:
        return [
            Finding(
                "GPU",
                name,
                f"it does not calculate with this torch {torch.__version__} (built for "
                f"{', '.join(torch.cuda.get_arch_list())}): {str(error).splitlines()[0]}; use another GPU or torch",
            )
        ]
    free, total = torch.cuda.mem_get_info()
    return [
        Finding("GPU", name),
        Finding("GPU memory", f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"),
        Finding("precision", choose("auto").name),
    ]


def _memory() -> Finding:
    import os

    return Finding("memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.1f} GB")


def _disk(folder: Path) -> Finding:
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    return Finding(
        "disk",
        f"{free:.1f} GB free in {folder}",
        "" if free > LOW_DISK_GB else "make room: a base model alone takes 2 to 7 GB",
    )
