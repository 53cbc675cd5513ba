"""Names in LoRA files of every key layout: which module and role a tensor is of, and what is no LoRA."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from lorakit.errors import UserError
from lorakit.lora import variants

# Key layout -> what a module's name begins with; the first match counts
KEY_LAYOUTS = {
    # sd-scripts, LyCORIS' trainers, OneTrainer: flat names; down, up and alpha
    "kohya": r"lora_(unet|te\d?)_",
    # dotted names as in the model's original checkpoint, or in NVIDIA's trainer; A and B
    "comfy": r"(model\.)?diffusion_model\.|text_encoders\.|net\.",
    "peft": r"base_model\.model\.",
    "diffusers": r"(unet|transformer|text_encoder(_2)?|text_conditioner)\.",
    "lycoris": r"lycoris_",
    "onetrainer": r"lora_transformer_",
}
# role that any variant may have -> how it is spelled behind the module's name; the variants spell their own roles
ROLES = {"alpha": "alpha", "dora": "dora_scale|lora_magnitude_vector"}
# Tensors that are no LoRA, and that a file is read without: what they are -> regular expression of their names.
LEFT_OUT = {
    "bundled embeddings": r"bundle_emb\..+",
    "changes of biases": r".+\.diff_b",
    "changes of norms": r".+\.(w_norm|b_norm)",
}
# The change of a whole weight; that of a norm has one dimension.
WHOLE = re.compile(r".+\.diff")
# Attention of diffusers before 0.22: `attn1.processor.to_q_lora.down`, of text encoders `self_attn.to_q_lora.down`.
OLD_ATTENTION = re.compile(r"\.(?P<place>processor|self_attn)\.to_(?P<side>q|k|v|out)_lora\.(?P<rest>down|up)")


class LoraFileError(UserError):
    """A LoRA file is damaged, holds something else than expected, or does not fit the model."""


@cache
def _tensor_pattern() -> re.Pattern[str]:
    """A tensor's name: its module, a group named after its role, and perhaps an adapter's name and `.weight`."""
    spellings = ROLES | {
        role: spelled for name in variants.names() for role, spelled in variants.variant(name).spellings.items()
    }
    roles = "|".join(f"(?P<{role}>{spelled})" for role, spelled in spellings.items())
    return re.compile(rf"(.+?)\.(?:{roles})(?:\.\w+)?(?:\.weight)?")


def _current(match: re.Match[str]) -> str:
    """The present spelling of an old attention's tensor."""
    side = match["side"]
    if match["place"] == "self_attn":
        return f".self_attn.{side}_proj.lora.{match['rest']}"
    return f".to_{'out.0' if side == 'out' else side}.lora.{match['rest']}"


def split(key: str) -> tuple[str, str] | None:
    """(module's name, role) of a tensor's name; None when it belongs to no adapter."""
    match = _tensor_pattern().fullmatch(OLD_ATTENTION.sub(_current, key))
    # Only the group of the role that matched takes part in the match, so it is the last one.
    return match and (match[1], match.lastgroup)


def is_adapter_tensor(key: str) -> bool:
    """Whether a tensor is named like one of an adapter; alpha alone does not count, as other models have that, too."""
    module_and_role = split(key)
    return module_and_role is not None and module_and_role[1] != "alpha"


def key_layout_of(name: str) -> str:
    """The key layout that a module's name is written in; "unknown" for names without a prefix that is known."""
    return next((layout for layout, start in KEY_LAYOUTS.items() if re.match(start, name)), "unknown")


def plain(name: str) -> str:
    """A module's name without what differs between key layouts, so that all spellings of one module are equal.

    Removed are dots, the denoiser's prefix and `text_model.` (which newer transformers lack); te is written te1.
    """
    name = re.sub(r"^(base_model\.model\.)?((model\.)?diffusion_model\.|unet\.|transformer\.)?(net\.)?", "", name)
    name = re.sub(r"^(lora_unet_|lora_transformer_|lycoris_)(net_)?", "", name.replace(".", "_"))
    return re.sub(r"^lora_te_", "lora_te1_", name).replace("text_model_", "")


@dataclass(frozen=True)
class Contents:
    """The tensors of a LoRA file.

    modules     module's name -> role -> tensor's name
    left_out    what is no LoRA and not read, a phrase for each kind: "changes of biases (3, such as ...)"
    """

    modules: Mapping[str, Mapping[str, str]]
    left_out: tuple[str, ...]


def contents(header: Mapping[str, Any], where: str) -> Contents:
    """What the tensors of a file are, by the header of a .safetensors file; `where` is its name for messages.

    Changes of biases and norms, and embeddings that OneTrainer bundles, are left out: they are small beside the LoRA.
    Raises LoraFileError for a role twice, and when anything else is no LoRA, as without it the result would be another.
    """
    modules: dict[str, dict[str, str]] = {}
    left: dict[str, list[str]] = {}
    tensors = [name for name in header if name != "__metadata__"]
    foreign = []
    for tensor in tensors:
        name, role = split(tensor) or (None, None)
        if name is None:
            kind = _kind_left_out(tensor, header[tensor]["shape"])
            left.setdefault(kind, []).append(tensor) if kind else foreign.append(tensor)
        elif role in modules.setdefault(name, {}):
            raise LoraFileError(f"{where}: {name} has {role} twice; a file with two adapters cannot be read.")
        else:
            modules[name][role] = tensor
    # the alpha of a bias or norm has no use
    owners = {tensor.rpartition(".")[0] for names in left.values() for tensor in names}
    modules = {name: roles for name, roles in modules.items() if not (name in owners and roles.keys() == {"alpha"})}
    if foreign or not modules:
        example = f", such as {foreign[0]}" if foreign else ""
        whole = " It holds changes of whole weights." if foreign and WHOLE.fullmatch(foreign[0]) else ""
        what = f"{len(foreign)} of {len(tensors)} tensors are" if foreign or not tensors else "none of its tensors is"
        raise LoraFileError(f"{where} is no LoRA file: {what} of no {variants.titles()}{example}.{whole}")
    return Contents(modules, tuple(f"{kind} ({len(names)}, such as {names[0]})" for kind, names in left.items()))


def _kind_left_out(tensor: str, shape: list[int]) -> str:
    """What a tensor is that a file is read without; "" for others."""
    if WHOLE.fullmatch(tensor) and len(shape) < 2:
        return "changes of norms"
    return next((kind for kind, pattern in LEFT_OUT.items() if re.fullmatch(pattern, tensor)), "")
