"""A Stable Diffusion model of the real classes made tiny, and a dataset of a few images, for tests."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import torch
from built_once import built_once
from PIL import Image, ImageDraw

from lorakit.run.sampling import SamplingConfig

WORDS = ["girl", "boy", "red", "blue", "green", "hair", "smile", "hat", "mofu", ","]


@built_once
def save_sd15(folder: Path, *, seed: int = 0, prediction_type: str = "epsilon") -> Path:
    """A diffusers folder with random weights: UNet of 2 levels, VAE of 8x, CLIP of 2 layers; under 1 MB."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=16,
            attention_head_dim=2,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
        vae = AutoencoderKL(
            block_out_channels=(4, 4, 8, 8),
            norm_num_groups=4,
            latent_channels=4,
            layers_per_block=1,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
        tokenizer = save_tokenizer(folder / "tokenizer")
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=3,
                num_attention_heads=2,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def save_base(family: str, folder: Path) -> Path:
    """A tiny base of a family: `save_<family>` of `tiny_<family>.py`, or of this file."""
    module = "tiny" if family == "sd15" else f"tiny_{family}"
    return getattr(importlib.import_module(module), f"save_{family}")(folder)


def save_tokenizer(folder: Path):
    """A CLIP tokenizer that knows WORDS, and spells everything else in bytes."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in (*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100))]
    letters += [chr(256 + i) for i in range(256 - len(letters))]
    vocabulary, merges = letters + [letter + "</w>" for letter in letters], []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            if (pieces[0], pieces[1]) not in merges:
                merges.append((pieces[0], pieces[1]))
                vocabulary.append(pieces[0] + pieces[1])
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


SIZES = ((64, 64), (64, 64), (96, 64), (64, 96), (64, 64), (96, 64), (64, 64))


def save_images(folder: Path, *, repeats: int = 1, sizes: tuple = SIZES) -> Path:
    """kohya's layout: `<folder>/<repeats>_mofu/` with an image and a caption for each size."""
    concept = folder / f"{repeats}_mofu"
    concept.mkdir(parents=True)
    for i, size in enumerate(sizes):
        image = Image.new("RGB", size, (40 * i % 256, 200 - 20 * i, 90))
        ImageDraw.Draw(image).ellipse((8, 8, 40 + i, 48), fill=(250, 30 * i % 256, 20))
        image.save(concept / f"{i:02d}.png")
        (concept / f"{i:02d}.txt").write_text(f"mofu, girl, {WORDS[2 + i % 3]} hair, {WORDS[6 + i % 2]}")
    return folder


def conditioning(model, captions: list[str]) -> dict[str, torch.Tensor]:
    """What a batch of captions becomes for images of 64 x 64; carries gradients to trained text parts."""
    from lorakit.models import Size

    return model.condition([model.encode_text(caption) for caption in captions], [Size.whole(64, 64)] * len(captions))


def painted(model, text: dict, negative: dict, *, seed: int, **sampling):
    """An image with these sampling settings (fields of SamplingConfig)."""
    return model.sample(text, negative, SamplingConfig(**sampling), seed)


def settings(base: Path, **changes: dict) -> dict:
    """Settings of a run that takes milliseconds a step; `changes` are merged into the parts by name."""
    plain = {
        "model": {"family": "sd15", "source": str(base)},
        "data": {"resolution": 64, "min_bucket_reso": 32, "max_bucket_reso": 128, "bucket_reso_steps": 32},
        "adapter": {"rank": 2, "alpha": 1},
        "optimizer": {"learning_rate": 1e-2},
        "loop": {"epochs": 2, "batch_size": 2},
        "sample": {"width": 64, "height": 64, "steps": 2},
    }
    stages = {"stages": changes.pop("stages")} if "stages" in changes else {}
    return {part: {**plain.get(part, {}), **changes.get(part, {})} for part in {**plain, **changes}} | stages
