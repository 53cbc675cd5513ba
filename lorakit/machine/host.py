"""What Linux reports about this machine: its identity, free memory, processes killed because memory ran out."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Files of a control group (the limits of a container), version 2 and 1.
COUNTERS = ("memory.events", "memory.oom_control")
# (limit, used, key in memory.stat of the cached files that the kernel can free)
SIZES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


@dataclass(frozen=True)
class Memory:
    """Host memory in bytes, within the limits of a container; `available` includes what the kernel can free at once."""

    available: int
    total: int


def identity() -> dict[str, str]:
    """The machine's name and an id of its current boot (or of its container's).

    Process numbers are only comparable within the same boot.
    """
    boot = _text("/proc/sys/kernel/random/boot_id").strip()
    # A container has the boot id of its host: only the start of its process 1 tells a restart.
    return {"host": socket.gethostname(), "boot": f"{boot} {process_start(1)}"}


def child_environment() -> dict[str, str]:
    """Environment variables for a Python process that we start: this one's, with UTF-8 output.

    Where lorakit is not installed but found through a notebook's path, the child finds the same one.
    """
    variables, root = {**os.environ, "PYTHONIOENCODING": "utf-8:backslashreplace"}, Path(__file__).parents[2]
    if root.name not in ("site-packages", "dist-packages"):
        variables["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    return variables


def process_start(pid: int) -> str:
    """When a process started, in clock ticks since boot; "" when there is no such process.

    With the pid it identifies a process: numbers are given again after a process has ended.
    """
    stat = _text(f"/proc/{pid}/stat")
    # fields are counted from behind the program's name, which may hold spaces and brackets (man 5 proc, field 22)
    return stat.rpartition(")")[2].split()[19] if stat else ""


def memory() -> Memory | None:
    """Free and total memory; None where the kernel does not report them (not Linux)."""
    table = _table("/proc/meminfo")
    if not {"MemAvailable", "MemTotal"} <= table.keys():
        return None
    # meminfo counts in KiB
    available, total = table["MemAvailable"] * 1024, table["MemTotal"] * 1024
    for limit, used in _limits():
        available, total = min(available, limit - used), min(total, limit)
    return Memory(max(0, available), total)


def memory_kills() -> int:
    """How many processes the kernel has killed because memory ran out (in this container, if it is one); only grows."""
    counts = [_table(group / name).get("oom_kill") for group in _groups() for name in COUNTERS]
    return next((count for count in counts if count is not None), _table("/proc/vmstat").get("oom_kill", 0))


def _limits() -> Iterator[tuple[int, int]]:
    """(limit, used without cached files) in bytes of every control group around this process that has a limit."""
    for group in _groups():
        for limit, used, cached in SIZES:
            numbers = _text(group / limit).strip(), _text(group / used).strip()
            # a group without a limit says "max"
            if all(number.isdecimal() for number in numbers):
                yield int(numbers[0]), int(numbers[1]) - _table(group / "memory.stat").get(cached, 0)


def _groups() -> Iterator[Path]:
    """Folders of the control groups for memory around this process, the innermost first."""
    for line in _text("/proc/self/cgroup").splitlines():
        _, kinds, path = line.split(":", 2)
        # version 2 has no kinds, version 1 a group for each
        if kinds in ("", "memory"):
            top = Path("/sys/fs/cgroup") / kinds
            group = top / path.strip("/")
            yield from (each for each in (group, *group.parents) if each == top or top in each.parents)


def _table(path: str | Path) -> dict[str, int]:
    """Lines of a name and a number, as the kernel writes them."""
    lines = (line.replace(":", "").split() for line in _text(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}


def _text(path: str | Path) -> str:
    """The text of a file, "" when it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        # not Linux, a control group mounted elsewhere, a process that has ended
        return ""
