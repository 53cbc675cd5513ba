"""What is read of the kernel's files: memory within the container's limit, kills for it, which process is which."""

from __future__ import annotations

import os
import subprocess

import pytest

from lorakit.machine import host
from lorakit.machine.host import Memory

MEMINFO = "MemTotal:       16000 kB\nMemFree:  10 kB\nMemAvailable:    9000 kB\n"
LIMITS = {
    "version 2": {
        "/proc/self/cgroup": "0::/pod/one\n",
        "/sys/fs/cgroup/pod/one/memory.max": "max\n",
        "/sys/fs/cgroup/pod/one/memory.events": "low 0\noom 4\noom_kill 3\n",
        "/sys/fs/cgroup/pod/memory.max": "4096000\n",
        "/sys/fs/cgroup/pod/memory.current": "3000000\n",
        "/sys/fs/cgroup/pod/memory.stat": "anon 1\ninactive_file 1000000\n",
    },
    "version 2 in a container that sees itself as the root": {
        "/proc/self/cgroup": "0::/\n",
        "/sys/fs/cgroup/memory.max": "4096000\n",
        "/sys/fs/cgroup/memory.current": "3000000\n",
        "/sys/fs/cgroup/memory.stat": "inactive_file 1000000\n",
        "/sys/fs/cgroup/memory.events": "oom_kill 3\n",
    },
    "version 1 whose path is the host's": {
        "/proc/self/cgroup": "9:cpu:/docker/x\n4:memory:/docker/x\n0::/docker/x\n",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": "4096000\n",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes": "3000000\n",
        "/sys/fs/cgroup/memory/memory.stat": "inactive_file 7\ntotal_inactive_file 1000000\n",
        "/sys/fs/cgroup/memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
    },
}


@pytest.fixture
def files(monkeypatch):
    """The only files that the kernel has, by path."""
    found: dict[str, str] = {"/proc/meminfo": MEMINFO}
    monkeypatch.setattr(host, "_text", lambda path: found.get(str(path), ""))
    return found


@pytest.mark.parametrize("case", LIMITS)
def test_memory_within_a_container_is_its_limit_less_what_it_cannot_free(files, case):
    files.update(LIMITS[case])
    assert host.memory() == Memory(available=4_096_000 - 2_000_000, total=4_096_000)
    assert host.memory_kills() == 3


def test_memory_without_a_container_is_the_machines(files):
    files.update({"/proc/self/cgroup": "0::/user\n", "/proc/vmstat": "pgfault 9\noom_kill 2\n"})
    assert host.memory() == Memory(available=9000 * 1024, total=16000 * 1024)
    assert host.memory_kills() == 2


def test_a_kernel_that_reports_nothing_is_no_error(files):
    files.clear()
    assert host.memory() is None and host.memory_kills() == 0 and host.process_start(1) == ""
    assert host.identity()["host"]


def test_a_process_is_identified_by_its_start():
    child = subprocess.Popen(["sleep", "60"])
    assert host.process_start(child.pid) == host.process_start(child.pid) != host.process_start(os.getpid()) != ""
    child.kill()
    child.wait()
    assert host.process_start(child.pid) == ""


def test_the_name_of_a_program_does_not_hide_when_it_began(files):
    files["/proc/5/stat"] = "5 (a (b) 1 2) S " + " ".join(str(number) for number in range(4, 53))
    assert host.process_start(5) == "22"
