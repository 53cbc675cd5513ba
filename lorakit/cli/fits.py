"""`lorakit fits`: how much VRAM a run needs on each rung of the memory ladder, and what fits, in a terminal."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.cli.options import SET, default_settings, existing_run, with_changes

if TYPE_CHECKING:
    from lorakit.machine.gpu import Gpu
    from lorakit.project import Run
    from lorakit.run.fits import Fit

NOTE = "GB of VRAM, computed from the model's shapes and not measured on a GPU; about 1 GB for CUDA itself is included."
USUAL = "The base model is not on this machine: the sizes are those of the family's usual one."


def add(add_verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the verb to those of `lorakit`."""
    verb = add_verb(
        fits,
        "compute how much VRAM a run needs for caching, training and sampling; needs no GPU, no download, no images",
    )
    verb.add_argument("project", type=Path, nargs="?", help="project folder; without it only settings are used")
    verb.add_argument("--run", default="run1", metavar="NAME", help="name of the project's run (default: run1)")
    verb.add_argument("--config", type=Path, metavar="FILE", help="YAML file with settings, instead of a project")
    verb.add_argument("--set", **SET, help="one setting, e.g. model.family=sdxl or loop.batch_size=4")
    verb.add_argument("--gpu-preset", default="", metavar="MEMORY", help="settings that fit a GPU, e.g. '8 GB'")
    verb.add_argument("--vram", type=float, metavar="GB", help="VRAM of the GPU (default: that of this machine's)")
    verb.add_argument(
        "--capability",
        type=_capability,
        metavar="X.Y",
        help="its compute capability, which decides precision and attention: 7.5 for a T4 or an RTX 20 (default: that "
        "of this machine's GPU, or 8.0)",
    )


def fits(options: argparse.Namespace) -> int:
    """Print a line for each rung, and which is the first that fits; 1 when none does."""
    from lorakit.machine.gpu import Gpu, at_hand
    from lorakit.run.config import configure
    from lorakit.run.fits import descend, first_that_fits

    config, gpu = configure(_settings(options), options.gpu_preset), at_hand()
    capability = options.capability or (gpu.capability if gpu and options.vram is None else (8, 0))
    if options.vram is not None:
        gpu = Gpu("A GPU", round(options.vram * 1e9), capability)
    rungs = []
    for fit in descend(config, capability):
        if not rungs:
            print(_head(fit))
        rungs.append(fit)
        print(_row(fit, gpu.memory if gpu else 0), flush=True)
    if gpu is None:
        print("There is no GPU here: --vram 12 shows what fits one with 12 GB.")
        return 0
    as_set, first = first_that_fits(rungs, gpu.memory)
    print(_verdict(as_set, first, gpu))
    return int(first is None)


def before_start(run: Run) -> str:
    """A line about what a run needs and whether it fits; "" without a GPU, and for a run that has trained."""
    from lorakit.machine.gpu import at_hand
    from lorakit.run.config import read_config
    from lorakit.run.fits import descend, first_that_fits

    gpu = at_hand()
    if gpu is None or run.record_file.exists():
        return ""
    as_set, first = first_that_fits(descend(read_config(run), gpu.capability), gpu.memory)
    need = as_set.need
    figures = {"caching": need.caching, "training": need.training, "sampling": need.tiled}
    phases = ", ".join(f"{phase} {bytes / 1e9:.1f}" for phase, bytes in figures.items() if bytes)
    return f"VRAM needed (computed, not measured): {phases} GB. {_verdict(as_set, first, gpu)}"


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    from lorakit.config import read_yaml
    from lorakit.run.config import settings_of

    if options.config:
        settings = read_yaml(options.config)
    elif options.project:
        settings = settings_of(existing_run(options), options.gpu_preset)
    else:
        # sizes follow from the family; a prompt, so that sampling is counted, too
        settings = {"model": {**default_settings()["model"], "source": "none"}, "sample": {"prompts": ["1girl"]}}
    return with_changes(settings, options.set)


def _capability(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor or 0)


# ---- lines -----------------------------------------------------------------------------------------------------------


def _head(fit: Fit) -> str:
    config = fit.config
    first = f"{config.model.family}, {config.data.resolution} px, rank {config.adapter.rank}, {fit.precision}"
    notes = [NOTE, USUAL] if fit.is_usual else [NOTE]
    columns = ("caching", "training", "sampling", "in tiles", "needed")
    return "\n".join([first, *notes, f"{'':50}" + "".join(f"{column:>10}" for column in columns)])


def _row(fit: Fit, memory: int) -> str:
    from lorakit.run.fits import ROOM

    need = fit.need
    figures = (need.caching, need.training, need.sampling, need.tiled, need.least)
    name = f"+ {fit.rung.name}" if fit.rung else f"as set (batch size {fit.config.loop.batch_size})"
    mark = ""
    if need.least <= memory:
        mark = "  fits" if need.least <= ROOM * memory else "  barely fits"
    return f"{name:50}" + "".join(f"{bytes / 1e9:10.1f}" if bytes else f"{'-':>10}" for bytes in figures) + mark


def _verdict(as_set: Fit, first: Fit | None, gpu: Gpu) -> str:
    where = f"{gpu.name}, {gpu.memory / 1e9:.1f} GB"
    if first is None:
        return f"{where}: nothing fits; take a smaller data.resolution, or a GPU with more memory."
    if first is as_set:
        return f"{where}: it fits as set."
    changes = " ".join(f"--set {name}={str(value).lower()}" for name, value in first.changes.items())
    return f"{where}: it fits with {changes}"
