"""Frozen layers that keep no activations for the backward pass and use the faster kernels; weights do not change."""

from __future__ import annotations

from types import MethodType

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

# A convolution of at most this many output positions (batch * height * width) is computed on a CPU as one matrix
# product over its patches (im2col): oneDNN would spend longer reordering the weight than computing.
IM2COL_POSITIONS = 128
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def slim(model: nn.Module) -> nn.Module:
    """Make a frozen model's linear layers, convolutions, residual blocks and GEGLUs slim in place; returns it.

    Slim layers compute the same and keep less for the backward pass. Layers with a trained weight stay.
    """
    from diffusers.models.activations import GEGLU
    from diffusers.models.resnet import ResnetBlock2D

    for module in model.modules():
        # exact types: a subclass may compute something else
        if type(module) is GEGLU:
            module.forward = MethodType(_geglu, module)
        elif type(module) is ResnetBlock2D and _is_plain_block(module):
            module.forward = MethodType(_resnet_block, module)
        # another class for the same object: names and parameters stay those of the checkpoint
        if type(module) is nn.Linear and not module.weight.requires_grad:
            module.__class__ = FrozenLinear
        elif type(module) is nn.Conv2d and not module.weight.requires_grad and _is_plain_conv(module):
            module.__class__ = FrozenConv2d
    return model


def _is_plain_block(block: nn.Module) -> bool:
    """True for the residual blocks of Stable Diffusion, not for diffusers' other variants of them."""
    same_size = block.upsample is None and block.downsample is None
    adds_time = block.time_embedding_norm == "default" and not block.skip_time_act
    plain = isinstance(block.nonlinearity, nn.SiLU) and block.output_scale_factor == 1 and block.dropout.p == 0
    return same_size and adds_time and plain and type(block.norm1) is type(block.norm2) is nn.GroupNorm


def _is_plain_conv(conv: nn.Conv2d) -> bool:
    """True for convolutions with zero padding, no groups and no dilation, which `_Conv2d` computes."""
    zeros = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return zeros and conv.groups == 1 and conv.dilation == (1, 1)


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, add: torch.Tensor | None = None
) -> torch.Tensor:
    """x [..., k] times weight [n, k] transposed, + bias [n], + add [..., n], which may be overwritten.

    In float32 on a CPU through oneDNN: MKL, which F.linear calls, is half as fast on AMD's processors.
    """
    # torch.compile does not know oneDNN's call
    if ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling():
        if add is None:
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return torch.ops.mkldnn._linear_pointwise.binary(x, add, weight, bias, "add")
    y = F.linear(x, weight, bias)
    return y if add is None else y.add_(add)


def weight_of(layer: nn.Module) -> torch.Tensor:
    """A layer's weight on the device that computes; of an offloaded layer a copy, to be read before the next call."""
    # set by `lorakit.layers.offload.place`
    prefetcher = getattr(layer, "prefetcher", None)
    return layer.weight if prefetcher is None else prefetcher.fetch(layer.weight)


# ---- linear layers and convolutions ----------------------------------------------------------------------------------


class FrozenProduct(Function):
    """x [..., in] through a frozen linear layer, or a 1x1 convolution's weight.

    The gradient of x needs the weight alone, so x is not kept; torch's own layer keeps it for the weight's gradient.
    """

    @staticmethod
    def forward(ctx, x, layer):
        # the layer is kept, not its weight: an offloaded one is fetched again for the backward pass
        ctx.layer = layer
        return linear(x, weight_of(layer).flatten(1), layer.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return linear(grad, weight_of(ctx.layer).flatten(1).t()), None


class _Conv2d(Function):
    """x [batch, in, height, width] through a frozen convolution; x is not kept, only its shape."""

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
        # [batch, positions, in * kernel]
        patches = F.unfold(x, kernel, padding=padding, stride=stride).transpose(1, 2)
        return linear(patches, weight.flatten(1), bias).transpose(1, 2).reshape(len(x), out, height, width)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        weight, stride, padding = weight_of(ctx.layer), ctx.layer.stride, ctx.layer.padding
        if ctx.im2col:
            # [batch, in * kernel, positions]; fold sums up the patches that overlap
            patches = linear(grad.flatten(2).transpose(1, 2), weight.flatten(1).t()).transpose(1, 2)
            return F.fold(patches, ctx.shape[2:], weight.shape[2:], padding=padding, stride=stride), None
        return torch.nn.grad.conv2d_input(ctx.shape, weight, grad, stride, padding), None


class FrozenLinear(nn.Linear):
    """A linear layer without a weight gradient."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # peft makes its own trained layers of the base layer's class
        if self.weight.requires_grad:
            return super().forward(x)
        return FrozenProduct.apply(x, self)


class FrozenConv2d(nn.Conv2d):
    """A convolution without a weight gradient; unlike torch's own it does not keep its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.weight.requires_grad:
            return super().forward(x)
        return _Conv2d.apply(x, self)


# ---- residual blocks and GEGLU ---------------------------------------------------------------------------------------


class _NormSilu(Function):
    """silu(group_norm(x)) of x [batch, channels, height, width]; keeps x alone and normalises again to go backward."""

    @staticmethod
    def forward(ctx, x, norm):
        # batch, channels, height * width, groups: as torch's own group norm takes them
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
        # the norm's weight and bias are frozen
        only_x = (True, False, False)
        grads = torch.ops.aten.native_group_norm_backward(grad_y, x, mean, rstd, norm.weight, *ctx.sizes, only_x)
        return grads[0], None


def _resnet_block(self, x: torch.Tensor, temb: torch.Tensor | None) -> torch.Tensor:
    """diffusers' ResnetBlock2D.forward as Stable Diffusion uses it.

    x [batch, in, height, width] and the time's embedding temb [batch, n] -> [batch, out, height, width]
    """
    hidden = self.conv1(_NormSilu.apply(x.contiguous(), self.norm1))
    if temb is not None:
        hidden = hidden + self.time_emb_proj(self.nonlinearity(temb))[:, :, None, None]
    hidden = self.conv2(_NormSilu.apply(hidden.contiguous(), self.norm2))
    return hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class _Geglu(Function):
    """x * gelu(gate) of [x, gate] = y [..., 2n]: [..., n]; keeps y alone."""

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
        # both halves are written into one tensor, so that they need not be joined by a copy
        grad_y = torch.empty_like(y)
        grad_x, grad_gate = grad_y.chunk(2, dim=-1)
        torch.mul(grad, F.gelu(gate), out=grad_x)
        grad_gate.copy_(torch.ops.aten.gelu_backward(grad * x, gate))
        return grad_y


def _geglu(self, x: torch.Tensor) -> torch.Tensor:
    """diffusers' GEGLU.forward: x [..., in] -> [..., n]."""
    return _Geglu.apply(self.proj(x))
