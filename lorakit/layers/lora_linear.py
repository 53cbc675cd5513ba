"""Forward and backward of LoRA layers: base(x) + B(scale * A(x)), with nothing of the output's size kept or copied."""

from __future__ import annotations

import torch
from peft.tuners.lora.layer import Conv2d, Linear
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lorakit.layers.frozen import FrozenProduct, linear, weight_of

# peft can hold several adapters by name in a layer; there is only this one, as no other would be trained
NAME = "default"


class _Lora(Function):
    """x [..., in] -> [..., out], of a frozen base with weight W [out, in], A [rank, in] and B [out, rank].

    A and B are float32 and computed with in x's dtype. Kept for the backward pass are x, A, B and scale * A x, which is
    only [..., rank].
    """

    @staticmethod
    def forward(ctx, x, base, a, b, scale):
        # [..., rank]
        hidden = linear(x, a.to(x.dtype)).mul_(scale)
        ctx.base, ctx.scale = base, scale
        ctx.save_for_backward(x, a, b, hidden)
        # W x + bias comes first, and B's product is added to it in place
        return linear(hidden, b.to(x.dtype), None, linear(x, weight_of(base).flatten(1), base.bias))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, a, b, hidden = ctx.saved_tensors
        # all positions of all samples as rows: [rows, out], [rows, in], [rows, rank]
        grad_rows, x_rows, hidden_rows = (t.reshape(-1, t.shape[-1]) for t in (grad, x, hidden))
        # [rows, rank]
        grad_hidden = linear(grad_rows, b.to(grad_rows.dtype).t()).mul_(ctx.scale)
        grad_a = linear(grad_hidden.t(), x_rows.t()).to(a.dtype)
        # B's gradient is computed transposed: the left factor is copied, so it should be the one of the rank's size
        grad_b = linear(hidden_rows.t(), grad_rows.t()).t().to(b.dtype)
        grad_x = None
        # nothing before the first LoRA layer is trained, and mostly not the text either
        if ctx.needs_input_grad[0]:
            grad_base = linear(grad_rows, weight_of(ctx.base).flatten(1).t())
            grad_x = linear(grad_hidden, a.to(grad_rows.dtype).t(), None, grad_base).view(x.shape)
        return grad_x, None, grad_a, grad_b, None


class LoraLinear(Linear):
    """peft's LoRA layer for a linear layer, computed by `_Lora`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _forward(self, x)


class LoraConv1x1(Conv2d):
    """peft's LoRA layer for a 1x1 convolution, which is a linear layer over positions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # [batch, in, height, width] -> [batch, height * width, in], and back
        rows = x.permute(0, 2, 3, 1).flatten(1, 2)
        return _forward(self, rows).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


def _forward(layer, x: torch.Tensor) -> torch.Tensor:
    """x [..., in] through a peft layer: [..., out]."""
    # flattened, as those of a 1x1 convolution are [rank, in, 1, 1] and [out, rank, 1, 1]
    a, b = layer.lora_A[NAME].weight.flatten(1), layer.lora_B[NAME].weight.flatten(1)
    base, scale, dropout = layer.base_layer, layer.scaling[NAME], layer.lora_dropout[NAME]
    if isinstance(dropout, nn.Identity):
        return _Lora.apply(x, base, a, b, scale)
    # with dropout the base and A have different inputs, so torch's own operations keep what they need
    hidden = nn.functional.linear(dropout(x), a.to(x.dtype)) * scale
    return FrozenProduct.apply(x, base) + nn.functional.linear(hidden, b.to(x.dtype))


# class of a layer -> the LoRA layer that peft puts in its place; peft asks by isinstance, so slim layers count, too
LAYERS = {nn.Linear: LoraLinear, nn.Conv2d: LoraConv1x1}
