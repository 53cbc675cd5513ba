"""Tiny Anima models of the real classes: as diffusers saves them, and as the single files that ComfyUI's users have."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

# diffusers' name -> the original one, for whole components of a dotted name
TRANSFORMER = {
    "transformer_blocks": "blocks",
    "attn1": "self_attn",
    "attn2": "cross_attn",
    "to_q": "q_proj",
    "to_k": "k_proj",
    "to_v": "v_proj",
    "to_out.0": "output_proj",
    "norm_q": "q_norm",
    "norm_k": "k_norm",
    "ff.net.0.proj": "mlp.layer1",
    "ff.net.2": "mlp.layer2",
    "norm1.linear_1": "adaln_modulation_self_attn.1",
    "norm1.linear_2": "adaln_modulation_self_attn.2",
    "norm2.linear_1": "adaln_modulation_cross_attn.1",
    "norm2.linear_2": "adaln_modulation_cross_attn.2",
    "norm3.linear_1": "adaln_modulation_mlp.1",
    "norm3.linear_2": "adaln_modulation_mlp.2",
    "patch_embed.proj": "x_embedder.proj.1",
    "time_embed.t_embedder": "t_embedder.1",
    "time_embed.norm": "t_embedding_norm",
    "norm_out.linear_1": "final_layer.adaln_modulation.1",
    "norm_out.linear_2": "final_layer.adaln_modulation.2",
    "proj_out": "final_layer.linear",
}
VAE = {
    "quant_conv": "conv1",
    "post_quant_conv": "conv2",
    "conv_in": "conv1",
    "norm_out": "head.0",
    "conv_out": "head.2",
    "mid_block.resnets.0": "middle.0",
    "mid_block.attentions.0": "middle.1",
    "mid_block.resnets.1": "middle.2",
    "conv_shortcut": "shortcut",
}
RESNET = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
WORDS = {"vocab_size": 151936, "target_vocab_size": 32128}  # of the tokenizers, which are the real ones


def tiny_parts(*, seed: int = 0, layers: int = 2, width: int = 16) -> dict[str, torch.nn.Module]:
    """part -> a module with random weights; `width` is that of the texts, the transformer's is twice that."""
    from diffusers import AnimaTextConditioner, AutoencoderKLQwenImage, CosmosTransformer3DModel
    from transformers import Qwen3Config, Qwen3Model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {
            "transformer": CosmosTransformer3DModel(
                num_attention_heads=2,
                attention_head_dim=width,
                num_layers=layers,
                mlp_ratio=2.0,
                text_embed_dim=width,
                adaln_lora_dim=8,
                rope_scale=(1.0, 4.0, 4.0),
                extra_pos_embed_type=None,
            ),
            "text_conditioner": AnimaTextConditioner(
                source_dim=width,
                target_dim=width,
                model_dim=width,
                num_layers=2,
                num_attention_heads=2,
                target_vocab_size=WORDS["target_vocab_size"],
            ),
            "text_encoder": Qwen3Model(
                Qwen3Config(
                    vocab_size=WORDS["vocab_size"],
                    hidden_size=width,
                    intermediate_size=2 * width,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    num_key_value_heads=1,
                    head_dim=8,
                    rope_parameters={"rope_type": "default", "rope_theta": 1e6},
                    max_position_embeddings=32768,
                    tie_word_embeddings=True,
                )
            ),
            "vae": AutoencoderKLQwenImage(base_dim=4),
        }
    return {name: part.requires_grad_(False).eval() for name, part in parts.items()}


def save_anima(folder: Path, parts: dict[str, torch.nn.Module]) -> Path:
    """The folder that diffusers' AnimaModularPipeline saves: `modular_model_index.json` and a folder for each part."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.modular_pipelines.anima import AnimaAutoBlocks
    from transformers import T5TokenizerFast

    from lorakit.models.files.anima import ANIMA_CONFIG, bundled_qwen

    pipeline = AnimaAutoBlocks().init_pipeline()
    pipeline.update_components(
        **parts,
        tokenizer=bundled_qwen(),
        t5_tokenizer=T5TokenizerFast.from_pretrained(ANIMA_CONFIG / "t5_tokenizer"),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    pipeline.save_pretrained(str(folder), overwrite_modular_index=True)
    return folder


def original_name(part: str, name: str) -> str:
    """The name in ComfyUI's single files, without any prefix."""
    if part == "text_conditioner":
        return f"llm_adapter.{name}"
    if part == "text_encoder":
        return f"model.{name}"
    if part == "vae":
        return _original_vae_name(name)
    for new, old in TRANSFORMER.items():
        name = re.sub(rf"(?<![\w.]){re.escape(new)}(?=\.)|(?<=\.){re.escape(new)}(?=\.)", old, name)
    return name


def _original_vae_name(name: str) -> str:
    up = re.fullmatch(r"decoder\.up_blocks\.(\d)\.(resnets|upsamplers)\.(\d)\.(.+)", name)
    if up:  # 3 residual blocks and, but for the last, an upsampler
        place = 4 * int(up[1]) + (int(up[3]) if up[2] == "resnets" else 3)
        name = f"decoder.upsamples.{place}.{up[4]}"
    name = name.replace("encoder.down_blocks.", "encoder.downsamples.")
    for new, old in VAE.items():
        name = re.sub(rf"(^|\.){re.escape(new)}\.", rf"\g<1>{old}.", name)
    if "samples." in name or ".middle." in name:
        for new, old in RESNET.items():
            name = name.replace(f".{new}.", f".{old}.")
    return name


def save_files(folder: Path, parts: dict[str, torch.nn.Module], *, prefix: str = "net.") -> dict[str, Path]:
    """part -> its single file: the DiT with the adapter inside, the text encoder, the VAE; `prefix` is of the DiT."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "transformer": folder / "anima-base-v1.0.safetensors",
        "text_conditioner": folder / "anima-base-v1.0.safetensors",
        "text_encoder": folder / "qwen_3_06b_base.safetensors",
        "vae": folder / "qwen_image_vae.safetensors",
    }
    for path in {*files.values()}:
        inside = [part for part, file in files.items() if file == path]
        before = prefix if "transformer" in inside else ""
        tensors = {
            before + original_name(part, name): tensor.clone()
            for part in inside
            for name, tensor in parts[part].state_dict().items()
        }
        save_file(tensors, path)
    return files


def rewrite(path: Path, change) -> Path:
    """Save a file anew with what `change` makes of its tensors {name: tensor}."""
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path)
    return path
