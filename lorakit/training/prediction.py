"""What a base model predicts, measured on its own output before the first step, and compared with the settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lorakit.config import ConfigError
from lorakit.randomness import generator
from lorakit.run.advice import says_v

if TYPE_CHECKING:
    from lorakit.data.feed import Feed
    from lorakit.run.stages import Stage

NAMES = {"epsilon": "noise (epsilon)", "v_prediction": "velocity (v_prediction)"}


def check_prediction(model: Any, feed: Feed, stage: Stage) -> Iterator[str]:
    """Measure what the base predicts, on one image of the first step; yields sentences that warn.

    Raises ConfigError when it clearly predicts something else than the run trains. A base that shows neither, such as
    one with random weights, is trained as set. No random generator of the training is touched.
    """
    measured, trained = model.measured_prediction_type(*_sample(model, feed, stage)), model.prediction_type
    source = model.config.source
    if measured in ("", trained):
        if not measured and trained == "epsilon" and says_v(source):
            yield (
                f"The name of {source} says v prediction, and it is trained as epsilon, as nothing in its files says "
                "otherwise; if its page says v, set model.prediction_type=v_prediction."
            )
        return
    setting = model.config.prediction_type
    how = "as its files say" if setting == "auto" else f"as model.prediction_type is {setting}"
    further = "" if measured == "v_prediction" else " and model.zero_terminal_snr=disabled"
    raise ConfigError(
        f"{source} predicts {NAMES[measured]}: its output at pure noise shows it. This run would train it as "
        f"{trained}, {how}, and the LoRA would be useless. Set model.prediction_type={measured}{further}, or choose "
        "another base model."
    )


def _sample(model: Any, feed: Feed, stage: Stage) -> tuple[Any, Any, Any]:
    """x0 and eps [1, C, h, w] of an image of the first step, and its conditioning."""
    import torch

    first = stage.plan.steps_before + 1
    batch = feed.batch(stage.plan.micro_batches(first)[0][:1], first, first_place=0)
    draws = generator(feed.seed, "prediction type")
    with torch.no_grad():
        x0 = model.latents(batch.images, draws)
        eps = torch.randn(x0.shape, generator=draws).to(x0)
        return x0, eps, model.condition(feed.encode_texts(batch.captions), batch.sizes)
