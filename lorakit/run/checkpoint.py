"""Training states on disk: written atomically, verified when read, the newest valid one is resumed."""

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
from lorakit.files.disk import disk_errors, read_json
from lorakit.models.files.marks import key_layouts
from lorakit.project import Run

if TYPE_CHECKING:
    import torch

STATE = "state.pt"
# Written last: step, size and SHA-256 of the state, and a copy of the record of the run's inputs.
COMPLETE = "COMPLETE.json"


@dataclass(frozen=True, kw_only=True)
class SaveConfig(Config):
    """When to save LoRA files and training states; the result of the training does not depend on it."""

    every_epochs: int = setting(
        1,
        help="save a LoRA file every N epochs; 0 = off",
        unit="epochs",
        range=(0, None),
        ui=Field(label="save LoRA every"),
    )
    every_steps: int = setting(
        0,
        help="save a LoRA file every N steps; 0 = off",
        unit="steps",
        range=(0, None),
        ui=Field(label="save LoRA every"),
    )
    every_minutes: float = setting(
        10.0,
        help="save the training state, from which a run resumes, this often; 0 = only with LoRA files",
        unit="min",
        range=(0, None),
        ui=Field(label="save training state every"),
    )
    keep_states: int = setting(
        2, help="older training states are deleted", range=(2, 100), ui=Field(label="training states kept")
    )
    dtype: str = setting(
        "fp16",
        help="fp16 is what most tools expect; fp32 doubles the file",
        choices=("fp16", "bf16", "fp32"),
        ui=Field(label="LoRA file precision"),
    )
    key_layout: str = setting(
        "auto",
        help="key names of saved LoRA files; kohya: A1111/Forge, ComfyUI and sd-scripts read it, diffusers too, except "
        "for Anima, where it loads nothing and gives no error; comfy (Anima): ComfyUI and diffusers read it, "
        "sd-scripts loads nothing; auto = comfy for Anima, else kohya",
        choices=lambda: ("auto", *key_layouts()),
        ui=Field(label="LoRA file format"),
    )
    author: str = setting("", help="your name or page, in the LoRA file; empty = none", ui=Field(label="author"))
    description: str = setting(
        "", help="what the LoRA is for, in the LoRA file; sites and programs show it", ui=Field(label="description")
    )
    license: str = setting("", help="its licence or a link to it, in the LoRA file", ui=Field(label="licence"))
    tags: str = setting(
        "", help="words to find it by, separated by commas, in the LoRA file", ui=Field(label="tags of the file")
    )
    usage_hint: str = setting(
        "", help="a short hint in the LoRA file, e.g. strength 0.8, clip skip 2", ui=Field(label="usage hint")
    )
    thumbnail: bool = setting(
        False, help="put a small copy of the newest sample image into the LoRA file", ui=Field(label="thumbnail")
    )
    dataset_details: bool = setting(
        True,
        help="write tag counts and names of concept folders into the LoRA file; off for private datasets",
        ui=Field(label="dataset details"),
    )


@dataclass(frozen=True)
class SavedState:
    """The newest valid training state: its folder (None: there is none), and why newer ones were skipped."""

    folder: Path | None
    problems: tuple[str, ...]

    @property
    def step(self) -> int:
        """Number of trained steps; 0 without a state."""
        return int(self.folder.name) if self.folder else 0

    @property
    def state(self) -> dict[str, Any] | None:
        """The state itself, by part; read from disk, onto the CPU, at each access."""
        import torch

        if self.folder is None:
            return None
        # weights_only: a state may come from someone else's disk, and a pickle could run code.
        return torch.load(self.folder / STATE, map_location="cpu", weights_only=True)

    @property
    def record(self) -> dict[str, Any]:
        """The copy of the run's record; {} without a state, and beside one that an older version wrote."""
        return read_json(self.folder / COMPLETE).get("record", {}) if self.folder else {}


class NoState(UserError):
    """A run has saved training states, but none of them is valid, so it cannot be resumed."""


class NotFinite(UserError):
    """A training state contains NaN or infinity, so it is not written."""


