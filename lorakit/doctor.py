"""What this machine has, what training will use of it, and what to do about what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorakit import hub
from lorakit.machine import gpu, host
from lorakit.optimizers import OPTIMIZERS
from lorakit.project import Project, platforms

# Lower bounds as in pyproject.toml, which is not there when the package was installed from a wheel.
REQUIRED = {
    "torch": "2.8",
    "diffusers": "0.39",
    "transformers": "5.0",
    "peft": "0.18",
    "accelerate": "1.10",
    "safetensors": "0.6",
    "huggingface-hub": "1.0",
    "numpy": "2.0",
    "pillow": "10.1",
    "pyyaml": "6.0",
    "requests": "2.31",
    "matplotlib": "3.9",
    "ipython": "7.34",
    "ipywidgets": "7.7.1",
}
# Package that is not required -> what needs it.
OPTIONAL = {row.package: f"optimizer {name}" for name, row in OPTIMIZERS.items() if row.package}
OPTIONAL["onnxruntime"] = "taggers"
LOW_DISK_GB, LOW_REMOTE_GB = 5, 1
LOW_MEMORY_GB = 12.7  # a free Colab machine has 13.6
HUB_TIMEOUT = 2.0  # s


@dataclass(frozen=True)
class Finding:
    """One line of the report: `text` says what was found, `remedy` what to do ("" when all is well); `fields` go into
    both, so that they can be translated before."""

    name: str
    text: str
    remedy: str = ""
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> str:
        return self.text.format(**self.fields) if self.fields else self.text

    @property
    def cure(self) -> str:
        return self.remedy.format(**self.fields) if self.fields else self.remedy


def well(name: str, text: str, /, **fields: Any) -> Finding:
    """A finding that needs nothing done."""
    return Finding(name, text, "", fields)


def trouble(name: str, text: str, remedy: str, /, **fields: Any) -> Finding:
    """A finding that needs something done."""
    return Finding(name, text, remedy, fields)


def examine(folder: Path, remote: Path | None = None) -> list[Finding]:
    """Versions, GPU (with a real calculation on it), precision, memory, hub, and the disks of `folder` and `remote`.

    remote  folder of the project's remote copy; by default the one of the project at `folder`

    Takes as long as importing torch does in a process of its own, at most once in a process; neither torch nor GPU
    memory stays in this one. Raises ProjectError for a damaged home.json.
    """
    asked = _ask_hub()
    found = [Finding("Python", platform.python_version()), *_packages(), *_gpu(_facts()), *_memory()]
    remote = remote or Project(folder).remote
    return [
        *found,
        *asked(),
        _disk("disk", folder, LOW_DISK_GB),
        *([_disk("remote copy", remote, LOW_REMOTE_GB)] if remote else []),
    ]


# ---- packages --------------------------------------------------------------------------------------------------------


def _packages() -> Iterator[Finding]:
    for name, needed in REQUIRED.items():
        found = _version(name)
        if not found:
            yield trouble(name, "not installed", "pip install '{name}>={needed}'", name=name, needed=needed)
        elif _release(found) < _release(needed):
            yield trouble(
                name,
                found,
                "{needed} or newer is needed: pip install '{name}>={needed}' and restart the kernel; in Colab choose "
                "Runtime > Change runtime type > Runtime version > Latest instead",
                name=name,
                needed=needed,
            )
        else:
            yield Finding(name, found)
    for name, use in OPTIONAL.items():
        if found := _version(name):
            yield Finding(name, found)
        else:
            yield well(name, "not installed; only {use} needs it: pip install {name}", use=use, name=name)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _release(version: str) -> list[int]:
    """2.11.0+cu128 -> [2, 11, 0], which compares as versions do."""
    return [int(number) for number in re.match(r"[\d.]*", version)[0].split(".") if number]


# ---- the GPU ---------------------------------------------------------------------------------------------------------


_known: dict[str, Any] = {}


def _facts() -> dict[str, Any]:
    """Facts that no one can change while this process lives are asked for once."""
    if _known:
        return _known
    told = gpu.ask()
    if not any(finding.cure for finding in _gpu(told)) or not ("broken" in told or told["said"] or told["available"]):
        _known.update(told)
    return told


def _gpu(told: dict[str, Any]) -> Iterator[Finding]:
    """What the facts mean for training."""
    if "broken" in told:
        yield trouble(
            "GPU",
            "unknown",
            "torch could not be asked ({error}): restart the runtime; if that does not help, install torch again",
            error=told["broken"],
        )
        return
    yield from _available(told) if told["available"] else (_no_gpu(told),)
    yield _precision(told)
    if "onnx_wrong" in told:
        yield trouble(
            "onnxruntime runs on",
            "nothing",
            "onnxruntime cannot be used ({error}): pip uninstall -y onnxruntime-gpu, then pip install onnxruntime; "
            "it tags on the CPU",
            error=told["onnx_wrong"],
        )
    elif "onnx" in told:
        yield Finding("onnxruntime runs on", told["onnx"])


def _no_gpu(told: dict[str, Any]) -> Finding:
    if told["said"]:
        return trouble("GPU", "not usable", "torch {torch} says: {said}", torch=told["torch"], said=told["said"])
    if not told["cuda"] and Path("/dev/nvidia0").exists():
        return trouble(
            "GPU",
            "not used",
            "there is an NVIDIA card, but torch {torch} is built for CPUs: install the CUDA build that pytorch.org "
            "names for this machine",
            torch=told["torch"],
        )
    return trouble(
        "GPU",
        "none",
        "everything but training at full size works without one; in Colab choose Runtime > Change runtime type > T4 "
        "GPU, on Kaggle Settings > Accelerator > GPU T4 x2",
    )


def _available(told: dict[str, Any]) -> Iterator[Finding]:
    yield _card(told)
    free, total = told["free"], told["total"]
    memory = {"free": f"{free / 1e9:.1f}", "total": f"{total / 1e9:.1f}"}
    if free > total / 2:
        yield well("GPU memory", "{free} of {total} GB free", **memory)
    else:
        yield trouble(
            "GPU memory",
            "{free} of {total} GB free",
            "another program or notebook holds the rest: shut down its kernel (nvidia-smi lists them)",
            **memory,
        )


def _card(told: dict[str, Any]) -> Finding:
    major, minor = told["capability"]
    card = {"name": told["name"], "capability": f"{major}.{minor}"}
    if not gpu.is_built_for((major, minor), told["built_for"]):
        old = (major, minor) < min(map(gpu.capability, told["built_for"]), default=(0, 0))
        return trouble(
            "GPU",
            "{name}, compute capability {capability}",
            "torch {torch} is not built for it (only for {built}), as it is too old: choose another card (T4 or newer; "
            "on Kaggle GPU T4 x2), or on your own machine an older torch that names it"
            if old
            else "torch {torch} is not built for it (only for {built}), as it is newer than this torch: "
            "pip install --upgrade torch, and restart the kernel",
            torch=told["torch"],
            built=", ".join(told["built_for"]),
            **card,
        )
    if told["wrong"]:
        return trouble(
            "GPU",
            "{name}, compute capability {capability}",
            "a small calculation on it failed ({error}): restart the runtime; if it fails again, choose another card",
            error=told["wrong"],
            **card,
        )
    return well("GPU", "{name}, compute capability {capability}", **card)


def _precision(told: dict[str, Any]) -> Finding:
    if not told["available"]:
        return well("precision", "{precision}, as there is no GPU", precision=told["precision"])
    return well(
        "precision",
        "{precision}, as compute capability {capability} is at least 8.0"
        if told["precision"] == "bf16"
        else "{precision}, as compute capability {capability} is below 8.0",
        precision=told["precision"],
        capability=".".join(map(str, told["capability"])),
    )


# ---- memory, disks, the hub ------------------------------------------------------------------------------------------


def _memory() -> Iterator[Finding]:
    if (memory := host.memory()) is None:  # not Linux
        return
    numbers = {"free": f"{memory.available / 1e9:.1f}", "total": f"{memory.total / 1e9:.1f}"}
    if min(memory.total / LOW_MEMORY_GB, 2 * memory.available / LOW_MEMORY_GB) >= 1e9:
        yield well("memory", "{free} of {total} GB free", **numbers)
    else:
        yield trouble(
            "memory",
            "{free} of {total} GB free",
            "SDXL and Anima take about 6 GB while they load: close other notebooks and programs first; SD 1.5 needs "
            "3 GB",
            **numbers,
        )


def _disk(name: str, folder: Path, low_gb: float) -> Finding:
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if platforms.is_there(parent))
    try:
        free = shutil.disk_usage(there).free / 1e9
    except OSError as error:
        return trouble(
            name,
            "{folder}",
            "it cannot be reached ({error}); in Colab run the notebook's first cell again, which mounts Drive",
            folder=folder,
            error=error.strerror,
        )
    room = {"free": f"{free:.1f}", "folder": there}
    if free >= low_gb:
        return well(name, "{free} GB free in {folder}", **room)
    return trouble(
        name,
        "{free} GB free in {folder}",
        "make room, and empty Drive's trash: states and files of a run take about 1 GB"
        if name == "remote copy"
        else "make room: a base model alone takes 2 to 7 GB",
        **room,
    )


def _ask_hub() -> Callable[[], Iterator[Finding]]:
    """Ask the hub in the background; the answer is waited for no longer than HUB_TIMEOUT."""
    address, said = hub.endpoint(), []
    asking = threading.Thread(target=lambda: said.append(_hub_error(address)), daemon=True)  # names may take a minute
    asking.start()

    def answer() -> Iterator[Finding]:
        asking.join(HUB_TIMEOUT)
        error = said[0] if said else f"no answer within {HUB_TIMEOUT:.0f} s"
        if not error:
            yield Finding("hub", address)
        elif os.environ.get("HF_ENDPOINT"):
            yield trouble(
                "hub",
                address,
                "it does not answer ({error}): choose another address for the hub, or check HF_ENDPOINT; local files "
                "work without",
                error=error,
            )
        elif platforms.SWITCH.exists():
            yield trouble(
                "hub",
                address,
                "it does not answer ({error}): choose the mirror (HF_ENDPOINT=https://hf-mirror.com) or AutoDL's "
                "network switch (source /etc/network_turbo); local files work without",
                error=error,
            )
        else:
            yield trouble(
                "hub",
                address,
                "it does not answer ({error}): check the connection; where it is blocked, choose the mirror "
                "(HF_ENDPOINT=https://hf-mirror.com); local files work without",
                error=error,
            )

    return answer


def _hub_error(address: str) -> str:
    import requests

    try:
        requests.head(address, timeout=HUB_TIMEOUT, allow_redirects=False)
    except requests.RequestException as error:
        return type(error).__name__
    return ""
