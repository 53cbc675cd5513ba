"""The parts of a Stable Diffusion model, read from a diffusers folder or from a single file in the original layout."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from lorakit.model_files import ModelFileError, all_shards, verify_safetensors, weight_files

SD15_CONFIG = Path(__file__).parent / "sd15_config"
# In the original files beside the weights: computed buffers, and parts of CLIP that text conditioning does not use.
SPARE = ("position_ids", "text_projection.weight", "logit_scale")
# How the VAE's attention was called in diffusers before 0.18; SD 1.5's own folder on the hub still has these names.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a family's models consist of.

    kind        what `kind_of` calls its single files
    prefixes    part -> how the names of its tensors begin in single files
    """

    kind: str
    prefixes: Mapping[str, str]


SD15 = Layout(
    kind="a Stable Diffusion 1.x checkpoint",
    prefixes={
        "unet": "model.diffusion_model.",
        "vae": "first_stage_model.",
        "text_encoder": "cond_stage_model.transformer.",
    },
)

# First match decides: (what a file is, what some of its tensors are named like)
KINDS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    (
        "a LoRA (an adapter, not a base model)",
        lambda name: any(
            mark in name
            for mark in (
                "lora_down",
                "lora_up",
                "lora_A.",
                "lora_B.",
                "lora.down",
                "lora.up",
                "hada_w1",
                "lokr_w",
                "oft_",
            )
        ),
    ),
    ("a ControlNet", lambda name: name.startswith(("control_model.", "controlnet_", "input_hint_block."))),
    ("a textual inversion embedding", lambda name: name in ("emb_params", "string_to_param", "clip_l", "clip_g")),
    ("a Stable Diffusion XL checkpoint", lambda name: name.startswith("conditioner.embedders.")),
    ("a Stable Diffusion 2 checkpoint", lambda name: name.startswith("cond_stage_model.model.")),
    ("a Stable Diffusion 3 checkpoint", lambda name: "joint_blocks." in name),
    ("a Flux checkpoint", lambda name: "double_blocks." in name),
    (
        "a Stable Diffusion 1.x checkpoint",
        lambda name: name.startswith(("cond_stage_model.transformer.", "model.diffusion_model.input_blocks.")),
    ),
    ("a diffusion model without text encoder", lambda name: name.startswith("model.diffusion_model.")),
    ("a VAE alone", lambda name: name.startswith(("first_stage_model.", "encoder.", "decoder."))),
    ("one part of a diffusers folder", lambda name: name.startswith(("down_blocks.", "up_blocks.", "text_model."))),
)


def kind_of(names: list[str]) -> str:
    """What a file is, in words, judged by the names of its tensors."""
    for kind, matches in KINDS:
        if any(map(matches, names)):
            return kind
    return f"no model known here (its tensors are {', '.join(names[:3]) or 'none'} ...)"


def open_sd(path: Path, defaults: Path = SD15_CONFIG, layout: Layout = SD15) -> SDFolder | SDFile:
    """The parts of the model at `path`, each read when it is asked for.

    path      a diffusers folder, or a single .safetensors or .ckpt in the original layout
    defaults  folder with the configuration and the tokenizer that single files lack, in the layout of diffusers
    layout    the family's parts

    Raises ModelFileError for a damaged file, another kind of file, or a model of another family.
    """
    path = Path(path)
    if path.is_dir():
        return SDFolder(path, layout)
    if not path.is_file():
        raise ModelFileError(f"There is no {path}; give a diffusers folder, a .safetensors or a .ckpt file.")
    return SDFile(path, defaults, layout)


