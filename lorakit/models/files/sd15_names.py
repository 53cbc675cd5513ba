"""Stable Diffusion 1.5 from outside: its single files, folders and LoRA files."""

from __future__ import annotations

from pathlib import Path

from lorakit.models.files.marks import IN_CHECKPOINT, UNET_INPUTS, VAE_ALONE, FileKind, Layout, Marks

LAYOUT = Layout(
    kind="a Stable Diffusion 1.x checkpoint",
    prefixes={
        "unet": "model.diffusion_model.",
        "vae": "first_stage_model.",
        "text_encoder": "cond_stage_model.transformer.",
    },
    settings=Path(__file__).parents[1] / "sd15_config",
)
MARKS = Marks(
    title="SD 1.5",
    load_gb=3,
    parts={
        "unet": IN_CHECKPOINT,
        "text encoder": IN_CHECKPOINT,
        "VAE": "set model.vae, e.g. to stabilityai/sd-vae-ft-mse",
    },
    kinds=(
        FileKind(
            name=LAYOUT.kind,
            starts=("cond_stage_model.transformer.", "model.diffusion_model.input_blocks."),
            # SDXL's text encoders, SD 2's, and the pooled text that SDXL's UNet is conditioned on
            lacks=("conditioner.embedders.", "cond_stage_model.model.", "model.diffusion_model.label_emb."),
            holds={"unet": "model.diffusion_model.", "text encoder": "cond_stage_model.", "VAE": "first_stage_model."},
            is_base=True,
            flags={"v_pred": "with v prediction", "ztsnr": "with zero terminal SNR"},
        ),
    ),
    # the VAEs of SD 1.5 and SDXL have the same tensors: a file does not say whose it is
    inputs=UNET_INPUTS,
    shared={VAE_ALONE: "VAE"},
    folder="StableDiffusionPipeline",
    # SDXL's UNet and first text encoder have such names, too
    lora_keys_too=r"(down|up)_blocks_|mid_block_|(lora_te1|text_encoder)_encoder_layers_",
    text_width=768,
    key_layouts=("kohya",),
)
