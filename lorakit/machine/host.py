"""What the kernel says of this machine: which start of it this is, memory left, kills for memory."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COUNTERS = ("memory.events", "memory.oom_control")  # of a cgroup, version 2 and 1
SIZES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


@dataclass(frozen=True)
class Memory:
    """Host memory in bytes, within what a container may use; `available` counts what the kernel can free at once."""

    available: int
    total: int


def identity() -> dict[str, str]:
    """The machine by name, and this start of it or of its container: a process number means nothing in another."""
    return {"host": socket.gethostname(), "boot": f"{_text('/proc/sys/kernel/random/boot_id').strip()} {begun(1)}"}


def environment() -> dict[str, str]:
    """Our environment for a process of ours that speaks UTF-8; in it this very lorakit comes first where it is not
    installed but found by a notebook's path.
    """
    ours, root = {**os.environ, "PYTHONIOENCODING": "utf-8:backslashreplace"}, Path(__file__).parents[2]
    if root.name not in ("site-packages", "dist-packages"):
        ours["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    return ours


def begun(pid: int) -> str:
    """When a process began, in clock ticks since the machine did; "" when there is no such process."""
    stat = _text(f"/proc/{pid}/stat")
    return stat.rpartition(")")[2].split()[19] if stat else ""  # a program's name may hold spaces and brackets


def memory() -> Memory | None:
    """Memory left and in all; None where the kernel does not tell."""
    told = _table("/proc/meminfo")
    if not {"MemAvailable", "MemTotal"} <= told.keys():
        return None
    available, total = told["MemAvailable"] * 1024, told["MemTotal"] * 1024
    for limit, used in _limits():
        available, total = min(available, limit - used), min(total, limit)
    return Memory(max(0, available), total)


def memory_kills() -> int:
    """How many processes the kernel has killed because memory ran out, in this container if it is one; only grows."""
    counts = [_table(group / name).get("oom_kill") for group in _groups() for name in COUNTERS]
    return next((count for count in counts if count is not None), _table("/proc/vmstat").get("oom_kill", 0))


def _limits() -> Iterator[tuple[int, int]]:
    """(limit, used without cached files) in bytes of every control group around this process that has a limit."""
    for group in _groups():
        for limit, used, cached in SIZES:
            numbers = _text(group / limit).strip(), _text(group / used).strip()
            if all(number.isdecimal() for number in numbers):  # "max" is no limit
                yield int(numbers[0]), int(numbers[1]) - _table(group / "memory.stat").get(cached, 0)


def _groups() -> Iterator[Path]:
    """Folders of the control groups for memory around this process, the innermost first."""
    for line in _text("/proc/self/cgroup").splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds in ("", "memory"):  # version 2, version 1
            top = Path("/sys/fs/cgroup") / kinds
            group = top / path.strip("/")
            yield from (found for found in (group, *group.parents) if found == top or top in found.parents)


def _table(path: str | Path) -> dict[str, int]:
    """Lines of a name and a number, as the kernel writes them."""
    lines = (line.replace(":", "").split() for line in _text(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:  # another kernel, a group's files that are elsewhere, a process that is gone
        return ""
