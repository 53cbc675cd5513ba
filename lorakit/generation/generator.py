"""Generates images: with the base model alone, or with the LoRA of any checkpoint of a run."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.config import for_hash
from lorakit.diffusion.prompts import Prompt, parse
from lorakit.files import remove_leftovers
from lorakit.files.copying import temporary_path
from lorakit.files.disk import disk_errors
from lorakit.lora import export
from lorakit.lora.adapter import Adapter
from lorakit.machine.device import choose_precision
from lorakit.models import family
from lorakit.project import ProjectError, Run
from lorakit.run.config import read_config
from lorakit.run.memory import explained
from lorakit.run.sampling import SamplingConfig, generate_image
from lorakit.training.card import CARD, card, newest_sample
from lorakit.training.metadata import DETAILS, base_name

if TYPE_CHECKING:
    from PIL import Image

    from lorakit.run.checkpoint import SaveConfig
    from lorakit.run.config import RunConfig

# In place of a checkpoint's step: the base model alone.
OFF = "off"


class BaseGenerator:
    """Generates images with the base model of a run's settings, without an adapter; the model is loaded once."""

    # Advice when memory runs out.
    smaller = "Or generate smaller images: width and height."

    def __init__(self, config: RunConfig, trained: Collection[str] = ()):
        self.config, self.trained = config, trained
        self.precision = choose_precision(config.loop.precision)
        self.model = family(config.model.family).Model(
            config.model, self.precision.device, self.precision.dtype, trained
        )
        self.model.offload = config.memory.offload
        # prompt -> output of the text encoders
        self._texts: dict[tuple, dict] = {}

    def read(self, prompts: Iterable[Prompt]) -> None:
        """Encode all prompts first, then free the text encoders that are not trained, as training does."""
        with self._explained("while encoding prompts"):
            for prompt in prompts:
                self._text(prompt)
        # Text encoders with adapters are needed for every checkpoint, so they stay.
        self.model.release(*(part for part in self.model.text_parts if part not in self.trained))

    def generate(self, prompt: Prompt, sampling: SamplingConfig) -> Image.Image:
        """One image with the weights in use; `sampling` has the flags of the prompt already, see `requested`."""
        import torch

        # Without gradients, which would need several times the memory.
        with self._explained("while generating images"), torch.no_grad(), self.model.eval_mode():
            text, negative = self._text(prompt), self._text(parse(sampling.negative_prompt))
            return generate_image(self.model, text, negative, sampling, sampling.seed)

    def _explained(self, doing: str) -> AbstractContextManager[None]:
        return explained(self.config, self.precision.device, doing, otherwise=self.smaller)

    def _text(self, prompt: Prompt) -> dict:
        """The output of the frozen text encoders, remembered; adapters on text encoders act later."""
        if prompt.key not in self._texts:
            self._texts[prompt.key] = self.model.encode_prompt(prompt)
        return self._texts[prompt.key]


class Generator(BaseGenerator):
    """Generates images with any checkpoint of a run at any strength."""

    def __init__(self, run: Run):
        config = read_config(run)
        super().__init__(config, config.trained)
        self.run = run
        self.base = base_name(config.model.source)
        self._adapter: Adapter | None = None
        self._checkpoint: int | str = OFF

    def fingerprint(self) -> list:
        """All that images depend on beside the LoRA file and the sampling: the base, its settings, the precision."""
        return [
            [self.model.fingerprint(part) for part in self.model.parts],
            for_hash(self.config.model),
            self.precision.name,
        ]

    def use(self, checkpoint: int | str, strength: float = 1.0) -> int:
        """Put a checkpoint's file (a step, or OFF) on the model; returns the adapter's number of modules.

        Raises ProjectError when there is no such file and LoraFileError when it does not fit.
        """
        if self._adapter is None:
            with self._explained("while loading the base model"):
                # Created at first use: a grid whose images all exist needs none.
                self._adapter = Adapter(
                    self.config.adapter, self.model, list(self.config.trained), self.config.loop.seed
                )
        # "off" is strength 0: the weights stay loaded for the next image with this checkpoint
        if checkpoint not in (OFF, self._checkpoint):
            self._adapter.load(export.weights(lora_file(self.run, checkpoint), self._adapter, self.model))
            self._checkpoint = checkpoint
        self._adapter.set_strength(0.0 if checkpoint == OFF else strength)
        return len(self._adapter.layers)


def lora_file(run: Run, step: int) -> Path:
    """The LoRA file of a step. Raises ProjectError, which lists the steps that have one."""
    steps = run.lora_steps()
    if step not in steps:
        there = ", ".join(map(str, steps)) or "none yet"
        raise ProjectError(f"Run {run.name!r} has no LoRA file of step {step}; it has {there}.")
    return run.lora_file(step)


def deliver(run: Run, step: int, target: str | Path, save: SaveConfig | None = None) -> tuple[Path, int]:
    """Check that a step's LoRA file loads into the base model, then copy it; returns the copy and its module count.

    `target` is a file name in .safetensors, by which the file then also calls itself (title and ss_output_name), or a
    folder; missing folders are created. What the copy says about itself (author, description, thumbnail ...) is as in
    `save`, by default as in the run's settings now. The copy is there whole or not at all. Raises ProjectError, and
    replaces nothing, where another file has that name; DiskError.
    """
    file = lora_file(run, step)
    generator = Generator(run)
    modules, save = generator.use(step), save or generator.config.save
    target, name = Path(target).expanduser(), run.title
    if target.suffix == file.suffix:
        name = target.stem
    else:
        target = target / f"{run.title}-{step:06d}{file.suffix}"
    described = {"ss_output_name": name} | card(save, name, newest_sample(run, step) if save.thumbnail else None)
    left_out = {*CARD, *(() if save.dataset_details else DETAILS)}
    part = temporary_path(target)
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target.parent.glob(".*.part"))
        try:
            export.copy_described(file, part, described, left_out)
            if target.exists() and not (target.is_file() and filecmp.cmp(part, target, shallow=False)):
                raise ProjectError(
                    f"{target} is another file already, and it was not replaced. Give another name, such as "
                    f"--output {target.with_stem(target.stem + '-2')}, or move that file away."
                )
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
    return target, modules
