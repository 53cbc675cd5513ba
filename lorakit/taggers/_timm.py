"""A WD tagger's `model.safetensors`, run by timm on torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from lorakit.taggers import TaggerError

FILES = ("model.safetensors", "config.json")


def has_gpu() -> bool:
    """Whether torch sees a GPU."""
    import torch

    return torch.cuda.is_available()


class Timm:
    """The model: `side` px of its square images, and where it `runs_on`, in words.

    Source: config.json of the v3 taggers, in timm's format. Raises TaggerError when timm (or torchvision, which that
    imports) is missing or the files do not make a model.
    """

    def __init__(self, folder: Path):
        try:
            import timm
        except ImportError as error:
            raise TaggerError(
                f"To run taggers on torch, timm and torchvision are needed: pip install timm ({error})."
            ) from error
        import torch
        from safetensors.torch import load_file

        try:
            told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            published = told["pretrained_cfg"]
            self.side: int = published["input_size"][-1]
            self._mean, self._std = torch.tensor(published["mean"]), torch.tensor(published["std"])
            head = {"num_classes": told["num_classes"], "global_pool": told["global_pool"]}
            model = timm.create_model(told["architecture"], pretrained=False, **head, **told.get("model_args", {}))
            model.load_state_dict(load_file(folder / "model.safetensors"))
        except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
            raise TaggerError(
                f"{folder}: timm {timm.__version__} makes no tagger of model.safetensors and config.json "
                f"({type(error).__name__}: {str(error)[:200]}); download them again, or update timm."
            ) from error
        self._device = torch.device("cuda" if has_gpu() else "cpu")
        self._model = model.to(self._device).eval()
        self.runs_on = f"torch, {'GPU' if has_gpu() else 'CPU'}"

    def scores(self, squares: np.ndarray) -> np.ndarray:
        """(n, tags) float32 of (n, side, side, 3) uint8 RGB; the model is given NCHW BGR, normalized."""
        import torch

        x = (torch.from_numpy(squares).float() / 255 - self._mean) / self._std
        bgr = x.permute(0, 3, 1, 2).flip(1).contiguous()
        try:
            with torch.inference_mode():
                return self._model(bgr.to(self._device)).sigmoid().cpu().numpy()
        except torch.OutOfMemoryError as error:
            raise TaggerError(f"{len(squares)} images at once do not fit in memory; lower batch_size.") from error
