"""XY grids: one picture for each pair of checkpoint, strength, prompt or seed, painted with the base loaded once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorakit import export
from lorakit.adapters import Adapter
from lorakit.config import ConfigError, to_dict
from lorakit.contact import labelled
from lorakit.fingerprint import file_digest
from lorakit.hub import fetch
from lorakit.models import family
from lorakit.precision import choose
from lorakit.project import ProjectError, Run, write_json
from lorakit.run import read_config
from lorakit.sample import PaintConfig, paint, store

AXES = ("checkpoint", "strength", "prompt", "seed")
OFF = "off"  # a checkpoint value: the base model alone


@dataclass(frozen=True)
class Axis:
    """What changes along one side of a grid, and its values."""

    name: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if self.name not in AXES:
            raise ConfigError(f"{self.name!r} cannot be an axis; allowed are {', '.join(AXES)}.")
        if not self.values:
            raise ConfigError(f"The axis {self.name} has no values.")

    def label(self, value: Any) -> str:
        """What stands beside the row or above the column."""
        if self.name == "prompt":
            return value
        if self.name == "checkpoint":
            return "LoRA off" if value == OFF else f"step {value}"
        return f"{self.name} {value:g}"


@dataclass(frozen=True)
class Cell:
    """One picture of a grid and everything it depends on."""

    column: int
    row: int
    checkpoint: int | str  # step, or OFF
    strength: float
    prompt: str
    seed: int


@dataclass(frozen=True)
class Painted:
    """A cell is on disk; `done` of `total` are."""

    cell: Cell
    file: Path
    done: int
    total: int


@dataclass(frozen=True)
class Done:
    """The grid is complete: the labelled picture and the record of every cell."""

    picture: Path
    record: Path


def grid(
    run: Run,
    x: Axis,
    y: Axis,
    *,
    prompt: str,
    look: PaintConfig,
    checkpoint: int | str | None = None,
    strength: float = 1.0,
    name: str = "grid",
) -> Iterator[Painted | Done]:
    """Paint a grid of a run's exported LoRA files; yields each cell as it is stored, `Done` at the end.

    `prompt`, `look.seed`, `checkpoint` (the newest when None) and `strength` hold where no axis says otherwise. Cells with
    equal seeds start from equal noise. Cells that are on disk are not painted again, so an interrupted grid goes on.
    Raises ProjectError when a checkpoint's file is missing, LoraFileError when it does not fit.
    """
    if x.name == y.name:
        raise ConfigError(f"Both axes are {x.name}; choose two of {', '.join(AXES)}.")
    steps = run.lora_steps()
    if checkpoint is None:
        checkpoint = steps[-1] if steps else OFF
    cells = _cells(x, y, Cell(0, 0, checkpoint, strength, prompt, look.seed))
    for cell in cells:
        if cell.checkpoint != OFF and cell.checkpoint not in steps:
            raise ProjectError(
                f"Run {run.name!r} has no LoRA file of step {cell.checkpoint}; "
                f"it has {', '.join(map(str, steps)) or 'none'}."
            )
    painter = Painter(run)
    folder = run.grids / name
    files = []
    # painted checkpoint by checkpoint, so that each file is read once; stored by place
    for done, cell in enumerate(sorted(cells, key=lambda c: (str(c.checkpoint), c.strength)), 1):
        file = painter.stored(cell, look, folder / "cells")
        files.append((cell, file))
        yield Painted(cell, file, done, len(cells))
    files.sort(key=lambda item: (item[0].row, item[0].column))
    yield _finish(folder, x, y, look, files, painter.base)


def _cells(x: Axis, y: Axis, plain: Cell) -> list[Cell]:
    return [
        replace(plain, column=column, row=row, **{x.name: x_value, y.name: y_value})
        for row, y_value in enumerate(y.values)
        for column, x_value in enumerate(x.values)
    ]


def _finish(folder: Path, x: Axis, y: Axis, look: PaintConfig, files: list[tuple[Cell, Path]], base: str) -> Done:
    picture, record = folder / "grid.png", folder / "grid.json"
    sheet = labelled(
        [file for _, file in files], [x.label(value) for value in x.values], [y.label(value) for value in y.values]
    )
    store(sheet, picture, {"x": x.name, "y": y.name, **to_dict(look)})
    write_json(
        record,
        {
            "x": {"name": x.name, "values": x.values},
            "y": {"name": y.name, "values": y.values},
            "look": to_dict(look),
            "base": base,
            "cells": [{**vars(cell), "file": file.relative_to(folder).as_posix()} for cell, file in files],
        },
    )
    return Done(picture, record)


class Painter:
    """A run's base model with its adapter, whose weights are exchanged in place."""

    def __init__(self, run: Run):
        self.run, self.config = run, read_config(run)
        self.precision = choose(self.config.loop.precision)
        self.model = family(self.config.model.family).Model(
            self.config.model, fetch(self.config.model.source), self.precision.device, self.precision.dtype
        )
        self.base = Path(self.config.model.source).name
        self._adapter: Adapter | None = None
        self._checkpoint: int | str = OFF
        self._texts: dict[str, dict] = {}

    def stored(self, cell: Cell, look: PaintConfig, folder: Path) -> Path:
        """The cell's file, painted unless it is there: its name is the hash of all that decides the picture."""
        lora = OFF if cell.checkpoint == OFF else file_digest([self.run.lora_file(cell.checkpoint)])
        base = [self.model.fingerprint(part) for part in (self.model.denoiser, *self.model.text_encoders, "vae")]
        strength = 0.0 if cell.checkpoint == OFF else cell.strength
        decides = [
            base,
            lora,
            strength,
            cell.prompt,
            {**to_dict(look), "seed": cell.seed},
            to_dict(self.config.model),
            self.precision.name,
        ]
        file = folder / f"{hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:24]}.png"
        if not file.exists():
            store(self._paint(cell, look), file, {**vars(cell), **to_dict(look), "seed": cell.seed, "base": self.base})
        return file

    def check(self, step: int) -> str:
        """Load a checkpoint's file into the base; returns "matched/all". Raises LoraFileError when it does not fit."""
        adapter = self._with(step)
        return f"{len(adapter.layers)}/{len(adapter.layers)}"

    def _paint(self, cell: Cell, look: PaintConfig):
        import torch

        adapter = self._with(cell.checkpoint)
        adapter.set_strength(0.0 if cell.checkpoint == OFF else cell.strength)
        with torch.no_grad(), self.model.painting():
            return paint(self.model, self._text(cell.prompt), self._text(look.negative_prompt), look, cell.seed)

    def _with(self, checkpoint: int | str) -> Adapter:
        """The adapter with the weights of a checkpoint."""
        if self._adapter is None:
            parts = [self.model.denoiser]
            if self.config.optimizer.text_encoder_lr:
                parts += self.model.text_encoders
            self._adapter = Adapter(self.config.adapter, self.model, parts, self.config.loop.seed)
        if checkpoint not in (OFF, self._checkpoint):
            self._adapter.load(export.weights(self.run.lora_file(checkpoint), self._adapter, self.model))
            self._checkpoint = checkpoint
        return self._adapter

    def _text(self, prompt: str) -> dict:
        """The encoded prompt; remembered while no adapter sits on the text encoder."""
        if self.config.optimizer.text_encoder_lr:
            return self.model.encode_text([prompt])
        if prompt not in self._texts:
            self._texts[prompt] = self.model.encode_text([prompt])
        return self._texts[prompt]
