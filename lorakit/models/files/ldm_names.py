"""Names of a UNet's modules in the original (ldm) layout, which ComfyUI and the LoRA files of SDXL use."""

from __future__ import annotations

import re
from collections.abc import Mapping

# Modules outside of the blocks; all names are diffusers' -> original.
OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
}
RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
# such as down_blocks.1.attentions.0.proj_in, mid_block.resnets.1.conv1
INSIDE = re.compile(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


def original_name(module: str, config: Mapping) -> str:
    """The original name of a UNet2DConditionModel's module with weights, e.g. input_blocks.4.1.proj_in.

    `config` is the UNet's configuration. The original numbers its blocks through all levels. On the way down a level
    has `layers_per_block` blocks and one for the downsampler; on the way up one more, with the upsampler in the last.
    """
    match = INSIDE.fullmatch(module)
    if match is None:
        return OUTSIDE.get(module, module)
    side, level, kind, index, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    # Blocks of a level, with the one of its downsampler, or the further one on the way up.
    count = config["layers_per_block"] + 1
    if kind == "resnets":
        rest = RESNET.get(rest, rest)
    if side is None:
        # Middle: a resnet, attention, a resnet -> middle_block.0, 1, 2
        return f"middle_block.{2 * index + (kind == 'attentions')}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{count * (level + 1)}.0.op"
    if kind == "upsamplers":
        # Within the last block of a level: 0 is the resnet, 1 the attention where there is one, then the upsampler.
        place = 2 if "CrossAttn" in config["up_block_types"][level] else 1
        return f"output_blocks.{count * (level + 1) - 1}.{place}.{rest}"
    # + 1: input_blocks.0 is conv_in
    block = f"input_blocks.{count * level + index + 1}" if side == "down" else f"output_blocks.{count * level + index}"
    return f"{block}.{int(kind == 'attentions')}.{rest}"
