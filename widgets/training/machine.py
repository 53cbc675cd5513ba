"""What this machine can do for a form: whether an optimizer works here, and which GPU preset fits."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from lorakit.machine.gpu import at_hand, gigabytes
from lorakit.machine.host import child_environment
from lorakit.optimizers import OPTIMIZERS

# Standard output carries the answer alone; what packages print there, as Prodigy does, goes to the error output.
TRIAL = """
import os, sys
with os.fdopen(os.dup(1), "w", encoding="utf-8") as answer:
    os.dup2(2, 1)
    from lorakit.optimizers import why_unusable
    answer.write(why_unusable(sys.argv[1]))
"""


def why_unusable(optimizer: str) -> str:
    """Why an optimizer of an optional package cannot be used here, "" when one real step with it works.

    The step runs in a process of its own: in this one it would keep GPU memory for good.
    """
    if not OPTIMIZERS[optimizer].package:
        return ""
    done = subprocess.run(
        [sys.executable, "-c", TRIAL, optimizer], env=child_environment(), capture_output=True, check=False
    )
    if done.returncode == 0:
        return done.stdout.decode("utf-8").strip()
    # A crash, e.g. of a CUDA library: of a traceback the last line.
    last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
    return f"{optimizer} ends the process with status {done.returncode} on this machine: {last}".rstrip(": ")


def fitting_gpu_preset(gpu_presets: dict[str, Any]) -> str:
    """The largest GPU preset (named like "16 GB") for the VRAM of this machine's GPU; "" without a GPU."""
    gpu = at_hand()
    memory = gpu.memory if gpu else 0
    # a part of a GPU's memory is its own: of the 16 GB of a T4 torch has 15.8
    fitting = [name for name in gpu_presets if 0.95e9 * gigabytes(name) <= memory]
    return max(fitting, key=gigabytes, default="")
