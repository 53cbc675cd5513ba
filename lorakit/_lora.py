"""The passes of LoRA layers: base(x) + B(scale * A(x)), with nothing of the output's size kept or copied."""

from __future__ import annotations

import torch
from peft.tuners.lora.layer import Conv2d, Linear
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lorakit._frozen import linear

NAME = "default"  # the one adapter that a layer holds; a second would never be trained


class _Lora(Function):
    """x [..., in], weight [out, in], down [rank, in], up [out, rank]; down and up are float32 whatever x is."""

    @staticmethod
    def forward(ctx, x, weight, bias, down, up, scale):
        low = linear(x, down.to(x.dtype)).mul_(scale)
        ctx.weight, ctx.scale = weight, scale
        ctx.save_for_backward(x, down, up, low)
        return linear(low, up.to(x.dtype), None, linear(x, weight, bias))

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
            grad_x = linear(grad_low, down.to(g.dtype).t(), None, linear(g, ctx.weight.t())).view(x.shape)
        return grad_x, None, None, grad_down, grad_up, None


class LoraLinear(Linear):
    """peft's LoRA layer for a linear layer, computed as above."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        down, up = self.lora_A[NAME].weight, self.lora_B[NAME].weight
        return _forward(self, x, down, up, self.base_layer.weight)


class LoraConv1x1(Conv2d):
    """peft's LoRA layer for a 1x1 convolution, which is a linear layer over positions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        down, up, weight = (side.weight.flatten(1) for side in (self.lora_A[NAME], self.lora_B[NAME], self.base_layer))
        rows = x.permute(0, 2, 3, 1).flatten(1, 2)
        return _forward(self, rows, down, up, weight).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


def _forward(layer, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    bias, scale, dropout = layer.base_layer.bias, layer.scaling[NAME], layer.lora_dropout[NAME]
    if isinstance(dropout, nn.Identity):
        return _Lora.apply(x, weight, bias, down, up, scale)
    hidden = nn.functional.linear(dropout(x), down.to(x.dtype)) * scale
    return nn.functional.linear(x, weight, bias) + nn.functional.linear(hidden, up.to(x.dtype))


LAYERS = {nn.Linear: LoraLinear, nn.Conv2d: LoraConv1x1}
