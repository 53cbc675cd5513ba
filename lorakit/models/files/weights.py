"""Loads weights from files into modules: mapped files, every name and shape checked, moved to the device one by one."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import torch

from lorakit.hub.header import ModelFileError, verify_safetensors

# Tensors that some files have besides the weights: computed buffers, and parts of CLIP that encode no text.
SPARE = ("position_ids", "text_projection.weight", "logit_scale")
# Suffixes of files that PyTorch wrote.
PICKLED = (".ckpt", ".pt", ".pth", ".bin")
DTYPES = {
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
}
Tensors = dict[str, torch.Tensor]


def frozen(
    build: Callable[[dict], torch.nn.Module],
    config: dict,
    read: Callable[[torch.nn.Module], Tensors],
    where: str,
    dtype: torch.dtype,
    device: torch.device,
) -> torch.nn.Module:
    """A frozen module built from `config`, with the weights that `read` returns for it, in `dtype` on `device`.

    Host memory holds one converted weight at a time besides the mapped file. Raises ModelFileError, which names
    `where`, when the configuration is of no model or the weights do not fit it.
    """
    from accelerate import init_empty_weights

    # weights take no memory and no random numbers until they are loaded; buffers are computed
    try:
        with init_empty_weights(include_buffers=False):
            model = build(config)
    # what diffusers and transformers raise for settings that do not go together; each is checked before by itself
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RuntimeError, AssertionError) as error:
        raise ModelFileError(
            f"{where}: no model follows from its settings ({' '.join(str(error).split())[:160]}); download it again."
        ) from error
    weights = fitting(model, read(model), where)
    for name, tensor in weights.items():
        # Each replaces its mapped original at once, which may then leave memory.
        weights[name] = tensor.to(device, dtype if tensor.is_floating_point() else None)
    # assign: the module takes the tensors themselves; copying into weights without memory would do nothing.
    model.load_state_dict(weights, strict=True, assign=True)
    # the weights are on the device already, this moves the buffers
    return model.requires_grad_(False).eval().to(device)


def fitting(model: torch.nn.Module, tensors: Tensors, where: str) -> Tensors:
    """`tensors` under the model's own names. Raises ModelFileError unless they are exactly its weights, in shape.

    transformers 5.6 removed `text_model.` from the names in CLIPTextModel; most files have it, some of 2022 do not.
    """
    expected = model.state_dict()
    own = {name.removeprefix("text_model."): name for name in expected}
    renamed = {own.get(name.removeprefix("text_model."), name): tensor for name, tensor in tensors.items()}
    weights = {name: tensor for name, tensor in renamed.items() if name in expected or not name.endswith(SPARE)}
    missing = [name for name in expected if name not in weights]
    foreign = [name for name in weights if name not in expected]
    if missing or foreign:
        groups = (("missing", missing), ("unknown", foreign))
        problems = [f"{len(names)} are {state}, such as {names[0]}" for state, names in groups if names]
        raise ModelFileError(
            f"{where} does not fit its configuration: of {len(expected)} tensors {'; '.join(problems)}; "
            "it is incomplete or of another kind."
        )
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise ModelFileError(
                f"{where} does not fit its configuration: {name} is {tuple(tensor.shape)}, expected "
                f"{tuple(expected[name].shape)}; it is a model of another size or kind."
            )
    return weights


def read_tensors(path: Path, prefix: str | tuple[str, ...]) -> Tensors:
    """The tensors of a file whose names begin with `prefix`; of .safetensors, views of the file without copies."""
    if path.suffix != ".safetensors":
        return {name: tensor for name, tensor in read_pickle(path).items() if name.startswith(prefix)}
    from safetensors import safe_open

    verify_safetensors(path)
    with safe_open(path, framework="pt", device="cpu") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}


def tensor_header(path: Path) -> dict[str, dict]:
    """name -> {dtype, shape} of the tensors in a file, .safetensors or one of PyTorch, dtypes as safetensors has them.

    Raises ModelFileError for a damaged file.
    """
    if path.suffix not in PICKLED:
        return {name: entry for name, entry in verify_safetensors(path).items() if name != "__metadata__"}
    return tensor_entries(read_pickle(path))


def tensor_entries(tensors: Tensors) -> dict[str, dict]:
    """name -> {dtype, shape} of tensors that are loaded."""
    return {
        name: {"dtype": DTYPES.get(tensor.dtype, str(tensor.dtype)), "shape": list(tensor.shape)}
        for name, tensor in tensors.items()
    }


def read_pickle(path: Path) -> Tensors:
    """The tensors of a .ckpt or .bin, by torch's weights-only loader, which runs no code from the file."""
    if path.stat().st_size == 0:
        raise ModelFileError(f"{path} is empty (0 bytes); a PyTorch checkpoint was expected: download it again.")
    with open(path, "rb") as file:
        start = file.read(4)
    if start.startswith(b"<"):
        raise ModelFileError(f"{path} is a web page, not a PyTorch checkpoint: download the file itself.")
    try:
        # checkpoints from before PyTorch 1.6 are no zip archives and cannot be mapped
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=start == b"PK\x03\x04")
    except pickle.UnpicklingError as error:
        raise ModelFileError(
            f"{path} is no PyTorch checkpoint, or holds Python objects beside weights, which are not loaded "
            "for safety: use the .safetensors of that model."
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError) as error:
        raise ModelFileError(
            f"{path} is damaged, truncated or no PyTorch checkpoint: download it again, better as .safetensors."
        ) from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
