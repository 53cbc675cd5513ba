"""The phases of a run, done by its real code on tensors without data, and the memory that each would take."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch

from lorakit import hub
from lorakit.diffusion.prompts import literal
from lorakit.errors import UserError
from lorakit.layers.offload import on_host
from lorakit.lora.adapter import Adapter
from lorakit.models import Size, family
from lorakit.models._base import without_weights
from lorakit.run.config import RunConfig
from lorakit.run.ledger import Ledger, occupied

META = torch.device("meta")


class Rehearsal:
    """A run's model and adapter on the meta device. Phases return bytes at their peak, above what was there before.

    dtype        of the base model
    has_flash    see `Ledger`
    is_usual     whether sizes are those of the family's usual base, as the run's own is not on this machine
    """

    def __init__(self, config: RunConfig, dtype: torch.dtype, *, has_flash: bool):
        self._config, self._has_flash = config, has_flash
        # peaks by phase and arguments; inputs by width, height and batch
        self._peaks: dict[tuple, int] = {}
        self._made: dict[tuple[int, int, int], tuple[torch.Tensor, list[dict], list[Size]]] = {}
        self.model, self.is_usual = _opened(config, dtype)
        self._attached: Adapter | None = None
        # Short captions are padded as long ones are. Encoded once to load what encodes, and once to measure; now, as
        # with gradient checkpointing transformers reads its masks back, which hold no data here.
        self._caption = self.model.encode_prompt(literal("a"))
        # bytes while one caption is encoded, by the text encoders that are not trained
        self.encode_text = self._peak(("text",), lambda: self.model.encode_prompt(literal("a")))

    # ---- what is held ------------------------------------------------------------------------------------------------

    @property
    def adapter(self) -> Adapter:
        """The adapter, on all parts that the run trains."""
        if self._attached is None:
            config = self._config
            self._attached = Adapter(config.adapter, self.model, list(config.trained), config.loop.seed)
        return self._attached

    def weights(self, parts: Iterable[str]) -> int:
        """Bytes of parts of the model, without adapters."""
        own = {id(weight) for _, weight in self.adapter.named()}
        modules = [self.model.load(part) for part in parts]
        tensors = (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
        return sum(occupied(tensor.nbytes) for tensor in tensors if id(tensor) not in own)

    def learned(self, parts: Collection[str], each: int = 4) -> int:
        """Bytes of the adapter on parts of the model, with `each` bytes for a parameter."""
        named = self.adapter.named()
        return sum(occupied(each * weight.numel()) for name, weight in named if name.partition(".")[0] in parts)

    def offloaded(self, share: float) -> int:
        """Bytes of the denoiser that `memory.offload` saves: what stays in host memory, less the two slots for it."""
        layers, largest = on_host(self.model.load(self.model.denoiser), share)
        return max(0, sum(layer.weight.nbytes for layer in layers) - 2 * largest)

    # ---- phases ------------------------------------------------------------------------------------------------------

    def encode_image(self, side: int) -> int:
        """One image of side x side px, through the VAE."""
        self.model.load("vae")
        return self._peak(("image", side), lambda: self._encoded(side, side))

    def step(self, config: RunConfig) -> int:
        """Forward and backward pass of a micro-batch of the largest images, with the gradients.

        After a step with gradient checkpointing all have it.
        """
        side, batch = config.data.resolution, config.loop.batch_size
        if config.memory.gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
        for name, weight in self.adapter.named():
            weight.requires_grad_(name.partition(".")[0] in config.rates)
        inputs = self._inputs(side, side, batch)
        key = ("step", side, batch, config.memory.gradient_checkpointing, *config.rates)
        peak = self._peak(key, lambda: self._losses(*inputs).sum().backward())
        for _, weight in self.adapter.named():
            weight.grad = None
        return peak

    def predict(self, width: int, height: int) -> int:
        """A step of sampling: the denoiser with the prompt and with the negative prompt."""
        inputs = self._inputs(width, height, 2)
        with torch.no_grad():
            return self._peak(("predict", width, height), lambda: self._losses(*inputs))

    def decode(self, width: int, height: int, in_tiles: bool) -> int:
        """One image of width x height px, through the VAE."""
        latents = self._inputs(width, height, 1)[0]
        with torch.no_grad():
            return self._peak(("decode", width, height, in_tiles), lambda: self.model.pixels(latents, in_tiles))

    # ---- how they are done -------------------------------------------------------------------------------------------

    def _peak(self, key: tuple, work: Callable[[], Any]) -> int:
        if key not in self._peaks:
            modules = [self.model.load(part) for part in self.model.loaded()]
            held = (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
            with Ledger(held, has_flash=self._has_flash) as ledger:
                # what is returned lives until the end
                _ = work()
            self._peaks[key] = ledger.peak
        return self._peaks[key]

    def _encoded(self, width: int, height: int) -> dict[str, torch.Tensor]:
        return self.model.encode_image(torch.empty(3, height, width, device=META))

    def _inputs(self, width: int, height: int, batch: int) -> tuple[torch.Tensor, list[dict], list[Size]]:
        """Latents [B, C, h, w], encoded captions and sizes of a batch."""
        if (key := (width, height, batch)) not in self._made:
            latents = self.model.latents([self._encoded(width, height)] * batch, torch.Generator())
            self._made[key] = latents, [self._caption] * batch, [Size.whole(width, height)] * batch
        return self._made[key]

    def _losses(self, x0: torch.Tensor, captions: list[dict], sizes: list[Size]) -> torch.Tensor:
        """The losses of a batch, as `training.step` computes them."""
        eps, t = self.model.sample_noise(x0, torch.Generator(), self._config.loss)
        return self.model.loss(x0, eps, t, self.model.condition(captions, sizes), self._config.loss)


def _opened(config: RunConfig, dtype: torch.dtype) -> tuple[Any, bool]:
    """The run's base on the meta device, or the family's usual one where it is not on this machine."""
    kind = family(config.model.family).Model
    try:
        with hub.downloading_nothing():
            model = kind(config.model, META, dtype, config.trained)
            model.load(model.denoiser)
            return model, False
    # such as one that is not downloaded yet; what is wrong with a damaged one is said elsewhere
    except UserError:
        return without_weights(kind, config.model, dtype, config.trained), True
