"""Artificial runs, for views: logs, sample images and exported files without a model."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

from lorakit.events import Event, Sampled, Saved, Started, Stepped
from lorakit.project import Project, Run
from lorakit.training import jobs

PROMPTS = tuple(f"mofu, girl, number {i}" for i in range(6))


def stepped(step: int, *, loss: float | None = 0.1, per_epoch: int = 100) -> Stepped:
    """A step with figures that can be recognised."""
    epoch = (step - 1) // per_epoch + 1
    figures = {"lr": 1e-4, "grad_norm": 0.1, "skipped": 0, "images_per_second": 4.5, "memory_gb": 9.8}
    return Stepped(step=step, epoch=epoch, loss=loss, **figures)


def started(step: int, steps: int) -> Started:
    """A session that begins after `step` of `steps`."""
    return Started(step=step, steps=steps, steps_per_epoch=100, images=40, precision="bf16", device="cuda")


def noisy(step: int) -> float:
    """A loss that falls and jumps about, the same each time."""
    return 0.1 + 0.1 * math.exp(-step / 2000) + 0.05 * math.sin(step * 12.9898) ** 2


def write(run: Run, *events: Event, ago: float = 60.0, pace: float = 1.0) -> Run:
    """Make a run with this log: `pace` s between two events, the newest `ago` s old."""
    run.folder.mkdir(parents=True, exist_ok=True)
    run.config_file.write_text("{}")
    first = time.time() - ago - pace * (len(events) - 1)
    lines = (
        {"kind": type(event).__name__.lower(), "time": first + i * pace, **dataclasses.asdict(event)}
        for i, event in enumerate(events)
    )
    run.log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def sampled(run: Run, step: int, count: int = 1) -> list[Sampled]:
    """Samples of a step, whose images are there and hard to compress."""
    found = []
    for i in range(count):
        file = run.samples / f"{step:06d}-{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((256, 256), 90).convert("RGB").save(file, compress_level=1)
        found.append(Sampled(step=step, prompt=PROMPTS[i], image=str(file.relative_to(run.folder))))
    return found


def saved(run: Run, step: int, *, exports: bool = False) -> Saved:
    """A state, and with `exports` the LoRA file that goes with it."""
    if exports:
        run.loras.mkdir(parents=True, exist_ok=True)
        run.lora_file(step).write_bytes(b"weights")
    return Saved(step=step, state=f"states/{step:08d}", lora=f"lora/{run.name}-{step:06d}.safetensors", matched="1/1")


def long_run(run: Run, steps: int) -> Run:
    """Steps with samples and saves in between, as a run of an evening leaves them."""
    logged: list[Event] = [started(0, steps)]
    for step in range(1, steps + 1):
        logged.append(stepped(step, loss=noisy(step), per_epoch=steps // 20))
        if step % (steps // 10) == 0:
            logged += [saved(run, step), *sampled(run, step, count=len(PROMPTS))]
    return write(run, *logged)


TRAINER = """
import signal, sys, time
from lorakit import events
from lorakit.project.lock import lock_run
from lorakit.project import Project
from logs import saved, started, stepped
run, asked, steps = Project(sys.argv[1]).run(sys.argv[2]), [], 10_000
signal.signal(signal.SIGINT, lambda *_: asked.append(1))
def tell(event):
    events.append(run.log, event, time=time.time())
with lock_run(run):
    tell(started(0, steps))
    for step in range(1, steps):
        tell(stepped(step))
        time.sleep(0.05)
        if asked:
            break
    time.sleep(float(sys.argv[3]))
    tell(saved(run, step))
    tell(events.Stopped(step=step, reason="asked to"))
"""


class Trainer:
    """A process that holds a run and logs a step every 0.05 s, as a trainer does; `saving` s after SIGINT it ends."""

    def __init__(self, run: Run, saving: float = 0.5):
        command = [sys.executable, "-c", TRAINER, str(run.project.folder), run.name, str(saving)]
        paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
        self.process = subprocess.Popen(command, env={"PYTHONPATH": ":".join(paths), "PATH": ""})
        while not (jobs.is_alive(run) and run.log.exists()):
            assert self.process.poll() is None
            time.sleep(0.02)

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def project(folder: Path) -> Project:
    """An empty project."""
    return Project(folder / "project")
