"""Tiny models in the original (ldm) layout of single files: the inverse of the conversion that diffusers does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file

PARTS = ("unet", "vae", "text_encoder")
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0"}
RESNET |= {"conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
OUTSIDE = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_out": "out.2"}
OUTSIDE |= {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0"}
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


def original_state(folder: Path) -> dict[str, torch.Tensor]:
    """All weights of a diffusers folder as a checkpoint of the original layout holds them."""
    state = {"model_ema.num_updates": torch.tensor(7), "cond_stage_model.logit_scale": torch.tensor(4.6)}
    state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    for part in PARTS:
        weights = load_file(next((folder / part).glob("*.safetensors")))
        names = original_names(part, json.loads((folder / part / "config.json").read_text()), list(weights))
        for name, tensor in weights.items():
            is_conv = part == "vae" and "attentions" in name and "group_norm" not in name and tensor.ndim == 2
            state[names[name]] = tensor[:, :, None, None].contiguous() if is_conv else tensor
    return state
