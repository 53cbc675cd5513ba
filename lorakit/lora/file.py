"""LoRA files in every key layout: what they hold, and the change of each weight."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.files.disk import raise_if_closed
from lorakit.hub.header import ModelFileError, verify_safetensors
from lorakit.lora import variants
from lorakit.lora.change import Change
from lorakit.lora.names import LoraFileError, contents, key_layout_of, plain

if TYPE_CHECKING:
    import torch

# a key of peft's `alpha_pattern`, as peft and diffusers write it: a module's name or the end of one
PATTERN = re.compile(r"\^?(\w|-|\\?\.)+\$?")


@dataclass(frozen=True)
class LoraSummary:
    """What can be read from the names and shapes in a LoRA file.

    key_layout a key of KEY_LAYOUTS, or "unknown"
    variants   names of all that occur; "unknown" among them where a module is complete for none
    modules    their number
    ranks      all that occur, ascending
    shapes     module's name without what differs between key layouts -> role -> shape
    left_out   what is no LoRA and not read, see `names.Contents`
    """

    key_layout: str
    variants: tuple[str, ...]
    modules: int
    ranks: tuple[int, ...]
    shapes: Mapping[str, Mapping[str, Any]]
    left_out: tuple[str, ...]


def describe(header: Mapping[str, Any]) -> LoraSummary:
    """Sum up the header of a .safetensors file: tensor's name -> {"shape": [...], ...}, beside `__metadata__`.

    Raises LoraFileError as `names.contents`, and for a number in place of a matrix.
    """
    held = contents(header, "This")
    by_module = {
        name: {role: header[tensor]["shape"] for role, tensor in roles.items()} for name, roles in held.modules.items()
    }
    for name, shapes in by_module.items():
        # A safetensors scalar has the shape []; alpha is one, a matrix never is.
        if not all(shape for role, shape in shapes.items() if role not in ("alpha", "dora")):
            raise LoraFileError(f"This LoRA file is damaged: {name} has a single number where a matrix should be.")
    variant = {name: variants.of_roles(set(shapes)) for name, shapes in by_module.items()}
    ranks = {variant[name].rank(shapes) for name, shapes in by_module.items() if variant[name]}
    return LoraSummary(
        key_layout=key_layout_of(next(iter(by_module))),
        variants=tuple(sorted({one.name if one else "unknown" for one in variant.values()})),
        modules=len(by_module),
        ranks=tuple(sorted(ranks - {None})),
        shapes={plain(name): shapes for name, shapes in by_module.items()},
        left_out=held.left_out,
    )


# ---- reading ---------------------------------------------------------------------------------------------------------


def read(
    file: Path, model: Any, layers: Mapping[tuple[str, str], torch.nn.Module] | None = None
) -> dict[tuple[str, str], Change]:
    """(part, module) -> the change of the module's weight, for files of every key layout and variant.

    With `layers` only these modules are considered; else all of the denoiser and the text parts, of which those not
    named in the file are not loaded. Raises LoraFileError for a damaged file, a module that is incomplete, not
    finite or of another shape, and when anything in the file has no module here: applied in part it would be silently
    wrong.
    """
    by_module, settings = _open(file)
    # names in the file that have no module yet
    left = {plain(name): name for name in by_module}
    if len(left) < len(by_module):
        twice = sorted(by_module.keys() - set(left.values()))
        raise LoraFileError(
            f"{file.name} holds {len(twice)} modules twice, in two key layouts; the first is {twice[0]}."
        )
    matched: dict[tuple[str, str], tuple[str, torch.nn.Module]] = {}
    # a generator, so that a part is loaded only while names are left; parts that are never trained come last
    parts = dict.fromkeys((*model.config.rates, *model.text_parts)) if layers is None else ()
    batches = [layers] if layers is not None else (_weighted(model, part) for part in parts)
    for batch in batches:
        for key, layer in batch.items():
            for spelling in {plain(name) for name in model.names(*key).values()} & left.keys():
                name = left.pop(spelling)
                if key in matched:
                    raise LoraFileError(f"{file.name} holds {key[1]} twice, as {matched[key][0]} and as {name}.")
                matched[key] = name, layer
        if not left:
            break
    if left:
        raise LoraFileError(_misfit(file, model, by_module, sorted(left.values())))
    return {key: _change(file, name, by_module[name], settings, layer.weight) for key, (name, layer) in matched.items()}


def _weighted(model: Any, part: str) -> dict[tuple[str, str], torch.nn.Module]:
    """The modules of a part that have a weight matrix or kernel."""
    modules = model.load(part).named_modules()
    weights = ((name, module, getattr(module, "weight", None)) for name, module in modules)
    return {(part, name): module for name, module, weight in weights if weight is not None and weight.ndim > 1}


def _open(file: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """Module's name -> role -> tensor, and peft's settings where the file or one beside it has them."""
    from safetensors import safe_open

    try:
        header = verify_safetensors(file)
    except ModelFileError as error:
        raise LoraFileError(str(error)) from error
    except OSError as error:
        raise_if_closed(error, file)
        raise LoraFileError(f"{file} cannot be read ({error}); give a LoRA file in .safetensors.") from error
    held, metadata = contents(header, file.name), header.get("__metadata__", {})
    with safe_open(file, "pt") as opened:
        by_module = {
            name: {role: opened.get_tensor(tensor) for role, tensor in roles.items()}
            for name, roles in held.modules.items()
        }
    return by_module, _settings(file, metadata)


def _settings(file: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """peft's settings in the file or beside it. Raises LoraFileError when they make no sense."""
    # diffusers writes them into the file, peft into one beside it
    beside = file.with_name("adapter_config.json")
    where, text = f"lora_adapter_metadata in {file}", metadata.get("lora_adapter_metadata")
    try:
        if text is None and file.stem == "adapter_model" and beside.is_file():
            where, text = f"{beside}", beside.read_text("utf-8")
        settings = json.loads(text) if text is not None else {}
    except (OSError, ValueError, RecursionError) as error:
        raise LoraFileError(f"{where} cannot be read as JSON ({error}), so the strength is unknown.") from error
    if not isinstance(settings, dict):
        raise LoraFileError(f"{where} is no table of settings, so the strength is unknown.")
    for name, value in settings.items():
        kind = name.rpartition(".")[2]
        patterns = value or {} if kind == "alpha_pattern" else {}
        numbers = [*patterns.values()] if isinstance(patterns, dict) else [patterns]
        numbers += [value] if kind in ("r", "alpha", "lora_alpha") else []
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            raise LoraFileError(f"{where} has {value!r} as {name}, so the strength is unknown.")
        if strange := next((pattern for pattern in patterns if not PATTERN.fullmatch(pattern)), None):
            # a stranger's regular expression may run for ever
            raise LoraFileError(f"{where} has the pattern {strange!r} as {name}; only names of modules are read here.")
    return settings


