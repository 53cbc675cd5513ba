"""Tiny models in the original (ldm) layout of single files: the inverse of the conversion that diffusers does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file

PARTS = ("unet", "vae", "text_encoder")
SDXL_PARTS = (*PARTS, "text_encoder_2")
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0"}
RESNET |= {"conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
OUTSIDE = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_out": "out.2"}
OUTSIDE |= {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0"}
OUTSIDE |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
VAE = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "conv_norm_out": "norm_out"}
VAE |= {"conv_shortcut": "nin_shortcut", "downsamplers.0.conv": "downsample.conv", "upsamplers.0.conv": "upsample.conv"}


def original_unet_name(name: str, layers: int, plain_ups: tuple[int, ...]) -> str:
    """The name in the original (ldm) layout; `plain_ups` are the up blocks without attention."""
    for new, old in OUTSIDE.items():
        if name.startswith(new + "."):
            return old + name[len(new) :]
    block, inside = re.fullmatch(r"((?:down|up)_blocks\.\d+|mid_block)\.(.+)", name).groups()
    kind, index, rest = re.fullmatch(r"(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", inside).groups()
    if kind == "resnets":
        layer, tail = rest.split(".", 1)
        rest = f"{RESNET[layer]}.{tail}"
    if block == "mid_block":
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(index)}.{rest}"
    number, place = int(block.split(".")[1]), {"resnets": 0, "attentions": 1}
    if kind == "downsamplers":
        return f"input_blocks.{(number + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{number * (layers + 1) + layers}.{1 if number in plain_ups else 2}.{rest}"
    if block.startswith("down"):
        return f"input_blocks.{number * (layers + 1) + int(index) + 1}.{place[kind]}.{rest}"
    return f"output_blocks.{number * (layers + 1) + int(index)}.{place[kind]}.{rest}"


def original_vae_name(name: str, blocks: int) -> str:
    """The name in the original (ldm) layout; `blocks` is the number of resolutions."""
    name = re.sub(r"down_blocks\.(\d+)\.", r"down.\1.", name)
    name = re.sub(r"up_blocks\.(\d+)\.", lambda found: f"up.{blocks - 1 - int(found[1])}.", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1").replace(".resnets.", ".block.")
    for new, old in VAE.items():
        name = name.replace(new + ".", old + ".")
    return name


def original_names(part: str, config: dict, names: list[str]) -> dict[str, str]:
    """diffusers' name -> the name in a single file."""
    if part == "unet":
        plain = tuple(i for i, kind in enumerate(config["up_block_types"]) if kind == "UpBlock2D")
        layers = config["layers_per_block"]
        return {name: f"model.diffusion_model.{original_unet_name(name, layers, plain)}" for name in names}
    if part == "vae":
        blocks = len(config["up_block_types"])
        return {name: f"first_stage_model.{original_vae_name(name, blocks)}" for name in names}
    head = "cond_stage_model.transformer.text_model."
    return {name: head + name.removeprefix("text_model.") for name in names}


OPEN_CLIP = {"embeddings.token_embedding": "token_embedding", "final_layer_norm": "ln_final"}
OPEN_CLIP |= {"encoder.layers": "transformer.resblocks", "layer_norm": "ln_", "self_attn": "attn"}
OPEN_CLIP |= {"fc1": "c_fc", "fc2": "c_proj"}


def open_clip(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A CLIPTextModelWithProjection as OpenCLIP has it: q, k and v in one tensor, the projection transposed."""
    state = {"logit_scale": torch.tensor(4.6), "text_projection": weights["text_projection.weight"].T.contiguous()}
    state["positional_embedding"] = weights["text_model.embeddings.position_embedding.weight"]
    for name, tensor in weights.items():
        if "position" in name or name == "text_projection.weight" or ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            tensor = torch.cat([weights[name.replace("q_proj", f"{kind}_proj")] for kind in "qkv"])
            name = name.replace("q_proj.", "in_proj_")
        name = name.removeprefix("text_model.")
        for new, old in OPEN_CLIP.items():
            name = name.replace(new, old)
        state[name] = tensor
    return state


def original_part(part: str, config: dict, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a part under the original names, in the original shapes; those of SDXL's second CLIP too."""
    if part == "text_encoder_2":
        return {f"conditioner.embedders.1.model.{name}": tensor for name, tensor in open_clip(weights).items()}
    names, state = original_names(part, config, list(weights)), {}
    for name, tensor in weights.items():
        is_conv = part == "vae" and "attentions" in name and "group_norm" not in name and tensor.ndim == 2
        state[names[name]] = tensor[:, :, None, None].contiguous() if is_conv else tensor
    return state


def for_sdxl(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The first text encoder's names as SDXL has them."""
    heads = "cond_stage_model.", "conditioner.embedders.0."
    return {name.replace(*heads) if name.startswith(heads[0]) else name: tensor for name, tensor in state.items()}


def original_state(folder: Path) -> dict[str, torch.Tensor]:
    """All weights of a diffusers folder, SD 1.5 or SDXL, as a checkpoint of the original layout holds them."""
    state = {"model_ema.num_updates": torch.tensor(7), "cond_stage_model.logit_scale": torch.tensor(4.6)}
    state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    is_sdxl = (folder / "text_encoder_2").is_dir()
    for part in SDXL_PARTS if is_sdxl else PARTS:
        weights = load_file(next((folder / part).glob("*.safetensors")))
        state |= original_part(part, json.loads((folder / part / "config.json").read_text()), weights)
    if is_sdxl:
        del state["cond_stage_model.logit_scale"]
        return for_sdxl(state)
    return state
