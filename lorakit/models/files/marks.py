"""The marks by which a family is recognised in files, folders and LoRA files; they are read without loading torch."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lorakit import models

# What single files of DiTs may have before the original names: ComfyUI's checkpoints, LoRA tools, NVIDIA's trainer.
PREFIX = re.compile(r"^(?:(?:model\.)?diffusion_model\.)?(?:net\.)?")
IN_CHECKPOINT = "it is inside the whole checkpoint of that model"
VAE_ALONE = "a VAE alone"
# First convolutions of the UNets of Stable Diffusion, in single files and in folders: they take the 4 channels of a
# latent, for inpainting also a mask and the masked image.
UNET_INPUTS = {"model.diffusion_model.input_blocks.0.0.weight": 4, "conv_in.weight": 4}


@dataclass(frozen=True, kw_only=True)
class FileKind:
    """One kind of single file, recognised by the names of its tensors.

    name      in words, e.g. "a Stable Diffusion XL checkpoint"
    has       sets of names, without PREFIX: a file of this kind has all names of one set
    starts    or else beginnings of names, with PREFIX: it has a name with one of them ...
    lacks     ... and none with one of these
    holds     part (a key of `Marks.parts`) -> how names of its tensors begin, "" when every such file holds it
    is_base   whether it can be a run's `model.source`
    inner     what comes before `blocks.0.` in names, beside PREFIX
    flags     name of a tensor -> what it says about the file, in words
    detail    what is added to `name` where more room is
    width     (end of a tensor's name, its last dimension in files that fit the family), where other sizes exist
    """

    name: str
    has: tuple[tuple[str, ...], ...] = ()
    starts: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    holds: Mapping[str, str] = field(default_factory=dict)
    is_base: bool = False
    inner: str = ""
    flags: Mapping[str, str] = field(default_factory=dict)
    detail: str = ""
    width: tuple[str, int] | None = None

    def matches(self, names: Iterable[str], own: set[str]) -> bool:
        """Whether a file with tensors of these names is of this kind; `own` are the names without PREFIX."""
        if any(own.issuperset(marks) for marks in self.has):
            return True
        # startswith takes a tuple; with an empty one it is False, so a kind without `starts` never matches here.
        return any(n.startswith(self.starts) for n in names) and not any(n.startswith(self.lacks) for n in names)


@dataclass(frozen=True, kw_only=True)
class CaptionProfile:
    """How captions of a family are written.

    order        kinds of tags (see `tags.vocabulary`) in the order they stand in; the rest follows by score
    lower_case   all tags in lower case
    prefixes     kind of tag -> what is written before it
    own_ratings  ratings in the family's own words (safe, nsfw) instead of the taggers' (general, questionable)
    """

    name: str
    order: tuple[str, ...]
    lower_case: bool = False
    prefixes: Mapping[str, str] = field(default_factory=dict)
    own_ratings: bool = False


# The order of boards such as Danbooru, which SD 1.5 and SDXL bases for anime were trained with.
SD_CAPTIONS = CaptionProfile(name="sd", order=("count", "character"))


@dataclass(frozen=True, kw_only=True)
class Marks:
    """How a family looks from outside. `MARKS` in `<family>_names.py` of this folder is one.

    title          as people call it
    parts          part in words -> where it comes from, as `hub.fetch` takes it, or a sentence
    kinds          its single files
    inputs         name of the denoiser's first convolution in a file -> channels that it takes, where models for
                   inpainting and editing take more
    shared         kind of file that other families use, too -> the part of this family in it
    folder         `_class_name` in the index of its diffusers folders
    lora_keys      regular expression: beginnings of its modules' names in LoRA files (see `lora.file`), of no other
                   family
    lora_keys_too  the same for names that other families have, too; they count when nothing else is recognised
    load_gb        GB of host memory that loading it takes, about
    text_width     width of the text that a UNet reads; 0 for other denoisers
    key_layouts    key layouts of LoRA files that can be exported for it, the usual one first
    captions       how its captions are written
    """

    title: str
    parts: Mapping[str, str]
    kinds: tuple[FileKind, ...]
    inputs: Mapping[str, int] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    folder: str
    lora_keys: str = ""
    lora_keys_too: str = ""
    load_gb: float
    text_width: int = 0
    key_layouts: tuple[str, ...]
    captions: CaptionProfile = SD_CAPTIONS


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the single files of a Stable Diffusion family are laid out.

    kind        the name of their FileKind
    prefixes    part -> how the names of its tensors begin
    settings    folder with the configuration that single files lack, in the layout of diffusers
    """

    kind: str
    prefixes: Mapping[str, str]
    settings: Path

    @property
    def model(self) -> str:
        """The family's models in words, file or folder."""
        return self.kind.replace(" checkpoint", " model")


def marks(family: str) -> Marks:
    """The marks of a family."""
    # by name, so that a new family needs no entry anywhere
    return importlib.import_module(f"{__package__}.{family}_names").MARKS


def all_marks() -> dict[str, Marks]:
    """Family -> its marks, of all families."""
    return {family: marks(family) for family in models.names()}


def key_layouts() -> tuple[str, ...]:
    """All key layouts of LoRA files that some family exports."""
    return tuple(dict.fromkeys(layout for family in all_marks().values() for layout in family.key_layouts))


def caption_profiles() -> dict[str, CaptionProfile]:
    """All ways to write captions, by name."""
    # "sd" first: it is the default
    profiles = {"sd": SD_CAPTIONS}
    return profiles | {family.captions.name: family.captions for family in all_marks().values()}
