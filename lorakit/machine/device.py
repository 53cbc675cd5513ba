"""The device that trains, its floating point type, determinism, and memory of the allocator."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorakit.config import ConfigError

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
# How running out of memory is reported, beside torch.OutOfMemoryError and MemoryError: by torch's allocators, and by
# CUDA and its libraries for memory that they take themselves. cuDNN calls a convolution that lacks room for its
# workspace one without an engine.
OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine",
)


@dataclass(frozen=True)
class Precision:
    """The device and the type that the frozen base model computes in; adapter weights are always float32."""

    device: torch.device
    dtype: torch.dtype
    name: str  # fp32, bf16 or fp16

    @property
    def scales_loss(self) -> bool:
        """Whether the loss is scaled up before the backward pass: small fp16 gradients would be rounded to 0."""
        return self.name == "fp16"


def choose_precision(setting: str) -> Precision:
    """The precision for a setting (one of PRECISIONS); auto: bf16 from compute capability 8.0, fp16 below, fp32 on CPU.

    Raises ConfigError for fp16 on a CPU.
    """
    import torch

    cuda = torch.cuda.is_available()
    if setting == "auto":
        setting = automatic(torch.cuda.get_device_capability()) if cuda else "fp32"
    if setting == "fp16" and not cuda:
        raise ConfigError("precision is fp16, which needs a GPU; on a CPU use auto, fp32 or bf16.")
    return Precision(torch.device("cuda" if cuda else "cpu"), dtype_of(setting), setting)


def automatic(capability: tuple[int, int]) -> str:
    """The precision for a GPU of this compute capability."""
    # not torch.cuda.is_bf16_supported(), which counts slow emulation as support
    return "bf16" if capability >= (8, 0) else "fp16"


def dtype_of(name: str) -> torch.dtype:
    """The type of a precision other than auto."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def make_deterministic(device: torch.device) -> None:
    """Make a GPU compute the same bits from the same inputs; a CPU does so anyway.

    Operations that have no deterministic kernel then raise RuntimeError.
    """
    import torch

    if device.type == "cuda":
        # cuBLAS reads it at its first call, and is deterministic only with a workspace of fixed size.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # not warn_only: with it, attention's backward pass uses kernels that add in any order
        torch.use_deterministic_algorithms(True)
        # filling new tensors is for debugging, and slow
        torch.utils.deterministic.fill_uninitialized_memory = False
        # benchmarks choose among kernels by time, which differs from run to run
        torch.backends.cudnn.benchmark = False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that GPU or host memory ran out, in any of its forms."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in OUT_OF_MEMORY)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device; the host does not wait while the data of a step is copied to a GPU."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    # Only pinned memory is copied in the background; torch keeps it until the copy is done.
    return tensor.pin_memory().to(device, non_blocking=True)


def keep_freed_memory() -> None:
    """Make glibc reuse freed blocks instead of returning them to the system.

    For training on a CPU, where page faults would cost more time than the arithmetic.
    """
    import ctypes
    import sys

    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        # musl has no mallopt
        if hasattr(libc, "mallopt"):
            # M_MMAP_THRESHOLD: large blocks come from the heap; M_TRIM_THRESHOLD: and the heap is not trimmed
            libc.mallopt(-3, 2**31 - 1)
            libc.mallopt(-1, 2**31 - 1)


def return_freed_memory() -> None:
    """Return freed blocks that glibc keeps to the system; after loading a model that can be most of a gigabyte."""
    import ctypes
    import sys

    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        # musl has no malloc_trim
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory in 1e9 bytes: what torch allocated on the GPU, or on a CPU what this process used."""
    import sys

    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if sys.platform == "linux":
        # not getrusage, which may count the peak of the process that started this one
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            kib = next(line.split()[1] for line in status if line.startswith("VmHWM:"))
        return int(kib) * 1024 / 1e9
    import resource

    # getrusage counts bytes on macOS, KiB elsewhere
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
