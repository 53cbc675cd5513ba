"""What torch reports about this machine's GPU, and whether a real calculation on it works."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from lorakit.machine.host import child_environment


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, all of its memory in bytes, and its compute capability."""

    name: str
    memory: int
    capability: tuple[int, int]


# Common GPUs by GB of VRAM, for people who know the name of theirs; in any language.
GPUS = {
    6: "RTX 2060, 3050",
    8: "RTX 3060 Ti, 3070, 4060",
    12: "RTX 3060, 4070",
    16: "T4, RTX 4060 Ti, 4080",
    24: "L4, RTX 3090, 4090",
    32: "RTX 5090",
    40: "A100",
}


def at_hand() -> Gpu | None:
    """The GPU that would train here, by torch, so that it is the one that CUDA_VISIBLE_DEVICES chooses; None without.

    Imports torch, which takes seconds the first time.
    """
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return Gpu(properties.name, properties.total_memory, (properties.major, properties.minor))


def gigabytes(vram: str) -> float:
    """The size that a GPU preset is named by: "16 GB" -> 16.0, in 1e9 bytes."""
    return float(vram.split()[0])


# s; a first import of torch from a slow disk takes half a minute.
TIMEOUT = 90


def query() -> dict[str, Any]:
    """`collect_facts` in a process of its own, or {"error": reason} when that fails or takes longer than TIMEOUT.

    A CUDA context takes half a GB of GPU memory as long as its process lives; the notebook that checks the machine must
    not keep that from the trainer.
    """
    source = "import json; from lorakit.machine.gpu import collect_facts; print('\\n' + json.dumps(collect_facts()))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", source],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env=child_environment(),
            check=True,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {TIMEOUT} s"}
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines()
        return {"error": f"{lines[-1] if lines else 'it died'} (exit status {error.returncode})"}
    # the last line: packages may print while they are imported
    return json.loads(done.stdout.splitlines()[-1])


def collect_facts() -> dict[str, Any]:
    """What torch reports about this machine and about a calculation on its GPU; imports torch and keeps the GPU.

    Always: `torch` and `cuda` (versions), `available`, `warning` (torch's own, "" for none), `precision`, and `onnx` or
    `onnx_error` where onnxruntime is installed. With a GPU: `name`, `capability`, `built_for`, `free` and `total`
    (bytes), `failed` (why the calculation failed, "" when it is right).
    """
    import warnings

    import torch

    from lorakit.machine.device import choose_precision

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        facts = {"torch": torch.__version__, "cuda": torch.version.cuda, "available": torch.cuda.is_available()}
    # torch explains an old driver or a missing one by a warning, with its own source line behind it
    facts["warning"] = next((str(warning.message).partition("(Triggered")[0] for warning in warned), "")
    if facts["available"]:
        free, total = torch.cuda.mem_get_info()
        facts |= {"name": torch.cuda.get_device_name(), "capability": torch.cuda.get_device_capability()}
        # free and total are bytes of the whole GPU, so other processes count.
        facts |= {"built_for": torch.cuda.get_arch_list(), "free": free, "total": total, "failed": _calculate()}
    return {**facts, "precision": choose_precision("auto").name, **_onnx()}


def _calculate() -> str:
    """Why a matrix product and a convolution with known results fail; "" when they are right."""
    import torch

    from lorakit.machine.device import choose_precision

    dtype = choose_precision("auto").dtype
    try:
        product = torch.ones(64, 64, device="cuda", dtype=dtype) @ torch.ones(64, 64, device="cuda", dtype=dtype)
        ones = torch.ones(1, 8, 16, 16, device="cuda", dtype=dtype)
        filtered = torch.nn.functional.conv2d(ones, torch.ones(8, 8, 3, 3, device="cuda", dtype=dtype))
        # a product of ones sums 64 of them; a 3 x 3 convolution over 8 channels sums 72
        is_right = bool((product == 64).all()) and bool((filtered == 72).all())
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return "" if is_right else "the result is wrong"


def _onnx() -> dict[str, str]:
    """Which device onnxruntime uses; nothing when it is not installed."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return {}
    except (ImportError, OSError) as error:
        # typically a build for another CUDA version
        return {"onnx_error": str(error).splitlines()[0]}
    return {"onnx": "GPU" if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else "CPU"}


def capability(architecture: str) -> tuple[int, int]:
    """The compute capability that an architecture is named by: sm_90a -> (9, 0)."""
    digits = re.search(r"\d+", architecture)[0]
    return int(digits[:-1]), int(digits[-1])


def is_built_for(gpu: tuple[int, int], architectures: list[str]) -> bool:
    """Whether code compiled for these architectures runs on a GPU of this compute capability.

    Machine code sm_XY runs on X.Y and later GPUs of the same X; compute_XY, which the driver compiles, on all later
    ones (https://docs.nvidia.com/cuda/cuda-c-programming-guide, Binary and PTX Compatibility).
    """
    for architecture in architectures:
        lowest = capability(architecture)
        if gpu >= lowest and (architecture.startswith("compute") or gpu[0] == lowest[0]):
            return True
    return False
