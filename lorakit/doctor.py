"""Checks this machine before training: packages, GPU, memory, disks, Hugging Face; each problem with its fix."""

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
from lorakit.models.files.marks import all_marks
from lorakit.optimizers import OPTIMIZERS
from lorakit.project import Project, platforms
from lorakit.secrets import hidden

REQUIREMENT = re.compile(r"([\w-]+)>=([\d.]+)")


def requirements() -> dict[str, str]:
    """Required package -> its lowest version: of pyproject.toml in a checkout, else of the installed package."""
    project = Path(__file__).parents[1] / "pyproject.toml"
    if project.is_file():
        # read as text: Python 3.10 has no tomllib
        listed = re.search(r"^dependencies = \[(.*?)^\]", project.read_text("utf-8"), re.MULTILINE | re.DOTALL)
        return dict(REQUIREMENT.findall(listed[1])) if listed else {}
    try:
        lines = importlib.metadata.requires("lorakit") or []
    except importlib.metadata.PackageNotFoundError:
        # a copied folder: neither says what is required, so nothing is reported as too old
        lines = []
    return dict(match.groups() for line in lines if "extra ==" not in line and (match := REQUIREMENT.match(line)))


# Package that is not required -> what needs it.
OPTIONAL = {row.package: f"optimizer {name}" for name, row in OPTIMIZERS.items() if row.package}
OPTIONAL["onnxruntime"] = "taggers"
# Below these a check fails: GB free for a base model and a run's files, GB free on the remote copy.
LOW_DISK_GB, LOW_REMOTE_GB = 5, 1
LOW_MEMORY_GB = 12.7  # of host memory in all; a free Colab machine has 13.6, and must pass
HUB_TIMEOUT = 2.0  # s
NO_MIRROR = "it does not answer ({error}): choose another address, or check HF_ENDPOINT; local files work without it"
NO_HUB_ON_AUTODL = (
    "it does not answer ({error}): choose the mirror (HF_ENDPOINT=https://hf-mirror.com) or AutoDL's network switch "
    "(source /etc/network_turbo); local files work without it"
)
NO_HUB = (
    "it does not answer ({error}): check the connection; where it is blocked, choose the mirror "
    "(HF_ENDPOINT=https://hf-mirror.com); local files work without it"
)


@dataclass(frozen=True)
class CheckResult:
    """One line of the report.

    text      what was found
    remedy    what to do; "" for a check that passed
    fields    values for the placeholders of both, which are filled in after translation
    """

    name: str
    text: str
    remedy: str = ""
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> str:
        """The text with its fields filled in."""
        return self.text.format(**self.fields) if self.fields else self.text

    @property
    def fix(self) -> str:
        """The remedy with its fields filled in."""
        return self.remedy.format(**self.fields) if self.fields else self.remedy


def passed(name: str, text: str, /, **fields: Any) -> CheckResult:
    """A check that passed."""
    return CheckResult(name, text, "", fields)


def failed(name: str, text: str, remedy: str, /, **fields: Any) -> CheckResult:
    """A check that did not pass, with what to do."""
    return CheckResult(name, text, remedy, fields)


def check_machine(folder: Path, remote: Path | None = None) -> list[CheckResult]:
    """Check package versions, the GPU (by a real calculation), precision, memory, Hugging Face and the disks.

    folder  of the project, which need not exist yet
    remote  folder of the project's remote copy; by default the one of the project at `folder`

    The first call takes as long as importing torch does, in a process of its own, so that neither torch nor GPU memory
    stays in this one. Raises ProjectError for a damaged home.json.
    """
    # asked first, so that the answer arrives while torch is imported
    hub_checks = _start_hub_check()
    checks = [CheckResult("Python", platform.python_version()), *_packages(), *gpu_checks(_facts()), *_memory()]
    checks += [*hub_checks(), _disk("disk", folder, LOW_DISK_GB)]
    remote = remote or Project(folder).remote
    return [*checks, _disk("remote copy", remote, LOW_REMOTE_GB)] if remote else checks


# ---- packages --------------------------------------------------------------------------------------------------------


