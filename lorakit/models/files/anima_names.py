"""The single files of an Anima model: what each one is, and its names and shapes as the libraries have them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from lorakit.models.files.sd_sources import kind_of

# Before the original names, depending on who wrote the file: ComfyUI's checkpoints, LoRA tools, NVIDIA's trainer.
PREFIX = re.compile(r"^(?:(?:model\.)?diffusion_model\.)?(?:net\.)?")
ADAPTER = "llm_adapter."
DIT = "an Anima DiT"
BARE_DIT = "a Cosmos-Predict2 DiT, as of Anima, without LLM adapter"
CONDITIONER = "Anima's LLM adapter"
QWEN = "a Qwen3 text encoder"
VAE = "a Qwen-Image VAE"
# First match decides: (what a single file is, tensors that it has all of, their prefix left away)
KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (DIT, ("blocks.0.adaln_modulation_self_attn.1.weight", f"{ADAPTER}embed.weight")),
    (BARE_DIT, ("blocks.0.adaln_modulation_self_attn.1.weight",)),
    (CONDITIONER, (f"{ADAPTER}embed.weight",)),
    (CONDITIONER, ("embed.weight", "blocks.0.norm_cross_attn.weight")),
    (QWEN, ("model.embed_tokens.weight", "model.layers.0.self_attn.q_norm.weight")),
    (QWEN, ("embed_tokens.weight", "layers.0.self_attn.q_norm.weight")),
    (VAE, ("decoder.middle.0.residual.0.gamma",)),
    (VAE, ("decoder.mid_block.resnets.0.norm1.gamma",)),
    ("the transformer of a diffusers folder of Anima", ("transformer_blocks.0.norm1.linear_1.weight",)),
)
ACCEPTED = {
    "transformer": (DIT, BARE_DIT),
    "text_conditioner": (CONDITIONER, DIT),
    "text_encoder": (QWEN,),
    "vae": (VAE,),
}
SCALES = re.compile(r".*\.(scale_weight|weight_scale|scale_input|comfy_quant)|scaled_fp8")
NARROW = ("F8", "F6", "F4", "I8", "U8")  # types too coarse to train on
Shapes = dict[str, tuple[int, ...]]


def anima_kind(names: Iterable[str]) -> str:
    """What a file is, in words, judged by the names of its tensors; of all the kinds that are known here."""
    own = {PREFIX.sub("", name) for name in names}
    return next((kind for kind, marks in KINDS if own.issuperset(marks)), None) or kind_of(tuple(names))


def quantised(header: dict) -> bool:
    """Whether a file's weights (its header is given) are stored in 8 bits or fewer."""
    matrices = (entry for name, entry in header.items() if name != "__metadata__" and len(entry["shape"]) > 1)
    return any(map(SCALES.fullmatch, header)) or any(entry["dtype"].startswith(NARROW) for entry in matrices)


# ---- original names and shapes -> the libraries' names and settings -------------------------------------------------


def _transformer_names(names: Iterable[str]) -> dict[str, str]:
    from diffusers.loaders.single_file_utils import convert_cosmos_transformer_checkpoint_to_diffusers as convert

    own = {PREFIX.sub("", name): name for name in names}
    return convert({name: full for name, full in own.items() if not name.startswith(ADAPTER)})


def _conditioner_names(names: Iterable[str]) -> dict[str, str]:
    own = {PREFIX.sub("", name): name for name in names}
    inside = {name.removeprefix(ADAPTER): full for name, full in own.items() if name.startswith(ADAPTER)}
    return inside or own  # a file of its own may leave the prefix away


def encoder_names(names: Iterable[str]) -> dict[str, str]:
    """Of Qwen3Model; the language model's head is left out, as no token is ever predicted."""
    return {name.removeprefix("model."): name for name in names if not name.startswith("lm_head.")}


def _vae_names(names: Iterable[str]) -> dict[str, str]:
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers as convert

    return convert({name: name for name in names})


def _count(shapes: Shapes, blocks: str) -> int:
    return len({name.removeprefix(blocks).partition(".")[0] for name in shapes if name.startswith(blocks)})


def _transformer_config(shapes: Shapes) -> dict:
    hidden, patch = shapes["patch_embed.proj.weight"]  # a patch is 1 x 2 x 2 of all channels and of the padding mask
    head = shapes["transformer_blocks.0.attn1.norm_q.weight"][0]
    return {
        "in_channels": patch // 4 - 1,
        "out_channels": shapes["proj_out.weight"][0] // 4,
        "num_attention_heads": hidden // head,
        "attention_head_dim": head,
        "num_layers": _count(shapes, "transformer_blocks."),
        "mlp_ratio": shapes["transformer_blocks.0.ff.net.0.proj.weight"][0] / hidden,
        "text_embed_dim": shapes["transformer_blocks.0.attn2.to_k.weight"][1],
        "adaln_lora_dim": shapes["transformer_blocks.0.norm1.linear_1.weight"][0],
    }


def _conditioner_config(shapes: Shapes) -> dict:
    vocabulary, target = shapes["embed.weight"]
    model = shapes["out_proj.weight"][1]
    return {
        "source_dim": shapes["blocks.0.cross_attn.k_proj.weight"][1],
        "target_dim": target,
        "model_dim": model,
        "num_layers": _count(shapes, "blocks."),
        "num_attention_heads": model // shapes["blocks.0.cross_attn.q_norm.weight"][0],
        "mlp_ratio": shapes["blocks.0.mlp.0.weight"][0] / model,
        "target_vocab_size": vocabulary,
        "use_self_attention": "blocks.0.self_attn.q_proj.weight" in shapes,
        "use_layer_norm": "blocks.0.norm_mlp.bias" in shapes,
    }


def _encoder_config(shapes: Shapes) -> dict:
    vocabulary, hidden = shapes["embed_tokens.weight"]
    head = shapes["layers.0.self_attn.q_norm.weight"][0]
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": shapes["layers.0.mlp.gate_proj.weight"][0],
        "num_hidden_layers": _count(shapes, "layers."),
        "num_attention_heads": shapes["layers.0.self_attn.q_proj.weight"][0] // head,
        "num_key_value_heads": shapes["layers.0.self_attn.k_proj.weight"][0] // head,
        "head_dim": head,
    }


def _vae_config(shapes: Shapes) -> dict:
    return {"base_dim": shapes["encoder.conv_in.weight"][0]}


RENAMED: dict[str, Callable[[Iterable[str]], dict[str, str]]] = {
    "transformer": _transformer_names,
    "text_conditioner": _conditioner_names,
    "text_encoder": encoder_names,
    "vae": _vae_names,
}
MEASURED: dict[str, Callable[[Shapes], dict]] = {
    "transformer": _transformer_config,
    "text_conditioner": _conditioner_config,
    "text_encoder": _encoder_config,
    "vae": _vae_config,
}
