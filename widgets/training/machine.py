"""What this machine can do for a form: whether an optimizer works here, and which GPU preset fits."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import Any

from lorakit.machine.host import child_environment
from lorakit.optimizers import OPTIMIZERS


def why_unusable(optimizer: str) -> str:
    """Why an optimizer of an optional package cannot be used here, "" when one real step with it works.

    The step runs in a process of its own: in this one it would keep GPU memory for good.
    """
    if not OPTIMIZERS[optimizer].package:
        return ""
    source = f"from lorakit.optimizers import why_unusable; print(why_unusable({optimizer!r}))"
    command = [sys.executable, "-c", source]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False)
    # of a traceback the last line
    return done.stdout.strip() if done.returncode == 0 else done.stderr.strip().rpartition("\n")[2]


def fitting_gpu_preset(gpu_presets: dict[str, Any]) -> str:
    """The largest GPU preset (named like "16 GB") whose VRAM this machine's GPU has; "" without a GPU.

    nvidia-smi answers, because torch would take seconds to import for one number.
    """
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    # one number per GPU, in MiB; "[N/A]" on some machines
    output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout.split()
    gigabytes = int(output[0]) * 2**20 / 1e9 if output and output[0].isdecimal() else 0.0
    # In decimal GB: a T4 of "16 GB" has 15,360 MiB, which are 16.1e9 bytes.
    fitting = [name for name in gpu_presets if _gigabytes(name) <= gigabytes]
    return max(fitting, key=_gigabytes, default="")


def _gigabytes(gpu_preset: str) -> float:
    return float(gpu_preset.split()[0])
