"""Train LoRAs for diffusion models in a notebook: exact resume, inline grids, files that load everywhere.

run = lorakit.create_run("my-project", {"model": {"family": "sd15", "source": "demo"}})
for event in lorakit.train(run): print(event)
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.2.0"
# Public name -> its file; loaded when it is first used, so that `import lorakit` is instant.
NAMES = {
    "Axis": "generation.grid",
    "Project": "project",
    "Run": "project",
    "RunConfig": "run.config",
    "SamplingConfig": "run.sampling",
    "check_dataset": "api",
    "create_run": "run.create",
    "download_model": "api",
    "export": "api",
    "extend_run": "run.extend",
    "follow": "training.jobs",
    "generate": "api",
    "grid": "generation.grid",
    "open_run": "api",
    "start": "training.jobs",
    "stop": "training.jobs",
    "tag": "api",
    "train": "training.loop",
}
__all__ = [*NAMES]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used (PEP 562)."""
    if name not in NAMES:
        raise AttributeError(f"module 'lorakit' has no attribute {name!r}; its names are {', '.join(NAMES)}.")
    return getattr(importlib.import_module(f"lorakit.{NAMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *NAMES})
