"""Frozen layers that keep no activations for the backward pass and use the faster kernels; weights stay as they are."""

from __future__ import annotations

from types import MethodType

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

# below this many output positions a convolution's weights dominate, and one matrix product beats oneDNN's reordering
IM2COL_POSITIONS = 128
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def slim(model: nn.Module) -> nn.Module:
    """Make a frozen model's linear layers, convolutions, residual blocks and GEGLUs slim in place; returns it."""
    from diffusers.models.activations import GEGLU
    from diffusers.models.resnet import ResnetBlock2D

    for module in model.modules():
        if type(module) is GEGLU:
            module.forward = MethodType(_geglu, module)
        elif type(module) is ResnetBlock2D and _is_usual(module):
            module.forward = MethodType(_resnet_block, module)
        if type(module) is nn.Linear and not module.weight.requires_grad:
            module.__class__ = FrozenLinear
        elif type(module) is nn.Conv2d and not module.weight.requires_grad and _is_plain(module):
            module.__class__ = FrozenConv2d
    return model


def _is_usual(block: nn.Module) -> bool:
    """True for the residual blocks of Stable Diffusion, not for the library's other variants of them."""
    same_size = block.upsample is None and block.downsample is None
    adds_time = block.time_embedding_norm == "default" and not block.skip_time_act
    plain = isinstance(block.nonlinearity, nn.SiLU) and block.output_scale_factor == 1 and block.dropout.p == 0
    return same_size and adds_time and plain and type(block.norm1) is type(block.norm2) is nn.GroupNorm


def _is_plain(conv: nn.Conv2d) -> bool:
    zeros = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return zeros and conv.groups == 1 and conv.dilation == (1, 1)


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, plus: torch.Tensor | None = None
) -> torch.Tensor:
    """x [..., k] times weight [n, k] transposed, + bias [n], + plus [..., n] (which may be overwritten).

    In float32 on a CPU through oneDNN: MKL, which F.linear calls, is half as fast on AMD's processors. Not in compiled
    code, whose compiler does not know that call.
    """
    if ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling():
        if plus is None:
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return torch.ops.mkldnn._linear_pointwise.binary(x, plus, weight, bias, "add")
    y = F.linear(x, weight, bias)
    return y if plus is None else y.add_(plus)


def weight_of(layer: nn.Module) -> torch.Tensor:
    """A layer's weight where it is needed, brought there when it is kept elsewhere; good until the next one is."""
    courier = getattr(layer, "courier", None)  # see `_offload`
    return layer.weight if courier is None else courier.fetch(layer.weight)


class FrozenProduct(Function):
    """x [..., in] through a frozen linear layer, or a 1x1 convolution's weight, which keeps no x."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        return linear(x, weight_of(layer).flatten(1), layer.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return linear(grad, weight_of(ctx.layer).flatten(1).t()), None


class _Conv2d(Function):
    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer, ctx.shape = layer, x.shape
        weight, bias, stride, padding = weight_of(layer), layer.bias, layer.stride, layer.padding
        out, _, *kernel = weight.shape
        sides = zip(x.shape[2:], padding, kernel, stride, strict=True)
        height, width = ((size + 2 * pad - side) // step + 1 for size, pad, side, step in sides)
        ctx.im2col = x.device.type == "cpu" and len(x) * height * width <= IM2COL_POSITIONS
        if not ctx.im2col:
            return F.conv2d(x, weight, bias, stride, padding)
        columns = F.unfold(x, kernel, padding=padding, stride=stride).transpose(1, 2)
        return linear(columns, weight.flatten(1), bias).transpose(1, 2).reshape(len(x), out, height, width)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        weight, stride, padding = weight_of(ctx.layer), ctx.layer.stride, ctx.layer.padding
        if ctx.im2col:
            columns = linear(grad.flatten(2).transpose(1, 2), weight.flatten(1).t()).transpose(1, 2)
            return F.fold(columns, ctx.shape[2:], weight.shape[2:], padding=padding, stride=stride), None
        return torch.nn.grad.conv2d_input(ctx.shape, weight, grad, stride, padding), None


class FrozenLinear(nn.Linear):
    """A linear layer without a weight gradient."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.weight.requires_grad:  # peft makes its own trained layers of the base layer's class
            return super().forward(x)
        return FrozenProduct.apply(x, self)


class FrozenConv2d(nn.Conv2d):
    """A convolution without a weight gradient; unlike torch's own it does not keep its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.weight.requires_grad:
            return super().forward(x)
        return _Conv2d.apply(x, self)


class _NormSilu(Function):
    """silu(group_norm(x)), which keeps x alone and normalises again in the backward pass."""

    @staticmethod
    def forward(ctx, x, norm):
        ctx.norm, ctx.sizes = norm, (len(x), x.shape[1], x[0, 0].numel(), norm.num_groups)
        y, mean, rstd = torch.native_group_norm(x, norm.weight, norm.bias, *ctx.sizes, norm.eps)
        ctx.save_for_backward(x, mean, rstd)
        return F.silu(y, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, mean, rstd = ctx.saved_tensors
        norm = ctx.norm
        y, _, _ = torch.native_group_norm(x, norm.weight, norm.bias, *ctx.sizes, norm.eps)
        grad_y = torch.ops.aten.silu_backward(grad.contiguous(), y)
        only_x = (True, False, False)
        grads = torch.ops.aten.native_group_norm_backward(grad_y, x, mean, rstd, norm.weight, *ctx.sizes, only_x)
        return grads[0], None


def _resnet_block(self, x: torch.Tensor, temb: torch.Tensor | None) -> torch.Tensor:
    """diffusers' ResnetBlock2D.forward as Stable Diffusion uses it."""
    hidden = self.conv1(_NormSilu.apply(x.contiguous(), self.norm1))
    if temb is not None:
        hidden = hidden + self.time_emb_proj(self.nonlinearity(temb))[:, :, None, None]
    hidden = self.conv2(_NormSilu.apply(hidden.contiguous(), self.norm2))
    return hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class _Geglu(Function):
    """x * gelu(gate) of [x, gate] = y [..., 2n], which keeps y alone."""

    @staticmethod
    def forward(ctx, y):
        ctx.save_for_backward(y)
        x, gate = y.chunk(2, dim=-1)
        return F.gelu(gate).mul_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        x, gate = y.chunk(2, dim=-1)
        grad_y = torch.empty_like(y)
        grad_x, grad_gate = grad_y.chunk(2, dim=-1)
        torch.mul(grad, F.gelu(gate), out=grad_x)
        grad_gate.copy_(torch.ops.aten.gelu_backward(grad * x, gate))
        return grad_y


def _geglu(self, x: torch.Tensor) -> torch.Tensor:
    """diffusers' GEGLU.forward."""
    return _Geglu.apply(self.proj(x))
