"""The Tucker form in which LyCORIS keeps the change of a convolution: a small core between two factors."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def tucker(core: torch.Tensor, out: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
    """[out, in, ...] of a core [r, r, ...] and two factors [r, out] and [r, in]."""
    import torch

    return torch.einsum("ij...,ip,jq->pq...", core, out, into)
