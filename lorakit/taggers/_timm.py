"""Runs a WD tagger's `model.safetensors` with timm on torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from lorakit.taggers import TaggerError, _layouts

FILES = ("model.safetensors", "config.json")


def has_gpu() -> bool:
    """Whether torch sees a GPU."""
    import torch

    return torch.cuda.is_available()


class Timm:
    """A loaded model.

    side      px of the square images that it takes
    runs_on   library and device, to be shown

    Source of the preprocessing: config.json of the v3 taggers, in timm's format. Raises TaggerError when timm (or
    torchvision, which it imports) is missing, or the files make no model.
    """

    layout = _layouts.WD

    def __init__(self, folder: Path):
        try:
            import timm
        except ImportError as error:
            raise TaggerError(
                f"Running a tagger on torch needs timm and torchvision: pip install timm ({error})."
            ) from error
        import torch
        from safetensors.torch import load_file

        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            preprocessing = config["pretrained_cfg"]
            self.side: int = preprocessing["input_size"][-1]
            self._mean, self._std = torch.tensor(preprocessing["mean"]), torch.tensor(preprocessing["std"])
            # timm takes neither from the file by itself.
            head = {"num_classes": config["num_classes"], "global_pool": config["global_pool"]}
            model = timm.create_model(config["architecture"], pretrained=False, **head, **config.get("model_args", {}))
            model.load_state_dict(load_file(folder / "model.safetensors"))
        except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
            raise TaggerError(
                f"{folder}: timm {timm.__version__} cannot load model.safetensors and config.json "
                f"({type(error).__name__}: {str(error)[:200]}); download them again, or update timm."
            ) from error
        self._device = torch.device("cuda" if has_gpu() else "cpu")
        self._model = model.to(self._device).eval()
        self.runs_on = f"torch, {'GPU' if has_gpu() else 'CPU'}"

    def scores(self, squares: np.ndarray) -> np.ndarray:
        """Scores (n, tags) float32 of images (n, side, side, 3) uint8 RGB."""
        import torch

        # [n, side, side, 3] in 0..1, then normalised by channel.
        x = (torch.from_numpy(squares).float() / 255 - self._mean) / self._std
        # the model takes normalized BGR, (n, 3, side, side)
        bgr = x.permute(0, 3, 1, 2).flip(1).contiguous()
        try:
            with torch.inference_mode():
                return self._model(bgr.to(self._device)).sigmoid().cpu().numpy()
        except torch.OutOfMemoryError as error:
            raise TaggerError(f"{len(squares)} images at once do not fit in memory; lower batch_size.") from error
