"""LoHa (Hyeon-Woo et al. 2021, arXiv:2108.06098), as LyCORIS writes it: (W1a W1b) * (W2a W2b). It is only read here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorakit.lora.variants import Variant
from lorakit.lora.variants._tucker import tucker

if TYPE_CHECKING:
    import torch

    from lorakit.lora.variants import Tensors

PAIRS = frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})


class Loha(Variant):
    """The elementwise (Hadamard) product of two low-rank changes; convolutions may be in Tucker form (`hada_t…`)."""

    name = "loha"
    title = "LoHa"
    help = "the product of two low-rank changes; read only"
    complete = (PAIRS, PAIRS | {"hada_t1", "hada_t2"})
    # LyCORIS spells each role as it is called here.
    spellings = {role: role for role in sorted(PAIRS | {"hada_t1", "hada_t2"})}
    rank_roles = ("hada_w1_b",)
    network_module = "lycoris.kohya"

    @classmethod
    def product(cls, tensors: Tensors) -> torch.Tensor:
        return _half(tensors, 1) * _half(tensors, 2)


def _half(tensors: Tensors, number: int) -> torch.Tensor:
    """One of the two low-rank changes: [out, in * ...], in Tucker form [out, in, ...]."""
    a, b = tensors[f"hada_w{number}_a"], tensors[f"hada_w{number}_b"]
    if "hada_t1" in tensors:
        return tucker(tensors[f"hada_t{number}"], a, b)
    return a.flatten(1) @ b.flatten(1)
