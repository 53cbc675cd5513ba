"""Runs a tagger's ONNX model with onnxruntime."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from lorakit.taggers import TaggerError, _layouts

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def is_installed() -> bool:
    """Whether onnxruntime is installed."""
    return importlib.util.find_spec("onnxruntime") is not None


def has_gpu() -> bool:
    """Whether the installed onnxruntime was built for NVIDIA GPUs; whether one works shows when a model is loaded."""
    import onnxruntime

    return CUDA in onnxruntime.get_available_providers()


class Onnx:
    """A loaded model.

    side      px of the square images that it takes
    layout    how it takes them; a WD tagger whose input has its channels first is a PixAI tagger
    on_gpu    whether it runs on the GPU; `runs_on` says so in words

    Raises TaggerError when onnxruntime is missing, or the file is damaged or no such tagger.
    """

    def __init__(self, file: Path, layout: _layouts.Layout = _layouts.WD):
        if not is_installed():
            raise TaggerError("onnxruntime is not installed: pip install onnxruntime (onnxruntime-gpu for the GPU).")
        import onnxruntime
        import torch  # noqa: F401  - loads the CUDA libraries that onnxruntime needs
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        # onnxruntime's exceptions have no common base class
        self._errors = tuple(e for e in vars(state).values() if isinstance(e, type) and issubclass(e, Exception))
        self._file = file
        options = onnxruntime.SessionOptions()
        # Only fatal errors; the others are raised as exceptions.
        options.log_severity_level = 4
        providers = [name for name in (CUDA, CPU) if name in onnxruntime.get_available_providers()]
        try:
            self._session = onnxruntime.InferenceSession(str(self._file), options, providers=providers)
        except self._errors as error:
            raise TaggerError(
                f"{self._file} cannot be loaded by onnxruntime {onnxruntime.__version__}: it is damaged or no model; "
                f"remove it to download it again. ({_first_line(error)})"
            ) from error
        self._input = self._session.get_inputs()[0]
        shape = self._input.shape
        if layout is _layouts.WD and len(shape) == 4 and shape[1] == 3:
            layout = _layouts.PIXAI
        self.layout = layout
        sides = shape[2:] if layout.channels_first else shape[1:3]
        if len(shape) != 4 or shape[1 if layout.channels_first else 3] != 3 or sides[0] != sides[1]:
            raise TaggerError(
                f"{self._file} takes {shape}, but a WD tagger takes (images, side, side, 3), others (images, 3, side, "
                "side)."
            )
        # some models take squares of any size, and were trained on one
        self.side: int = sides[0] if isinstance(sides[0], int) else layout.side
        names = [output.name for output in self._session.get_outputs()]
        wanted = [name for name in names if layout.output and layout.output in name]
        # CamieTagger's refined scores follow its first ones
        self._output = (wanted or names[-1:] if layout is _layouts.CAMIE else wanted or names)[0]
        # some models take a fixed number of images, 0: any number
        self._fixed_batch = shape[0] if isinstance(shape[0], int) else 0
        # onnxruntime falls back to the CPU without an error; the first provider is the one in use.
        self.on_gpu = self._session.get_providers()[0] == CUDA
        self.runs_on = f"onnxruntime, {'GPU' if self.on_gpu else 'CPU'}"

    def scores(self, squares: np.ndarray) -> np.ndarray:
        """Scores (n, tags) float32 of images (n, side, side, 3) uint8 RGB."""
        pixels = self.layout.tensor(squares)
        step = self._fixed_batch or len(pixels)
        scores = np.concatenate([self._run(pixels[i : i + step], step) for i in range(0, len(pixels), step)])
        return 1 / (1 + np.exp(-scores)) if self.layout.is_logits else scores

    def _run(self, images: np.ndarray, size: int) -> np.ndarray:
        """Scores of up to `size` images; black images pad the batch, their scores are dropped."""
        padded = np.pad(images, ((0, size - len(images)), (0, 0), (0, 0), (0, 0)))
        try:
            return self._session.run([self._output], {self._input.name: padded})[0][: len(images)]
        except self._errors as error:
            raise TaggerError(
                f"{self._file} failed on {len(images)} images ({self.runs_on}); if memory is short, lower batch_size. "
                f"({_first_line(error)})"
            ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
