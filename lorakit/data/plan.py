"""Which samples each step trains: a function of (seed, epoch), with nothing to rewind after a resume."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from math import ceil

from lorakit.randomness import rng


@dataclass(frozen=True)
class Plan:
    """All steps of a run, or of one stage of it; steps and epochs are counted from the beginning of the run.

    `buckets` holds, for each bucket, the sample indexes of one epoch: each index stands there `repeats` times.
    A micro-batch has one bucket's shape and at most `batch_size` samples; a step has at most `accumulation`
    micro-batches and never reaches into the next epoch, so that every sample is seen exactly `repeats` times an epoch.
    """

    buckets: tuple[tuple[int, ...], ...]
    batch_size: int
    accumulation: int
    epochs: int
    # 0: as many as the epochs have
    max_steps: int
    seed: int
    # of the stages before this one
    steps_before: int = 0
    epochs_before: int = 0

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch; every epoch has as many."""
        # Micro-batches of all buckets, then groups of `accumulation` of them.
        return ceil(sum(ceil(len(bucket) / self.batch_size) for bucket in self.buckets) / self.accumulation)

    @property
    def steps(self) -> int:
        """Optimizer steps of this stage."""
        return self.max_steps or self.epochs * self.steps_per_epoch

    @property
    def last(self) -> int:
        """The last step of this stage."""
        return self.steps_before + self.steps

    def epoch_of(self, step: int) -> int:
        """The epoch, counted from 1, that step `step` (counted from 1) belongs to."""
        return self.epochs_before + (step - self.steps_before - 1) // self.steps_per_epoch + 1

    def ends_epoch(self, step: int) -> bool:
        """True when step `step` (counted from 1) is the last of its epoch."""
        return (step - self.steps_before) % self.steps_per_epoch == 0

    def micro_batches(self, step: int) -> list[list[int]]:
        """The micro-batches of step `step` (counted from 1), each a list of sample indexes."""
        first = (step - self.steps_before - 1) % self.steps_per_epoch * self.accumulation
        return _epoch(self, self.epoch_of(step))[first : first + self.accumulation]


# All steps of an epoch share one shuffle; two epochs are kept.
@functools.lru_cache(maxsize=2)
def _epoch(plan: Plan, epoch: int) -> list[list[int]]:
    """All micro-batches of an epoch: shuffled within each bucket, cut, then the batches shuffled."""
    random = rng(plan.seed, epoch, "order")
    batches = []
    for bucket in plan.buckets:
        # sample() of all elements is a shuffled copy: the plan itself stays as it is.
        order = random.sample(bucket, len(bucket))
        batches += [order[i : i + plan.batch_size] for i in range(0, len(order), plan.batch_size)]
    random.shuffle(batches)
    return batches
