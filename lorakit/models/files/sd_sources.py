"""Sources of a Stable Diffusion model: a diffusers folder, or a single file in the original layout."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from pathlib import Path

import torch

from lorakit.hub.files import ModelFileError, part_weights, read_index
from lorakit.hub.header import verify_safetensors
from lorakit.hub.settings import read_settings
from lorakit.models.files.fitness import CANNOT, unfit_file, unfit_folder, without
from lorakit.models.files.kinds import family_of_kind, file_kind, hint
from lorakit.models.files.marks import Layout
from lorakit.models.files.tokenizers import open_tokenizer
from lorakit.models.files.weights import SPARE, Tensors, read_pickle, read_tensors, tensor_entries

CLIP_VOCABULARY = Path(__file__).parents[1] / "sd15_config" / "tokenizer"
# How the tensors of a file begin that is a VAE alone.
VAE_NAMES = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
# Names of the VAE's attention in diffusers before 0.18, which the original SD 1.5 repository still has.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
DENOISERS = ("unet", "transformer", "prior")


class Source:
    """A place that the parts of a model are read from; `settings` is a folder in the layout of diffusers."""

    settings: Path

    def folder(self, part: str) -> Path:
        """The folder with a part's configuration."""
        return self.settings / part

    def files(self, part: str) -> list[Path]:
        """The files that the weights of a part are read from."""
        raise NotImplementedError

    def tensors(self, part: str, model: torch.nn.Module) -> Tensors:
        """The weights of a part under diffusers' names, as views of their files wherever that is possible."""
        raise NotImplementedError

    def config(self, part: str) -> dict:
        """The configuration of a part."""
        return read_settings(self.folder(part) / "config.json")

    def scheduler_config(self) -> dict:
        """The noise schedule the model was trained with."""
        return read_settings(self.folder("scheduler") / "scheduler_config.json")

    def tokenizer(self):
        """The CLIPTokenizer, from local files alone."""
        return open_tokenizer("CLIPTokenizer", self.vocabulary)

    @property
    def vocabulary(self) -> Path:
        """The folder with the tokenizer's files."""
        return self.folder("tokenizer")


class Folder(Source):
    """A model in a diffusers folder: <part>/config.json beside <part>/*.safetensors, any variant, maybe in shards."""

    def __init__(self, path: Path):
        self.settings = path

    def check(self, layout: Layout, has_vae: bool = False) -> Folder:
        """Raises ModelFileError when the folder has other parts than the family's models, or a run cannot start from
        it; with `has_vae` the VAE comes from elsewhere.
        """
        index = read_index(self.settings)
        name = index.get("_class_name", "model without a class")
        parts = {part for part, value in index.items() if isinstance(value, list) and value[0] is not None}
        present = {part for part in parts if part in DENOISERS or part.startswith("text_encoder")}
        expected = set(layout.prefixes) - {"vae"}
        if present != expected:
            raise ModelFileError(
                f"{self.settings} holds a {name} with {', '.join(sorted(present)) or 'no parts'}; expected was "
                f"{layout.model} with {', '.join(sorted(expected))}.{hint(name)}"
            )
        family = family_of_kind(layout.kind)
        reason = "" if has_vae or "vae" in parts else without(family, "VAE")
        if reason := reason or unfit_folder(self.folder("unet"), family):
            raise ModelFileError(f"{self.settings} {CANNOT}: {reason}.")
        return self

    def files(self, part: str) -> list[Path]:
        """The weight files of a part: its shards, or the one file."""
        return part_weights(self.folder(part))

    def tensors(self, part: str, model: torch.nn.Module) -> Tensors:
        tensors = {name: tensor for file in self.files(part) for name, tensor in read_tensors(file, "").items()}
        return {current_name(name): tensor for name, tensor in tensors.items()}


class VaeFolder(Folder):
    """A folder that is a VAE itself."""

    def folder(self, part: str) -> Path:
        return self.settings


class Bundled(Source):
    """The family's model in its usual size, from the configuration that comes with the package: shapes, no weights."""

    def __init__(self, layout: Layout):
        self.layout, self.settings = layout, layout.settings

    @property
    def vocabulary(self) -> Path:
        """The folder with the tokenizer's files: all Stable Diffusion models share CLIP's."""
        own = super().vocabulary
        return own if own.is_dir() else CLIP_VOCABULARY

    def files(self, part: str) -> list[Path]:
        """None."""
        return []

    def tensors(self, part: str, model: torch.nn.Module) -> Tensors:
        """The model's own, which it was built with on the meta device."""
        return dict(model.state_dict())


