"""CPU offload (block swap): frozen weights stay in host memory and are copied to the device just ahead of use."""

from __future__ import annotations

import torch
from torch import nn

from lorakit.layers.frozen import FrozenConv2d, FrozenLinear


class Prefetcher:
    """Copies weights to a device, one at a time; on CUDA the next is being copied while this one is used.

    There are two slots of device memory, written in turn by a stream of its own. A weight may be read only until the
    next one is fetched. So when a slot is written again, all work that reads it is queued already, and the copy waits
    for what is queued: it cannot overwrite what is still read.

    Which weight comes next is predicted from the last two: the one that followed them before. A wrong guess costs one
    copy and changes no result.
    """

    def __init__(self, device: torch.device, size: int):
        """`size` is that of the largest weight, in bytes."""
        self.device = device
        self._on_cuda = device.type == "cuda"
        if self._on_cuda:
            self._stream = torch.cuda.Stream(device)
            self._slots = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
        # index of the slot written last
        self._slot = 0
        # the weight copied last, and its copy
        self._sent: tuple[torch.Tensor | None, torch.Tensor | None] = None, None
        # ids of the two weights fetched last
        self._latest = 0, 0
        # ids of two weights fetched one after the other -> the weight that followed them last time
        self._followers: dict[tuple[int, int], torch.Tensor] = {}

    def fetch(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight on the device; to be read before the next one is fetched, by work on the current stream."""
        if not self._on_cuda:
            return weight.to(self.device)
        current = torch.cuda.current_stream(self.device)
        # not predicted: copied now
        if self._sent[0] is not weight:
            self._send(weight, current)
        # work that is queued from here on waits for the copy
        current.wait_stream(self._stream)
        _, copy = self._sent
        self._followers[self._latest] = weight
        self._latest = self._latest[1], id(weight)
        self._send(self._followers.get(self._latest), current)
        return copy

    def _send(self, weight: torch.Tensor | None, current: torch.cuda.Stream) -> None:
        """Start copying a weight into the slot that was not written last; without a weight forget the last copy."""
        if weight is None:
            self._sent = None, None
            return
        self._slot = 1 - self._slot
        copy = self._slots[self._slot][: weight.nbytes].view(weight.dtype).view(weight.shape)
        # the work that read this slot's former weight is queued in `current`
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            # asynchronous only from pinned memory, which `place` takes care of
            copy.copy_(weight, non_blocking=True)
        self._sent = weight, copy


def on_host(module: nn.Module, share: float) -> tuple[list[nn.Module], int]:
    """The layers of a slim module whose weights stay in host memory, and the bytes of a slot for any of them."""
    layers = [
        layer
        for name, layer in module.named_modules()
        if "block" in name and isinstance(layer, (FrozenLinear, FrozenConv2d))
    ]
    # `owed` is how many bytes more should have stayed so far; a weight stays when that is nearer to the share
    staying, owed = [], 0.0
    for layer in layers:
        owed += share * layer.weight.nbytes
        if owed >= layer.weight.nbytes / 2:
            owed -= layer.weight.nbytes
            staying.append(layer)
    return staying, max((layer.weight.nbytes for layer in layers), default=0)


def place(module: nn.Module, device: torch.device, share: float) -> nn.Module:
    """Move a slim, frozen module from the host to the device, but for a share of its blocks' weights; returns it.

    share   0..1, in bytes, spread evenly over the blocks' linear layers and convolutions; these weights stay in host
            memory, pinned where there is CUDA, and their layers fetch them when they compute
    """
    layers, largest = on_host(module, share)
    prefetcher, staying = Prefetcher(device, largest), {layer.weight for layer in layers}
    for layer in layers:
        layer.prefetcher = prefetcher
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor not in staying:
            tensor.data = tensor.data.to(device)
        elif device.type == "cuda":
            tensor.data = tensor.data.pin_memory()
    return module
