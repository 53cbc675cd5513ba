"""Frozen weights that stay in host memory and come to the device layer by layer, ahead of their use."""

from __future__ import annotations

import torch
from torch import nn

from lorakit.layers.frozen import FrozenConv2d, FrozenLinear


class Courier:
    """Brings weights to a device, one at a time; on CUDA the next is on its way while this one is used.

    There are two slots. A weight is used only until the next one is fetched, so when that happens all work that reads
    the other slot is queued, and copies wait for what is queued: none can overwrite what is still read. Which weight
    comes next is what came next last time, after the same two; a wrong guess costs a copy and changes nothing.
    """

    def __init__(self, device: torch.device, size: int):
        """`size` is that of the largest weight, in bytes."""
        self.device = device
        self._on_cuda = device.type == "cuda"
        if self._on_cuda:
            self._stream = torch.cuda.Stream(device)
            self._slots = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
        self._slot = 0  # written last
        self._sent: tuple[torch.Tensor | None, torch.Tensor | None] = None, None  # a weight and its copy
        self._latest = 0, 0  # the two weights fetched last
        self._followed: dict[tuple[int, int], torch.Tensor] = {}  # two weights fetched in turn -> what came after them

    def fetch(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight on the device; to be read before the next one is fetched, by work on the current stream."""
        if not self._on_cuda:
            return weight.to(self.device)
        current = torch.cuda.current_stream(self.device)
        if self._sent[0] is not weight:
            self._send(weight, current)
        current.wait_stream(self._stream)
        _, copy = self._sent
        self._followed[self._latest] = weight
        self._latest = self._latest[1], id(weight)
        self._send(self._followed.get(self._latest), current)
        return copy

    def _send(self, weight: torch.Tensor | None, current: torch.cuda.Stream) -> None:
        """Start copying a weight into the slot that is not the latest."""
        if weight is None:
            self._sent = None, None
            return
        self._slot = 1 - self._slot
        copy = self._slots[self._slot][: weight.nbytes].view(weight.dtype).view(weight.shape)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            copy.copy_(weight, non_blocking=True)
        self._sent = weight, copy


def place(module: nn.Module, device: torch.device, share: float) -> nn.Module:
    """Move a slim, frozen module from the host to the device, but for a share of its blocks' weights; returns it.

    share   0..1, in bytes, spread evenly over the blocks' linear layers and convolutions; these weights stay in host
            memory, pinned where there is CUDA, and their layers bring them where they compute
    """
    layers = [
        layer
        for name, layer in module.named_modules()
        if "block" in name and isinstance(layer, (FrozenLinear, FrozenConv2d))
    ]
    courier = Courier(device, max((layer.weight.nbytes for layer in layers), default=0))
    staying, owed = set(), 0.0
    for layer in layers:
        owed += share * layer.weight.nbytes
        if owed >= layer.weight.nbytes / 2:
            owed -= layer.weight.nbytes
            layer.courier = courier
            staying.add(layer.weight)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor not in staying:
            tensor.data = tensor.data.to(device)
        elif device.type == "cuda":
            tensor.data = tensor.data.pin_memory()
    return module
