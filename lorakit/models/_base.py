"""The base class of models: parts that are loaded when needed and released, and the modules that get adapters."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from lorakit.hub.fingerprint import file_digest
from lorakit.layers.frozen import slim
from lorakit.layers.offload import place
from lorakit.machine.device import is_out_of_memory, return_freed_memory
from lorakit.models.files import kinds

# The method that turns gradient checkpointing on: of diffusers, newer transformers, older transformers.
CHECKPOINTING = (
    "enable_gradient_checkpointing",
    "activation_checkpointing_enable",
    "gradient_checkpointing_enable",
)


class Parts:
    """A base model whose parts are read from disk when they are first used.

    A family defines its parts (`denoiser`, `text_parts`), the modules that get adapters (`TARGETS`, a regular
    expression for each part), the files that a part's output depends on besides its weights (`settings`), and the files
    of its usual base without weights (`bundled`).
    """

    denoiser: ClassVar[str]
    text_parts: ClassVar[tuple[str, ...]]
    TARGETS: ClassVar[Mapping[str, str]]
    bundled: ClassVar[Callable[[], Any]]
    # Of rectified flow; a family that has more than one overrides it.
    prediction_type = "flow"

    def __init__(self, config: Any, files: Any, device: torch.device, dtype: torch.dtype, trained: Collection[str]):
        self.config, self.files, self.device, self.dtype = config, files, device, dtype
        self.trained = frozenset(trained)
        # Share (0..1) of the denoiser's weights that stays in host memory.
        self.offload = 0.0
        self._parts: dict[str, torch.nn.Module] = {}
        self._fingerprints: dict[str, str] = {}

    @property
    def parts(self) -> tuple[str, ...]:
        """All parts by name."""
        return (self.denoiser, *self.text_parts, "vae")

    def settings(self, part: str) -> list[Path]:
        """The files that a part's output depends on besides its weights."""
        raise NotImplementedError

    def part_dtype(self, part: str) -> torch.dtype:
        """The type that a part computes in: float32 for the VAE, which overflows in float16."""
        return torch.float32 if part == "vae" else self.dtype

    def load(self, part: str) -> torch.nn.Module:
        """The frozen module of a part, on the device, in its precision."""
        if part not in self._parts:
            share = self.offload if part == self.denoiser else 0.0
            # weights that stay in host memory must not pass through the GPU, where they may not fit
            module = getattr(self.files, part)(self.part_dtype(part), torch.device("cpu") if share else self.device)
            module = self.prepared(part, module)
            self._parts[part] = place(module, self.device, share) if share else module
        return self._parts[part]

    def prepared(self, part: str, module: torch.nn.Module) -> torch.nn.Module:
        """A frozen module with the forward passes that the family trains with."""
        return slim(module)

    def release(self, *parts: str) -> None:
        """Free the memory of parts; `load` reads them again, without adapters."""
        if [self._parts.pop(part) for part in parts if part in self._parts]:
            # a module with one of our forward passes refers to itself, so only the collector frees it
            gc.collect()
            return_freed_memory()

    def loaded(self) -> tuple[str, ...]:
        """The parts in memory."""
        return tuple(self._parts)

    def fingerprint(self, part: str) -> str:
        """SHA-256 of the files a part is read from, weights and settings, in hexadecimal; the files are read once."""
        if part not in self._fingerprints:
            self._fingerprints[part] = file_digest([*self.files.files(part), *self.settings(part)])
        return self._fingerprints[part]

    def measured_prediction_type(self, x0: torch.Tensor, eps: torch.Tensor, text: dict[str, torch.Tensor]) -> str:
        """What the denoiser predicts by its own output; "" where only one type exists, or it shows none."""
        return ""

    def single_file(self, part: str) -> Path | None:
        """The one file that a part is read from, unless it lies in a folder of a model beside its settings."""
        file, *others = self.files.files(part)
        return None if others or file.parent in {path.parent for path in self.settings(part)} else file

    def likely_family(self, modules: Mapping[str, kinds.Shapes]) -> str:
        """The family that a LoRA file with these modules is likely for; see `kinds.lora_family`."""
        return kinds.lora_family(modules)

    def targets(self, part: str) -> list[str]:
        """Names of the modules of a part that get adapters, in the module's order."""
        return [name for name, _ in self.load(part).named_modules() if re.fullmatch(self.TARGETS[part], name)]

    def is_unused(self, part: str, module: str) -> bool:
        """Whether the output of a module with weights is not used, so that changing it has no effect."""
        return False

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass: less memory, more time."""
        for name in (self.denoiser, *self.text_parts):
            if name in self._parts:
                part = self._parts[name]
                # the libraries recompute in training mode only; the frozen parts have no dropout
                part.train()
                getattr(part, next(name for name in CHECKPOINTING if hasattr(part, name)))()

    @contextmanager
    def eval_mode(self) -> Iterator[None]:
        """Within, all modules are in evaluation mode (no dropout, nothing recomputed); afterwards as before."""
        training = [module for part in self._parts.values() for module in part.modules() if module.training]
        for part in self._parts.values():
            part.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True


def decode(model: Any, latents: torch.Tensor) -> Image.Image:
    """The image of latents [1, C, h, w] in the scale of training; decoded in tiles when memory runs out otherwise."""
    from diffusers.image_processor import VaeImageProcessor

    # not in the except block, where the error keeps the memory of the first try
    pixels = _pixels_if_they_fit(model, latents)
    if pixels is None:
        pixels = model.pixels(latents, in_tiles=True)
    return VaeImageProcessor().postprocess(pixels, output_type="pil")[0]


def _pixels_if_they_fit(model: Any, latents: torch.Tensor) -> torch.Tensor | None:
    try:
        return model.pixels(latents, in_tiles=False)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    return None


def without_weights(kind: type[Parts], config: Any, dtype: torch.dtype, trained: Collection[str]) -> Parts:
    """A family's usual base on the meta device, in true size, from the configuration that comes with the package.

    Nothing else is read: `config.source` is not opened, and what it changes in the model is not known.
    """
    model = kind.__new__(kind)
    # not the family's own, which opens the files of `config.source`
    Parts.__init__(model, config, kind.bundled(), torch.device("meta"), dtype, trained)
    return model
