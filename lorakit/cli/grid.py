"""`lorakit grid`: an XY grid of a run's LoRA files, in a terminal."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lorakit.cli.options import SET, project_at, run_options, with_changes

if TYPE_CHECKING:
    from lorakit.generation.grid import Axis
    from lorakit.project import Run


def add(add_verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `grid` to the verbs of `lorakit`."""
    verb = add_verb(grid, "an XY grid of a run's LoRA files", run_options())
    verb.add_argument(
        "--x",
        default="checkpoint",
        metavar="AXIS[=VALUES]",
        help="checkpoint (all, with the LoRA off first), strength=0.6,0.8,1, seed=1,2, prompt='one | two'",
    )
    verb.add_argument("--y", default="strength=0.6,0.8,1", metavar="AXIS[=VALUES]", help="as --x")
    verb.add_argument(
        "--prompt",
        help="used where no axis is prompt, with weights and kohya's flags, e.g. 'a (hat:1.2) --w 832' (default: the "
        "first sample prompt, or the trigger)",
    )
    verb.add_argument("--name", default="grid", help="folder of the grid inside the run (default: grid)")
    verb.add_argument("--set", **SET, help="a sampling setting, e.g. steps=30")


def grid(options: argparse.Namespace) -> int:
    """Generate the images of a grid and print its files."""
    from lorakit.config import from_dict, to_dict
    from lorakit.data.listing import Note
    from lorakit.diffusion.prompts import escaped
    from lorakit.generation import grid as grids
    from lorakit.run.config import read_config
    from lorakit.run.sampling import SamplingConfig

    run = project_at(options.project).run(options.run)
    config = read_config(run)
    # A run's sample settings also say when to sample; a grid has no use for those.
    names = SamplingConfig.__dataclass_fields__
    sampling = {name: value for name, value in to_dict(config.sample).items() if name in names}
    for event in grids.grid(
        run,
        _axis(options.x, run),
        _axis(options.y, run),
        # A run may have no sample prompts.
        prompt=options.prompt or next(iter(config.sample.prompts), escaped(config.data.trigger)),
        name=options.name,
        sampling=from_dict(SamplingConfig, with_changes(sampling, options.set)),
    ):
        if isinstance(event, grids.Done):
            print(f"grid {event.image}\nrecord {event.record}", flush=True)
        elif isinstance(event, Note):
            print(f"! {event}", flush=True)
        else:
            print(f"image {event.done} of {event.total}", flush=True)
    return 0


def _axis(text: str, run: Run) -> Axis:
    """The axis that `NAME=VALUES` describes. Raises ConfigError for values of the wrong type."""
    from lorakit.config import ConfigError
    from lorakit.generation.generator import OFF
    from lorakit.generation.grid import Axis

    name, _, values = text.partition("=")
    if name == "checkpoint" and not values:
        return Axis(name, (OFF, *run.lora_steps()))
    # Prompts have commas of their own.
    items = [item.strip() for item in values.split("|" if name == "prompt" else ",") if item.strip()]
    types: dict[str, Callable[[str], Any]] = {
        "checkpoint": lambda item: item if item == OFF else int(item),
        "strength": float,
        "seed": int,
        "prompt": str,
    }
    try:
        # Axis itself refuses other names.
        parsed = tuple(types[name](item) for item in items) if name in types else tuple(items)
    except ValueError:
        raise ConfigError(f"{text} is not an axis: {name} needs numbers, e.g. {name}=1,2.") from None
    return Axis(name, parsed)
