"""LoKr (Yeh et al. 2023, arXiv:2309.14859), as LyCORIS writes it: a Kronecker product. It is only read here."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from lorakit.lora.variants import Variant
from lorakit.lora.variants._tucker import tucker

if TYPE_CHECKING:
    import torch

    from lorakit.lora.variants import Tensors

# either matrix may be full or a product of two of the rank; a large one of a convolution may be in Tucker form
SMALL = ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
LARGE = ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"}, {"lokr_w2_a", "lokr_w2_b", "lokr_t2"})


class Lokr(Variant):
    """W1 (x) W2, of a small matrix W1 and a large one W2, which is a kernel for convolutions."""

    name = "lokr"
    title = "LoKr"
    help = "a Kronecker product: small files; read only"
    complete = tuple(frozenset(small | large) for small, large in product(SMALL, LARGE))
    spellings = {role: role for role in sorted(frozenset().union(*SMALL, *LARGE))}
    rank_roles = ("lokr_w2_b", "lokr_w1_b")
    network_module = "lycoris.kohya"

    @classmethod
    def product(cls, tensors: Tensors) -> torch.Tensor:
        import torch

        small = tensors["lokr_w1"] if "lokr_w1" in tensors else tensors["lokr_w1_a"] @ tensors["lokr_w1_b"]
        large = _large(tensors)
        # kron wants as many dimensions of both: a kernel's sides are 1 in the small one
        return torch.kron(small.reshape(*small.shape, *[1] * (large.ndim - 2)), large.contiguous())


def _large(tensors: Tensors) -> torch.Tensor:
    """W2: [out, in], of a convolution [out, in, height, width], or [out, in * height * width] where it is flat."""
    if "lokr_w2" in tensors:
        return tensors["lokr_w2"]
    a, b = tensors["lokr_w2_a"], tensors["lokr_w2_b"]
    if "lokr_t2" in tensors:
        return tucker(tensors["lokr_t2"], a, b)
    # a convolution's kernel stands flat behind its inputs, or in dimensions of its own
    return (a @ b.flatten(1)).unflatten(1, b.shape[1:])
