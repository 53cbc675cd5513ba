"""Commands of the terminal over a disk that fails at its n-th operation: forks of one process that has a shim in C."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

KINDS = ("open", "read", "write", "rename", "fsync", "mkdir", "unlink")  # in the order of failing_disk.c
SOURCE = Path(__file__).with_suffix(".c")
LIMIT = 60.0  # s after which a command hangs


@dataclass(frozen=True)
class Fault:
    """The `at`-th operation of a kind below the project fails with `errno`; `stays`: and so do all after it."""

    kind: str
    at: int
    errno: int
    stays: bool = False


@dataclass(frozen=True)
class Ended:
    """How a command ended; `counts`: operations of each kind that it did below the project."""

    status: int
    out: str
    err: str
    counts: dict[str, int]


def compiler() -> str | None:
    """A C compiler of this machine, if there is one."""
    return shutil.which("cc") or shutil.which("gcc")


class FailingDisk:
    """A warm process with the shim in it; `command` runs one command of `lorakit` in a fork of it."""

    def __init__(self, folder: Path):
        self.folder, shim = folder, folder / "failing_disk.so"
        subprocess.run([compiler(), "-shared", "-fPIC", "-O1", "-o", shim, SOURCE, "-ldl"], check=True)
        environment = {**os.environ, "LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
        environment |= {"XDG_CACHE_HOME": str(folder / "cache"), "XDG_STATE_HOME": str(folder / "state")}
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(shim)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def command(self, arguments: list, below: Path, fault: Fault | None = None) -> Ended:
        """Run one command; `below`: the folder whose operations are counted and fail."""
        fault = fault or Fault("open", 0, 0)
        asked = [list(map(str, arguments)), str(below), KINDS.index(fault.kind), fault.at, fault.errno, fault.stays]
        self.process.stdin.write(json.dumps([*asked, str(self.folder)]) + "\n")
        self.process.stdin.flush()
        status, counts = json.loads(self.process.stdout.readline())
        out, err = ((self.folder / name).read_text("utf-8", "replace") for name in ("out", "err"))
        return Ended(status, out, err, counts)

    def close(self) -> None:
        """End the warm process."""
        self.process.kill()
        self.process.wait()


def _serve(shim: str) -> None:
    """Answer a line of JSON on the standard input with the exit status and the counts of a command."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel  # noqa: F401
    from peft import LoraConfig  # noqa: F401
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

    import lorakit.api  # noqa: F401
    import lorakit.examine.checks  # noqa: F401
    import lorakit.generation.grid  # noqa: F401
    import lorakit.generation.regularize  # noqa: F401
    import lorakit.models.sd15  # noqa: F401
    import lorakit.sync.service  # noqa: F401
    import lorakit.taggers.wd14  # noqa: F401
    import lorakit.training.loop  # noqa: F401
    import lorakit.training.step  # noqa: F401

    del os.environ["LD_PRELOAD"]
    library = ctypes.CDLL(shim)
    for line in sys.stdin:
        arguments, below, *fault, folder = json.loads(line)
        if not (child := os.fork()):
            _run(library, arguments, below, fault, Path(folder))
        print(json.dumps([_waited(child), _counts(Path(folder))]), flush=True)


def _run(library: ctypes.CDLL, arguments: list[str], below: str, fault: list[int], folder: Path) -> None:
    """The child: one command with its output in files; it ends here."""
    from lorakit.cli import main
    from lorakit.sync import service
    from lorakit.training import jobs

    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    # `start`, `open`: what matters is what they do before a trainer or the sync service begins
    for module in (jobs, service):
        module.subprocess = SimpleNamespace(Popen=lambda *_, **__: subprocess.Popen(["true"]), DEVNULL=0)
    library.fault_set(os.fsencode(below), *map(int, fault))
    status = 99
    try:
        status = main(arguments)
    finally:
        counts = [library.fault_count(kind) for kind in range(len(KINDS))]
        library.fault_set(b"", -1, 0, 0, 0)
        (folder / "counts").write_text(json.dumps(counts))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _waited(child: int) -> int:
    """The exit status of a child, -1 for one that hung and was killed."""
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return -1


def _counts(folder: Path) -> dict[str, int]:
    file = folder / "counts"
    counts = json.loads(file.read_text()) if file.exists() else [0] * len(KINDS)
    file.unlink(missing_ok=True)
    return dict(zip(KINDS, counts, strict=True))


if __name__ == "__main__":
    _serve(sys.argv[1])