def _packages() -> Iterator[CheckResult]:
    for name, lowest in requirements().items():
        installed = _version(name)
        if not installed:
            yield failed(name, "not installed", "pip install '{name}>={lowest}'", name=name, lowest=lowest)
        elif release(installed) < release(lowest):
            yield failed(
                name,
                installed,
                "{lowest} or newer is required: pip install '{name}>={lowest}' and restart the kernel; in Colab choose "
                "Runtime > Change runtime type > Runtime version > Latest instead",
                name=name,
                lowest=lowest,
            )
        else:
            yield CheckResult(name, installed)
    for name, use in OPTIONAL.items():
        if installed := _version(name):
            yield CheckResult(name, installed)
        else:
            yield passed(name, "not installed; only {use} needs it: pip install {name}", use=use, name=name)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def release(version: str) -> list[int]:
    """2.11.0+cu128 -> [2, 11, 0]: such lists compare as versions do."""
    return [int(number) for number in re.match(r"[\d.]*", version)[0].split(".") if number]


# ---- the GPU ---------------------------------------------------------------------------------------------------------


_cached_facts: dict[str, Any] = {}


def _facts() -> dict[str, Any]:
    """The facts about torch and the GPU, remembered when they cannot change while this process lives.

    Problems that a user can fix meanwhile (memory that another program holds, a crashed process) are checked again.
    """
    if _cached_facts:
        return _cached_facts
    facts = gpu.query()
    is_fine = not any(check.fix for check in gpu_checks(facts))
    has_no_gpu = not ("error" in facts or facts["warning"] or facts["available"])
    if is_fine or has_no_gpu:
        _cached_facts.update(facts)
    return facts


def gpu_checks(facts: dict[str, Any]) -> Iterator[CheckResult]:
    """What `gpu.query` returned means for training."""
    if "error" in facts:
        yield failed(
            "GPU",
            "unknown",
            "torch does not start ({error}): restart the runtime; if that does not help, install torch again",
            error=facts["error"],
        )
        return
    yield from _available(facts) if facts["available"] else (_no_gpu(facts),)
    yield _precision(facts)
    if "onnx_error" in facts:
        yield failed(
            "onnxruntime runs on",
            "nothing",
            "onnxruntime does not start ({error}): pip uninstall -y onnxruntime-gpu, then pip install onnxruntime; "
            "taggers then run on the CPU",
            error=facts["onnx_error"],
        )
    elif "onnx" in facts:
        yield CheckResult("onnxruntime runs on", facts["onnx"])


def _no_gpu(facts: dict[str, Any]) -> CheckResult:
    if facts["warning"]:
        return failed(
            "GPU", "not usable", "torch {torch} reports: {warning}", torch=facts["torch"], warning=facts["warning"]
        )
    if not facts["cuda"] and Path("/dev/nvidia0").exists():
        return failed(
            "GPU",
            "not used",
            "there is an NVIDIA GPU, but torch {torch} is built for CPUs: install the CUDA build that pytorch.org "
            "names for this machine",
            torch=facts["torch"],
        )
    return failed(
        "GPU",
        "none",
        "everything but training at full size works without one; in Colab choose Runtime > Change runtime type > T4 "
        "GPU, on Kaggle Settings > Accelerator > GPU T4 x2",
    )


def _available(facts: dict[str, Any]) -> Iterator[CheckResult]:
    yield _capability(facts)
    free, total = facts["free"], facts["total"]
    memory = {"free": f"{free / 1e9:.1f}", "total": f"{total / 1e9:.1f}"}
    if free > total / 2:
        yield passed("GPU memory", "{free} of {total} GB free", **memory)
    else:
        yield failed(
            "GPU memory",
            "{free} of {total} GB free",
            "another program or notebook uses the rest: shut down its kernel (nvidia-smi lists them)",
            **memory,
        )


