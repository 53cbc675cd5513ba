"""Settings that are allowed but most likely waste a run, for the form and the terminal alike."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from textwrap import shorten

from lorakit.optimizers import OPTIMIZERS
from lorakit.run.config import RunConfig
from lorakit.run.sampling import prompt_notes
from lorakit.run.stages import stage_steps

FAR = 100  # times the usual learning rate of an optimizer, or that part of it
V_NAME = re.compile(r"v[-_ ]?(pred|param)", re.IGNORECASE)


def setting_warnings(config: RunConfig, steps_per_epoch: Sequence[int] = ()) -> list[str]:
    """A sentence for each setting that makes the run useless, though it may be set; it begins with `part.name`.

    steps_per_epoch     of each stage, where they are known; without them nothing is said that depends on the length
    """
    warnings = [*_learning_rates(config), *_alpha(config), *_prediction(config), *prompt_warnings(config)]
    if steps_per_epoch:
        warnings += [*_warmup(config, steps_per_epoch), *_intervals(config, steps_per_epoch)]
    return list(dict.fromkeys(warnings))


def prompt_warnings(config: RunConfig) -> list[str]:
    """A sentence for everything in sample prompts that is not done as it says."""
    sample = config.sample
    if not sample.prompts:
        return []
    return [
        f"sample.{'prompts' if prompt in sample.prompts else 'negative_prompt'} has “{shorten(prompt, 60)}”: {note}"
        for prompt, note in prompt_notes(sample.prompts, sample, config.model)
    ]


def says_v(source: str) -> bool:
    """Whether the name of a base model says that it predicts v."""
    return bool(V_NAME.search(source.replace("\\", "/").rstrip("/").rpartition("/")[2]))


def _learning_rates(config: RunConfig) -> Iterator[str]:
    for stage in config.stage_configs:
        usual = OPTIMIZERS[stage.optimizer.name].learning_rate
        for part, rate in stage.rates.items():
            name = stage.optimizer.name
            given = f"optimizer.{stage.model.rates[part]} is {rate:g}; with {name} about {usual:g}"
            if rate > FAR * usual * (1 - 1e-9):
                yield f"{given} is usual, and far above it training diverges."
            elif rate < usual / FAR * (1 + 1e-9) and rate == max(stage.rates.values()):
                yield f"{given} is usual, and far below it nothing is learned."


def _alpha(config: RunConfig) -> Iterator[str]:
    rank, alpha = config.adapter.rank, config.adapter.alpha
    if alpha > rank:
        yield (
            f"adapter.alpha is {alpha:g}, above adapter.rank ({rank}): the change is multiplied by {alpha / rank:g}, "
            "as by a higher learning rate; the rank or half of it is usual."
        )


def _prediction(config: RunConfig) -> Iterator[str]:
    if getattr(config.model, "prediction_type", "") == "epsilon" and says_v(config.model.source):
        yield (
            "model.prediction_type is epsilon, and the name of the base model says v prediction: set it to auto or to "
            "v_prediction, unless its page says otherwise."
        )


def _warmup(config: RunConfig, steps_per_epoch: Sequence[int]) -> Iterator[str]:
    for stage, steps in zip(config.stage_configs, stage_steps(config, steps_per_epoch), strict=True):
        warmup = stage.schedule.warmup
        # a share, below 1, ends with the run at the latest
        if warmup >= (stage.schedule.steps or steps):
            yield (
                f"schedule.warmup is {warmup:g} steps, and there are {steps}: the learning rate never gets to its full "
                "value."
            )


def _intervals(config: RunConfig, steps_per_epoch: Sequence[int]) -> Iterator[str]:
    lengths = stage_steps(config, steps_per_epoch)
    steps = sum(lengths)
    epochs = sum(-(-length // max(1, per)) for length, per in zip(lengths, steps_per_epoch, strict=True))
    sampling = [("sample", config.sample)] if config.sample.prompts else []
    for part, when in [("save", config.save), *sampling]:
        for name, every, last in (
            ("every_epochs", when.every_epochs, epochs),
            ("every_steps", when.every_steps, steps),
        ):
            if every > last:
                yield (
                    f"{part}.{name} is {every}, and the run has {last} {name.removeprefix('every_')}: it has an effect "
                    "only at the very end."
                )
