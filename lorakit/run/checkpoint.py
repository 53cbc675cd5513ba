"""A run's state on disk: whole or not there, verified when read, the newest valid one first."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit import events
from lorakit.config import Config, Field, setting
from lorakit.errors import UserError
from lorakit.files import write_json
from lorakit.models.files.marks import forms
from lorakit.project import Run

if TYPE_CHECKING:
    import torch

STATE, COMPLETE = "state.pt", "COMPLETE.json"


@dataclass(frozen=True, kw_only=True)
class SaveConfig(Config):
    """When and what to save; none of it changes the result."""

    every_epochs: int = setting(
        1,
        help="export a LoRA file after every so many epochs; 0: not by epochs",
        unit="epochs",
        range=(0, None),
        ui=Field(label="LoRA file every"),
    )
    every_steps: int = setting(
        0,
        help="export a LoRA file after every so many steps; 0: not by steps",
        unit="steps",
        range=(0, None),
        ui=Field(label="LoRA file every"),
    )
    every_minutes: float = setting(
        10.0,
        help="save the state for resuming at least this often; 0: only with exports",
        unit="min",
        range=(0, None),
        ui=Field(label="state every"),
    )
    keep_states: int = setting(
        2, help="states kept for resuming; the older ones are removed", range=(2, 100), ui=Field(label="states kept")
    )
    dtype: str = setting(
        "fp16", help="precision of exported files", choices=("fp16", "bf16", "fp32"), ui=Field(label="file precision")
    )
    form: str = setting(
        "auto",
        help="form of exported files; auto: what all hosts read",
        choices=lambda: ("auto", *forms()),
        ui=Field(label="file form"),
    )


@dataclass(frozen=True)
class Found:
    """What `newest` found: the folder of a whole state (None: there is none) and why newer ones were passed over."""

    folder: Path | None
    problems: tuple[str, ...]

    @property
    def step(self) -> int:
        """How many steps are behind it; 0 without a state."""
        return int(self.folder.name) if self.folder else 0

    @property
    def state(self) -> dict[str, Any] | None:
        """The state itself, read from disk on the CPU each time it is asked for."""
        import torch

        return torch.load(self.folder / STATE, map_location="cpu", weights_only=True) if self.folder else None


class NoState(UserError):
    """A run that has saved states cannot be resumed, as none of them is whole."""


class NotFinite(UserError):
    """A state holds a NaN or infinity, so it is not written."""


def write(states: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Save `state` as that of `step`: written aside, flushed, renamed, marked complete last; then old ones removed.

    A kill at any moment leaves the states before intact. Raises NotFinite, and writes nothing, for a NaN or infinity.
    """
    import torch

    broken = [name for name, tensor in _tensors(state) if not torch.isfinite(tensor).all()]
    if broken:
        raise NotFinite(
            f"The state of step {step} was not saved: {len(broken)} tensors are not finite, the first is {broken[0]}. "
            "The states before are kept; the learning rate is probably too high, start a new run with a lower one."
        )
    folder, aside = states / f"{step:08d}", states / f".{step:08d}.part"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    with open(aside / STATE, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    digest, size = _digest(aside / STATE), (aside / STATE).stat().st_size
    shutil.rmtree(folder, ignore_errors=True)  # an incomplete one of this step, or the same state again
    os.replace(aside, folder)
    write_json(folder / COMPLETE, {"step": step, "sha256": digest, "bytes": size})
    whole = [found for found in _folders(states) if found == folder or _problem(found) is None]
    for old in {*_folders(states), *states.glob(".*.part")} - set(whole[:keep]):  # .part: of saves that were killed
        shutil.rmtree(old)
    return folder


def newest(states: Path) -> Found:
    """The newest state that is whole, with a sentence for every newer one that is not."""
    problems: list[str] = []
    for folder in _folders(states):
        problem = _problem(folder)
        if problem is None:
            return Found(folder, tuple(problems))
        problems.append(f"The state of step {int(folder.name)} is passed over: {problem}.")
    return Found(None, tuple(problems))


def saved_step(run: Run) -> int:
    """The last step that a run has saved, by its log and its folders; whether the state is whole is not looked at."""
    logged = (event.step for _, event in events.read(run.log) if isinstance(event, events.Saved))
    return max([0, *logged, *(int(folder.name) for folder in _folders(run.states) if (folder / COMPLETE).exists())])


def latest_state(run: Run) -> Found:
    """The state that a run goes on from, or none when it has not saved any.

    Raises NoState when it has, and none is whole: to begin again would not be to resume.
    """
    found = newest(run.states)
    if found.folder is None and (saved := saved_step(run)):
        told = "".join(f"\n  {problem}" for problem in found.problems) or f"\n  {run.states} holds none."
        loras = run.lora_steps()
        newest_lora = run.lora_file(loras[-1]) if loras else "FILE"
        raise NoState(
            f"Run {run.name!r} has saved up to step {saved}, but no state of it is whole, so it cannot be resumed, "
            f"and it does not begin again by itself.{told}\nPut back a state from a copy of {run.states}, then train "
            f"again. Or start a new run from these weights: lorakit train {run.project.folder} --run NAME "
            f"--from-weights {newest_lora}."
        )
    return found


def _tensors(data: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """(path, tensor) of every tensor in nested dicts and lists."""
    import torch

    if isinstance(data, torch.Tensor):
        yield path, data
    elif isinstance(data, (dict, list)):
        for name, item in data.items() if isinstance(data, dict) else enumerate(data):
            yield from _tensors(item, f"{path}.{name}".lstrip("."))


def _folders(states: Path) -> list[Path]:
    return sorted((p for p in states.glob("[0-9]*") if p.is_dir()), reverse=True)


def _problem(folder: Path) -> str | None:
    """Why a state cannot be used, or None."""
    if not (folder / COMPLETE).exists():
        return f"{COMPLETE} is missing, so it was not written to the end"
    try:
        mark = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
        size, digest = mark["bytes"], mark["sha256"]
    except (ValueError, KeyError, TypeError):
        return f"{COMPLETE} is damaged"
    if not (folder / STATE).exists():
        return f"{STATE} is missing"
    if (folder / STATE).stat().st_size != size:
        return f"{STATE} has {(folder / STATE).stat().st_size} bytes instead of {size}"
    if _digest(folder / STATE) != digest:
        return f"{STATE} is damaged (its SHA-256 differs)"
    return None


def _digest(file: Path) -> str:
    with open(file, "rb") as opened:
        digest = hashlib.sha256()
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
