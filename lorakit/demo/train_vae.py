"""Trains the demo base's AutoencoderKL (128 px -> 16 x 16 x 4) on figures of the whole world, marks and all colours
included.

It grows (after Karras et al. 2018): first everything but the outermost level learns on images of 64 px, four times
cheaper; then
that encoder is folded into the full one exactly, and the decoder learns to decode 128 px.
"""

import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn

from lorakit.demo.pool import pool

INNER_STEPS, INNER_BATCH, OUTER_STEPS, OUTER_BATCH = 2200, 12, 4000, 4
RATE, WARMUP, KL_WEIGHT = 2e-3, 100, 3e-4
IMAGES, SEED = 8000, 1_000_000


def build():
    """An untrained AutoencoderKL of 1.4 M weights with SD 1.5's kinds of blocks."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 24, 64, 96),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=128,
    )


class Inner(nn.Module):
    """The autoencoder without its outermost level: 64 px in and out, the same latents."""

    def __init__(self, vae):
        super().__init__()
        self.vae = vae
        self.read = nn.Conv2d(3, 16, 1)
        self.paint = nn.Sequential(nn.GroupNorm(8, 24), nn.SiLU(), nn.Conv2d(24, 3, 3, padding=1))

    def encode(self, x):
        """(n, 3, 64, 64) in -1..1 -> the posterior of latents (n, 4, 16, 16)."""
        encoder, x = self.vae.encoder, self.read(x)
        for block in encoder.down_blocks[1:]:
            x = block(x)
        x = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(encoder.mid_block(x))))
        return DiagonalGaussianDistribution(self.vae.quant_conv(x))

    def decode(self, z):
        """Latents -> (n, 3, 64, 64)."""
        decoder = self.vae.decoder
        x = decoder.mid_block(decoder.conv_in(self.vae.post_quant_conv(z)))
        for block in decoder.up_blocks[:2]:
            x = block(x)
        for layer in decoder.up_blocks[2].resnets:
            x = layer(x, temb=None)
        return self.paint(x)

    @torch.no_grad()
    def fold(self):
        """Makes the full encoder equal to this one on the 2 x 2 mean of a 128 px image."""
        encoder = self.vae.encoder
        outer = encoder.down_blocks[0]
        for tensor in (
            encoder.conv_in.weight,
            outer.resnets[0].conv2.weight,
            outer.resnets[0].conv2.bias,
            outer.downsamplers[0].conv.weight,
            outer.downsamplers[0].conv.bias,
        ):
            tensor.zero_()
        encoder.conv_in.weight[:, :, 1, 1] = self.read.weight[:, :, 0, 0]
        encoder.conv_in.bias.copy_(self.read.bias)
        for i in range(16):
            outer.downsamplers[0].conv.weight[i, i, :2, :2] = 0.25


def to_batch(images):
    """uint8 (n, 128, 128, 3) -> float (n, 3, 128, 128) in -1..1."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def edges(x, y):
    """Mean absolute difference of horizontal and vertical gradients: keeps outlines crisp where L1 alone would blur."""
    return F.l1_loss(x.diff(dim=2), y.diff(dim=2)) + F.l1_loss(x.diff(dim=3), y.diff(dim=3))


def loss_of(decoded, truth):
    """L1 at four sizes (the small ones teach colours early) and gradients at two."""
    loss = 0.5 * edges(decoded, truth)
    for size in range(4):
        loss = loss + F.l1_loss(decoded, truth) + (0.5 * edges(decoded, truth) if size == 1 else 0)
        decoded, truth = F.avg_pool2d(decoded, 2), F.avg_pool2d(truth, 2)
    return loss


def inner_loss(inner, truth):
    """The loss at 64 px, in bf16, with a light KL term."""
    truth = F.avg_pool2d(truth, 2)
    with torch.autocast("cpu", torch.bfloat16):
        posterior = inner.encode(truth)
        decoded = inner.decode(posterior.mean + posterior.std * torch.randn_like(posterior.mean))
    return loss_of(decoded.float(), truth) + KL_WEIGHT * posterior.kl().mean() / (16 * 16 * 4)


def outer_loss(vae, truth):
    """The loss at 128 px, in bf16, of the decoder alone; latents get a little more noise than their posterior's."""
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            z = vae.encode(truth).latent_dist.mode()
            z = z + 0.05 / vae.config.scaling_factor * torch.randn_like(z)
        decoded = vae.decode(z).sample
    return loss_of(decoded.float(), truth)


def learn(name, module, loss, images, steps, batch, file):
    """AdamW on `loss(module, images)` with warm-up and cosine, going on from `file`, which is written every 200
    steps."""
    weights = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, RATE, betas=(0.9, 0.98), weight_decay=1e-4)
    first, start = 0, time.time()
    if file.exists():
        state = torch.load(file, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    for step in range(first, steps):
        generator = torch.Generator().manual_seed(step)
        value = loss(
            module,
            to_batch(images[torch.randint(len(images), (batch,), generator=generator).sort().values.numpy()]),
        )
        value.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.param_groups[0]["lr"] = RATE * min(
            (step + 1) / WARMUP, 0.505 + 0.495 * math.cos(math.pi * step / steps)
        )
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            pace = (time.time() - start) / (step - first + 1)
            print(f"{name} step {step} loss {value.item():.4f} {pace:.2f} s/step", flush=True)
        if step % 200 == 199 or step == steps - 1:
            torch.save({"module": module.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, file)


def train(work):
    """Trains in `work`, going on from its last checkpoint; writes `work/encoder`, then `work/vae`.

    With `work/encoder` the latents are final, so `train_base` may run beside the rest. Measured on one core: 0.4 s an
    inner step and 0.2 s an outer one, half an hour in all.
    """
    work = Path(work)
    images, _ = pool(work / "pool", "mixture", IMAGES, SEED)
    torch.manual_seed(0)
    vae = build()
    inner = Inner(vae)
    learn("inner", inner, inner_loss, images, INNER_STEPS, INNER_BATCH, work / "inner.pt")
    inner.fold()
    with torch.no_grad():
        latents = vae.encode(to_batch(images[:256])).latent_dist.mode()
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    vae.save_pretrained(work / "encoder")
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    learn("outer", vae, outer_loss, images, OUTER_STEPS, OUTER_BATCH, work / "outer.pt")
    vae.save_pretrained(work / "vae")
