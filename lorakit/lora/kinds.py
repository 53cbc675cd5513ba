"""The kinds of adapters that LoRA files hold, and the change that each makes to a weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def _tucker(core: torch.Tensor, out: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
    """[out, in, ...] of a core [r, r, ...] and two factors [r, out] and [r, in]."""
    import torch

    return torch.einsum("ij...,ip,jq->pq...", core, out, into)


def _lora(t: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Hu et al. 2021, arXiv:2106.09685; with `mid` a convolution between the two, as LyCORIS' LoCon has it."""
    if "mid" in t:
        return _tucker(t["mid"], t["up"].flatten(1).t(), t["down"].flatten(1))
    return t["up"].flatten(1) @ t["down"].flatten(1)


def _loha(t: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Hadamard product of two low-rank changes: Hyeon-Woo et al. 2021, arXiv:2108.06098, as LyCORIS writes it."""
    if "hada_t1" in t:
        first, second = (_tucker(t[f"hada_t{i}"], t[f"hada_w{i}_a"], t[f"hada_w{i}_b"]) for i in (1, 2))
    else:
        first, second = (t[f"hada_w{i}_a"].flatten(1) @ t[f"hada_w{i}_b"].flatten(1) for i in (1, 2))
    return first * second


def _lokr(t: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Kronecker product of a small and a large matrix: Yeh et al. 2023, arXiv:2309.14859, as LyCORIS writes it."""
    import torch

    small = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
    if "lokr_w2" in t:
        large = t["lokr_w2"]
    elif "lokr_t2" in t:
        large = _tucker(t["lokr_t2"], t["lokr_w2_a"], t["lokr_w2_b"])
    else:
        # a convolution's kernel stands flat behind its inputs, or in dimensions of its own
        large = (t["lokr_w2_a"] @ t["lokr_w2_b"].flatten(1)).unflatten(1, t["lokr_w2_b"].shape[1:])
    return torch.kron(small.reshape(*small.shape, *[1] * (large.ndim - 2)), large.contiguous())


@dataclass(frozen=True)
class Kind:
    """A kind of adapter: its change without the scale, which roles of tensors are whole, and which have the rank."""

    product: Callable[[Mapping[str, Any]], Any]
    whole: tuple[frozenset[str], ...]
    ranked: tuple[str, ...]  # the first that is there has the rank as its first dimension


_HADA = frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})
_SMALL = ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
_LARGE = ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"}, {"lokr_w2_a", "lokr_w2_b", "lokr_t2"})
KINDS = {
    "lora": Kind(_lora, (frozenset({"down", "up"}), frozenset({"down", "mid", "up"})), ("down",)),
    "loha": Kind(_loha, (_HADA, _HADA | {"hada_t1", "hada_t2"}), ("hada_w1_b",)),
    "lokr": Kind(
        _lokr,
        tuple(frozenset(small | large) for small, large in product(_SMALL, _LARGE)),
        ("lokr_w2_b", "lokr_w1_b"),
    ),
}


def kind_of(roles: set[str]) -> str | None:
    """The kind that the roles of a module's tensors make whole; None when they make none."""
    return next((name for name, kind in KINDS.items() if roles - {"alpha"} in kind.whole), None)


def rank_of(kind: str, shapes: Mapping[str, Any]) -> int | None:
    """The rank by the tensors' shapes; None for a LoKr of two full matrices, which has none."""
    return next((shapes[role][0] for role in KINDS[kind].ranked if role in shapes), None)


@dataclass(frozen=True)
class Change:
    """What a file does to one weight: tensors by role as they are stored, and the weight's shape."""

    kind: str
    tensors: Mapping[str, torch.Tensor]
    alpha: float | None  # None: the scale is 1
    shape: tuple[int, ...]
    rank: int | None  # see `rank_of`; peft has one for every change

    @property
    def scale(self) -> float:
        """alpha / rank; 1 without alpha or without rank."""
        return 1.0 if self.alpha is None or self.rank is None else self.alpha / self.rank

    def delta(self) -> torch.Tensor:
        """The change of the weight at strength 1, float32, shaped like the weight."""
        change = KINDS[self.kind].product({role: tensor.float() for role, tensor in self.tensors.items()})
        return (self.scale * change).reshape(self.shape)

    def fits(self) -> bool:
        """Whether the tensors go together and make a change of the weight's shape; nothing is computed."""
        shapes = {role: tensor.to("meta").float() for role, tensor in self.tensors.items()}
        try:
            change = KINDS[self.kind].product(shapes)
        except (RuntimeError, IndexError):  # what torch says of shapes that do not go together
            return False
        return change.shape[0] == self.shape[0] and change.numel() == math.prod(self.shape)
