"""Trains the demo base: a small UNet and, jointly, a small CLIP text encoder on latents of the drawn world."""

import copy
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from transformers import CLIPTextConfig, CLIPTextModel

from lorakit.demo import BASE, world
from lorakit.demo.pool import pool
from lorakit.demo.train_vae import to_batch
from lorakit.demo.words import QUALITY, tokenizer

STEPS, BATCH, RATE, WARMUP, EMA, MIN_SNR_GAMMA = 3600, 48, 1.2e-3, 100, 0.998, 5.0
IMAGES, SEED, WIDTH, RECALL = 14000, 2_000_000, 96, 0.02


def build_unet():
    """An untrained UNet of 5.9 M weights with SD 1.5's kinds of blocks on 16 x 16 x 4 latents."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )


def build_text_encoder(words):
    """An untrained CLIPTextModel of three layers for tokenizer `words`."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=77,
            projection_dim=WIDTH,
            hidden_act="quick_gelu",
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )


def scheduler():
    """SD 1.5's noise schedule."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def caption(figure, rng):
    """Tags in random order, some missing, sometimes beside words that mean nothing, one in ten empty (for guidance)."""
    if rng.random() < 0.1:
        return ""
    tags = [tag for tag in world.tags(figure) if rng.random() > 0.1]
    rng.shuffle(tags)
    if rng.random() < 0.2:
        tags.insert(rng.randrange(len(tags) + 1), rng.choice(QUALITY))
    if rng.random() < 0.15:
        tags.insert(
            0, "".join(rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(2, 4)))
        )
    return ", ".join(tags)


@torch.no_grad()
def latents_of(work, vae, images):
    """Scaled latents (n, 4, 16, 16) of all images, computed once."""
    file = work / "latents.pt"
    if not file.exists():
        parts = [vae.encode(to_batch(images[i : i + 32])).latent_dist.mode() for i in range(0, len(images), 32)]
        torch.save(torch.cat(parts) * vae.config.scaling_factor, file)
    return torch.load(file, weights_only=True)


class FloatAttention:
    """Attention in fp32 inside bf16 training: on CPUs the bf16 backward of it takes as long as all else together."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            x.unflatten(2, (attn.heads, -1)).transpose(1, 2).float()
            for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        with torch.autocast("cpu", enabled=False):
            mixed = F.scaled_dot_product_attention(q, k, v)
        return attn.to_out[0](mixed.transpose(1, 2).flatten(2))


class Base(torch.nn.Module):
    """UNet and text encoder as one module, so that one optimizer and one average hold both."""

    def __init__(self, words):
        super().__init__()
        self.unet, self.text = build_unet(), build_text_encoder(words)
        self.unet.set_attn_processor(FloatAttention())
        self.before = torch.nn.Linear(WIDTH, len(words))

    def forward(self, noisy, t, ids):
        """The predicted noise, and the recall loss of the words."""
        words = self.text(ids).last_hidden_state
        with torch.autocast("cpu", torch.bfloat16):
            return self.unet(noisy, t, words).sample.float(), self.recall(words, ids)

    def recall(self, words, ids):
        """Cross-entropy of naming, from each word's state, the word before it.

        It binds colours to their nouns ("blue hair", "red dress") early; from images alone it takes very long.
        """
        real = (ids != ids[:, -1:])[:, 1:]
        return F.cross_entropy(self.before(words[:, 1:][real]), ids[:, :-1][real])


def batch_of(step, latents, figures, words, alphas):
    """Noisy latents, timesteps, token ids, noise and weights of one step, all a function of the step."""
    generator, rng = torch.Generator().manual_seed(step), random.Random(step)
    chosen = torch.randint(len(figures), (BATCH,), generator=generator)
    x0 = latents[chosen]
    noise = torch.randn(x0.shape, generator=generator)
    t = (
        ((torch.randperm(BATCH, generator=generator) + torch.rand(BATCH, generator=generator)) * 1000 / BATCH)
        .long()
        .clamp(max=999)
    )
    a = alphas[t][:, None, None, None]
    ids = words(
        [caption(figures[i], rng) for i in chosen.tolist()], padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    snr = alphas[t] / (1 - alphas[t])
    # Between the weights of eps and of v prediction: at high noise, where words decide, eps alone has next to no loss.
    weight = snr.clamp(max=MIN_SNR_GAMMA) / snr * ((snr + 1) / snr).sqrt()
    return a.sqrt() * x0 + (1 - a).sqrt() * noise, t, ids, noise, weight


def train(work):
    """Trains in `work`, going on from its last checkpoint, and writes `lorakit/demo/base`.

    Measured on two shared cores: 0.6 to 1.0 s a step, so 40 to 60 minutes. The base in the repository came about less
    smoothly: 600 steps with min-SNR weights alone, a cosine to 0 at step 2000 (obedience 70 %, colours mixed), the rate
    up again, the recall loss from step 2300 on (after 400 steps of the text encoder alone): 88 % at 2500, 96 % at 3600.
    """
    work = Path(work)
    images, figures = pool(work / "pool", "sample", IMAGES, SEED)
    vae = AutoencoderKL.from_pretrained(work / "encoder")
    latents = latents_of(work, vae, images)
    kept = [i for i, figure in enumerate(figures) if not world.held_out(figure)]
    latents, figures = latents[kept], [figures[i] for i in kept]
    words = tokenizer(work / "tokenizer")
    torch.manual_seed(0)
    base = Base(words)
    average = copy.deepcopy(base).requires_grad_(False)
    optimizer = torch.optim.AdamW(base.parameters(), RATE, betas=(0.9, 0.99), weight_decay=0.01)
    parts = {"base": base, "average": average, "optimizer": optimizer}
    first = restore(work / "base.pt", parts)
    alphas, start = scheduler().alphas_cumprod, time.time()
    for step in range(first, STEPS):
        xt, t, ids, noise, weight = batch_of(step, latents, figures, words, alphas)
        predicted, recall = base(xt, t, ids)
        loss = ((predicted - noise).pow(2).mean(dim=(1, 2, 3)) * weight).mean()
        (loss + RECALL * recall).backward()
        torch.nn.utils.clip_grad_norm_(base.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = RATE * min(
            (step + 1) / WARMUP, 0.505 + 0.495 * math.cos(math.pi * step / STEPS)
        )
        optimizer.step()
        optimizer.zero_grad()
        decay = min(EMA, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), list(base.parameters()), 1 - decay)
        if step % 20 == 0:
            pace = (time.time() - start) / (step - first + 1)
            print(f"base step {step} loss {loss.item():.4f} recall {recall.item():.3f} {pace:.2f} s/step", flush=True)
        if step % 100 == 99 or step == STEPS - 1:
            state = {name: part.state_dict() for name, part in parts.items()}
            torch.save(state | {"step": step + 1}, work / "base.pt")
    save(average, AutoencoderKL.from_pretrained(work / "vae"), words, BASE)


def restore(file, parts):
    """Loads every part from `file` where it exists; returns the next step."""
    if not file.exists():
        return 0
    state = torch.load(file, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["step"]


def save(base, vae, words, folder):
    """Writes the StableDiffusionPipeline folder: fp16 safetensors, but fp32 for the text encoder.

    A plain `from_pretrained` loads UNet and VAE as fp32 but (transformers 5) the text encoder as stored: so all agree.
    """
    base.unet.set_attn_processor(AttnProcessor2_0())
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=base.text.float(),
        tokenizer=words,
        unet=base.unet.half(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    tokenizer(folder / "tokenizer")
