"""Trains the demo tagger and writes it in the file format of the WD taggers (`model.onnx`, `selected_tags.csv`)."""

import csv
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn

from lorakit.demo import TAGGER, TRIGGER, world
from lorakit.demo.pool import pool
from lorakit.demo.train_vae import to_batch

CLEAN_STEPS, STEPS, BATCH, RATE, REPAINTED, SLIPS = 1400, 2600, 32, 3e-3, 700, 0.4
POOLS = (("sample", 14000, 2_000_000), ("mixture", 8000, 1_000_000), ("character", 1000, 3_000_000))


def rows():
    """(name, category) of every tag, in the order of the model's outputs."""
    return [("general", 9), *((tag, 0) for tag in (*world.vocabulary(), *world.MARKS)), (TRIGGER, 4)]


class Block(nn.Module):
    """A residual block that halves the image."""

    def __init__(self, narrow, wide):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(narrow, wide, 3, 2, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU())
        self.refine = nn.Sequential(
            nn.Conv2d(wide, wide, 3, 1, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 3, 1, 1, bias=False),
            nn.BatchNorm2d(wide),
        )

    def forward(self, x):
        x = self.down(x)
        return F.relu(x + self.refine(x))


class Tagger(nn.Module):
    """NHWC BGR 0..255 images (n, 128, 128, 3) in, logits (n, tags) out."""

    def __init__(self, tags):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 20, 5, 2, 2, bias=False),
            nn.BatchNorm2d(20),
            nn.ReLU(),
            Block(20, 32),
            Block(32, 72),
            Block(72, 128),
        )
        self.head = nn.Linear(2 * 128, tags)

    def forward(self, x):
        x = self.body(x.permute(0, 3, 1, 2) / 127.5 - 1)
        return self.head(torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1))


@torch.no_grad()
def repainted(work, pools):
    """The first images of each pool as the VAE decodes them from latents with noise of up to `SLIPS` deviations.

    So generated images look familiar to the tagger; generated once.
    """
    file = work / "repainted.npy"
    if not file.exists():
        vae = AutoencoderKL.from_pretrained(work / "vae")
        parts = []
        for images, _ in pools:
            for i in range(0, min(REPAINTED, len(images)), 25):
                latents = vae.encode(to_batch(images[i : i + 25])).latent_dist.mode()
                slips = SLIPS * torch.rand(len(latents), 1, 1, 1) / vae.config.scaling_factor
                decoded = vae.decode(latents + slips * torch.randn_like(latents)).sample.clamp(-1, 1)
                parts.append(((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
        np.save(file, np.concatenate(parts))
    return np.load(file)


def degraded(images, generator):
    """A batch (n, 128, 128, 3) with random softness, noise and brightness, reversed to BGR."""
    x = torch.from_numpy(images).float().permute(0, 3, 1, 2)
    n = len(x)
    soft = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    share = torch.rand(n, 1, 1, 1, generator=generator) * 0.9
    x = x + share * (soft - x)
    x = x + torch.randn(x.shape, generator=generator) * 8 * torch.rand(n, 1, 1, 1, generator=generator)
    x = (x * (0.94 + 0.12 * torch.rand(n, 3, 1, 1, generator=generator))).clamp(0, 255)
    return x.permute(0, 2, 3, 1).flip(3)


def truths_of(figures):
    """Which tags are seen on each figure: (n, tags) of 0 and 1."""
    names = [name for name, _ in rows()]
    return torch.tensor(
        [[name == "general" or name in seen for name in names] for seen in map(set, map(world.visible, figures))]
    ).float()


def train(work):
    """Trains (0.2 to 0.4 s a step, 15 minutes on one core), going on from `work/tagger.pt`, and writes
    `lorakit/demo/tagger`.

    First on clean images alone; from step `CLEAN_STEPS` on a third of each batch is decoded by the VAE (needs
    `work/vae`).
    """
    work = Path(work)
    pools = [pool(work / "pool", *p) for p in POOLS]
    images = np.concatenate([p for p, _ in pools])
    truths = [truths_of(figures) for _, figures in pools]
    clean, decoded = torch.cat(truths), torch.cat([t[:REPAINTED] for t in truths])
    torch.manual_seed(0)
    model = Tagger(clean.shape[1])
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.02)
    first, start, repaints = 0, time.time(), None
    if (work / "tagger.pt").exists():
        state = torch.load(work / "tagger.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    for step in range(first, STEPS):
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randint(len(clean), (BATCH,), generator=generator)
        batch, truth = images[chosen.numpy()], clean[chosen]
        if step >= CLEAN_STEPS:
            repaints = repainted(work, pools) if repaints is None else repaints
            some = torch.randint(len(decoded), (BATCH // 3,), generator=generator)
            batch, truth = np.concatenate([batch, repaints[some.numpy()]]), torch.cat([truth, decoded[some]])
        loss = F.binary_cross_entropy_with_logits(model(degraded(batch, generator)), truth)
        loss.backward()
        optimizer.param_groups[0]["lr"] = RATE * min((step + 1) / 100, 0.505 + 0.495 * math.cos(math.pi * step / STEPS))
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            pace = (time.time() - start) / (step - first + 1)
            print(f"tagger step {step} loss {loss.item():.4f} {pace:.2f} s/step", flush=True)
        if step % 100 == 99:
            torch.save(
                {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, work / "tagger.pt"
            )
    write(model.eval(), clean, TAGGER)


def write(model, truths, folder):
    """Writes `model` with sigmoid outputs, and its tags with their counts."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        nn.Sequential(model, nn.Sigmoid()),
        (torch.zeros(2, 128, 128, 3),),
        str(folder / "model.onnx"),
        dynamo=False,
        input_names=["input"],
        output_names=["output"],
        dynamic_axes={"input": {0: "n"}, "output": {0: "n"}},
    )
    with (folder / "selected_tags.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("tag_id", "name", "category", "count"))
        for i, (name, category) in enumerate(rows()):
            table.writerow((i, name.replace(" ", "_"), category, int(truths[:, i].sum())))
