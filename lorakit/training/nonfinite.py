"""Losses and gradients that are not finite: a warning for the first, the end of the run after many in a row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lorakit.errors import UserError
from lorakit.events import Stepped, Warned

# Consecutive steps before the run ends.
MAX_NONFINITE_STEPS = 20


class TrainingDiverged(UserError):
    """Losses or gradients were not finite for many steps in a row; the last good state is kept."""


@dataclass
class NonfiniteSteps:
    """Counts steps without a finite gradient.

    consecutive   up to now; part of the training state, so that a resumed run diverges at the same step
    has_warned    in this session
    """

    consecutive: int = 0
    has_warned: bool = False

    def check(self, stepped: Stepped, *, scales_loss: bool) -> Iterator[Warned]:
        """Warn of the first step of a session with a non-finite loss or gradient.

        `scales_loss` is True in fp16. Raises TrainingDiverged after MAX_NONFINITE_STEPS consecutive ones.
        """
        self.consecutive = self.consecutive + 1 if stepped.grad_norm is None else 0
        if (stepped.grad_norm is None or stepped.skipped) and not self.has_warned:
            self.has_warned = True
            yield Warned(
                text=f"Step {stepped.step}: {stepped.skipped} samples had a loss that is not finite, or the gradient "
                "overflowed; they are skipped. Now and then this is harmless; the log counts what follows."
            )
        if self.consecutive >= MAX_NONFINITE_STEPS:
            overflow = "fp16 overflows in this base (try precision bf16 or fp32), " if scales_loss else ""
            raise TrainingDiverged(
                f"{self.consecutive} steps in a row, up to step {stepped.step}, had no finite gradient. Likely causes: "
                f"the learning rate is too high (it is {stepped.lr:g}: try a tenth), {overflow}a broken base or VAE. "
                "The last saved state is kept; start a new run with other settings."
            )
