"""Will it fit? The VRAM that a run needs on each rung of the memory ladder, computed without a GPU or a download."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from lorakit.config import assign, to_dict
from lorakit.diffusion.prompts import parse
from lorakit.machine.device import automatic, dtype_of
from lorakit.optimizers import OPTIMIZERS
from lorakit.run.config import RunConfig, configure
from lorakit.run.memory import Rung, next_rung
from lorakit.run.rehearsal import Rehearsal
from lorakit.run.sampling import requested

# Bytes that CUDA takes beside what is computed here: its context (0.3 to 0.6 GB), workspaces of cuBLAS and cuDNN, and
# what its allocator loses between blocks. An estimate.
AROUND = 1_000_000_000
# Share of a GPU's VRAM up to which a run fits well: on a desktop other programs take some.
ROOM = 0.9


@dataclass(frozen=True)
class Need:
    """Peak VRAM of the phases of a run in bytes, AROUND included; 0 for a phase that does not occur.

    caching     images and captions are encoded
    training    steps
    sampling    sample images are generated
    tiled       the same with images decoded in tiles, which is done where there is no room to decode them whole
    """

    caching: int
    training: int
    sampling: int
    tiled: int

    @property
    def least(self) -> int:
        """The VRAM that is enough for all phases."""
        return max(self.caching, self.training, self.tiled)


@dataclass(frozen=True)
class Fit:
    """A run on one rung of the ladder.

    rung        None for the settings as given
    changes     settings {part.name: value} of the rungs taken so far
    config      the settings with them
    is_usual    whether the sizes are those of the family's usual base, as the run's own is not on this machine
    """

    rung: Rung | None
    changes: dict[str, Any]
    config: RunConfig
    need: Need
    precision: str
    is_usual: bool


def descend(config: RunConfig, capability: tuple[int, int] = (8, 0)) -> Iterator[Fit]:
    """The need of a run as it is set, then on each further rung of the memory ladder.

    capability    of the GPU: it decides the precision where that is auto, and the kernel of attention

    Computed, not measured: with the real code on tensors that have shapes and no data, at the sizes of the run's base,
    or of the family's usual one where that is not on this machine. Takes seconds of CPU time for each rung.
    """
    precision = automatic(capability) if config.loop.precision == "auto" else config.loop.precision
    rehearsal = Rehearsal(config, dtype_of(precision), has_flash=capability >= (8, 0))
    rung, changes = None, {}
    while True:
        yield Fit(rung, changes, config, need(config, rehearsal), precision, rehearsal.is_usual)
        if (rung := next_rung(config)) is None:
            return
        changes = {**changes, **rung.change(config)}
        config = with_settings(config, rung.change(config))


def first_that_fits(fits: Iterable[Fit], memory: int) -> tuple[Fit, Fit | None]:
    """The run as it is set, and the first rung that fits into `memory` bytes with ROOM; None where none does.

    Only as many rungs are computed as that takes. What fits without ROOM as it is set is left as it is.
    """
    fits = iter(fits)
    as_set = next(fits)
    if as_set.need.least <= memory:
        return as_set, as_set
    return as_set, next((fit for fit in fits if fit.need.least <= ROOM * memory), None)


def with_settings(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """A run's config after changes of settings {part.name: value}."""
    data = to_dict(config)
    for name, value in changes.items():
        assign(data, name, str(value))
    return configure(data)


def need(config: RunConfig, rehearsal: Rehearsal) -> Need:
    """What a run needs; its settings are those of `rehearsal`, or further down the ladder than in any call before."""
    stages, model = config.stage_configs, rehearsal.model
    vae = rehearsal.weights(["vae"])
    text = rehearsal.weights(part for part in model.text_parts if part not in config.trained)
    held = rehearsal.weights([model.denoiser, *(part for part in model.text_parts if part in config.trained)])
    held -= rehearsal.offloaded(config.memory.offload)
    # float32 weights of the adapter, and the optimizer's state
    held += rehearsal.learned(config.trained)
    held += max(_state(stage, rehearsal) for stage in stages)
    # what encodes stays in memory if any stage needs it
    stays = 0 if all(stage.data.cache_latents for stage in stages) else vae
    stays += 0 if all(stage.data.cache_text for stage in stages) else text
    sampling, tiled = (_sampling(config, rehearsal, in_tiles) for in_tiles in (False, True))
    encoders = vae + (0 if config.data.cache_text else text)
    phases = (
        max(_caching(stage, rehearsal, vae, text) for stage in stages),
        held + stays + max(_step(stage, rehearsal) for stage in stages),
        sampling and held + encoders + sampling,
        tiled and held + encoders + tiled,
    )
    return Need(*(phase and phase + AROUND for phase in phases))


def _state(config: RunConfig, rehearsal: Rehearsal) -> int:
    """Bytes of the optimizer's state."""
    return sum(rehearsal.learned(config.rates, each) for each in OPTIMIZERS[config.optimizer.name].state)


def _caching(config: RunConfig, rehearsal: Rehearsal, vae: int, text: int) -> int:
    """Bytes while caches are filled: the VAE stays while captions are encoded."""
    images, captions = config.data.cache_latents, config.data.cache_text
    of_images = vae + rehearsal.encode_image(config.data.resolution) if images else 0
    of_captions = (vae if images else 0) + text + rehearsal.encode_text if captions else 0
    return max(of_images, of_captions)


def _step(config: RunConfig, rehearsal: Rehearsal) -> int:
    """Bytes of a step, beside what is held: images and captions that are not cached are encoded before it."""
    # while a later micro-batch is computed, the gradients of those before it are there
    grads = rehearsal.learned(config.rates) if config.loop.gradient_accumulation_steps > 1 else 0
    encoding = 0 if config.data.cache_latents else rehearsal.encode_image(config.data.resolution)
    return grads + max(rehearsal.step(config), encoding, 0 if config.data.cache_text else rehearsal.encode_text)


def _sampling(config: RunConfig, rehearsal: Rehearsal, in_tiles: bool) -> int:
    """Bytes of the largest sample image, beside what is held."""
    settings = [requested(parse(prompt), config.sample, config.model)[0] for prompt in config.sample.prompts]
    sizes = {(sampling.width, sampling.height) for sampling in settings}
    if not sizes:
        return 0
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    return max(rehearsal.predict(width, height), rehearsal.decode(width, height, in_tiles))
