"""Stable Diffusion XL from outside: its single files, folders and LoRA files."""

from __future__ import annotations

from pathlib import Path

from lorakit.models.files.marks import IN_CHECKPOINT, UNET_INPUTS, VAE_ALONE, FileKind, Layout, Marks

LAYOUT = Layout(
    kind="a Stable Diffusion XL checkpoint",
    prefixes={
        "unet": "model.diffusion_model.",
        "vae": "first_stage_model.",
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
    settings=Path(__file__).parents[1] / "sdxl_config",
)
HOLDS = {
    "unet": "model.diffusion_model.",
    "text encoder": "conditioner.embedders.0.",
    "second text encoder": "conditioner.embedders.1.",
    "VAE": "first_stage_model.",
}
FLAGS = {"v_pred": "with v prediction", "ztsnr": "with zero terminal SNR"}
MARKS = Marks(
    title="SDXL",
    load_gb=6,
    parts={
        "unet": IN_CHECKPOINT,
        "text encoder": IN_CHECKPOINT,
        "second text encoder": IN_CHECKPOINT,
        "VAE": "set model.vae, e.g. to madebyollin/sdxl-vae-fp16-fix",
    },
    kinds=(
        FileKind(name=LAYOUT.kind, starts=("conditioner.embedders.",), holds=HOLDS, is_base=True, flags=FLAGS),
        FileKind(
            name="an SDXL diffusion model without text encoders",
            starts=("model.diffusion_model.label_emb.",),
            # The text encoders of SDXL and of SD 2.
            lacks=("conditioner.embedders.", "cond_stage_model.model."),
            holds=HOLDS,
            flags=FLAGS,
        ),
    ),
    inputs=UNET_INPUTS,
    shared={VAE_ALONE: "VAE"},
    folder="StableDiffusionXLPipeline",
    # the second text encoder, the original names of the UNet, and levels with more than one transformer block
    lora_keys=r"lora_te2_|text_encoder_2_|(in|out)put_blocks_|middle_block_"
    r"|\w+_attentions_\d+_transformer_blocks_[1-9]",
    text_width=2048,
    key_layouts=("kohya",),
)