def _capability(facts: dict[str, Any]) -> CheckResult:
    major, minor = facts["capability"]
    fields = {"name": facts["name"], "capability": f"{major}.{minor}"}
    if not gpu.is_built_for((major, minor), facts["built_for"]):
        old = (major, minor) < min(map(gpu.capability, facts["built_for"]), default=(0, 0))
        return failed(
            "GPU",
            "{name}, compute capability {capability}",
            "it is too old for torch {torch} (which is built for {built}): choose another GPU (T4 or newer; "
            "on Kaggle GPU T4 x2), or install an older torch that supports it"
            if old
            else "it is newer than torch {torch} (which is built for {built}): "
            "pip install --upgrade torch and restart the kernel",
            torch=facts["torch"],
            built=", ".join(facts["built_for"]),
            **fields,
        )
    if facts["failed"]:
        return failed(
            "GPU",
            "{name}, compute capability {capability}",
            "a small calculation on it failed ({error}): restart the runtime; if it fails again, choose another GPU",
            error=facts["failed"],
            **fields,
        )
    return passed("GPU", "{name}, compute capability {capability}", **fields)


def _precision(facts: dict[str, Any]) -> CheckResult:
    if not facts["available"]:
        return passed("precision", "{precision}, as there is no GPU", precision=facts["precision"])
    return passed(
        "precision",
        "{precision}, as compute capability {capability} is at least 8.0"
        if facts["precision"] == "bf16"
        else "{precision}, as compute capability {capability} is below 8.0",
        precision=facts["precision"],
        capability=".".join(map(str, facts["capability"])),
    )


# ---- memory, disks, Hugging Face -------------------------------------------------------------------------------------


def _memory() -> Iterator[CheckResult]:
    memory = host.memory()
    if memory is None:
        # not Linux
        return
    numbers = {"free": f"{memory.available / 1e9:.1f}", "total": f"{memory.total / 1e9:.1f}"}
    # Half of it has to be free: the largest families take 6 GB while they load.
    if memory.total >= LOW_MEMORY_GB * 1e9 and 2 * memory.available >= LOW_MEMORY_GB * 1e9:
        yield passed("memory", "{free} of {total} GB free", **numbers)
    else:
        yield failed(
            "memory",
            "{free} of {total} GB free",
            "loading a base model takes about {needs}: close other notebooks and programs first",
            needs=", ".join(f"{marks.load_gb:g} GB ({marks.title})" for marks in all_marks().values()),
            **numbers,
        )


def _disk(name: str, folder: Path, low_gb: float) -> CheckResult:
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if platforms.is_there(parent))
    try:
        free = shutil.disk_usage(existing).free / 1e9
    except OSError as error:
        return failed(
            name,
            "{folder}",
            "it cannot be reached ({error}); in Colab run the first cell of the notebook again: it mounts Drive",
            folder=folder,
            error=error.strerror,
        )
    room = {"free": f"{free:.1f}", "folder": existing}
    if free >= low_gb:
        return passed(name, "{free} GB free in {folder}", **room)
    return failed(
        name,
        "{free} GB free in {folder}",
        "free some space, and empty the trash of Drive: a run takes about 1 GB"
        if name == "remote copy"
        else "free some space: a base model alone takes 2 to 7 GB",
        **room,
    )


def _start_hub_check() -> Callable[[], Iterator[CheckResult]]:
    """Contact Hugging Face in the background; the returned function waits HUB_TIMEOUT at most for the answer."""
    address, errors = hub.endpoint(), []
    # a thread, as looking up a name can take a minute and has no timeout
    thread = threading.Thread(target=lambda: errors.append(hub_error(address)), daemon=True)
    thread.start()

    def checks() -> Iterator[CheckResult]:
        thread.join(HUB_TIMEOUT)
        error = errors[0] if errors else f"no answer within {HUB_TIMEOUT:.0f} s"
        yield (
            failed("Hugging Face", hidden(address), _hub_remedy(), error=error)
            if error
            else CheckResult("Hugging Face", hidden(address))
        )

    return checks


def _hub_remedy() -> str:
    if os.environ.get("HF_ENDPOINT"):
        return NO_MIRROR
    return NO_HUB_ON_AUTODL if platforms.SWITCH.exists() else NO_HUB


def hub_error(address: str) -> str:
    """Why an address does not answer, as the name of requests' error; "" when it does."""
    import requests

    try:
        requests.head(address, timeout=HUB_TIMEOUT, allow_redirects=False)
    except requests.RequestException as error:
        return type(error).__name__
    return ""