def write(states: Path, step: int, state: dict[str, Any], keep: int, record: dict[str, Any] | None = None) -> Path:
    """Save the training state of a step and delete all but the newest `keep`; returns its folder.

    `record`: what the run is made of (`lorakit.run.resume`), of which a copy is kept beside the state.
    A kill at any moment leaves the earlier states intact. Raises NotFinite, and writes nothing, for NaN or infinity.
    """
    import torch

    broken = [name for name, tensor in _tensors(state) if not torch.isfinite(tensor).all()]
    if broken:
        raise NotFinite(
            f"The training state of step {step} was not saved: {len(broken)} tensors contain NaN or infinity, "
            f"the first is {broken[0]}. Earlier states are kept. The learning rate is probably too high: start a new "
            "run with a lower one."
        )
    # Order matters: write to a hidden folder, flush to disk, rename, and only then mark it as complete.
    # Renaming on one file system is atomic, so no reader ever sees half a state under its final name.
    folder, part = states / f"{step:08d}", states / f".{step:08d}.part"
    shutil.rmtree(part, ignore_errors=True)
    with disk_errors(folder):
        part.mkdir(parents=True)
    with disk_errors(folder / STATE), open(part / STATE, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    digest, size = _digest(part / STATE), (part / STATE).stat().st_size
    # The folder exists when a resumed run reaches this step again, or when a save was killed before its mark.
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    mark = {"step": step, "sha256": digest, "bytes": size}
    write_json(folder / COMPLETE, mark | ({"record": record, "record_sha256": _sum(record)} if record else {}))
    # Damaged states do not count towards `keep`; .part folders are left by saves that were killed.
    valid = [other for other in _folders(states) if other == folder or _problem(other) is None]
    for old in {*_folders(states), *states.glob(".*.part")} - set(valid[:keep]):
        shutil.rmtree(old)
    return folder


def newest(states: Path) -> SavedState:
    """The newest valid training state, with a sentence for every newer one that is not."""
    problems: list[str] = []
    for folder in _folders(states):
        problem = _problem(folder)
        if problem is None:
            return SavedState(folder, tuple(problems))
        problems.append(f"The training state of step {int(folder.name)} is skipped: {problem}.")
    return SavedState(None, tuple(problems))


def saved_step(run: Run) -> int:
    """The last step that a run has saved, according to its log and folders; the states are not verified."""
    # Both count: a state may have been deleted, and a kill may come between a state and its log line.
    logged = (event.step for _, event in events.read(run.log) if isinstance(event, events.Saved))
    return max([0, *logged, *(int(folder.name) for folder in _folders(run.states) if (folder / COMPLETE).exists())])


def latest_state(run: Run) -> SavedState:
    """The newest valid training state, or none if nothing was saved.

    Raises NoState if something was saved and none is valid: starting over silently would not be resuming.
    """
    latest = newest(run.states)
    if latest.folder is None and (saved := saved_step(run)):
        reasons = latest.problems or (f"{run.states} contains no state.",)
        loras = run.lora_steps()
        newest_lora = run.lora_file(loras[-1]) if loras else "FILE"
        raise NoState(
            "\n".join(
                [
                    f"Run {run.name!r} was saved up to step {saved}, but has no valid training state, so it cannot be "
                    "resumed. It is not restarted from step 0 either.",
                    *(f"  {reason}" for reason in reasons),
                    f"Copy a state back into {run.states} and train again. Or start a new run from these weights: "
                    f"lorakit train {run.project.folder} --run NAME --from-weights {newest_lora}.",
                ]
            )
        )
    return latest


def _tensors(data: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """(path, tensor) of every tensor in nested dicts and lists."""
    import torch

    if isinstance(data, torch.Tensor):
        yield path, data
    elif isinstance(data, (dict, list)):
        for name, item in data.items() if isinstance(data, dict) else enumerate(data):
            yield from _tensors(item, f"{path}.{name}".lstrip("."))


def _folders(states: Path) -> list[Path]:
    """Folders of all states, valid or not, the newest first."""
    # Names are steps with leading zeros, so sorting by name sorts by step; hidden `.part` folders do not match.
    return sorted((p for p in states.glob("[0-9]*") if p.is_dir()), reverse=True)


def _problem(folder: Path) -> str | None:
    """Why a state cannot be used, or None for a valid one."""
    if not (folder / COMPLETE).exists():
        return f"{COMPLETE} is missing, so saving it was interrupted"
    try:
        mark = read_json(folder / COMPLETE)
        size, digest = mark["bytes"], mark["sha256"]
        if mark.get("record_sha256", "") != (_sum(mark["record"]) if "record" in mark else ""):
            return f"{COMPLETE} is damaged"
    except (ValueError, LookupError, FileNotFoundError):
        return f"{COMPLETE} is damaged"
    if not (folder / STATE).is_file():
        return f"{STATE} is missing"
    if (folder / STATE).stat().st_size != size:
        return f"{STATE} has {(folder / STATE).stat().st_size} bytes instead of {size}"
    if _digest(folder / STATE) != digest:
        return f"{STATE} is damaged (its SHA-256 differs)"
    return None


def _sum(record: dict[str, Any]) -> str:
    """The SHA-256 of a record, as JSON with sorted names."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _digest(file: Path) -> str:
    with disk_errors(file), open(file, "rb") as opened:
        digest = hashlib.sha256()
        # By the megabyte: states of large models do not fit into memory twice.
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
