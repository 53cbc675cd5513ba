"""A few real steps of a run, in a process of their own: how long a step takes and how much memory it needs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lorakit import __version__
from lorakit.errors import UserError
from lorakit.events import Event, Finished, Progress, Sampled, Saved, Started, Stepped
from lorakit.files import write_json
from lorakit.files.disk import read_json
from lorakit.machine import host
from lorakit.machine.host import child_environment
from lorakit.optimizers import RATES
from lorakit.project import Project, Run
from lorakit.project.lock import is_alive
from lorakit.run.config import RunConfig
from lorakit.run.create import save_config
from lorakit.run.memory import next_rung
from lorakit.run.resume import training_settings

if TYPE_CHECKING:
    from lorakit.training.forecast import Forecast

# Steps; the first ones are slow, as they load kernels and fill allocator caches.
WARM_UP, TIMED = 2, 3
# Seconds after which no further step starts, once one was timed.
LIMIT = 120.0
# Results in probes.json.
KEPT = 50
# Lines of a failed probe's output in its message.
TAIL = 8
PACKAGES = ("torch", "diffusers", "peft")
# settings that do not change how long a step takes: a result holds for all their values (None: the whole part)
IDLE = {
    "data": ("trigger", "repeats"),
    "loop": ("epochs", "steps", "seed"),
    "optimizer": RATES,
    "schedule": None,
    "loss": None,
    "stages": None,
}


class ProbeFailed(UserError):
    """The steps could not be tried; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What a few real steps measured. Times in s, memory in 1e9 bytes of the GPU (on a CPU: of the computer)."""

    device: str
    seconds_per_step: float
    images_per_second: float
    seconds_to_first_step: float  # with all images and captions cached
    seconds_per_save: float | None  # a state and a LoRA file; None when the time limit came first
    seconds_per_sample: float | None
    peak_memory_gb: float
    total_memory_gb: float
    phases: dict[str, float]  # before the second step: start, encode, load, first step


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """The time that a run still needs, in sessions of a limited length that each load everything first."""

    seconds: float  # of all steps that are left, with samples and saves
    sessions: int
    step: int  # reached when the next session ends
    epochs: int  # complete by then


def outlook(forecast: Forecast, probed: Probed, hours: float) -> Outlook:
    """Where a run of this forecast will be after a session of `hours` (above 0), from what its probe measured."""
    saves, samples = forecast.count("loras"), forecast.count("samples")
    extra = saves * (probed.seconds_per_save or 0) + samples * (probed.seconds_per_sample or 0)
    usable = max(1.0, 3600 * hours - probed.seconds_to_first_step)
    # s left in all; step and s left in the next session
    left, step, room = 0.0, forecast.done, usable
    for stage in forecast.stages:
        # s per step: time grows with the pixels of an image; the probe ran in the first stage
        each = stage.images / stage.steps / probed.images_per_second * stage.pixels / forecast.stages[0].pixels
        each += extra / forecast.steps
        steps = max(0, min(stage.steps, stage.last - forecast.done))
        left += steps * each
        fit = min(steps, int(room / each))
        # a stage that does not fit leaves no room for the next one
        step, room = step + fit, room - fit * each if fit == steps else 0.0
    sessions = max(1, math.ceil(left / usable - 1e-9))
    return Outlook(seconds=left, sessions=sessions, step=step, epochs=forecast.whole_epochs(step))


# ---- stored results --------------------------------------------------------------------------------------------------


def remembered(config: RunConfig, project: Project) -> Probed | None:
    """The result of an earlier probe with the same settings, device and versions; None without one."""
    result = _results(project).get(_key(config))
    return Probed(**result) if result else None


def _results(project: Project) -> dict[str, dict[str, Any]]:
    try:
        return read_json(project.folder / "probes.json")
    # a damaged file costs a minute for another probe
    except (FileNotFoundError, ValueError):
        return {}


def _key(config: RunConfig) -> str:
    """Hash of everything that a step's time and memory depend on."""
    settings = {**training_settings(config), "memory": dataclasses.asdict(config.memory)}
    for owner, names in IDLE.items():
        if owner in settings:
            settings[owner] = {k: v for k, v in settings[owner].items() if names is not None and k not in names}
    sample = config.sample
    sampling = [sample.width, sample.height, sample.steps, sample.sampler, bool(sample.prompts)]
    versions = [__version__, *map(version, PACKAGES)]
    key = json.dumps([settings, sorted(config.rates), sampling, _device_name(), versions], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def _device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} threads"


