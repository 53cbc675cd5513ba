"""A new run from the weights of a LoRA file: what the file holds, and how the run's adapter takes it over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.hub import fetch
from lorakit.hub.fingerprint import file_digest
from lorakit.hub.header import verify_safetensors
from lorakit.lora import file as lora_file
from lorakit.lora import variants
from lorakit.lora.names import LoraFileError, contents

if TYPE_CHECKING:
    from lorakit.lora.adapter import Adapter
    from lorakit.lora.change import Change


def adapter_settings(file: Path) -> dict[str, Any]:
    """The settings `type`, `rank` and `alpha` of an adapter that a LoRA file goes onto.

    Where modules differ it is the largest rank, and the alpha that goes with the most common alpha / rank; of full
    matrices, which have no rank, `type` alone. Raises LoraFileError for a file that no adapter here can hold.
    """
    from safetensors import safe_open

    header = verify_safetensors(file)
    variant, modules = startable(file.name, header)
    ranks = {
        name: variant.rank({role: header[tensor]["shape"] for role, tensor in roles.items()})
        for name, roles in modules.items()
    }
    with safe_open(file, "pt") as opened:
        scales = [
            opened.get_tensor(roles["alpha"]).float().mean().item() / ranks[name]
            for name, roles in modules.items()
            if "alpha" in roles and ranks[name]
        ]
    if not any(ranks.values()):
        return {"type": variant.name}
    # alpha is a rounded float32, so scales that should be equal may differ in the last digits
    ((scale, _),) = Counter(float(f"{scale:.6g}") for scale in scales or [1.0]).most_common(1)
    rank = max(filter(None, ranks.values()))
    return {"type": variant.name, "rank": rank, "alpha": float(f"{scale * rank:.5g}")}


def startable(where: str, header: Mapping[str, Any]) -> tuple[type[variants.Variant], Mapping[str, Mapping[str, str]]]:
    """The variant that all modules of a file can be trained as, and module's name -> role -> tensor's name.

    header    the file's, as `verify_safetensors` returns it
    where     the file in messages

    Raises LoraFileError for what is no LoRA file, and with the first module that cannot when there is no such variant.
    """
    held = contents(header, where).modules
    lora_file.describe(header)
    modules = {name: {role: header[tensor]["shape"] for role, tensor in roles.items()} for name, roles in held.items()}
    refused = {}
    for variant in map(variants.variant, variants.trainable()):
        reasons = {name: reason for name, shapes in modules.items() if (reason := variant.why_not_trained(shapes))}
        if not reasons:
            return variant, held
        refused[variant] = [f"{name} {reason}" for name, reason in reasons.items()]
    # the one that most modules are of
    variant, others = min(refused.items(), key=lambda item: len(item[1]))
    raise LoraFileError(
        f"{where} is no file that a run can start from: {len(others)} of {len(modules)} modules are no "
        f"{variant.title} of a linear layer or a 1x1 convolution, as runs train it; the first: {others[0]}. Start from "
        "another file, or merge this one into the base and train on that."
    )


def digest(source: str) -> str:
    """SHA-256 of the file that a run starts from; it is fetched when it is not on this machine."""
    # Part of what a run is made of: the file behind a path or an id may change.
    return file_digest([fetch(source)])


@dataclass(frozen=True)
class Weights:
    """A LoRA file as a model knows its modules.

    changes     (part, module) -> change
    unused      those of them whose output the model does not use
    left_out    what is no LoRA and was not read, see `names.Contents`
    """

    file: Path
    changes: Mapping[tuple[str, str], Change]
    unused: frozenset[tuple[str, str]] = frozenset()
    left_out: tuple[str, ...] = ()


def read(source: str, model: Any) -> Weights:
    """Read a LoRA file of any key layout for a model that has no adapter yet.

    Raises LoraFileError when it is damaged, made for another base, or holds what an adapter cannot.
    """
    file = fetch(source)
    header = verify_safetensors(file)
    startable(file.name, header)
    changes = lora_file.read(file, model)
    unused = frozenset(key for key in changes if model.is_unused(*key))
    return Weights(file, changes, unused, contents(header, file.name).left_out)


def put(weights: Weights, adapter: Adapter) -> list[str]:
    """Give a new adapter the file's changes, in place, exactly, whatever its alpha; returns what did not go together.

    A module of a smaller rank than the adapter's leaves the rest of the rank as it begins: without effect, and free to
    learn. Raises LoraFileError when nothing goes together, a rank is larger, or a trained part would lose a module.
    """
    file, changes = weights.file, weights.changes
    parts = {part for part, _ in adapter.layers}
    _refuse_misfits(weights, adapter, parts)
    tensors = adapter.weights()
    matched = adapter.layers.keys() & changes.keys()
    for key, trained in adapter.modules():
        if key in matched:
            # views of `tensors`, so that filling these fills those
            own = {role: tensors[adapter.name(key, role)] for role in trained}
            adapter.variant.fill(own, changes[key].tensors, changes[key].scale / adapter.config.scale)
    adapter.load(tensors)
    notes = [f"{file.name}: {what} are no LoRA and left out." for what in weights.left_out]
    if unused := sorted(module for part, module in weights.unused if part in parts):
        notes.append(
            f"{file.name}: {len(unused)} modules whose output this base does not use are left out, such as {unused[0]}."
        )
    if absent := Counter(part for part, module in changes if part not in parts):
        counts = ", ".join(f"{count} of {part}" for part, count in absent.items())
        notes.append(f"{file.name}: modules of parts that this run does not train are left out: {counts}.")
    if missing := len(adapter.layers) - len(matched):
        notes.append(
            f"{file.name} has no weights for {missing} of {len(adapter.layers)} modules; these start from scratch."
        )
    return notes


def _refuse_misfits(weights: Weights, adapter: Adapter, parts: set[str]) -> None:
    """Raise LoraFileError when the adapter, which is on these parts, cannot take the file over."""
    file, changes = weights.file, weights.changes
    trained_or_unused = adapter.layers.keys() | weights.unused
    lost = [module for part, module in changes if part in parts and (part, module) not in trained_or_unused]
    matched = adapter.layers.keys() & changes.keys()
    if lost or not matched:
        what = (
            f"{len(lost)} of its modules are not trained, such as {lost[0]}" if lost else "no module of it is trained"
        )
        trained = ", ".join(sorted(parts))
        raise LoraFileError(f"{file.name} does not go onto this run's adapter on {trained}: {what}.")
    for key in matched:
        change, rank = changes[key], adapter.config.rank
        if change.variant is not adapter.variant:
            raise LoraFileError(
                f"{file.name} holds a {change.variant.title}, the run trains a {adapter.variant.title}; set "
                f"the adapter type to {change.variant.name}."
            )
        if change.rank is not None and change.rank > rank:
            raise LoraFileError(
                f"{file.name}: the rank is {change.rank}, the run's is {rank}; set the rank to {change.rank}."
            )
