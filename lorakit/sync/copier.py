"""A process that copies to a disk that may hang: its messages come through a pipe, and it can be given up."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

from lorakit.files.disk import disk_error
from lorakit.project import Project
from lorakit.sync.packs import DataChanged
from lorakit.sync.pending import Due, Pass, Sent


class Copier:
    """One upload pass in a forked process; it ends by itself when nobody reads its messages any more."""

    def __init__(self, project: Project, sent: Sent, due: Due, lock: int):
        # heard: monotonic time of the last message; rest: bytes of a message that is not complete yet.
        self.mount, self.heard, self.rest = mount_of(project.remote), time.monotonic(), b""
        self.reader, writer = os.pipe()
        # A process and not a thread: a thread that hangs in a system call on a dead mount cannot be ended.
        self.pid = os.fork()
        if self.pid == 0:
            # Locks are inherited: a hanging copier would keep the next sync service out.
            os.close(lock)
            os.close(self.reader)
            try:
                _copy(Pass(project, sent, due), writer)
            # os._exit: nothing of the parent's code (exit handlers, callers) may run in this process.
            finally:
                if sys.exc_info()[0]:
                    traceback.print_exc()
                os._exit(0)
        os.close(writer)

    def next_line(self, end: float) -> dict | None:
        """The next message, or None if none arrives before `end` (monotonic seconds)."""
        while b"\n" not in self.rest:
            if not select.select([self.reader], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            # End of the pipe without an "end" message.
            if not (data := os.read(self.reader, 1 << 16)):
                return {"end": "The copying process died", "cure": "See .sync/mirror.log.", "all": False}
            self.rest, self.heard = self.rest + data, time.monotonic()
        line, self.rest = self.rest.split(b"\n", 1)
        return json.loads(line)

    def reap(self) -> None:
        os.close(self.reader)
        os.waitpid(self.pid, 0)

    def give_up(self) -> int:
        """Kill it; a process that hangs in a disk dies when the disk answers, so nobody waits for it."""
        os.kill(self.pid, signal.SIGKILL)
        os.close(self.reader)
        return self.pid


def _copy(work: Pass, writer: int) -> None:
    """Run a pass and send its messages; the last one says how it ended."""
    end = {"end": "", "cure": "", "all": True}
    try:
        for line in work.lines():
            end["all"] = end["all"] and "also" not in line
            os.write(writer, json.dumps(line).encode() + b"\n")
    except DataChanged as error:
        end = {"end": str(error), "cure": "Open the project again to merge both versions.", "all": False}
    except OSError as error:
        # the kernel names no file that was open already
        explained = disk_error(error, "" if error.filename else work.remote)
        what, cure = (explained.reason, explained.advice) if explained else ("", "")
        end = {"end": what or f"{work.remote} fails ({error})", "cure": cure or "Check the disk.", "all": False}
    # The watching process is gone, perhaps the reason for the error above.
    with suppress(BrokenPipeError):
        os.write(writer, json.dumps(end).encode() + b"\n")


def mount_of(path: Path) -> str:
    """Id of the mount that holds a path, as numbered by the kernel; it changes when a disk is mounted again."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except FileNotFoundError:
        return ""
    # Fields 4 and 0 of a line: mount point (spaces as \040) and mount id.
    points = [(fields[4].replace("\\040", " "), fields[0]) for fields in map(str.split, lines)]
    above = [(point, number) for point, number in points if f"{path}/".startswith(point.rstrip("/") + "/")]
    # The longest mount point above the path; of two at the same place the later one hides the other.
    return max(reversed(above), key=lambda mount: len(mount[0]))[1] if above else ""
