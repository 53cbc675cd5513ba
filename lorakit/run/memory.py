"""How a run is made to fit into memory: the settings, and the ladder of what to give up for it, cheapest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorakit.config import Config, Slider, setting
from lorakit.errors import UserError
from lorakit.machine.device import peak_memory_gb
from lorakit.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    import torch

RunConfig = Any  # of `lorakit.run.config`, which imports this file
ACCUMULATION = 256  # most that loop.gradient_accumulation_steps allows
TOLD = ("DefaultCPUAllocator", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")  # by errors of no class of their own


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(Config):
    """What is given for memory; it changes no bit of the result, so it may change between sittings."""

    gradient_checkpointing: bool = setting(False, help="less memory, about a third slower")
    offload: float = setting(
        0.0,
        help="share of the denoiser's weights that stays in the computer's memory and is copied to the GPU whenever it "
        "is used: less GPU memory, slower; 0 none, 1 all",
        range=(0, 1),
        ui=Slider(0, 1, 0.05, label="weights kept on the host"),
    )


@dataclass(frozen=True)
class Rung:
    """One step of the ladder.

    name        what is done
    price       what it costs, in plain words
    change      a run's config -> the settings {part.name: new value} that do it; none when it is done already
                or cannot be
    """

    name: str
    price: str
    change: Callable[[RunConfig], dict[str, Any]]


def _caches(config: RunConfig) -> dict[str, Any]:
    return {f"data.{name}": True for name in ("cache_latents", "cache_text") if not getattr(config.data, name)}


def _checkpointing(config: RunConfig) -> dict[str, Any]:
    return {} if config.memory.gradient_checkpointing else {"memory.gradient_checkpointing": True}


def _smaller_batch(config: RunConfig) -> dict[str, Any]:
    size, accumulated = config.loop.batch_size, config.loop.gradient_accumulation_steps
    parts = next((number for number in range(2, size + 1) if size % number == 0), None)
    if parts is None or accumulated * parts > ACCUMULATION:
        return {}
    return {"loop.batch_size": size // parts, "loop.gradient_accumulation_steps": accumulated * parts}


def _eight_bits(config: RunConfig) -> dict[str, Any]:
    smaller = OPTIMIZERS[config.optimizer.name].eight_bit
    return {"optimizer.name": smaller} if smaller else {}


def _offload(share: float) -> Callable[[RunConfig], dict[str, Any]]:
    return lambda config: {"memory.offload": share} if config.memory.offload < share else {}


LADDER = (
    Rung(
        "full caches, encoders gone",
        "disk space and the time to encode every image and caption once; steps become faster",
        _caches,
    ),
    Rung(
        "gradient checkpointing",
        "steps about a third slower; the result stays the same",
        _checkpointing,
    ),
    Rung(
        "a smaller micro-batch with more accumulation",
        "steps of as many images as before, but slower; their noise is drawn anew, so the result differs by chance",
        _smaller_batch,
    ),
    Rung(
        "8-bit optimizer",
        "rounded averages in the optimizer and the package bitsandbytes; it saves little: 6 bytes a trained weight",
        _eight_bits,
    ),
    Rung(
        "half of the weights on the host",
        "half of the denoiser crosses to the GPU two or three times a step; the result stays the same",
        _offload(0.5),
    ),
    Rung(
        "all weights on the host",
        "all of the denoiser crosses to the GPU two or three times a step; the result stays the same",
        _offload(1.0),
    ),
)


def next_rung(config: RunConfig, *, keeps_run: bool = False) -> Rung | None:
    """The next rung down the ladder from a run's settings, None at its foot.

    With `keeps_run` the next that a run which has begun can take, as it changes parts that are free.
    """
    return next((rung for rung in LADDER if (made := rung.change(config)) and (not keeps_run or _is_free(made))), None)


def _is_free(settings: dict[str, Any]) -> bool:
    return all(name.startswith("memory.") for name in settings)


class OutOfMemory(UserError):
    """The device or the computer had no memory left; the message names what to do, cheapest first."""


@contextmanager
def explained(config: RunConfig, device: torch.device, doing: str, *, otherwise: str = "") -> Iterator[None]:
    """Turn running out of memory, of the device or of the host, into OutOfMemory, which says while `doing` what.

    `otherwise` is a way on beside the ladder; with one, of its rungs only those count that change no run.
    """
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
            if not any(mark in str(error) for mark in TOLD):
                raise
        raise OutOfMemory(_advice(config, device, doing, otherwise)) from error


def _advice(config: RunConfig, device: torch.device, doing: str, otherwise: str) -> str:
    import torch

    used = f"{peak_memory_gb(device):.1f} GB"
    if device.type == "cuda":
        used += f" of the GPU's {torch.cuda.get_device_properties(device).total_memory / 1e9:.1f} GB"
    lines = [f"Out of memory {doing}: {used} were in use at most. The last saved state is kept."]
    rungs = [next_rung(config, keeps_run=bool(otherwise)), next_rung(config, keeps_run=True)]
    for rung in dict.fromkeys(rung for rung in rungs if rung):
        made = rung.change(config)
        way = "Go on with this run" if _is_free(made) else "Start a new run"
        told = " ".join(f"{name}={str(value).lower()}" for name, value in made.items())
        lines.append(f"{way} with {told}: {rung.name}. Price: {rung.price}.")
    if not any(rungs):
        lines.append(
            "Every rung of the ladder is taken: close other programs that use this memory, start a new run with a "
            "smaller data.resolution or adapter.rank, or use a larger card."
        )
    return "\n".join([*lines, otherwise] if otherwise else lines)
