"""XY grids: one image for each combination of two of checkpoint, strength, prompt and seed; the base is loaded once."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

from lorakit.config import ConfigError, to_dict
from lorakit.data.images import ImageError, decoded, header
from lorakit.data.listing import Note
from lorakit.diffusion.prompts import Prompt, parse
from lorakit.files import write_json
from lorakit.generation.contact_sheet import labelled
from lorakit.generation.generator import OFF, Generator, lora_file
from lorakit.hub.fingerprint import file_digest
from lorakit.hub.header import verify_safetensors
from lorakit.project import RUN_NAME, ProjectError, Run
from lorakit.run.config import read_config
from lorakit.run.sampling import SamplingConfig, prompt_notes, prompts_of, requested, sampling_problems, save_image

# name -> what its values are, and a check of one
AXES = {
    "checkpoint": (f"steps or {OFF!r}", lambda value: value == OFF or isinstance(value, int)),
    "strength": ("numbers", lambda value: isinstance(value, (int, float)) and math.isfinite(value)),
    "prompt": ("texts", lambda value: isinstance(value, str)),
    "seed": ("whole numbers from 0 to 4294967295", lambda value: isinstance(value, int) and 0 <= value < 2**32),
}


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
        kind, check = AXES[self.name]
        for value in self.values:
            if not check(value):
                raise ConfigError(f"{value!r} cannot be a value of the axis {self.name}, which takes {kind}.")

    def label(self, value: Any) -> str:
        """The label beside a row or above a column."""
        if self.name == "prompt":
            return value
        if self.name == "checkpoint":
            return "LoRA off" if value == OFF else f"step {value}"
        return f"strength {value:g}" if self.name == "strength" else f"seed {value}"


@dataclass(frozen=True)
class Cell:
    """One image of a grid and everything it depends on."""

    column: int
    row: int
    # step, or OFF
    checkpoint: int | str
    strength: float
    prompt: str
    seed: int


@dataclass(frozen=True)
class Rendered:
    """A cell is on disk; `done` of `total` are."""

    cell: Cell
    file: Path
    done: int
    total: int


@dataclass(frozen=True)
class Done:
    """The grid is complete: the labelled image and the record of every cell."""

    image: Path
    record: Path


def grid(
    run: Run,
    x: Axis,
    y: Axis,
    *,
    prompt: str,
    sampling: SamplingConfig,
    checkpoint: int | str | None = None,
    strength: float = 1.0,
    name: str = "grid",
) -> Iterator[Note | Rendered | Done]:
    """Generate a grid with a run's LoRA files; yields each cell as it is stored, `Done` at the end.

    Prompts may have weights and kohya's flags; first a Note comes on everything in them that is not done as it says.

    `prompt`, `sampling.seed`, `checkpoint` (the newest when None) and `strength` hold where no axis sets them.
    Cells with equal seeds start from equal noise. Cells that are on disk are not generated again, so an interrupted
    grid resumes. Raises ProjectError when a checkpoint's file is missing, ModelFileError when it is damaged, and
    LoraFileError when it does not fit.

    >>> small = SamplingConfig(width=128, height=128, steps=2)
    >>> strengths = Axis("strength", (0.0, 1.0))
    >>> cells = grid(open_run("my-project"), Axis("seed", (1,)), strengths, prompt="mofurin", sampling=small)
    >>> [type(each).__name__ for each in cells]
    ['Rendered', 'Rendered', 'Done']
    """
    if x.name == y.name:
        raise ConfigError(f"Both axes are {x.name}; choose two of {', '.join(AXES)}.")
    if not re.fullmatch(RUN_NAME, name):
        raise ProjectError(f"{name!r} cannot be a grid's name: use up to 64 letters, digits, '-', '_' and '.'.")
    # a SampleConfig has more fields (prompts, every_epochs), on which no image depends
    sampling = SamplingConfig(**{f.name: getattr(sampling, f.name) for f in fields(SamplingConfig)})
    if problems := sampling_problems(sampling, read_config(run).model):
        raise ConfigError("\n".join(problems))
    steps = run.lora_steps()
    if checkpoint is None:
        checkpoint = steps[-1] if steps else OFF
    cells = _cells(x, y, Cell(0, 0, checkpoint, strength, prompt, sampling.seed))
    family = read_config(run).model
    if "seed" not in (x.name, y.name):
        cells = [replace(cell, seed=requested(parse(cell.prompt), sampling, family)[0].seed) for cell in cells]
    texts = list(dict.fromkeys(cell.prompt for cell in cells))
    for text, note in prompt_notes(texts, sampling, family):
        yield Note("prompt", shorten(text, 60), note)
    # a missing or damaged LoRA file is reported before the base model is loaded and any file is hashed
    for step in dict.fromkeys(cell.checkpoint for cell in cells if cell.checkpoint != OFF):
        verify_safetensors(lora_file(run, step))
    generator = Generator(run)
    folder = run.grids / name
    # the text encoders are not loaded for a grid that is complete already
    if not all(_is_whole(_file(generator, cell, sampling, folder / "cells")) for cell in cells):
        generator.read(prompts_of(texts, sampling, family))
    files = []
    # checkpoint by checkpoint, so that each LoRA file is read once; put in reading order below
    for done, cell in enumerate(sorted(cells, key=_order), 1):
        file = _stored(generator, cell, sampling, folder / "cells")
        files.append((cell, file))
        yield Rendered(cell, file, done, len(cells))
    files.sort(key=lambda item: (item[0].row, item[0].column))
    yield _finish(folder, x, y, sampling, files, generator.base)


def _order(cell: Cell) -> tuple[int, float]:
    # OFF first; strings and numbers do not compare.
    return -1 if cell.checkpoint == OFF else cell.checkpoint, cell.strength


def _cells(x: Axis, y: Axis, plain: Cell) -> list[Cell]:
    return [
        replace(plain, column=column, row=row, **{x.name: x_value, y.name: y_value})
        for row, y_value in enumerate(y.values)
        for column, x_value in enumerate(x.values)
    ]


def _finish(
    folder: Path, x: Axis, y: Axis, sampling: SamplingConfig, files: list[tuple[Cell, Path]], base: str
) -> Done:
    sheet_file, record = folder / "grid.png", folder / "grid.json"
    sheet = labelled(
        [file for _, file in files], [x.label(value) for value in x.values], [y.label(value) for value in y.values]
    )
    save_image(sheet, sheet_file, {"x": x.name, "y": y.name, **to_dict(sampling)})
    write_json(
        record,
        {
            "x": {"name": x.name, "values": x.values},
            "y": {"name": y.name, "values": y.values},
            "sampling": to_dict(sampling),
            "base": base,
            "cells": [{**vars(cell), "file": file.relative_to(folder).as_posix()} for cell, file in files],
        },
    )
    return Done(sheet_file, record)


def _file(generator: Generator, cell: Cell, sampling: SamplingConfig, folder: Path) -> Path:
    """Where a cell's image is stored: its name is the hash of all that it depends on."""
    lora = OFF if cell.checkpoint == OFF else file_digest([generator.run.lora_file(cell.checkpoint)])
    # without a LoRA all strengths give the same image, which is generated once
    strength = 0.0 if cell.checkpoint == OFF else cell.strength
    # The column, row and labels are not part of it: other grids reuse the image.
    prompt, sampling = _request(generator, cell, sampling)
    negative = parse(sampling.negative_prompt)
    inputs = [generator.fingerprint(), lora, strength, prompt.text, to_dict(sampling)]
    # of plain prompts nothing else, as images of earlier versions, which read brackets as letters, have such names
    if not prompt.is_plain or negative.key != (sampling.negative_prompt,):
        inputs += [prompt.key, negative.key]
    return folder / f"{hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:24]}.png"


def _is_whole(file: Path) -> bool:
    """Whether an image is there and can be read to its end."""
    try:
        decoded(header(file))
    except ImageError:
        return False
    return True


def _request(generator: Generator, cell: Cell, sampling: SamplingConfig) -> tuple[Prompt, SamplingConfig]:
    """A cell's prompt, and the sampling settings with the prompt's flags and the cell's seed."""
    prompt = parse(cell.prompt)
    return prompt, replace(requested(prompt, sampling, generator.config.model)[0], seed=cell.seed)


def _stored(generator: Generator, cell: Cell, sampling: SamplingConfig, folder: Path) -> Path:
    """The cell's file; its image is generated unless it is there."""
    file = _file(generator, cell, sampling, folder)
    if not _is_whole(file):
        generator.use(cell.checkpoint, cell.strength)
        prompt, sampling = _request(generator, cell, sampling)
        image = generator.generate(prompt, sampling)
        save_image(image, file, {**vars(cell), **to_dict(sampling), "base": generator.base})
    return file
