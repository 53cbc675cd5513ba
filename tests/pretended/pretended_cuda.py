"""Gives a CPU build of torch a CUDA device that computes in host memory (`pytest -p pretended_cuda`).

Tensors say device cuda:0, every operation raises what CUDA raises when tensors of two devices meet, memory is counted
as CUDA's allocator counts it and comes filled with NaN, pinned memory says so, and each wait of the host for the device
is counted. Values are those of the CPU. Not there: asynchronous streams, CUDA's own kernels and their determinism.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

if "torch" in sys.modules:
    raise ImportError("pretended_cuda must be imported before torch: which hooks CUDA has is decided once")

# An L4: compute capability 8.9, 24 GiB.
CAPABILITY = (8, 9)
TOTAL = 24 * 2**30  # bytes
SOURCE = Path(__file__).with_name("pretend.cpp")
BUILT = Path(__file__).parents[2] / "build" / "pretended-cuda"


def compiled() -> Path:
    """The library for the installed torch; compiled (g++, 20 s of CPU) if source or torch are new."""
    root = torch_folder()
    digest = hashlib.sha256(SOURCE.read_bytes() + (root / "version.py").read_bytes()).hexdigest()[:16]
    library = BUILT / f"pretend-{digest}.so"
    if not library.exists():
        BUILT.mkdir(parents=True, exist_ok=True)
        part = library.with_suffix(f".{os.getpid()}.part")
        include = [f"-I{root}/include", f"-I{root}/include/torch/csrc/api/include"]
        flags = ["-O0", "-g0", "-w", "-std=c++20", "-fPIC", "-shared", "-DAT_PER_OPERATOR_HEADERS"]
        libraries = [f"-L{root}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{root}/lib"]
        subprocess.run(["g++", *flags, *include, str(SOURCE), *libraries, "-o", str(part)], check=True)
        part.replace(library)
    return library


def torch_folder() -> Path:
    """Where torch is installed, found without importing it."""
    return Path(importlib.util.find_spec("torch").submodule_search_locations[0])


def load() -> SimpleNamespace:
    """The library's counters: allocated, peak (bytes), calls (operations), syncs (waits); reset_peak, set_limit."""
    ctypes.CDLL(str(torch_folder() / "lib" / "libtorch_cpu.so"), mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(compiled()), mode=ctypes.RTLD_GLOBAL)
    for name in ("allocated", "peak", "calls", "syncs"):
        getattr(library, f"pretended_{name}").restype = ctypes.c_int64
    library.pretended_set_limit.argtypes = [ctypes.c_int64]
    names = ("allocated", "peak", "reset_peak", "set_limit", "calls", "syncs")
    return SimpleNamespace(**{name: getattr(library, f"pretended_{name}") for name in names})


native = load()

import torch  # noqa: E402


class Stream:
    """All work is done at once, so there is nothing to wait for."""

    def __init__(self, device=None, **_):
        self.device = torch.device("cuda:0")
        self.cuda_stream = 0

    def wait_stream(self, other):
        pass

    def wait_event(self, event):
        pass

    def record_event(self, event=None):
        return Event()

    def synchronize(self):
        pass

    def query(self):
        return True


class Event:
    def __init__(self, *_, **__):
        pass

    def record(self, *_):
        pass

    def wait(self, *_):
        pass

    def synchronize(self):
        pass

    def query(self):
        return True

    def elapsed_time(self, _):
        return 0.0


_current = Stream()


class _Device(contextlib.AbstractContextManager):
    def __init__(self, *_):
        self.idx = 0

    def __exit__(self, *_):
        return False


def install(capability=CAPABILITY, total=TOTAL) -> None:
    """Let torch.cuda speak of the pretended device."""
    cuda = torch.cuda
    properties = SimpleNamespace(
        name="Pretended GPU",
        major=capability[0],
        minor=capability[1],
        total_memory=total,
        multi_processor_count=40,
        gcnArchName="",
        regs_per_multiprocessor=65536,
        warp_size=32,
        max_threads_per_multi_processor=1024,
    )
    replaced = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": lambda: None,
        "_lazy_init": lambda: None,
        "_is_compiled": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda _: None,
        "get_device_name": lambda device=None: "Pretended GPU",
        "get_device_capability": lambda device=None: capability,
        "get_device_properties": lambda device=None: properties,
        "get_arch_list": lambda: [f"sm_{capability[0]}{capability[1]}"],
        "mem_get_info": lambda device=None: (total - native.allocated(), total),
        "memory_allocated": lambda device=None: native.allocated(),
        "max_memory_allocated": lambda device=None: native.peak(),
        "memory_reserved": lambda device=None: native.peak(),
        "max_memory_reserved": lambda device=None: native.peak(),
        "reset_peak_memory_stats": lambda device=None: native.reset_peak(),
        "set_per_process_memory_fraction": lambda fraction, device=None: native.set_limit(int(fraction * total)),
        "empty_cache": lambda: None,
        "synchronize": lambda device=None: None,
        "is_bf16_supported": lambda including_emulation=True: capability >= (8, 0),
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device="cuda": torch.default_generator.get_state(),
        "set_rng_state": lambda state, device="cuda": None,
        "Stream": Stream,
        "Event": Event,
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": lambda device=None: _current,
        "default_stream": lambda device=None: _current,
        "device": _Device,
        "is_current_stream_capturing": lambda: False,
    }
    for name, value in replaced.items():
        setattr(cuda, name, value)
    torch._C._cuda_getDeviceCount = lambda: 1
    torch._C._cuda_getCurrentRawStream = lambda device: 0


install()
