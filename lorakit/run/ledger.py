"""Adds up what a GPU would hold while code computes with tensors that have shapes and no data (torch's device meta)."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
HALF = (torch.float16, torch.bfloat16)
# bytes: CUDA's allocator rounds up to multiples of this (c10/cuda/CUDACachingAllocator.cpp, kMinBlockSize)
BLOCK = 512
# Streaming multiprocessors of an RTX 4090: deterministic flash attention takes more memory on a GPU that has more.
PROCESSORS = 128


class Ledger(TorchDispatchMode):
    """Counts the storages of meta tensors that live, while it is entered; attention is computed as CUDA does it.

    held         tensors that are there already and are not counted, nor are views of them
    has_flash    whether the GPU has flash attention (compute capability 8.0); others take the memory-efficient kernel

    `now` and `peak` are bytes. Not counted is what only CUDA knows of: its context, workspaces of cuBLAS and cuDNN, and
    what the allocator loses between blocks.
    """

    def __init__(self, held: Iterable[torch.Tensor] = (), *, has_flash: bool = True):
        super().__init__()
        self.now = self.peak = 0
        # of the storages that live, by their address
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in held}
        # a patch, as a mode of torch is left while a backward pass recomputes
        self._patch = mock.patch.object(F, "scaled_dot_product_attention", _attention(has_flash))

    def __enter__(self) -> Ledger:
        self._patch.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patch.stop()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = _computed(func, args, kwargs or {})
        for tensor in tree_leaves(result):
            if _is_meta(tensor):
                self._add(tensor.untyped_storage())
        if inside := WORKSPACES.get(func):
            self.peak = max(self.peak, self.now + inside(args))
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address not in self._sizes:
            self._sizes[address] = occupied(storage.nbytes())
            self.now += self._sizes[address]
            self.peak = max(self.peak, self.now)
            # torch keeps one Python object for a storage as long as it lives
            weakref.finalize(storage, self._gone, address)

    def _gone(self, address: int) -> None:
        self.now -= self._sizes.pop(address)


def occupied(size: int) -> int:
    """The bytes that CUDA's allocator gives to a tensor of `size` bytes."""
    return -(-size // BLOCK) * BLOCK


# ---- results without computing them ----------------------------------------------------------------------------------

# (function, its arguments with shapes for tensors) -> what it returns: tensors as (shape, stride, dtype), IN_PLACE, or
# ALIAS. Torch computes shapes in Python, slowly, and the blocks of a model are all alike: most calls were there before.
_results: dict[tuple, Any] = {}
IN_PLACE, ALIAS = "its first argument", "a view of an argument"


def _computed(func: Any, args: tuple, kwargs: dict) -> Any:
    """func(*args, **kwargs), of which most calls are answered from `_results`."""
    key = func, _shapes(args), _shapes(tuple(kwargs.items()))
    stored = _results.get(key, ALIAS)
    if stored is IN_PLACE:
        return args[0]
    if stored is not ALIAS:
        tensors = tuple(torch.empty_strided(*sizes, dtype=dtype, device="meta") for *sizes, dtype in stored)
        return tensors if len(tensors) > 1 else tensors[0]
    result = func(*args, **kwargs)
    if key not in _results:
        _results[key] = _stored(result, args, kwargs)
    return result


def _stored(result: Any, args: tuple, kwargs: dict) -> Any:
    """What `_results` keeps of a result."""
    if args and result is args[0]:
        return IN_PLACE
    tensors = result if isinstance(result, tuple) and len(result) > 1 else (result,)
    if not all(map(_is_meta, tensors)):
        return ALIAS
    given = (tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor))
    storages = {tensor.untyped_storage()._cdata for tensor in given}
    if any(tensor.untyped_storage()._cdata in storages for tensor in tensors):
        return ALIAS
    return [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors]


def _shapes(value: Any) -> Any:
    """A value with shape, stride and type in place of each tensor."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    return tuple(map(_shapes, value)) if isinstance(value, (list, tuple)) else value


def _is_meta(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == "meta"


# ---- attention -------------------------------------------------------------------------------------------------------


def _attention(has_flash: bool) -> Callable[..., torch.Tensor]:
    """Attention by the kernel that CUDA would choose; torch's own on the meta device keeps all scores.

    Tensors that are elsewhere, as those of another thread, are left to torch's own.
    """
    own = F.scaled_dot_product_attention

    def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        """[B, heads, N, width of a head], like the query."""
        if query.device.type != "meta":
            return own(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        if enable_gqa:
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        # flash attention takes neither masks, nor float32, nor heads above 256 channels
        if has_flash and attn_mask is None and query.dtype in HALF and query.shape[-1] <= 256:
            kernel = aten._scaled_dot_product_flash_attention
            return kernel(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
        if attn_mask is not None:
            attn_mask = attn_mask.to(query.dtype).expand(*query.shape[:3], key.shape[2])
        has_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
        kernel = aten._scaled_dot_product_efficient_attention
        return kernel(query, key, value, attn_mask, has_grad, dropout_p, is_causal, scale=scale)[0]

    return attention


def _flash_backward(args: tuple) -> int:
    """Bytes of the parts of q's gradient that deterministic flash attention adds up in order, in float32."""
    batch, heads, positions, width = args[1].shape
    parts = -(-PROCESSORS // (batch * heads))
    # rounded up to tiles of 128 positions and 32 channels (pytorch, flash_attn/flash_api.cpp, mha_bwd)
    return parts * batch * heads * (-(-positions // 128) * 128) * (-(-width // 32) * 32) * 4


def _efficient_backward(args: tuple) -> int:
    """Bytes of q's gradient in float32, where q is of half precision (pytorch, mem_eff_attention/kernel_backward.h)."""
    return args[1].numel() * 4 if args[1].dtype in HALF else 0


# What kernels allocate and free inside, which cannot be seen from outside; by the arguments of the call.
WORKSPACES = {
    aten._scaled_dot_product_flash_attention_backward.default: _flash_backward,
    aten._scaled_dot_product_efficient_attention_backward.default: _efficient_backward,
}
