"""Train LoRAs for diffusion models in a notebook: exact resume, inline grids, files that load everywhere."""

__version__ = "0.1.0"
