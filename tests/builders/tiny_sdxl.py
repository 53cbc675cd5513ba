"""A Stable Diffusion XL model of the real classes made tiny, for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from built_once import built_once
from tiny import save_tokenizer


@built_once
def save_sdxl(
    folder: Path, *, seed: int = 0, prediction_type: str = "epsilon", rescale_betas_zero_snr: bool = False
) -> Path:
    """A diffusers folder with random weights: UNet of 2 levels, VAE of 8x, two CLIPs of 3 layers; under 1 MB."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    tokenizer = save_tokenizer(folder / "tokenizer")
    tokenizer_2 = save_tokenizer(folder / "tokenizer_2")
    tokenizer_2.pad_token = "!"  # id 0, as in the true one
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet, vae, text_encoder, text_encoder_2 = modules(len(tokenizer))
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type=prediction_type,
        rescale_betas_zero_snr=rescale_betas_zero_snr,
    )
    StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=scheduler,
    ).save_pretrained(folder)
    return folder


def modules(vocabulary: int) -> tuple[torch.nn.Module, ...]:
    """UNet, VAE and both text encoders."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16 + 24,
        attention_head_dim=(1, 2),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=12 + 6 * 4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        layers_per_block=1,
        scaling_factor=0.13025,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    sizes = {"vocab_size": vocabulary, "num_hidden_layers": 3, "num_attention_heads": 2}
    marks = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}  # wrong, as in the true configurations
    text_encoder = CLIPTextModel(CLIPTextConfig(hidden_size=16, intermediate_size=32, **sizes, **marks))
    text_encoder_2 = CLIPTextModelWithProjection(
        CLIPTextConfig(hidden_size=24, intermediate_size=48, projection_dim=12, hidden_act="gelu", **sizes, **marks)
    )
    return unet, vae, text_encoder, text_encoder_2
