"""One optimizer step, from top to bottom: noise, prediction, loss, backward, clipping, update."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import torch

from lorakit import optimizers, schedules
from lorakit.machine.device import to_device
from lorakit.randomness import generator, seed_of

if TYPE_CHECKING:
    from lorakit.data.feed import Batch, Feed
    from lorakit.diffusion.weightings import LossConfig
    from lorakit.run.stages import Stage


@dataclass(frozen=True)
class StepResult:
    """What a step reports."""

    loss: float | None  # mean over the samples whose loss is finite; None when there is none
    grad_norm: float | None  # before clipping; None when it was not finite and the weights stayed as they were
    samples: int
    skipped: int  # of these samples, as their loss was not finite


def train_step(
    step: int, stage: Stage, feed: Feed, model: Any, optimizer: Any, scaler: Any, without: frozenset[int] = frozenset()
) -> StepResult:
    """Do optimizer step `step` (from 1): move the adapter along the mean gradient of all samples of the step.

    `without` are numbers of micro-batches (from 0) that are left out, as their loss is not finite.
    """
    config, plan = stage.config, stage.plan
    micro_batches = plan.micro_batches(step)  # indexes of samples: [[int] * B] * accumulation
    chosen = [micro for micro in range(len(micro_batches)) if micro not in without]
    samples, used = sum(map(len, micro_batches)), sum(len(micro_batches[micro]) for micro in chosen)
    if not chosen:
        return StepResult(None, None, samples, skipped=samples)
    # Set from the step number at every step, so a resumed run needs no scheduler state.
    optimizers.set_rates(optimizer, schedules.factor(config.schedule, step - plan.steps_before, plan.steps))
    losses = []
    for micro in chosen:
        batch = feed.batch(micro_batches[micro], step, first_place=sum(map(len, micro_batches[:micro])))
        # Backward passes add up. Dividing by the samples of the whole step, instead of by the number of micro-batches,
        # lets all samples weigh the same: the last micro-batch of a bucket may be smaller than the others.
        loss = micro_loss(batch, feed, model, config.loss, (config.loop.seed, step, micro)) / samples
        scaler.scale(loss).backward()
        losses.append(loss.detach())
    # total / used samples: makes loss and gradient the means over samples with a finite loss
    norm = clip(optimizer, scaler, config.optimizer.max_grad_norm, samples / used)
    # the only place of a step where the host waits for the GPU
    *losses, norm = torch.stack([*losses, norm]).tolist()
    if bad := {micro for micro, loss in zip(chosen, losses, strict=True) if not math.isfinite(loss)}:
        # Rare: a NaN has spoilt the sum of the gradients. Without it all else is computed again, and is the same.
        feed.check_images([index for micro in bad for index in micro_batches[micro]])
        scaler.update(scaler.get_scale())  # forgets the gradient, keeps the scale
        optimizer.zero_grad(set_to_none=True)
        return train_step(step, stage, feed, model, optimizer, scaler, without | bad)
    if math.isfinite(norm):
        optimizer.step()
    scaler.update()  # lowers the scale if unscale_ has seen an overflow
    optimizer.zero_grad(set_to_none=True)
    # added one by one: since Python 3.12 `sum` rounds otherwise
    loss = reduce(add, losses) * samples / used
    return StepResult(loss, norm if math.isfinite(norm) else None, samples, skipped=samples - used)


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
    return (losses * to_device(torch.tensor(batch.weights), losses.device)).sum()


def clip(optimizer: Any, scaler: Any, max_grad_norm: float, rescale: float) -> torch.Tensor:  # float32 []
    """Clip the gradient, times `rescale`, to `max_grad_norm` (0: no limit); returns its norm before clipping."""
    # The scaler (fp16 only) multiplied the loss, so that small gradients do not become 0.
    scaler.unscale_(optimizer)
    # optimizers skip parameters whose grad is None: text encoders after their last step
    weights = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if rescale != 1:
        torch._foreach_mul_([p.grad for p in weights], rescale)
    return torch.nn.utils.clip_grad_norm_(weights, max_grad_norm or math.inf)
