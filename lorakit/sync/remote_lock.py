"""Which machine trains a run: a small file on the remote tells other machines."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from lorakit.files import MACHINE
from lorakit.project import Project, Run

# file in a run's folder on the remote
STAMP = "trainer.json"
# seconds without renewal after which a stamp is ignored
OLD = 180.0
# seconds to wait for the disk before reading is given up
ANSWERS = 20.0


def machine(project: Project) -> str:
    """A name for this machine that no other has, readable for people."""
    file = project.sync / "machine"
    if not file.exists():
        project.sync.mkdir(exist_ok=True)
        # Random bytes: containers of one image often have equal host names.
        file.write_text(f"{MACHINE} {os.urandom(4).hex()}")
    return file.read_text()


def read_stamp(text: bytes) -> dict[str, Any]:
    """Who trains a run, since when and how far; a time of 0 for nobody, also when the text is torn."""
    try:
        stamp = json.loads(text)
        return {"machine": str(stamp["machine"]), "time": float(stamp["time"]), "step": int(stamp["step"])}
    except (ValueError, LookupError, TypeError):
        return {"machine": "", "time": 0.0, "step": 0}


def elsewhere(run: Run, *, old: float = OLD) -> str:
    """A sentence when another machine trains this run, else "". Takes up to `old` seconds to tell life from death.

    A stamp that another machine has renewed within `old` seconds is watched until it is renewed again (alive) or old.
    """
    remote = run.project.remote
    first = _read(remote / "runs" / run.name / STAMP) if remote else read_stamp(b"")
    age = time.time() - first["time"]
    if first["machine"] == machine(run.project) or age >= old:
        return ""
    # Clocks of machines differ, so `age` can be wrong, even negative: the wait is at most `old`.
    end = time.monotonic() + old - max(0.0, age)
    while time.monotonic() < end:
        time.sleep(min(2.0, old / 20))
        now = _read(remote / "runs" / run.name / STAMP)
        # 0: that trainer has ended.
        if now["time"] == 0:
            return ""
        if now["time"] != first["time"]:
            return (
                f"Run {run.name!r} is being trained on another machine ({now['machine'].partition(' ')[0]}, step "
                f"{now['step']}). Stop it there first: two trainers of one run would overwrite each other's work."
            )
    return ""


def _read(file: Path) -> dict:
    """Read a stamp with a separate process: reading a disk that hangs would hang this one."""
    with open(os.devnull, "wb") as nowhere:
        reader = subprocess.Popen(["cat", str(file)], stdout=subprocess.PIPE, stderr=nowhere)
    try:
        return read_stamp(reader.communicate(timeout=ANSWERS)[0])
    except subprocess.TimeoutExpired:
        reader.kill()
        return read_stamp(b"")
