"""How a run is made to fit into memory, without changing what it computes."""

from __future__ import annotations

from dataclasses import dataclass

from lorakit.config import Config, setting


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(Config):
    """What is given for memory; it changes no bit of the result, so it may change between sittings."""

    gradient_checkpointing: bool = setting(False, help="less memory, about a third slower")
