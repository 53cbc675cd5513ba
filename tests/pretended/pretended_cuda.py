"""Gives a CPU build of torch a CUDA device that computes in host memory (`pytest -p pretended_cuda`).

Tensors say device cuda:0, every operation raises what CUDA raises when tensors of two devices meet, memory is counted
as CUDA's allocator counts it and comes filled with NaN, pinned memory says so, and each wait of the host for the device
is counted. Copies in the background arrive as late as CUDA allows: who does not wait for them finds NaN. Values are
those of the CPU. Not there: kernels that overtake each other, CUDA's own kernels and their determinism.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

if "torch" in sys.modules:
    raise ImportError("pretended_cuda must be imported before torch: which hooks CUDA has is decided once")

# An L4: compute capability 8.9, 24 GiB.
CAPABILITY = (8, 9)
TOTAL = 24 * 2**30  # bytes
SOURCE = Path(__file__).with_name("pretend.cpp")
BUILT = Path(__file__).parents[2] / "build" / "pretended-cuda"
WAITED = ctypes.CFUNCTYPE(None)


def compiled() -> Path:
    """The library for the installed torch; compiled (g++, 20 s of CPU) if source or torch are new."""
    root = torch_folder()
    digest = hashlib.sha256(SOURCE.read_bytes() + (root / "version.py").read_bytes()).hexdigest()[:16]
    library = BUILT / f"pretend-{digest}.so"
    if not library.exists():
        if shutil.which("g++") is None:
            raise SystemExit("The pretended device is compiled by g++, which is not here: apt-get install g++")
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
    """The functions at the end of `pretend.cpp`, without their prefix."""
    ctypes.CDLL(str(torch_folder() / "lib" / "libtorch_cpu.so"), mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(compiled()), mode=ctypes.RTLD_GLOBAL)
    counters = ("allocated", "peak", "calls", "waits")
    setters = ("set_limit", "set_stream", "arrive")
    functions = {name: getattr(library, f"pretended_{name}") for name in (*counters, *setters)}
    for name in counters:
        functions[name].restype = ctypes.c_int64
    for name in setters:
        functions[name].argtypes = [ctypes.c_int64]
    for name in ("reset_peak", "wait", "on_wait"):
        functions[name] = getattr(library, f"pretended_{name}")
    return SimpleNamespace(**functions)


native = load()

import torch  # noqa: E402


@contextlib.contextmanager
def waits_seen() -> Iterator[list[str]]:
    """Within, each wait of the host for the device adds the lines of code that led to it, innermost first."""
    seen: list[str] = []

    def note() -> None:
        frames = [frame for frame in reversed(traceback.extract_stack()[:-1]) if "/torch/" not in frame.filename]
        seen.append(" < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames[:6]))

    function = WAITED(note)
    native.on_wait(function)
    try:
        yield seen
    finally:
        native.on_wait(WAITED())


class Stream:
    """Kernels compute at once; copies that a stream has queued arrive when another one, or the host, waits for it."""

    numbers = itertools.count()

    def __init__(self, device=None, **_):
        self.device = torch.device("cuda:0")
        self.cuda_stream = next(self.numbers)

    def wait_stream(self, other):
        native.arrive(other.cuda_stream)

    def wait_event(self, event):
        event.wait(self)

    def record_event(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self):
        native.arrive(self.cuda_stream)
        native.wait()

    def query(self):
        return True


class Event:
    def __init__(self, *_, **__):
        self.stream = current.stream

    def record(self, stream=None):
        self.stream = stream or current.stream

    def wait(self, stream=None):
        native.arrive(self.stream.cuda_stream)

    def synchronize(self):
        self.stream.synchronize()

    def query(self):
        return True

    def elapsed_time(self, _):
        return 0.0


DEFAULT_STREAM = Stream()
current = SimpleNamespace(stream=DEFAULT_STREAM)


@contextlib.contextmanager
def within(stream: Stream | None) -> Iterator[None]:
    """torch.cuda.stream: copies within are queued in this stream."""
    before, current.stream = current.stream, stream or current.stream
    native.set_stream(current.stream.cuda_stream)
    try:
        yield
    finally:
        current.stream = before
        native.set_stream(before.cuda_stream)


def synchronize(device=None) -> None:
    """The host waits for all streams."""
    native.arrive(-1)
    native.wait()


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
        "synchronize": synchronize,
        "is_bf16_supported": lambda including_emulation=True: capability >= (8, 0),
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device="cuda": torch.default_generator.get_state(),
        "set_rng_state": lambda state, device="cuda": None,
        "Stream": Stream,
        "Event": Event,
        "stream": within,
        "current_stream": lambda device=None: current.stream,
        "default_stream": lambda device=None: DEFAULT_STREAM,
        "device": _Device,
        "is_current_stream_capturing": lambda: False,
    }
    for name, value in replaced.items():
        setattr(cuda, name, value)
    torch._C._cuda_getDeviceCount = lambda: 1
    torch._C._cuda_getCurrentRawStream = lambda device: 0


install()
