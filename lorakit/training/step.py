"""One optimizer step, from top to bottom: noise, prediction, loss, backward, clipping, update."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lorakit import optimizers, schedules
from lorakit.randomness import generator, seed_of

if TYPE_CHECKING:
    from lorakit.data.feed import Batch, Feed
    from lorakit.diffusion.weightings import LossConfig
    from lorakit.run.stages import Stage


@dataclass(frozen=True)
class StepResult:
    """What a step reports.

    loss        mean over the samples whose loss is finite; None when there is none
    grad_norm   before clipping; None when it was not finite and the weights stayed as they were
    samples     in the step; `skipped` of them had no finite loss
    """

    loss: float | None
    grad_norm: float | None
    samples: int
    skipped: int


def train_step(step: int, stage: Stage, feed: Feed, model: Any, optimizer: Any, scaler: Any) -> StepResult:
    """Do optimizer step `step` (from 1): move the adapter along the mean gradient of all samples of the step."""
    config, plan = stage.config, stage.plan
    micro_batches = plan.micro_batches(step)  # indexes of samples: [[int] * B] * accumulation
    samples = sum(map(len, micro_batches))
    # Set from the step number at every step, so a resumed run needs no scheduler state.
    optimizers.set_rates(optimizer, schedules.factor(config.schedule, step - plan.steps_before, plan.steps))
    loss_sum, finite = 0.0, 0
    for micro, indexes in enumerate(micro_batches):
        batch = feed.batch(indexes, step, first_place=sum(map(len, micro_batches[:micro])))
        # Backward passes add up. Dividing by the samples of the whole step, instead of by the number of micro-batches,
        # lets all samples weigh the same: the last micro-batch of a bucket may be smaller than the others.
        loss = micro_loss(batch, feed, model, config.loss, (config.loop.seed, step, micro)) / samples
        # a NaN would spoil the gradients of the other micro-batches, which are summed in place
        if math.isfinite(value := loss.item()):
            scaler.scale(loss).backward()
            loss_sum, finite = loss_sum + value, finite + len(indexes)
    if not finite:
        return StepResult(None, None, samples, skipped=samples)
    # total / finite samples: makes loss and gradient the means over samples with a finite loss
    rescale = samples / finite
    grad_norm = clip_and_step(optimizer, scaler, config.optimizer.max_grad_norm, rescale)
    return StepResult(loss_sum * samples / finite, grad_norm, samples, skipped=samples - finite)


def micro_loss(
    batch: Batch, feed: Feed, model: Any, config: LossConfig, keys: tuple[int, int, int]
) -> torch.Tensor:  # float32 []
    """Sum of the weighted losses of a micro-batch; `keys` (seed, step, micro-batch) decide all that is random in it."""
    draws = generator(*keys, "noise")
    x0 = model.latents(batch.images, draws)  # float32 [B, C, h, w], drawn from the VAE's posterior
    eps, t = model.sample_noise(x0, draws, config)  # like x0; [B]
    # dropout modules draw from torch's global generator and take no other
    torch.manual_seed(seed_of(*keys, "dropout"))
    text = model.condition(feed.encode_texts(batch.captions), batch.sizes)
    # In `model.loss`: xt = add_noise(x0, eps, t), then the squared error of predict(xt, t, text) against the target
    # (eps or a velocity), times the mask [B, 1, h, w], mean over C, h, w, times the weight of the timestep.
    losses = model.loss(x0, eps, t, text, config, batch.masks)  # float32 [B]
    # 1 for training images, prior_loss_weight for regularization images
    weights = torch.tensor(batch.weights, device=losses.device)  # [B]
    return (losses * weights).sum()


def clip_and_step(optimizer: Any, scaler: Any, max_grad_norm: float, rescale: float) -> float | None:
    """Clip the gradient, times `rescale`, to `max_grad_norm` (0: no limit) and update the weights.

    Returns the norm before clipping, or None when it was not finite and no weight was changed.
    """
    # The scaler (fp16 only) multiplied the loss, so that small gradients do not become 0.
    scaler.unscale_(optimizer)
    # optimizers skip parameters whose grad is None: text encoders after their last step
    weights = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if rescale != 1:
        torch._foreach_mul_([p.grad for p in weights], rescale)
    norm = torch.nn.utils.clip_grad_norm_(weights, max_grad_norm or math.inf).item()
    # An enabled scaler skips a step that is not finite by itself, and lowers its scale for it.
    if math.isfinite(norm) or scaler.is_enabled():
        scaler.step(optimizer)
        scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return norm if math.isfinite(norm) else None