class SingleFile(Bundled):
    """A model in a single file of the original layout; configuration and vocabulary come with the package."""

    def __init__(self, path: Path, layout: Layout):
        super().__init__(layout)
        self.path = path

    @cached_property
    def _header(self) -> dict:
        return verify_safetensors(self.path) if self.path.suffix == ".safetensors" else {}

    @cached_property
    def _pickle(self) -> Tensors:
        return read_pickle(self.path)

    @cached_property
    def shapes(self) -> dict[str, dict]:
        """name -> {dtype, shape} of all tensors in the file."""
        header = self._header or tensor_entries(self._pickle)
        return {name: entry for name, entry in header.items() if name != "__metadata__"}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors in the file."""
        return tuple(self.shapes)

    def check(self, *kinds: str, replaced: Collection[str] = ()) -> SingleFile:
        """Raises ModelFileError when the file is of none of these kinds, or a base that no run can start from; parts in
        `replaced` (see `fitness.unfit_file`) it may lack.
        """
        name, kind = file_kind(self.names)
        # not where a VAE is expected: only that part of the file is used, and another family would not help
        is_base = kinds == (self.layout.kind,)
        reason = unfit_file(name, kind, self.shapes, replaced) if is_base else ""
        if name not in kinds:
            advice = hint(name) if is_base else ""
            because = f" It {CANNOT}: {reason}." if reason and not advice else ""
            raise ModelFileError(
                f"{self.path} is {name}; expected was {' or '.join(kinds)} or a diffusers folder.{advice}{because}"
            )
        if reason:
            raise ModelFileError(f"{self.path} {CANNOT}: {reason}.")
        return self

    def files(self, part: str) -> list[Path]:
        """The file itself, whatever the part."""
        return [self.path]

    def scheduler_config(self) -> dict:
        """The family's noise schedule, with v prediction and zero terminal SNR if the file is marked with them."""
        marked = {}
        if "v_pred" in self.names or self._header.get("__metadata__", {}).get("modelspec.prediction_type") == "v":
            marked["prediction_type"] = "v_prediction"
        if "ztsnr" in self.names:
            marked["rescale_betas_zero_snr"] = True
        return {**super().scheduler_config(), **marked}

    def tensors(self, part: str, model: torch.nn.Module) -> Tensors:
        from diffusers.loaders import single_file_utils as ldm

        tensors, prefix = self._named(part), self.layout.prefixes[part]
        if part.startswith("text_encoder"):
            is_open_clip = any(name.startswith(f"{prefix}transformer.resblocks.") for name in tensors)
            if is_open_clip:
                # its fused q, k and v are copied into separate tensors: 0.3 GB in float16 for SDXL
                return ldm.convert_open_clip_checkpoint(model, tensors, prefix)
            return ldm.convert_ldm_clip_checkpoint(tensors)
        if any(name.startswith("encoder.down_blocks.") for name in tensors):
            # a VAE in diffusers' own layout
            return {current_name(name): tensor for name, tensor in tensors.items()}
        convert = ldm.convert_ldm_unet_checkpoint if part == "unet" else ldm.convert_ldm_vae_checkpoint
        converted = convert(tensors, model.config)
        # the converters ignore what they do not know; a tensor that is not in their result was dropped
        # Compared by address: the converted tensors are views of those in the file.
        used = {tensor.data_ptr() for tensor in converted.values()}
        left = [name for name, tensor in tensors.items() if tensor.data_ptr() not in used and not name.endswith(SPARE)]
        if left:
            raise ModelFileError(
                f"{self.path} has {len(left)} tensors that {part} does not, such as {left[0]}: it is not "
                f"{self.layout.kind} of the usual shape."
            )
        return converted

    def _named(self, part: str) -> Tensors:
        """The tensors of a part, under the file's names."""
        prefix = self.layout.prefixes[part]
        if part == "vae" and not any(name.startswith(prefix) for name in self.names):
            prefix = VAE_NAMES
        if self._header:
            tensors = read_tensors(self.path, prefix)
        else:
            tensors = {name: tensor for name, tensor in self._pickle.items() if name.startswith(prefix)}
        if not tensors:
            raise ModelFileError(
                f"{self.path} holds no {part} (no {self.layout.prefixes[part]}*): use a file that has one, or a "
                "diffusers folder."
            )
        return tensors


def current_name(name: str) -> str:
    """The present name of a tensor that an older diffusers wrote."""
    head, _, tail = name.rpartition(".")
    layer = head.rpartition(".")[2]
    if ".attentions." in name and layer in OLD_ATTENTION:
        return f"{head.removesuffix(layer)}{OLD_ATTENTION[layer]}.{tail}"
    return name
