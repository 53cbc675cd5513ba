"""Randomness as a function of (seed, step, purpose): nothing has a position that would have to be restored."""

from __future__ import annotations

import hashlib
import random


def seed_of(*keys: int | str) -> int:
    """A 63-bit seed from any keys, e.g. seed_of(run_seed, step, "noise"); equal on every machine and Python."""
    return int.from_bytes(hashlib.blake2b(ascii(keys).encode(), digest_size=8).digest(), "little") >> 1


def rng(*keys: int | str) -> random.Random:
    """Python's generator for choices and shuffles."""
    return random.Random(seed_of(*keys))


def generator(*keys: int | str):
    """A torch.Generator for tensors. Always on the CPU, so that a run draws the same noise on every device."""
    import torch

    return torch.Generator("cpu").manual_seed(seed_of(*keys))
