"""A new run from the weights of a LoRA file: what the file holds, and how the run's adapter takes it over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.hub import fetch
from lorakit.hub.files import verify_safetensors
from lorakit.hub.fingerprint import file_digest
from lorakit.lora import file as lora_file
from lorakit.lora.file import LoraFileError

if TYPE_CHECKING:
    from lorakit.lora.adapter import Adapter
    from lorakit.lora.kinds import Change


def rank_and_alpha(file: Path) -> tuple[int, float]:
    """The rank and alpha of a LoRA file; where its modules differ, the largest rank, and the alpha that goes with the
    commonest alpha / rank. Raises LoraFileError for a file that a plain LoRA cannot hold.
    """
    from safetensors import safe_open

    header = verify_safetensors(file)
    lora_file.describe(header)  # refuses what is no LoRA file
    modules = lora_file.modules(header)
    shapes = {
        name: {role: header[tensor]["shape"] for role, tensor in roles.items()} for name, roles in modules.items()
    }
    _refuse_others(file, shapes)
    ranks = {name: roles["down"][0] for name, roles in shapes.items()}
    with safe_open(file, "pt") as opened:
        scales = [
            opened.get_tensor(roles["alpha"]).float().mean().item() / ranks[name]
            for name, roles in modules.items()
            if "alpha" in roles
        ]
    ((scale, _),) = Counter(float(f"{scale:.6g}") for scale in scales or [1.0]).most_common(1)
    rank = max(ranks.values())
    return rank, float(f"{scale * rank:.5g}")


def _refuse_others(file: Path, modules: Mapping[str, Mapping[str, Iterable[int]]]) -> None:
    """Raise LoraFileError when a module, as shapes by role, is no plain LoRA of a linear layer or a 1x1 convolution."""
    others = []
    for name, shapes in modules.items():
        if shapes.keys() - {"alpha"} != {"down", "up"}:
            others.append(f"{name} has {', '.join(sorted(shapes))}")
        elif any(side != 1 for side in tuple(shapes["down"])[2:]):
            others.append(f"{name} is a convolution of {'x'.join(map(str, tuple(shapes['down'])[2:]))}")
    if others:
        raise LoraFileError(
            f"{file.name} is no file that a run can start from: {len(others)} of {len(modules)} modules are no plain "
            f"LoRA of a linear layer (LoHa, LoKr and LoCon files have such); the first: {others[0]}. Start from a "
            "plain LoRA file, or merge this one into the base and train on that."
        )


def digest(source: str) -> str:
    """SHA-256 of the file that a run starts from; it is fetched when it is not here."""
    return file_digest([fetch(source)])


@dataclass(frozen=True)
class Weights:
    """A LoRA file as a model knows its modules: (part, module) -> change."""

    file: Path
    changes: Mapping[tuple[str, str], Change]


def read(source: str, model: Any) -> Weights:
    """Read a LoRA file of any form for a model that has no adapter yet.

    Raises LoraFileError when it is damaged, made for another base, or holds what a plain LoRA cannot.
    """
    file = fetch(source)
    rank_and_alpha(file)
    return Weights(file, lora_file.read(file, model))


def put(weights: Weights, adapter: Adapter) -> list[str]:
    """Give a new adapter the file's changes, in place, exactly, whatever its alpha; returns what did not go together.

    A module of a smaller rank than the adapter's leaves the rest of the rank as it begins: without effect, and free to
    learn. Raises LoraFileError when nothing goes together, a rank is larger, or a trained part would lose a module.
    """
    file, changes = weights.file, weights.changes
    parts = {part for part, _ in adapter.layers}
    lost = [module for part, module in changes if part in parts and (part, module) not in adapter.layers]
    matched = adapter.layers.keys() & changes.keys()
    if lost or not matched:
        what = (
            f"{len(lost)} of its modules are not trained, such as {lost[0]}" if lost else "no module of it is trained"
        )
        trained = ", ".join(sorted(parts))
        raise LoraFileError(f"{file.name} does not go onto this run's adapter on {trained}: {what}.")
    tensors, rank, scale = adapter.weights(), adapter.config.rank, adapter.config.scale
    for part, module in matched:
        change = changes[part, module]
        if change.rank > rank:
            raise LoraFileError(
                f"{file.name}: the rank is {change.rank}, the run's is {rank}; set adapter.rank={change.rank}."
            )
        down, up = tensors[f"{part}.{module}.lora_A.weight"], tensors[f"{part}.{module}.lora_B.weight"]
        down[: change.rank] = change.tensors["down"].float().reshape(down[: change.rank].shape)
        up[:, : change.rank] = (change.scale / scale * change.tensors["up"].float()).reshape(up[:, : change.rank].shape)
    adapter.load(tensors)
    notes = []
    if absent := Counter(part for part, module in changes if part not in parts):
        told = ", ".join(f"{count} of {part}" for part, count in absent.items())
        notes.append(f"{file.name}: modules of parts that this run does not train are left out: {told}.")
    if missing := len(adapter.layers) - len(matched):
        notes.append(
            f"{file.name} has no weights for {missing} of {len(adapter.layers)} modules; these begin at nothing."
        )
    return notes
