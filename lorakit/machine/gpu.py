"""Whether torch can calculate on this machine's GPU, found out by calculating."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

from lorakit.machine.host import environment

TIMEOUT = 90  # s; a first import of torch from a slow disk takes half a minute


def ask() -> dict[str, Any]:
    """`facts` from a process of its own: a GPU's context takes half a GB of its memory as long as its process lives,
    and the notebook that looks must not keep that from the trainer.

    What went wrong instead is told as {"broken": why}.
    """
    source = "import json; from lorakit.machine.gpu import facts; print('\\n' + json.dumps(facts()))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", source],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env=environment(),
            check=True,
        )
    except subprocess.TimeoutExpired:
        return {"broken": f"no answer within {TIMEOUT} s"}
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines()
        return {"broken": f"{said[-1] if said else 'it died'} (exit status {error.returncode})"}
    return json.loads(done.stdout.splitlines()[-1])


def facts() -> dict[str, Any]:
    """What torch says of this machine and of a calculation on its GPU; imports torch and keeps the GPU."""
    import warnings

    import torch

    from lorakit.machine.device import choose

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = {"torch": torch.__version__, "cuda": torch.version.cuda, "available": torch.cuda.is_available()}
    found["said"] = next((str(warning.message).partition("(Triggered")[0] for warning in told), "")
    if found["available"]:
        free, total = torch.cuda.mem_get_info()
        found |= {"name": torch.cuda.get_device_name(), "capability": torch.cuda.get_device_capability()}
        found |= {"built_for": torch.cuda.get_arch_list(), "free": free, "total": total, "wrong": _calculate()}
    return {**found, "precision": choose("auto").name, **_onnx()}


def _calculate() -> str:
    """A matrix product and a convolution whose results are known; "" when they are right."""
    import torch

    from lorakit.machine.device import choose

    dtype = choose("auto").dtype
    try:
        product = torch.ones(64, 64, device="cuda", dtype=dtype) @ torch.ones(64, 64, device="cuda", dtype=dtype)
        ones = torch.ones(1, 8, 16, 16, device="cuda", dtype=dtype)
        filtered = torch.nn.functional.conv2d(ones, torch.ones(8, 8, 3, 3, device="cuda", dtype=dtype))
        right = bool((product == 64).all()) and bool((filtered == 72).all())
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return "" if right else "it calculates wrong"


def _onnx() -> dict[str, str]:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return {}
    except (ImportError, OSError) as error:  # a build for another CUDA
        return {"onnx_wrong": str(error).splitlines()[0]}
    return {"onnx": "GPU" if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else "CPU"}


def capability(built: str) -> tuple[int, int]:
    """sm_90a -> (9, 0)."""
    digits = re.search(r"\d+", built)[0]
    return int(digits[:-1]), int(digits[-1])


def is_built_for(card: tuple[int, int], built: list[str]) -> bool:
    """Whether code for these architectures runs on a card: sm_XY on X.Y and later cards of the same X, compute_XY on
    all later ones (https://docs.nvidia.com/cuda/cuda-c-programming-guide, Binary and PTX Compatibility)."""
    major, minor = card
    return any(
        card >= capability(each)
        if each.startswith("compute")
        else (major == capability(each)[0] and minor >= capability(each)[1])
        for each in built
    )
