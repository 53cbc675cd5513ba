"""Forward passes of diffusers' CosmosTransformer3DModel that stay finite in float16 and need no torchvision.

In float32 and bfloat16 the results are bit for bit those of diffusers. In float16 the residual stream of Anima and its
modulation would overflow; therefore the stream, AdaLN, time embedding, gates and sums are float32 there, and only the
matrices of attention and MLP are float16.
"""

from __future__ import annotations

from types import MethodType

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

# Scale of the outputs of attention and MLP in float16: those up to 65504 / OUTPUT stay finite. A power of two, so that
# nothing is rounded.
OUTPUT = 2.0**-4
# Modules that compute in the type of the residual stream.
STREAM = ("patch_embed", "learnable_pos_embed", "time_embed", "norm_out", "proj_out")


def prepare(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Give the blocks of a frozen transformer the forward pass below, in place; `dtype` is that of its matrices."""
    for block in model.transformer_blocks:
        block.forward = MethodType(_block, block)
    if dtype == torch.float16:
        norms = (norm for block in model.transformer_blocks for norm in (block.norm1, block.norm2, block.norm3))
        for module in (*(getattr(model, name) for name in STREAM), *norms):
            if module is not None:
                module.float()
    return model


def stream_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of the residual stream, and so of input and output, by that of the matrices."""
    return torch.float32 if dtype == torch.float16 else dtype


def velocity(model: nn.Module, xt: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """The velocity v that a prepared transformer predicts, like xt.

    xt      [B, channels, h, w] in the stream's type; h and w are multiples of the patch (2)
    t       float32 [B] in [0, 1]; 1 is noise
    text    [B, tokens, width] in the type of the matrices; padded with zeros, without a mask
    """
    hidden = xt[:, :, None]  # [B, channels, 1, h, w]: a film of one frame
    if model.config.concat_padding_mask:
        # a further channel marks padding, which our images do not have
        hidden = torch.cat([hidden, torch.zeros_like(hidden[:, :1])], dim=1)
    rope = model.rope(hidden, fps=None)
    # Anima has none; other Cosmos models add a learned embedding of the position in every block.
    positions = None if model.learnable_pos_embed is None else model.learnable_pos_embed(hidden)
    patches = model.patch_embed(hidden)  # [B, 1, h / 2, w / 2, width]
    hidden = patches.flatten(1, 3)  # [B, N, width] with N = h w / 4
    temb, embedded = model.time_embed(hidden, t)
    for block in model.transformer_blocks:
        inputs = hidden, text, embedded, temb, rope, positions
        if torch.is_grad_enabled() and model.gradient_checkpointing:
            hidden = checkpoint(block, *inputs, use_reentrant=False)
        else:
            hidden = block(*inputs)
    hidden = model.proj_out(model.norm_out(hidden, embedded, temb))
    return _unpatched(hidden.unflatten(1, patches.shape[1:4]), model.config.patch_size)


def _unpatched(hidden: torch.Tensor, patch: tuple[int, int, int]) -> torch.Tensor:
    """[B, 1, rows, columns, patch height x patch width x channels] -> [B, channels, h, w]."""
    _, height, width = patch
    hidden = hidden[:, 0].unflatten(3, (height, width, -1)).permute(0, 5, 1, 3, 2, 4)
    return hidden.flatten(4, 5).flatten(2, 3)


def _block(
    self,
    hidden: torch.Tensor,
    text: torch.Tensor,
    embedded: torch.Tensor,
    temb: torch.Tensor,
    rope: tuple[torch.Tensor, torch.Tensor],
    positions: torch.Tensor | None,
) -> torch.Tensor:
    """CosmosTransformerBlock: the stream `hidden` [B, N, width] after self attention, cross attention and MLP."""
    if positions is not None:
        hidden = hidden + positions
    x, gate = self.norm1(hidden, embedded, temb)
    x = x.to(text.dtype)
    hidden = hidden + gate * _attention(self.attn1, x, x, rope)
    x, gate = self.norm2(hidden, embedded, temb)
    hidden = hidden + gate * _attention(self.attn2, x.to(text.dtype), text, None)
    x, gate = self.norm3(hidden, embedded, temb)
    widened, _, narrow = self.ff.net
    return hidden + gate * _output(narrow, widened(x.to(text.dtype)))


def _attention(
    attn: nn.Module, x: torch.Tensor, context: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor] | None
) -> torch.Tensor:
    """Attention of x [B, N, width] over `context` [B, M, width], in the type of the stream."""
    q, k, v = attn.to_q(x), attn.to_k(context), attn.to_v(context)
    q, k, v = (y.unflatten(2, (attn.heads, -1)).transpose(1, 2) for y in (q, k, v))
    q, k = attn.norm_q(q), attn.norm_k(k)
    if rope is not None:
        q, k = _rotated(q, *rope), _rotated(k, *rope)
    # [B, heads, N, width of a head]; scaled by 1 / sqrt of that width, which is the default.
    y = F.scaled_dot_product_attention(q, k, v)
    return _output(attn.to_out[0], y.transpose(1, 2).flatten(2))


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding (Su et al. 2021, arXiv:2104.09864) of x [B, heads, N, width]; cos and sin are [N, width]."""
    left, right = x.chunk(2, dim=-1)
    # In float32, as in diffusers, whatever the type of x.
    return (x.float() * cos + torch.cat([-right, left], dim=-1).float() * sin).to(x.dtype)


def _output(layer: nn.Module, y: torch.Tensor) -> torch.Tensor:
    """layer(y) of a linear layer without bias; in float16 scaled so that nothing overflows, and returned as float32."""
    if y.dtype != torch.float16:
        return layer(y)
    return layer(y * OUTPUT).float() / OUTPUT
