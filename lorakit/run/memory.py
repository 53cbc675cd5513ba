"""Fitting a run into memory: the settings, and the ladder of what to trade for it, cheapest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorakit.config import Config, Field, Slider, setting
from lorakit.errors import UserError
from lorakit.machine.device import is_out_of_memory, peak_memory_gb
from lorakit.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    import torch

# For reading only: `lorakit.run.config` imports this file, so its class cannot be imported here.
RunConfig = Any
# The upper limit of loop.gradient_accumulation_steps.
MOST_ACCUMULATION = 256


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(Config):
    """Speed traded for memory; the result stays the same bit for bit, so it may change between sessions."""

    gradient_checkpointing: bool = setting(
        False, help="much less VRAM, about a third slower", ui=Field(label="gradient checkpointing")
    )
    offload: float = setting(
        0.0,
        help="share of the UNet / DiT weights kept in CPU memory: less VRAM, slower; 0 = off, 1 = all",
        range=(0, 1),
        ui=Slider(0, 1, 0.05, label="CPU offload (block swap)"),
    )


@dataclass(frozen=True)
class Rung:
    """One step of the ladder.

    name        what it does
    cost        what it costs, in plain words
    change      a run's config -> the settings {part.name: new value} for it; {} when done already or impossible
    """

    name: str
    cost: str
    change: Callable[[RunConfig], dict[str, Any]]


def _caches(config: RunConfig) -> dict[str, Any]:
    return {f"data.{name}": True for name in ("cache_latents", "cache_text") if not getattr(config.data, name)}


def _checkpointing(config: RunConfig) -> dict[str, Any]:
    return {} if config.memory.gradient_checkpointing else {"memory.gradient_checkpointing": True}


def _smaller_batch(config: RunConfig) -> dict[str, Any]:
    size, accumulated = config.loop.batch_size, config.loop.gradient_accumulation_steps
    # The smallest divisor keeps the batch as large as possible, and the images per step unchanged.
    parts = next((number for number in range(2, size + 1) if size % number == 0), None)
    if parts is None or accumulated * parts > MOST_ACCUMULATION:
        return {}
    return {"loop.batch_size": size // parts, "loop.gradient_accumulation_steps": accumulated * parts}


def _eight_bits(config: RunConfig) -> dict[str, Any]:
    smaller = OPTIMIZERS[config.optimizer.name].eight_bit
    return {"optimizer.name": smaller} if smaller else {}


def _offload(share: float) -> Callable[[RunConfig], dict[str, Any]]:
    return lambda config: {"memory.offload": share} if config.memory.offload < share else {}


# From the cheapest to the most expensive. Caches, checkpointing and offload leave the result bit for bit the same.
LADDER = (
    Rung(
        "caches, so that the encoders leave the VRAM",
        "disk space, and the time to encode every image and caption once; steps become faster",
        _caches,
    ),
    Rung(
        "gradient checkpointing",
        "steps about a third slower; the result stays the same",
        _checkpointing,
    ),
    Rung(
        "a smaller batch with more gradient accumulation",
        "same images per step, but slower; other noise is drawn, so the result differs as with another seed",
        _smaller_batch,
    ),
    Rung(
        "CPU offload of half of the weights",
        "half of the UNet / DiT is copied to the GPU two or three times per step; the result stays the same",
        _offload(0.5),
    ),
    Rung(
        "CPU offload of all weights",
        "the whole UNet / DiT is copied to the GPU two or three times per step; the result stays the same",
        _offload(1.0),
    ),
    Rung(
        "8-bit optimizer",
        "rounded optimizer state and another package to install; saves little: 6 bytes per trained parameter",
        _eight_bits,
    ),
)


def next_rung(config: RunConfig, *, keeps_run: bool = False) -> Rung | None:
    """The cheapest rung that a run's settings have not taken yet, None when all are taken.

    keeps_run   only rungs that a run which has trained can take, as they change free parts (`memory`) alone
    """
    for rung in LADDER:
        changes = rung.change(config)
        if changes and (_is_free(changes) or not keeps_run):
            return rung
    return None


def _is_free(settings: dict[str, Any]) -> bool:
    return all(name.startswith("memory.") for name in settings)


class OutOfMemory(UserError):
    """GPU or CPU memory ran out; the message lists what to do, cheapest first."""


@contextmanager
def explained(config: RunConfig, device: torch.device, doing: str, *, otherwise: str = "") -> Iterator[None]:
    """Turn running out of GPU or CPU memory within this context into OutOfMemory.

    doing       what was happening, e.g. "in step 2"
    otherwise   a sentence with another remedy; the message then lists only rungs that keep the run
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # other RuntimeErrors are not ours to explain
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(_remedies(config, device, doing, otherwise)) from error


def _remedies(config: RunConfig, device: torch.device, doing: str, otherwise: str) -> str:
    import torch

    used = f"{peak_memory_gb(device):.1f} GB"
    if device.type == "cuda":
        used += f" of the GPU's {torch.cuda.get_device_properties(device).total_memory / 1e9:.1f} GB"
    lines = [f"Out of memory {doing}: {used} were in use at most. The last training state is kept."]
    # The next rung of all, and the next one that this very run can take; often the same.
    rungs = [next_rung(config, keeps_run=bool(otherwise)), next_rung(config, keeps_run=True)]
    for rung in dict.fromkeys(rung for rung in rungs if rung):
        changes = rung.change(config)
        action = "Continue this run" if _is_free(changes) else "Start a new run"
        settings = " ".join(f"{name}={str(value).lower()}" for name, value in changes.items())
        lines.append(f"{action} with {settings}: {rung.name}. Cost: {rung.cost}.")
    if not any(rungs):
        lines.append(
            "All memory savings are on already: close other programs that use this memory, start a new run with a "
            "smaller data.resolution or adapter.rank, or use a GPU with more memory."
        )
    return "\n".join([*lines, otherwise] if otherwise else lines)
