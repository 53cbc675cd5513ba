"""Projects with a remote copy, made of random bytes: runs, states, datasets, and a sync service that hurries."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lorakit.files import write_json
from lorakit.project import Project, Run
from lorakit.sync import service, workspace
from lorakit.sync.pending import Due, Pass, Sent
from lorakit.sync.service import Pace, Standing

QUICK = Pace(look=0.05, logs=0.1, stamp=0.5, quiet=0.1, silence=0.6, patience=1.2, retry=0.3, linger=0.3)
ROOT = Path(__file__).parents[2]


def state(run: Run, step: int, size: int = 5_000, seed: int = 0) -> bytes:
    """A state as checkpoint.py writes it, and a line in the log for it."""
    folder = run.states / f"{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    data = random.Random(f"{step} {seed}").randbytes(size)
    (folder / "state.pt").write_bytes(data)
    with open(run.log, "a") as log:
        log.write(json.dumps({"kind": "stepped", "time": 1.0, "step": step}) + "\n")
    write_json(folder / "COMPLETE.json", {"step": step, "sha256": hashlib.sha256(data).hexdigest(), "bytes": size})
    return data


def begin(project: Project, name: str = "r") -> Run:
    """A run that has begun, with a sample."""
    run = project.run(name)
    run.samples.mkdir(parents=True)
    run.config_file.write_text("loop: {}\n")
    run.record_file.write_text("{}")
    run.log.write_text('{"kind": "started", "time": 1.0, "step": 0}\n')
    (run.samples / "step-000000-0.png").write_bytes(b"image")
    return run


def safetensors(size: int = 100) -> bytes:
    """A complete file of one tensor."""
    header = json.dumps({"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


def save_data(folder: Path, count: int = 4) -> dict[str, bytes]:
    """Images and captions; returns them by name."""
    files = {}
    for i in range(count):
        files[f"2_mofu/{i:03d}.png"] = random.Random(i).randbytes(400)
        files[f"2_mofu/{i:03d}.txt"] = f"mofu, {i}".encode()
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return files


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but hidden ones."""
    files = ((path.relative_to(folder), path) for path in folder.rglob("*") if path.is_file())
    return {str(name): path.read_bytes() for name, path in files if not any(p.startswith(".") for p in name.parts)}


def opened(remote: Path, root: Path) -> Project:
    """open_remote, and no sync service started by it."""
    begun, service.start = service.start, lambda project: False
    try:
        return workspace.open_remote(remote, root)
    finally:
        service.start = begun


def serving(project: Project, pace: Pace = QUICK, **changes) -> subprocess.Popen:
    """A sync service in a process of its own."""
    intervals = {**vars(pace), **changes}
    code = (
        "import json, sys; from lorakit.sync.service import Pace, serve; from lorakit.project import Project\n"
        "serve(Project(sys.argv[1]), Pace(**json.loads(sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, str(project.folder), json.dumps(intervals)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def is_settled(standing: Standing) -> bool:
    """Whether all is on the remote and nothing is wrong."""
    return standing.files_left == 0 and not standing.trouble


def send(project: Project, sent: Sent) -> None:
    """One pass, here in this process."""
    for line in Pass(project, sent, Due(logs=True, packs=(), training={}, announced=frozenset())).lines():
        if "sent" in line:
            sent.files[line["sent"]] = line["stamp"]
        elif "lost" in line:
            sent.lose(line["lost"])
        elif "states" in line:
            sent.states[line["states"]] = dict(line["steps"])


def rotate(run: Run, keep: int = 2) -> None:
    """Delete all states but the newest."""
    for old in sorted(run.states.glob("[0-9]*"))[:-keep]:
        shutil.rmtree(old)


def until(project: Project, true, seconds: float = 20.0) -> Standing:
    """The first standing for which `true` is."""
    end = time.time() + seconds
    while not ((standing := service.standing(project)).seen and true(standing)):
        assert time.time() < end, f"never came true: {standing}"
        time.sleep(0.02)
    return standing


def whole_states(remote: Path, name: str = "r") -> list[int]:
    """The steps of the states on the remote that look complete; fails for one that is not."""
    steps = []
    for mark in sorted((remote / "runs" / name / "states").glob("*/COMPLETE.json")):
        entry = json.loads(mark.read_bytes())
        data = (mark.parent / "state.pt").read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"]), f"{mark.parent} lies"
        steps.append(entry["step"])
    return steps


def plain_remote(tmp_path: Path) -> Project:
    """A fixture's function: a project whose remote copy is a plain folder, with a run that has begun."""
    (tmp_path / "drive/lorakit").mkdir(parents=True)
    project = opened(tmp_path / "drive/lorakit/mofu", tmp_path / "local")
    begin(project)
    return project


def served() -> Iterator[Callable]:
    """A fixture's function: starts sync services that are ended with the test."""
    begun = []

    def start(project: Project, **changes) -> subprocess.Popen:
        begun.append(serving(project, **{"linger": 600.0, **changes}))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.wait()
