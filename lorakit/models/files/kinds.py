"""What a single file or LoRA file is, judged by the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from lorakit.lora.names import is_adapter_tensor
from lorakit.models.files.marks import PREFIX, VAE_ALONE, FileKind, Marks, all_marks

LORA = "a LoRA (an adapter, not a base model)"
# Files that no family trains on: (what it is, what a tensor's name of it is like). The first match counts.
# These come before the families' kinds, as some have their tensors, too ...
SPECIAL: tuple[tuple[str, Callable[[str], bool]], ...] = (
    (LORA, lambda name: is_adapter_tensor(name) or "oft_" in name),
    ("a ControlNet", lambda name: name.startswith(("control_model.", "controlnet_", "input_hint_block."))),
    ("a textual inversion embedding", lambda name: name in ("emb_params", "string_to_param", "clip_l", "clip_g")),
    ("an SDXL derivative with EDM's noise (Playground 2.5, CosXL)", lambda name: name.startswith("edm_")),
    ("a Stable Diffusion XL refiner", lambda name: name.startswith("conditioner.embedders.0.model.")),
)
# ... and these after them.
OTHERS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("a Stable Diffusion 2 checkpoint", lambda name: name.startswith("cond_stage_model.model.")),
    ("a Stable Diffusion 3 checkpoint", lambda name: "joint_blocks." in name),
    ("a Flux checkpoint", lambda name: "double_blocks." in name),
    ("a diffusion model without text encoder", lambda name: name.startswith("model.diffusion_model.")),
    (VAE_ALONE, lambda name: name.startswith(("first_stage_model.", "encoder.", "decoder."))),
    ("one part of a diffusers folder", lambda name: name.startswith(("down_blocks.", "up_blocks.", "text_model."))),
)
# Width of the text that a UNet reads -> title, of what is no family here.
OTHER_WIDTHS = {1024: "SD 2"}
# Modules of a UNet that read the text: their `down` tensors have its width.
TEXT_READER = re.compile(r"(down|up|input|output)_blocks_.*attn2_to_[kv]$")

# Names of the scales that 8 bit weights come with, or of the mark for them.
SCALES = re.compile(r".*\.(scale_weight|weight_scale|scale_input|comfy_quant)|scaled_fp8")
# Types too coarse to train on.
NARROW = ("F8", "F6", "F4", "I8", "U8")

# Role of a tensor (down, up, ...) -> its shape.
Shapes = Mapping[str, Sequence[int]]


def file_kind(names: Iterable[str]) -> tuple[str, FileKind | None]:
    """(what a file is, in words, its FileKind when a family uses such files)."""
    names = tuple(names)
    if special := next((kind for kind, is_like in SPECIAL if any(map(is_like, names))), ""):
        return special, None
    # the same file may come from ComfyUI, a LoRA tool or the original trainer, each with a prefix of its own
    own = {PREFIX.sub("", name) for name in names}
    for family in all_marks().values():
        for kind in family.kinds:
            if kind.matches(names, own):
                return kind.name, kind
    unknown = f"no model known here (its tensors are {', '.join(names[:3]) or 'none'} ...)"
    return next((kind for kind, is_like in OTHERS if any(map(is_like, names))), unknown), None


def kind_of(names: Iterable[str]) -> str:
    """What a file is, in words."""
    return file_kind(names)[0]


def hint(kind: str) -> str:
    """Which family to set for a model of this kind (a FileKind's name or a folder's class), if one trains on it."""
    for name, family in all_marks().items():
        if kind in (family.folder, *(row.name for row in family.kinds if row.is_base)):
            return f" To train on it set model.family={name}."
    return ""


def family_of_kind(name: str) -> Marks | None:
    """The marks of the family whose base a kind of file is, by the kind's name."""
    return next((m for m in all_marks().values() if any(k.is_base and k.name == name for k in m.kinds)), None)


def quantised(header: Mapping[str, Mapping]) -> bool:
    """Whether a file's weights (its header is given) are stored in 8 bits or fewer."""
    # vectors may be stored in integers without harm, and scales beside matrices show packed weights
    matrices = (entry for name, entry in header.items() if name != "__metadata__" and len(entry["shape"]) > 1)
    return any(map(SCALES.fullmatch, header)) or any(entry["dtype"].startswith(NARROW) for entry in matrices)


def title_of_folder(class_name: str) -> str:
    """The family, as people call it, of a diffusers folder with this class; "" for others."""
    return next((family.title for family in all_marks().values() if family.folder == class_name), "")


def lora_family(modules: Mapping[str, Shapes]) -> str:
    """The family that a LoRA file is likely for: its name, or a title of what is no family here, or "unknown".

    modules    name of a module (without what differs between key layouts, see `lora.file`) -> shapes of its tensors

    A guess for messages; nothing is decided by it. The width of the text is surest, as SD 1.5, SD 2 and SDXL share
    most names.
    """
    families = all_marks()
    widths = OTHER_WIDTHS | {family.text_width: name for name, family in families.items() if family.text_width}
    for module, shapes in modules.items():
        if TEXT_READER.search(module) and len(shapes.get("down", ())) > 1 and shapes["down"][1] in widths:
            return widths[shapes["down"][1]]
    patterns = [(name, family.lora_keys) for name, family in families.items()]
    patterns += [(name, family.lora_keys_too) for name, family in families.items()]
    return next(
        (name for name, keys in patterns if keys and any(re.match(keys, module) for module in modules)), "unknown"
    )


def lora_title(family: str) -> str:
    """What `lora_family` found, as people call it; "" when it is unknown."""
    if family == "unknown":
        return ""
    families = all_marks()
    return families[family].title if family in families else family
