"""A file system over a folder that misbehaves as told: full, slow, hanging, failing, lying, with a trash that counts.

`python slow_disk.py BACKING MOUNT CONTROL` mounts it. CONTROL is JSON with any of: delay (seconds for each opening,
renaming and removing), lookup (seconds for each look at a file or folder), bandwidth (bytes a second), room (bytes that
may still be written), error (errno of every operation on content), broken (names whose reading fails with EIO), hang
(true: everything waits until it is false again), short (bytes cut off each file when it is closed), trash (true:
deleted and replaced files still count).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

try:
    import mfusepy
except (ImportError, OSError):  # OSError: no libfuse on this machine
    mfusepy = None

HERE = Path(__file__)


def mountable() -> str:
    """Why no file system can be mounted here, or ""."""
    if mfusepy is None:
        return "mfusepy or libfuse is not installed"
    if not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse"
    return "" if os.geteuid() == 0 else "mounting wants root here"


class SlowDisk:
    """The mounted file system; `at` is where."""

    def __init__(self, folder: Path):
        self.backing, self.at, self.control = folder / "backing", folder / "disk", folder / "control.json"
        for path in (self.backing, self.at):
            path.mkdir(parents=True, exist_ok=True)
        self.faults: dict = {}
        self.set()
        self.mount()

    def set(self, **faults) -> None:
        """From now on these faults, and no others."""
        aside = self.control.with_suffix(".new")
        aside.write_text(json.dumps(faults))
        os.replace(aside, self.control)

    def mount(self) -> None:
        self.process = subprocess.Popen([sys.executable, str(HERE), *map(str, (self.backing, self.at, self.control))])
        end = time.time() + 20
        while not os.path.ismount(self.at):
            assert time.time() < end and self.process.poll() is None, "the slow disk could not be mounted"
            time.sleep(0.02)

    def die(self) -> None:
        """The file system's process dies: from now on every call is answered with ENOTCONN."""
        self.process.kill()
        self.process.wait()

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", str(self.at)], check=False, stderr=subprocess.DEVNULL)

    def close(self) -> None:
        self.set()
        self.unmount()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def trash(self) -> int:
        """Bytes in deleted and replaced files."""
        file = self.control.with_suffix(".trash")
        return int(file.read_text()) if file.exists() else 0

    def used(self) -> int:
        """Bytes in files and in the trash."""
        return self.trash() + sum(path.stat().st_size for path in self.backing.rglob("*") if path.is_file())

    def calls(self) -> list[str]:
        """The operations since the last call of this, as "open /name"."""
        file = self.control.with_suffix(".calls")
        found = file.read_text().splitlines() if file.exists() else []
        file.write_text("")
        return found


if mfusepy is not None:

    class Misbehaving(mfusepy.Operations):
        """Passes everything on to the backing folder, unless it is told not to."""

        use_ns = True

        def __init__(self, backing: str, control: str):
            self.backing, self.control = backing, Path(control)
            self.trash, self.calls = self.control.with_suffix(".trash"), self.control.with_suffix(".calls")

        def faults(self) -> dict:
            with contextlib.suppress(FileNotFoundError):
                return json.loads(self.control.read_text())
            return {}

        def pass_by(self, call: str, path: str) -> str:
            """Wait and fail as told; returns the file behind."""
            with open(self.calls, "a") as calls:
                calls.write(f"{call} {path}\n")
            while (faults := self.faults()).get("hang"):
                time.sleep(0.02)
            wait = "lookup" if call in ("getattr", "readdir") else "delay"
            if wait in faults and call in ("open", "create", "rename", "unlink", "getattr", "readdir"):
                time.sleep(faults[wait])
            if faults.get("error") and call not in ("getattr", "readdir"):
                raise mfusepy.FuseOSError(faults["error"])
            if call == "read" and any(path.endswith(name) for name in faults.get("broken", ())):
                raise mfusepy.FuseOSError(errno.EIO)
            return self.backing + path

        def throw_away(self, behind: str) -> None:
            if self.faults().get("trash") and os.path.isfile(behind):
                known = int(self.trash.read_text()) if self.trash.exists() else 0
                self.trash.write_text(str(known + os.path.getsize(behind)))

        def slow(self, count: int) -> None:
            if bandwidth := self.faults().get("bandwidth"):
                time.sleep(count / bandwidth)

        def getattr(self, path, fh=None):
            status = os.lstat(self.pass_by("getattr", path))
            names = ("st_gid", "st_mode", "st_nlink", "st_size", "st_uid")
            times = {name: getattr(status, f"{name}_ns") for name in ("st_atime", "st_ctime", "st_mtime")}
            return {name: getattr(status, name) for name in names} | times

        def readdir(self, path, fh):
            with os.scandir(self.pass_by("readdir", path)) as entries:  # with their types, as most disks give them
                found = [(entry.name, {"st_mode": entry.stat(follow_symlinks=False).st_mode}, 0) for entry in entries]
            return [".", "..", *found]

        def open(self, path, flags):
            return os.open(self.pass_by("open", path), flags)

        def create(self, path, mode, fi=None):
            return os.open(self.pass_by("create", path), os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode)

        def read(self, path, size, offset, fh):
            self.pass_by("read", path)
            data = os.pread(fh, size, offset)
            self.slow(len(data))
            return data

        def write(self, path, data, offset, fh):
            self.pass_by("write", path)
            faults = self.faults()
            if "room" in faults:
                if faults["room"] < len(data):
                    raise mfusepy.FuseOSError(errno.ENOSPC)
                aside = self.control.with_suffix(f".{threading.get_ident()}")  # others read it meanwhile
                aside.write_text(json.dumps({**faults, "room": faults["room"] - len(data)}))
                os.replace(aside, self.control)
            self.slow(len(data))
            return os.pwrite(fh, data, offset)

        def truncate(self, path, length, fh=None):
            os.truncate(self.pass_by("truncate", path), length)

        def fsync(self, path, datasync, fh):
            self.pass_by("fsync", path)
            return 0

        def flush(self, path, fh):  # close() waits for it, but not for release
            behind = self.backing + path
            if (cut := self.faults().get("short")) and os.path.isfile(behind):
                os.truncate(behind, max(0, os.path.getsize(behind) - cut))
            return 0

        def release(self, path, fh):
            os.close(fh)
            return 0

        def unlink(self, path):
            behind = self.pass_by("unlink", path)
            self.throw_away(behind)
            os.unlink(behind)

        def rename(self, old, new):
            behind = self.pass_by("rename", old)
            self.throw_away(self.backing + new)
            os.rename(behind, self.backing + new)

        def mkdir(self, path, mode):
            os.mkdir(self.pass_by("mkdir", path), mode)

        def rmdir(self, path):
            os.rmdir(self.pass_by("rmdir", path))

        def utimens(self, path, times=None):
            os.utime(self.pass_by("utimens", path), ns=times)

        def statfs(self, path):
            found = os.statvfs(self.backing)
            names = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_files", "f_ffree", "f_frsize", "f_namemax")
            return {name: getattr(found, name) for name in names}


if __name__ == "__main__":
    mfusepy.FUSE(Misbehaving(sys.argv[1], sys.argv[3]), sys.argv[2], foreground=True)
