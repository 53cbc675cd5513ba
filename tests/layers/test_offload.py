"""Copies of offloaded weights are whole when they are read, however the device orders what its streams allow."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import contextmanager

import pytest
import torch

from lorakit.layers.offload import Prefetcher

LAYERS = 10
STEP = [*range(LAYERS), *reversed(range(LAYERS))]
BLOCKS = [layer for first in range(LAYERS - 2, -1, -2) for layer in (first, first + 1, first + 1, first)]
TRACES = {  # which layers' weights are fetched, in turn
    "forward and backward": STEP * 4,
    "recomputed in blocks of two": [*range(LAYERS), *BLOCKS] * 4,
    "at random": random.Random(1).choices(range(LAYERS), k=200),
    "one layer": [3] * 40,
}


class Stream:
    """A queue of work, some of which waits for a place in another queue."""

    def __init__(self, device: torch.device):
        self.queue: list[tuple[Stream, int] | Callable[[], None]] = []
        self.done = 0

    def wait_stream(self, other: Stream) -> None:
        self.queue.append((other, len(other.queue)))

    def advance(self) -> bool:
        """Do the next piece of work, if there is one that need not wait."""
        if self.done == len(self.queue):
            return False
        work = self.queue[self.done]
        if isinstance(work, tuple) and work[0].done < work[1]:
            return False
        if callable(work):
            work()
        self.done += 1
        return True


class Device:
    """What the prefetcher uses of torch.cuda, on the CPU: work is queued, and done in any order that is allowed."""

    def __init__(self, patch: pytest.MonkeyPatch, seed: int):
        self.random, self.streams, self.copies = random.Random(seed), [], 0
        self.current = self.stream(torch.device("cuda"))
        copy, empty = torch.Tensor.copy_, torch.empty

        def queued_copy(into: torch.Tensor, source: torch.Tensor, non_blocking: bool) -> None:
            self.copies += 1
            self.current.queue.append(lambda: copy(into, source))

        patch.setattr(torch.Tensor, "copy_", queued_copy)
        patch.setattr(torch, "empty", lambda size, dtype, device: empty(size, dtype=dtype))
        patch.setattr(torch.cuda, "Stream", self.stream)
        patch.setattr(torch.cuda, "stream", self.on)
        patch.setattr(torch.cuda, "current_stream", lambda device: self.current)

    def stream(self, device: torch.device) -> Stream:
        self.streams.append(Stream(device))
        return self.streams[-1]

    @contextmanager
    def on(self, stream: Stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def work(self) -> None:
        """A little of what is queued, of any stream."""
        while self.random.random() < 0.5:
            self.random.choice(self.streams).advance()

    def finish(self) -> None:
        while any(stream.advance() for stream in self.random.sample(self.streams, len(self.streams))):
            pass
        assert all(stream.done == len(stream.queue) for stream in self.streams), "streams wait for each other"


@pytest.mark.parametrize("trace", TRACES.values(), ids=TRACES)
def test_every_read_finds_its_weight(monkeypatch, trace):
    weights = [torch.full((8, 2), float(layer)) for layer in range(LAYERS)]
    for seed in range(50):
        with monkeypatch.context() as patch:
            device, wrong = Device(patch, seed), []
            prefetcher = Prefetcher(torch.device("cuda"), max(weight.nbytes for weight in weights))

            def read(copy: torch.Tensor, layer: int, wrong: list[int] = wrong) -> None:
                if not torch.equal(copy, weights[layer]):
                    wrong.append(layer)

            for layer in trace:
                copy = prefetcher.fetch(weights[layer])
                device.current.queue.append(lambda copy=copy, layer=layer: read(copy, layer))
                device.work()
            device.finish()
        assert not wrong


def test_an_order_that_repeats_is_predicted(monkeypatch):
    weights = [torch.full((8, 2), float(layer)) for layer in range(LAYERS)]
    device = Device(monkeypatch, 0)
    prefetcher = Prefetcher(torch.device("cuda"), weights[0].nbytes)
    for layer in STEP * 4:
        prefetcher.fetch(weights[layer])
        device.work()
    assert device.copies <= len(STEP * 4) + 1
