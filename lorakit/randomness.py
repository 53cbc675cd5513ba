"""Randomness as a function of (seed, step, purpose): no generator has a position to restore on resume."""

from __future__ import annotations

import hashlib
import random


def seed_of(*keys: int | str) -> int:
    """A 63-bit seed from any keys, e.g. seed_of(run_seed, step, "noise"); the same on every machine and Python."""
    # Not hash(): that one differs between processes. Shifted, as torch seeds are signed 64-bit numbers.
    return int.from_bytes(hashlib.blake2b(ascii(keys).encode(), digest_size=8).digest(), "little") >> 1


def rng(*keys: int | str) -> random.Random:
    """A Python generator for choices and shuffles, seeded by the keys."""
    return random.Random(seed_of(*keys))


def generator(*keys: int | str):
    """A torch.Generator for tensors, seeded by the keys; on the CPU, so that every device gets the same noise."""
    import torch

    return torch.Generator("cpu").manual_seed(seed_of(*keys))