# ---- the notebook's side ---------------------------------------------------------------------------------------------


def probe(config: RunConfig, project: Project) -> Iterator[Progress | Probed]:
    """Try a few steps of a run of these settings; the last value yielded is the result, which is also stored.

    The steps are real ones on the real data, in a process that ends afterwards and frees its memory. Images and
    captions that it encodes stay in the project's cache; nothing else is kept. Closing the iterator ends the process.
    Raises ProbeFailed, also with the errors that training would raise, out of memory included.
    """
    if busy := [run.name for run in project.runs() if is_alive(run)]:
        raise ProbeFailed(
            f"Run {busy[0]!r} is training on this machine, which would distort the times, and memory may not suffice "
            "for both: stop it first, or probe when it has finished."
        )
    with tempfile.TemporaryDirectory(prefix="lorakit-probe-") as folder, tempfile.TemporaryFile() as output:
        save_config(Run(project, "probe", Path(folder)), _trial(config))
        process = subprocess.Popen(
            [sys.executable, "-m", "lorakit.training.probe", str(project.folder), folder, str(time.time())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            # a notebook's interrupt reaches only this process, which then kills the probe
            start_new_session=True,
            env=child_environment(),
        )
        try:
            yield Progress(what="start", done=0, total=1)
            for line in process.stdout:
                message = json.loads(line)
                if "refused" in message:
                    raise ProbeFailed(message["refused"])
                if "what" in message:
                    yield Progress(**message)
                else:
                    write_json(project.folder / "probes.json", _with(_results(project), _key(config), message))
                    yield Probed(**message)
                    return
            raise ProbeFailed(_why(process.wait(), output, config))
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def _with(results: dict[str, dict], key: str, result: dict[str, Any]) -> dict[str, dict]:
    """The newest KEPT results, this one last."""
    others = [(name, value) for name, value in results.items() if name != key]
    return dict([*others[1 - KEPT :], (key, result)])


def _trial(config: RunConfig) -> RunConfig:
    """The run's settings, but one save and one sample after the timed steps."""
    last = WARM_UP + TIMED
    save = replace(config.save, every_epochs=0, every_steps=last, every_minutes=0.0)
    sample = replace(config.sample, prompts=config.sample.prompts[:1], every_epochs=0, every_steps=last)
    return replace(config, save=save, sample=sample)


def _why(code: int, output: IO[bytes], config: RunConfig) -> str:
    """Why the process ended without a result."""
    # SIGKILL, which the kernel sends when memory runs out
    if code == -9:
        rung, memory = next_rung(config), host.memory()
        size = f" ({memory.total / 1e9:.1f} GB)" if memory else ""
        reason = f"The test steps were killed, most likely because the computer's memory{size} ran out."
        if rung is None:
            return reason + " Close other programs, or use a machine with more."
        settings = " ".join(f"{name}={str(value).lower()}" for name, value in rung.change(config).items())
        return f"{reason} Try {settings}: {rung.name}. Cost: {rung.cost}."
    output.seek(0)
    lines = output.read().decode(errors="replace").strip().splitlines()[-TAIL:]
    return "\n".join([f"The test steps failed (exit status {code}). Their last output:", *lines])


# ---- the other process -----------------------------------------------------------------------------------------------


def main(project: str, folder: str, begun: str) -> None:
    """Train the trial in `folder` and write events and the result as JSON lines; `begun` is the time of its start."""
    messages = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    # what libraries print goes to stderr, so that stdout carries messages only
    os.dup2(2, 1)
    from lorakit.machine.device import peak_memory_gb
    from lorakit.training.loop import Session

    seen: list[tuple[float, Event | None]] = []
    try:
        session = Session(Run(Project(project), "probe", Path(folder)))
        seen.append((time.time() - float(begun), None))
        for event in (session_events := session.events(threading.Event())):
            seen.append((time.time() - float(begun), event))
            for progress in _progress(event):
                messages.write(json.dumps(dataclasses.asdict(progress)) + "\n")
            if _is_enough(seen, session.config):
                session_events.close()
                break
        device = session.precision.device
        probed = measured(seen, _device_name(), peak_memory_gb(device), _total_memory_gb(device))
        messages.write(json.dumps(dataclasses.asdict(probed)) + "\n")
    except UserError as error:
        messages.write(json.dumps({"refused": str(error)}) + "\n")


def _progress(event: Event) -> Iterator[Progress]:
    if isinstance(event, Progress):
        yield event
        if event.what == "captions" and event.done == event.total:
            yield Progress(what="load", done=0, total=1)
    if isinstance(event, (Started, Stepped)) and event.step <= WARM_UP + TIMED:
        yield Progress(what="steps", done=event.step, total=WARM_UP + TIMED)


def _is_enough(seen: list[tuple[float, Event | None]], config: RunConfig) -> bool:
    """True when everything was timed, or LIMIT has passed since the first step."""
    now, event = seen[-1]
    begun = next((at for at, earlier in seen if isinstance(earlier, Started)), now)
    if isinstance(event, Stepped):
        return event.step > WARM_UP + TIMED or (event.step > WARM_UP and now - begun > LIMIT)
    if isinstance(event, Saved):
        return not config.sample.prompts or now - begun > LIMIT
    return isinstance(event, (Sampled, Finished))


def measured(
    seen: Iterable[tuple[float, Event | None]], device: str, peak_memory_gb: float, total_memory_gb: float
) -> Probed:
    """The result from pairs (seconds since the process started, event); event None: the session has been created."""
    at: dict[str, float] = {}
    steps: list[tuple[float, int]] = []  # (seconds, images)
    before, is_encoding = 0.0, False
    for now, event in seen:
        if event is None:
            at["start"] = at["encode"] = now
        elif isinstance(event, Progress):
            # the first progress comes when libraries and an encoder have been loaded
            if not is_encoding:
                at["start"], is_encoding = now, True
            at["encode"] = now
        elif isinstance(event, Started):
            at["load"] = now
        elif isinstance(event, Stepped):
            steps.append((now - before, round(event.images_per_second * (now - before))))
        elif isinstance(event, (Saved, Sampled)):
            at[type(event).__name__] = now - before
        before = now
    # A run may have fewer steps than the warm-up.
    timed = steps[WARM_UP:] or steps[-1:]
    seconds = sum(second for second, _ in timed)
    phases = {
        "start": at["start"],
        "encode": at["encode"] - at["start"],
        "load": at["load"] - at["encode"],
        "first step": steps[0][0],
    }
    return Probed(
        device=device,
        seconds_per_step=seconds / len(timed),
        images_per_second=sum(count for _, count in timed) / seconds,
        seconds_to_first_step=sum(phases.values()) - phases["encode"],
        seconds_per_save=at.get("Saved"),
        seconds_per_sample=at.get("Sampled"),
        peak_memory_gb=peak_memory_gb,
        total_memory_gb=total_memory_gb,
        phases=phases,
    )


def _total_memory_gb(device: Any) -> float:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 1e9
    memory = host.memory()
    return (memory.total if memory else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / 1e9


if __name__ == "__main__":
    main(*sys.argv[1:])
