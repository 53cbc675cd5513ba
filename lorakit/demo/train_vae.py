"""Trains the demo base's AutoencoderKL (128 px -> 16 x 16 x 4) on figures of the whole world, marks and all colours included."""

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from lorakit.demo.pool import pool

STEPS, BATCH, RATE, WARMUP, KL_WEIGHT = 8000, 4, 2e-3, 200, 3e-4
PICTURES, SEED = 8000, 1_000_000


def build():
    """An untrained AutoencoderKL of 1.7 M weights with SD 1.5's kinds of blocks."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96), layers_per_block=1, norm_num_groups=8, latent_channels=4, sample_size=128)


def to_batch(pictures):
    """uint8 (n, 128, 128, 3) -> float (n, 3, 128, 128) in -1..1."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def edges(x, y):
    """Mean absolute difference of horizontal and vertical gradients: keeps outlines crisp where L1 alone would blur."""
    return F.l1_loss(x.diff(dim=2), y.diff(dim=2)) + F.l1_loss(x.diff(dim=3), y.diff(dim=3))


def loss_of(painted, truth, posterior):
    """L1, gradients at full and half size, and a light KL term."""
    half = [F.avg_pool2d(x, 2) for x in (painted, truth)]
    rec = F.l1_loss(painted, truth) + 0.6 * edges(painted, truth) + 0.4 * edges(*half) + 0.5 * F.l1_loss(*half)
    return rec + KL_WEIGHT * posterior.kl().mean() / (16 * 16 * 4)


def train(work):
    """Trains in `work` (about 40 minutes on two cores), going on from its last checkpoint, and writes `work/vae`."""
    work = Path(work)
    pictures, _ = pool(work / "pool", "mixture", PICTURES, SEED)
    torch.manual_seed(0)
    vae = build().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), RATE, betas=(0.9, 0.98), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS, pct_start=WARMUP / STEPS, cycle_momentum=False, div_factor=10)
    first, checkpoint = 0, work / "vae.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first = state["step"]

    @torch.compile
    def forward(truth):
        posterior = vae.encode(truth).latent_dist
        return vae.decode(posterior.mean + posterior.std * torch.randn_like(posterior.mean)).sample, posterior

    start = time.time()
    for step in range(first, STEPS):
        generator = torch.Generator().manual_seed(step)
        truth = to_batch(pictures[torch.randint(PICTURES, (BATCH,), generator=generator).sort().values.numpy()])
        with torch.autocast("cpu", torch.bfloat16):
            painted, posterior = forward(truth)
        loss = loss_of(painted.float(), truth, posterior)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0:
            print(f"vae step {step} loss {loss.item():.4f} {(time.time() - start) / (step - first + 1):.2f} s/step", flush=True)
        if step % 200 == 199 or step == STEPS - 1:
            torch.save({"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(), "step": step + 1},
                       checkpoint)
    finish(vae, pictures, work / "vae")


@torch.no_grad()
def finish(vae, pictures, folder):
    """Sets `scaling_factor` so that scaled latents have standard deviation 1, and saves."""
    latents = vae.encode(to_batch(pictures[:512])).latent_dist.mode()
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    vae.save_pretrained(folder)