class _Parts:
    """The parts as frozen modules, their weights checked one by one; where they come from is the subclass's."""

    settings: Path  # a folder of configurations in the layout of diffusers

    def files(self, part: str) -> list[Path]:
        """The files that the weights of a part are read from."""
        raise NotImplementedError

    def _tensors(self, part: str, config: dict) -> Tensors:
        raise NotImplementedError

    def unet(self, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
        """UNet2DConditionModel in `dtype` on `device`."""
        from diffusers import UNet2DConditionModel

        return self._module("unet", UNet2DConditionModel.from_config, dtype, device)

    def vae(self, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
        """AutoencoderKL in `dtype` on `device`."""
        from diffusers import AutoencoderKL

        return self._module("vae", AutoencoderKL.from_config, dtype, device)

    def text_encoder(self, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
        """CLIPTextModel in `dtype` on `device`."""
        from transformers import CLIPTextConfig, CLIPTextModel

        return self._module(
            "text_encoder", lambda config: CLIPTextModel(CLIPTextConfig.from_dict(config)), dtype, device
        )

    def tokenizer(self):
        """The CLIPTokenizer, from local files alone."""
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(self.settings / "tokenizer", local_files_only=True)

    def vae_config(self) -> dict:
        """The VAE's configuration; `scaling_factor` is always in it."""
        return {"scaling_factor": 0.18215, **self._config("vae/config.json")}

    def text_config(self) -> dict:
        """The text encoder's configuration; `num_hidden_layers` is always in it."""
        return {"num_hidden_layers": 12, **self._config("text_encoder/config.json")}

    def scheduler_config(self) -> dict:
        """The noise schedule the model was trained with; `prediction_type` is always in it."""
        return {"prediction_type": "epsilon", **self._config("scheduler/scheduler_config.json")}

    def _config(self, name: str) -> dict:
        try:
            return json.loads((self.settings / name).read_text("utf-8"))
        except FileNotFoundError as error:
            raise ModelFileError(
                f"{self.settings} has no {name}: the folder is not whole; download it again."
            ) from error
        except ValueError as error:
            raise ModelFileError(
                f"{self.settings / name} is not readable JSON ({error}): download it again."
            ) from error

    def _module(
        self, part: str, build: Callable[[dict], torch.nn.Module], dtype: torch.dtype, device: torch.device
    ) -> torch.nn.Module:
        from accelerate import init_empty_weights

        config = self._config(f"{part}/config.json")
        with init_empty_weights(include_buffers=False):  # no memory and no random numbers for weights; buffers are real
            model = build(config)
        where = f"The {part} in {', '.join(map(str, self.files(part)))}"
        weights = fitting(model, self._tensors(part, config), where)
        for name, tensor in weights.items():  # views of the mapped file, moved one by one
            weights[name] = tensor.to(device, dtype if tensor.is_floating_point() else None)
        model.load_state_dict(weights, strict=True, assign=True)
        return model.requires_grad_(False).eval().to(device)  # buffers


class SDFolder(_Parts):
    """A model in a diffusers folder: <part>/config.json beside <part>/*.safetensors, any variant, maybe in shards."""

    def __init__(self, path: Path, layout: Layout):
        self.settings = path
        index = self._config("model_index.json")
        parts = {name for name, value in index.items() if isinstance(value, list) and value[0] is not None}
        denoisers = {"unet", "transformer", "prior"} | {name for name in parts if name.startswith("text_encoder")}
        if parts & denoisers != set(layout.prefixes) & denoisers:
            raise ModelFileError(
                f"{path} holds a {index.get('_class_name')} with {', '.join(sorted(parts & denoisers))}; "
                f"expected was {layout.kind.removesuffix(' checkpoint')} with {', '.join(layout.prefixes)}."
            )

    def files(self, part: str) -> list[Path]:
        """The weight files of a part: its shards, or the one file."""
        folder = self.settings / part
        names = weight_files(file.name for file in folder.glob("*"))
        if not all_shards(names):
            found = ", ".join(sorted(file.name for file in folder.glob("*"))) or "nothing"
            raise ModelFileError(
                f"{folder} lacks weights (diffusion_pytorch_model.safetensors, model.safetensors or all of "
                f"their shards); found was {found}: download it again."
            )
        return [folder / name for name in names]

    def _tensors(self, part: str, config: dict) -> Tensors:
        found = {name: tensor for file in self.files(part) for name, tensor in read_tensors(file, "").items()}
        return {today(name): tensor for name, tensor in found.items()}


class SDFile(_Parts):
    """A model in a single file of the original layout; configuration and vocabulary come from elsewhere."""

    def __init__(self, path: Path, defaults: Path, layout: Layout):
        self.path, self.settings, self.layout = path, defaults, layout
        kind = kind_of(list(self.names))
        if kind != layout.kind:
            raise ModelFileError(f"{path} is {kind}; expected was {layout.kind} or a diffusers folder.")

    @cached_property
    def _header(self) -> dict:
        return verify_safetensors(self.path) if self.path.suffix == ".safetensors" else {}

    @cached_property
    def _pickle(self) -> Tensors:
        return read_pickle(self.path)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors in the file."""
        return tuple(name for name in self._header or self._pickle if name != "__metadata__")

    def files(self, part: str) -> list[Path]:
        """The file itself, whatever the part."""
        return [self.path]

    def scheduler_config(self) -> dict:
        """As of the defaults, with what the file tells about v prediction and zero terminal SNR."""
        told = {}
        if "v_pred" in self.names or self._header.get("__metadata__", {}).get("modelspec.prediction_type") == "v":
            told["prediction_type"] = "v_prediction"
        if "ztsnr" in self.names:
            told["rescale_betas_zero_snr"] = True
        return {**super().scheduler_config(), **told}

    def _tensors(self, part: str, config: dict) -> Tensors:
        from diffusers.loaders import single_file_utils as ldm

        prefix = self.layout.prefixes[part]
        if self._header:
            found = read_tensors(self.path, prefix)
        else:
            found = {name: tensor for name, tensor in self._pickle.items() if name.startswith(prefix)}
        if not found:
            raise ModelFileError(
                f"{self.path} holds no {part} (no {prefix}*): use a file that has one, or a diffusers folder."
            )
        if part == "unet":
            converted = ldm.convert_ldm_unet_checkpoint(found, config)
        elif part == "vae":
            converted = ldm.convert_ldm_vae_checkpoint(found, config)
        else:
            return ldm.convert_ldm_clip_checkpoint(found)
        used = {tensor.data_ptr() for tensor in converted.values()}
        left = [name for name, tensor in found.items() if tensor.data_ptr() not in used and not name.endswith(SPARE)]
        if left:
            raise ModelFileError(
                f"{self.path} has {len(left)} tensors that {part} does not, such as {left[0]}: it is not "
                f"{self.layout.kind} of the usual shape."
            )
        return converted


def fitting(model: torch.nn.Module, tensors: Tensors, where: str) -> Tensors:
    """`tensors` under the model's own names, after checking that all of its weights are there, in shape, and no others.

    transformers 5.6 took `text_model.` out of the names in CLIPTextModel; files have it, except those of NAI's time.
    """
    expected = model.state_dict()
    own = {name.removeprefix("text_model."): name for name in expected}
    renamed = {own.get(name.removeprefix("text_model."), name): tensor for name, tensor in tensors.items()}
    weights = {name: tensor for name, tensor in renamed.items() if name in expected or not name.endswith(SPARE)}
    missing = [name for name in expected if name not in weights]
    foreign = [name for name in weights if name not in expected]
    if missing or foreign:
        found = (("missing", missing), ("unknown", foreign))
        told = [f"{len(names)} are {state}, such as {names[0]}" for state, names in found if names]
        raise ModelFileError(
            f"{where} does not fit its configuration: of {len(expected)} tensors {'; '.join(told)}; "
            "it is incomplete or of another kind."
        )
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise ModelFileError(
                f"{where} does not fit its configuration: {name} is {tuple(tensor.shape)}, expected "
                f"{tuple(expected[name].shape)}; it is a model of another size or kind."
            )
    return weights


def today(name: str) -> str:
    """The name that diffusers now has for a tensor of a folder that an older one wrote."""
    head, _, tail = name.rpartition(".")
    layer = head.rpartition(".")[2]
    if ".attentions." in name and layer in OLD_ATTENTION:
        return f"{head.removesuffix(layer)}{OLD_ATTENTION[layer]}.{tail}"
    return name


def read_tensors(path: Path, prefix: str) -> Tensors:
    """The tensors of a file whose names begin with `prefix`; of .safetensors, views of the file, not copies."""
    if path.suffix != ".safetensors":
        return {name: tensor for name, tensor in read_pickle(path).items() if name.startswith(prefix)}
    from safetensors import safe_open

    verify_safetensors(path)
    with safe_open(path, framework="pt", device="cpu") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}


def read_pickle(path: Path) -> Tensors:
    """The tensors of a .ckpt or .bin, by torch's weights-only reading, which runs no code from the file."""
    if path.stat().st_size == 0:
        raise ModelFileError(f"{path} is empty (0 bytes); a PyTorch checkpoint was expected: download it again.")
    with open(path, "rb") as file:
        start = file.read(4)
    if start.startswith(b"<"):
        raise ModelFileError(f"{path} is a web page, not a PyTorch checkpoint: download the file itself.")
    try:  # checkpoints of before PyTorch 1.6 are no zip archives and cannot be mapped
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
