"""What all families do alike: parts that are loaded when asked for and let go, and which of their modules adapt."""

from __future__ import annotations

import gc
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch

from lorakit.hub.fingerprint import file_digest
from lorakit.layers.frozen import slim
from lorakit.layers.offload import place
from lorakit.machine.device import return_freed_memory
from lorakit.models.files import kinds

# what diffusers, newer and older transformers call it
CHECKPOINTING = (
    "enable_gradient_checkpointing",
    "activation_checkpointing_enable",
    "gradient_checkpointing_enable",
)


class Parts:
    """A base model whose parts are read from disk when they are first asked for.

    A family says what its parts are (`denoiser`, `text_parts`), which modules adapters go on (`TARGETS`, a regular
    expression for each part) and where settings that decide a part's answer stand (`settings`).
    """

    denoiser: ClassVar[str]
    text_parts: ClassVar[tuple[str, ...]]
    TARGETS: ClassVar[Mapping[str, str]]

    def __init__(self, config: Any, files: Any, device: torch.device, dtype: torch.dtype, trained: Collection[str]):
        self.config, self.files, self.device, self.dtype = config, files, device, dtype
        self.trained = frozenset(trained)
        self.offload = 0.0  # share (0..1) of the denoiser's weights that stays in host memory
        self._parts: dict[str, torch.nn.Module] = {}
        self._fingerprints: dict[str, str] = {}

    @property
    def parts(self) -> tuple[str, ...]:
        """All parts by name."""
        return (self.denoiser, *self.text_parts, "vae")

    def settings(self, part: str) -> list[Path]:
        """The files beside its weights that a part's answer depends on."""
        raise NotImplementedError

    def part_dtype(self, part: str) -> torch.dtype:
        """The type a part computes in: float32 for the VAE, which overflows in float16, and whose answers are kept."""
        return torch.float32 if part == "vae" else self.dtype

    def load(self, part: str) -> torch.nn.Module:
        """The frozen module of a part, on the device, in its precision."""
        if part not in self._parts:
            share = self.offload if part == self.denoiser else 0.0
            # what stays on the host must not pass through the device, where it may not fit
            module = getattr(self.files, part)(self.part_dtype(part), torch.device("cpu") if share else self.device)
            module = self.prepared(part, module)
            self._parts[part] = place(module, self.device, share) if share else module
        return self._parts[part]

    def prepared(self, part: str, module: torch.nn.Module) -> torch.nn.Module:
        """A frozen module with the passes that the family trains with."""
        return slim(module)

    def release(self, *parts: str) -> None:
        """Let go of parts that are not needed any more; `load` brings them back without adapters."""
        if [self._parts.pop(part) for part in parts if part in self._parts]:
            gc.collect()  # a module with a pass of ours refers to itself, and would keep its memory until then
            return_freed_memory()

    def loaded(self) -> tuple[str, ...]:
        """The parts in memory."""
        return tuple(self._parts)

    def fingerprint(self, part: str) -> str:
        """SHA-256 of the files a part is read from, weights and settings, as hexadecimal text; they are read once."""
        if part not in self._fingerprints:
            self._fingerprints[part] = file_digest([*self.files.files(part), *self.settings(part)])
        return self._fingerprints[part]

    def likely_family(self, modules: Mapping[str, kinds.Shapes]) -> str:
        """The family that a LoRA file with these modules is likely for; see `kinds.lora_family`."""
        return kinds.lora_family(modules)

    def targets(self, part: str) -> list[str]:
        """Names of the modules of a part that adapters go on, in the module's order."""
        return [name for name, _ in self.load(part).named_modules() if re.fullmatch(self.TARGETS[part], name)]

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass: less memory, more time."""
        for name in (self.denoiser, *self.text_parts):
            if name in self._parts:
                part = self._parts[name]
                part.train()  # libraries recompute in training mode only; nothing frozen here has dropout
                getattr(part, next(name for name in CHECKPOINTING if hasattr(part, name)))()

    @contextmanager
    def eval_mode(self) -> Iterator[None]:
        """Modules in evaluation mode (no dropout, nothing recomputed), and back as they were."""
        training = [module for part in self._parts.values() for module in part.modules() if module.training]
        for part in self._parts.values():
            part.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True