def _change(
    file: Path, name: str, tensors: dict[str, torch.Tensor], settings: dict[str, Any], weight: torch.Tensor
) -> Change:
    """One module's change. Raises LoraFileError when it is incomplete, not finite or does not fit the weight."""
    variant = variants.of_roles(set(tensors))
    if variant is None:
        raise LoraFileError(f"{file.name}: {name} has {', '.join(sorted(tensors))}: no complete {variants.titles()}.")
    if not all(tensor.float().isfinite().all() for tensor in tensors.values()):
        raise LoraFileError(f"{file.name}: {name} holds numbers that are not finite; the file is unusable.")
    shape = tuple(weight.shape)
    factors = {role: tensor for role, tensor in tensors.items() if role not in ("alpha", "dora")}
    if not all(tensor.ndim for tensor in factors.values()):
        raise LoraFileError(f"{file.name}: {name} has a single number where a matrix should be; the file is damaged.")
    rank = variant.rank({role: tensor.shape for role, tensor in factors.items()})
    if "alpha" in tensors:
        # a single number, of shape [] or [1]
        alpha = tensors["alpha"].float().mean().item()
    else:
        alpha, rank = _peft_alpha(settings, name, rank)
    dora = tensors.get("dora")
    if dora is not None and tuple(dora.shape) != (1, *shape[1:2], *[1] * (len(shape) - 2)):
        raise LoraFileError(
            f"{file.name}: {name} is a DoRA with magnitudes of shape {tuple(dora.shape)}; only those of inputs, here "
            f"(1, {shape[1]}), are read, as programs do not agree on others."
        )
    change = Change(variant, factors, alpha, shape, rank, dora, weight if dora is not None else None)
    if not change.fits():
        sizes = ", ".join(f"{role} {tuple(tensor.shape)}" for role, tensor in factors.items())
        raise LoraFileError(f"{file.name}: {name} has {sizes}, which do not multiply to the weight's {shape}.")
    return change


def _peft_alpha(settings: dict[str, Any], name: str, rank: int | None) -> tuple[float | None, int | None]:
    """(alpha, rank) of a module by peft's settings, where there are any; peft has a rank for full matrices too."""
    part, _, module = name.partition(".")
    # peft's name is `alpha` for LoHa and LoKr; diffusers puts the part's name before every setting
    names = ((start, f"{start}{end}") for start in ("", f"{part}.") for end in ("lora_alpha", "alpha"))
    prefix, usual = next((pair for pair in names if pair[1] in settings), ("", ""))
    if not usual:
        return None, rank
    rank = rank or settings.get(f"{prefix}r")
    patterns = settings.get(f"{prefix}alpha_pattern") or {}
    own = (alpha for pattern, alpha in patterns.items() if _ends(module, pattern))
    alpha = next(own, settings[usual])
    # rank-stabilised LoRA (Kalajdzievski 2023, arXiv:2312.03732): the scale is alpha / sqrt(rank)
    return alpha * math.sqrt(rank) if rank and settings.get(f"{prefix}use_rslora") else alpha, rank


def _ends(module: str, pattern: str) -> bool:
    """Whether peft takes a pattern for the module: it is the name, or with no ^ its end from a dot on."""
    name = pattern.replace("\\.", ".").removeprefix("^").removesuffix("$")
    return module == name or (not pattern.startswith("^") and module.endswith(f".{name}"))


def _misfit(file: Path, model: Any, by_module: dict[str, dict[str, torch.Tensor]], left: list[str]) -> str:
    """Why a file is refused whose modules named in `left` are not in the model."""
    shapes = {plain(name): {role: tensor.shape for role, tensor in roles.items()} for name, roles in by_module.items()}
    reason = f"{len(left)} of {len(by_module)} modules are not in it, the first is {left[0]}."
    if (family := model.likely_family(shapes)) != model.config.family:
        reason += f" The base is {model.config.family}, the file's names are like those of {family}"
        reason += f" in the key layout {key_layout_of(left[0])}."
    return f"{file.name} does not fit this base: {reason}"
