"""Which device trains and in which floating point type."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorakit.config import ConfigError

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Precision:
    """The device and the type that the frozen model computes in; adapter weights are always float32."""

    device: torch.device
    dtype: torch.dtype
    name: str  # fp32, bf16 or fp16

    @property
    def scales_loss(self) -> bool:
        """fp16 gradients would vanish without loss scaling."""
        return self.name == "fp16"


def choose(wanted: str) -> Precision:
    """The precision of this machine: bf16 from compute capability 8.0, fp16 below, fp32 on a CPU.

    By capability, not by torch's own answer, which counts slow emulation of bf16 as support.
    Raises ConfigError when fp16 is asked for on a CPU.
    """
    import torch

    cuda = torch.cuda.is_available()
    if wanted == "auto":
        wanted = ("bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16") if cuda else "fp32"
    if wanted == "fp16" and not cuda:
        raise ConfigError("precision is fp16, which needs a GPU; on a CPU use auto, fp32 or bf16.")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[wanted]
    return Precision(torch.device("cuda" if cuda else "cpu"), dtype, wanted)


def make_deterministic(device: torch.device) -> None:
    """Let equal inputs give equal bits on a GPU too; a CPU does so by itself.

    An operation that cannot raises RuntimeError. (Were it to warn only, attention's backward pass would take its
    kernels that add in any order.)
    """
    import torch

    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False
        torch.backends.cudnn.benchmark = False


def keep_freed_memory() -> None:
    """Let glibc reuse freed blocks instead of returning them: on a CPU page faults cost more than the arithmetic."""
    import ctypes
    import sys

    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # musl has none
            libc.mallopt(-3, 2**31 - 1)  # M_MMAP_THRESHOLD: large blocks come from the heap
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: and the heap is not trimmed


def return_freed_memory() -> None:
    """Give the system what glibc keeps of freed blocks, which after loading a model can be most of a gigabyte."""
    import ctypes
    import sys

    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # musl has none
            libc.malloc_trim(0)


def peak_memory_gb(device: torch.device) -> float:
    """Most memory used so far, in 1e9 bytes: of the GPU, or of this process on a CPU."""
    import sys

    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if sys.platform == "linux":  # getrusage would count the process that started this one
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            kib = next(line.split()[1] for line in status if line.startswith("VmHWM:"))
        return int(kib) * 1024 / 1e9
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
