"""The passes of LoRA layers: base(x) + B(scale * A(x)), with nothing of the output's size kept or copied."""

from __future__ import annotations

import torch
from peft.tuners.lora.layer import Conv2d, Linear
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lorakit.layers.frozen import FrozenProduct, linear, weight_of

NAME = "default"  # the one adapter that a layer holds; a second would never be trained


class _Lora(Function):
    """x [..., in], base with weight [out, in], down [rank, in], up [out, rank], which are float32 whatever x is."""

    @staticmethod
    def forward(ctx, x, base, down, up, scale):
        low = linear(x, down.to(x.dtype)).mul_(scale)
        ctx.base, ctx.scale = base, scale
        ctx.save_for_backward(x, down, up, low)
        return linear(low, up.to(x.dtype), None, linear(x, weight_of(base).flatten(1), base.bias))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, down, up, low = ctx.saved_tensors
        g, rows, low = (t.reshape(-1, t.shape[-1]) for t in (grad, x, low))
        grad_low = linear(g, up.to(g.dtype).t()).mul_(ctx.scale)
        grad_down = linear(grad_low.t(), rows.t()).to(down.dtype)
        grad_up = linear(low.t(), g.t()).t().to(up.dtype)  # the rank-sized factor first: the left one is copied
        grad_x = None
        if ctx.needs_input_grad[0]:
            plain = linear(g, weight_of(ctx.base).flatten(1).t())
            grad_x = linear(grad_low, down.to(g.dtype).t(), None, plain).view(x.shape)
        return grad_x, None, grad_down, grad_up, None


class LoraLinear(Linear):
    """peft's LoRA layer for a linear layer, computed as above."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _forward(self, x)


class LoraConv1x1(Conv2d):
    """peft's LoRA layer for a 1x1 convolution, which is a linear layer over positions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.permute(0, 2, 3, 1).flatten(1, 2)
        return _forward(self, rows).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


def _forward(layer, x: torch.Tensor) -> torch.Tensor:
    down, up = layer.lora_A[NAME].weight.flatten(1), layer.lora_B[NAME].weight.flatten(1)
    base, scale, dropout = layer.base_layer, layer.scaling[NAME], layer.lora_dropout[NAME]
    if isinstance(dropout, nn.Identity):
        return _Lora.apply(x, base, down, up, scale)
    hidden = nn.functional.linear(dropout(x), down.to(x.dtype)) * scale
    return FrozenProduct.apply(x, base) + nn.functional.linear(hidden, up.to(x.dtype))


LAYERS = {nn.Linear: LoraLinear, nn.Conv2d: LoraConv1x1}
