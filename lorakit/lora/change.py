"""The change that a LoRA file makes to one weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from lorakit.lora.variants import Variant


@dataclass(frozen=True)
class Change:
    """What a file does to one weight.

    variant   the class that knows what the tensors mean
    tensors   by role, as they are stored, without alpha
    alpha     None: the scale is 1
    shape     the weight's
    rank      as `Variant.rank` has it, or peft's settings, which have one for full matrices too
    dora      magnitudes of the inputs, [1, in, ...], of a DoRA (Liu et al. 2024, arXiv:2402.09353); else None
    base      the weight that a DoRA changes
    """

    variant: type[Variant]
    tensors: Mapping[str, torch.Tensor]
    alpha: float | None
    shape: tuple[int, ...]
    rank: int | None
    dora: torch.Tensor | None = None
    base: torch.Tensor | None = None

    @property
    def scale(self) -> float:
        """alpha / rank; 1 without alpha or without rank."""
        return 1.0 if self.alpha is None or self.rank is None else self.alpha / self.rank

    def delta(self) -> torch.Tensor:
        """The change of the weight at strength 1, float32, shaped like the weight; at strength s it is s times that.

        Of a DoRA it is that of ComfyUI and LyCORIS: the changed weight, scaled so that the weights of each input have
        the length that `dora` says, less the weight.
        """
        change = self.variant.product({role: tensor.float() for role, tensor in self.tensors.items()})
        change = (self.scale * change).reshape(self.shape)
        if self.dora is None or self.base is None:
            return change
        import torch

        base = self.base.detach().float().cpu()
        merged = base + change
        others = [i for i in range(merged.ndim) if i != 1]
        return merged * (self.dora.float() / torch.linalg.vector_norm(merged, dim=others, keepdim=True)) - base

    def fits(self) -> bool:
        """Whether the tensors go together and make a change of the weight's shape; nothing is computed."""
        # tensors on the meta device have a shape and no numbers
        shapes = {role: tensor.to("meta").float() for role, tensor in self.tensors.items()}
        try:
            change = self.variant.product(shapes)
        except (RuntimeError, IndexError):
            return False
        return change.shape[0] == self.shape[0] and change.numel() == math.prod(self.shape)
