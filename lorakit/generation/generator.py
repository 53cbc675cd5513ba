"""A run's base model with its adapter, whose weights are exchanged in place: for grids and for checking files."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.config import to_dict
from lorakit.lora import export
from lorakit.lora.adapter import Adapter
from lorakit.machine.device import choose_precision
from lorakit.models import family
from lorakit.project import ProjectError, Run
from lorakit.run.config import read_config
from lorakit.run.memory import explained
from lorakit.run.sampling import SamplingConfig, generate_image
from lorakit.training.metadata import base_name

if TYPE_CHECKING:
    from PIL import Image

OFF = "off"  # instead of a checkpoint's step: the base model alone


class Generator:
    """Paints with any checkpoint of a run at any strength; the base is loaded once."""

    def __init__(self, run: Run):
        self.run, self.config = run, read_config(run)
        self.precision = choose_precision(self.config.loop.precision)
        self.model = family(self.config.model.family).Model(
            self.config.model, self.precision.device, self.precision.dtype, self.config.trained
        )
        self.model.offload = self.config.memory.offload
        self.base = base_name(self.config.model.source)
        self._adapter: Adapter | None = None
        self._checkpoint: int | str = OFF
        self._texts: dict[str, dict] = {}

    def fingerprint(self) -> list:
        """What all images depend on beside the LoRA file and the sampling: the base, how it is used, the precision."""
        return [
            [self.model.fingerprint(part) for part in self.model.parts],
            to_dict(self.config.model),
            self.precision.name,
        ]

    def use(self, checkpoint: int | str, strength: float = 1.0) -> int:
        """Put a checkpoint's file (a step, or OFF) on the model; returns the adapter's number of modules.

        Raises ProjectError when there is no such file and LoraFileError when it does not fit.
        """
        if self._adapter is None:
            with self._explained("while loading the base"):
                self._adapter = Adapter(
                    self.config.adapter, self.model, list(self.config.trained), self.config.loop.seed
                )
        if checkpoint not in (OFF, self._checkpoint):
            self._adapter.load(export.weights(lora_file(self.run, checkpoint), self._adapter, self.model))
            self._checkpoint = checkpoint
        self._adapter.set_strength(0.0 if checkpoint == OFF else strength)
        return len(self._adapter.layers)

    def read(self, prompts: list[str]) -> None:
        """Encode all prompts that are going to be painted, then let go of what encoded them, as training does."""
        with self._explained("while reading prompts"):
            for prompt in prompts:
                self._text(prompt)
        self.model.release(*(part for part in self.model.text_parts if part not in self.config.trained))

    def generate(self, prompt: str, sampling: SamplingConfig) -> Image.Image:
        """One image with the weights in use."""
        import torch

        with self._explained("while painting"), torch.no_grad(), self.model.eval_mode():
            return generate_image(
                self.model, self._text(prompt), self._text(sampling.negative_prompt), sampling, sampling.seed
            )

    def _explained(self, doing: str) -> AbstractContextManager[None]:
        return explained(
            self.config, self.precision.device, doing, otherwise="Or paint smaller images: width and height."
        )

    def _text(self, prompt: str) -> dict:
        """The prompt as far as frozen parts bring it, remembered."""
        if prompt not in self._texts:
            self._texts[prompt] = self.model.encode_text(prompt)
        return self._texts[prompt]


def lora_file(run: Run, step: int) -> Path:
    """The exported file of a step. Raises ProjectError naming those that are there."""
    steps = run.lora_steps()
    if step not in steps:
        there = ", ".join(map(str, steps)) or "none yet"
        raise ProjectError(f"Run {run.name!r} has no LoRA file of step {step}; it has {there}.")
    return run.lora_file(step)


def deliver(run: Run, step: int, target: str | Path) -> tuple[Path, int]:
    """Load a step's file into the base once more, then copy it out; returns the copy and its number of modules.

    `target` is a file name in .safetensors, or a folder; folders that are not there are made.
    """
    file = lora_file(run, step)
    modules = Generator(run).use(step)
    target = Path(target)
    if target.suffix != file.suffix:
        target = target / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy2(file, target)), modules
