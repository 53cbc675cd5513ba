"""A WD tagger's `model.onnx`, run by onnxruntime."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from lorakit.taggers import TaggerError

FILE = "model.onnx"
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def is_there() -> bool:
    """Whether onnxruntime is installed."""
    return importlib.util.find_spec("onnxruntime") is not None


def has_gpu() -> bool:
    """Whether the installed onnxruntime was built for NVIDIA GPUs; that one works, only a session tells."""
    import onnxruntime

    return CUDA in onnxruntime.get_available_providers()


class Onnx:
    """The model: `side` px of its square images, whether it is `on_gpu`, and that in words, `runs_on`.

    Raises TaggerError when onnxruntime is missing, or the file is torn or something else.
    """

    def __init__(self, folder: Path):
        if not is_there():
            raise TaggerError("onnxruntime is not installed: pip install onnxruntime (onnxruntime-gpu for the GPU).")
        import onnxruntime
        import torch  # noqa: F401  (brings the CUDA libraries that onnxruntime looks for)
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        # its exceptions have no base of their own
        self._errors = tuple(e for e in vars(state).values() if isinstance(e, type) and issubclass(e, Exception))
        self._file = folder / FILE
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what is wrong is told by exceptions and by `runs_on`
        wanted = [name for name in (CUDA, CPU) if name in onnxruntime.get_available_providers()]
        try:
            self._session = onnxruntime.InferenceSession(str(self._file), options, providers=wanted)
        except self._errors as error:
            raise TaggerError(
                f"{self._file} cannot be loaded by onnxruntime {onnxruntime.__version__}: it is torn or something "
                f"else; remove it to download it again. ({_first_line(error)})"
            ) from error
        self._input = self._session.get_inputs()[0]
        shape = self._input.shape
        if len(shape) != 4 or shape[1] != shape[2] or not isinstance(shape[1], int) or shape[3] != 3:
            raise TaggerError(f"{self._file} takes {shape}, but a WD tagger takes (images, side, side, 3).")
        self.side: int = shape[1]
        self._fixed = shape[0] if isinstance(shape[0], int) else 0  # images of a batch, when that cannot vary
        self.on_gpu = self._session.get_providers()[0] == CUDA
        self.runs_on = f"onnxruntime, {'GPU' if self.on_gpu else 'CPU'}"

    def scores(self, squares: np.ndarray) -> np.ndarray:
        """(n, tags) float32 of (n, side, side, 3) uint8 RGB; the model is given float32 BGR, 0 to 255."""
        bgr = np.ascontiguousarray(squares[..., ::-1], dtype=np.float32)
        step = self._fixed or len(bgr)
        found = [self._run(bgr[i : i + step], step) for i in range(0, len(bgr), step)]
        return np.concatenate(found)

    def _run(self, part: np.ndarray, size: int) -> np.ndarray:
        """Scores of up to `size` images, filled up to that number with black ones, whose scores are left out."""
        filled = np.pad(part, ((0, size - len(part)), (0, 0), (0, 0), (0, 0)))
        try:
            return self._session.run(None, {self._input.name: filled})[0][: len(part)]
        except self._errors as error:
            raise TaggerError(
                f"{self._file} could not be run on {len(part)} images ({self.runs_on}); where memory is short, take "
                f"a smaller batch_size. ({_first_line(error)})"
            ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
