"""Our training step against the usual recipe (diffusers and peft as documented), in turn, each in a process of its own.

    python benchmarks/train_step.py                                   # the embedded base model, 128 px
    python benchmarks/train_step.py --model sd15 --px 256             # true size, random weights (4.3 GB, made once)
    python benchmarks/train_step.py --model sd15 --px 512 --device cuda --precision bf16

Prints seconds a step, images a second, seconds from process start to the end of the first step and peak memory, as
medians over all rounds and as ratios, and the share of the machine's measured matmul ceiling that the step reaches.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "lorakit" / "benchmark"
CAPTION = "mofurin, 1girl, portrait, smile, blue hoodie, night sky"
IMAGES = 4


def main() -> None:
    """Parent: make what is needed, then run both variants in turn. Child (--child): one variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("demo", "sd15"), default="demo")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--px", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5, help="steps of each process; the first is reported separately")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=("ours", "plain"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps({"ours": ours, "plain": plain}[options.child](options)))
        return
    prepare(options)
    results: dict[str, list[dict]] = {"ours": [], "plain": []}
    ours_warm_up = run_child(options, "ours")  # fills the caches; not counted
    print(f"caches filled in the first {ours_warm_up['first']:.1f} s", flush=True)
    for number in range(options.rounds):
        for variant in results:
            results[variant].append(run_child(options, variant))
            print(f"round {number + 1} {variant}: {describe(results[variant][-1])}", flush=True)
    report(options, results)


def run_child(options: argparse.Namespace, variant: str) -> dict:
    """One variant in a fresh process; `first` counts from before the process exists."""
    arguments = [f"--{name}={value}" for name, value in vars(options).items() if value is not None and name != "child"]
    environment = {**os.environ, "BENCHMARK_STARTED": repr(time.time())}
    if options.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(
        [sys.executable, __file__, f"--child={variant}", *arguments],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def describe(one: dict) -> str:
    return f"{one['step']:.3f} s a step, first step after {one['first']:.1f} s, peak {one['memory']:.2f} GB"


def report(options: argparse.Namespace, results: dict[str, list[dict]]) -> None:
    """Medians and the ratios plain / ours, pair by pair."""
    print(
        f"\n{options.model}, {options.px} px, batch {options.batch}, rank {options.rank}, "
        f"{options.precision} on {options.device}; "
        f"medians of {options.rounds} rounds"
    )
    flops, ceiling = results["plain"][0]["flops"], matmul_ceiling(options)
    print(f"{'':8}{'s/step':>9}{'images/s':>10}{'first step':>12}{'peak GB':>9}{'of ceiling':>12}")
    for variant, rounds in results.items():
        step, first, memory = (statistics.median(one[name] for one in rounds) for name in ("step", "first", "memory"))
        print(
            f"{variant:8}{step:9.3f}{options.batch / step:10.2f}{first:10.1f} s{memory:9.2f}"
            f"{flops / step / ceiling:11.0%}"
        )
    for name, label in (("step", "s/step"), ("first", "first step"), ("memory", "peak memory")):
        ratios = [b[name] / a[name] for a, b in zip(results["ours"], results["plain"], strict=True)]
        print(f"plain / ours, {label}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"one plain step is {flops / 1e9:.0f} GFLOP; the matmul ceiling is {ceiling / 1e9:.0f} GFLOP/s")


def matmul_ceiling(options: argparse.Namespace) -> float:
    """FLOP/s of the best of several large square matrix products in the step's precision."""
    import torch

    dtype = dtype_of(options)
    size = 2048 if options.device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=options.device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        begun = now(options)
        a @ b
        best = min(best, now(options) - begun)
    return 2 * size**3 / best


def now(options: argparse.Namespace) -> float:
    import torch

    if options.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


# ---- what both variants train on ---------------------------------------------------------------------------------


def base(options: argparse.Namespace) -> str:
    return "demo" if options.model == "demo" else str(CACHE / "sd15-random")


def project_folder(options: argparse.Namespace) -> Path:
    return CACHE / f"project-{options.model}-{options.px}"


def prepare(options: argparse.Namespace) -> None:
    """Random weights at true size and a few images, made once; and a run that starts at step 0."""
    import shutil

    import numpy as np
    from PIL import Image

    if options.model == "sd15" and not (Path(base(options)) / "model_index.json").exists():
        save_random_sd15(Path(base(options)))
    folder = project_folder(options) / "dataset" / "1_mofurin"
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(IMAGES):
        noise = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((options.px, options.px)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(CAPTION)
    shutil.rmtree(project_folder(options) / "runs", ignore_errors=True)


def save_random_sd15(folder: Path) -> None:
    """A diffusers folder with the shapes of Stable Diffusion 1.5 and random weights, float32."""
    import shutil

    import torch
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel

    from lorakit.models.files import sd15_names

    print("Making random weights at true size, once (4.3 GB).", flush=True)
    shutil.copytree(sd15_names.LAYOUT.settings, folder, dirs_exist_ok=True)
    parts = {
        "unet": (UNet2DConditionModel.from_config, "diffusion_pytorch_model.safetensors"),
        "vae": (AutoencoderKL.from_config, "diffusion_pytorch_model.safetensors"),
        "text_encoder": (lambda config: CLIPTextModel(CLIPTextConfig.from_dict(config)), "model.safetensors"),
    }
    draws = torch.Generator().manual_seed(0)
    for part, (build, file) in parts.items():
        with init_empty_weights():
            model = build(json.loads((folder / part / "config.json").read_text()))
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items() if "position_ids" not in name}
        # small weights and norms near one keep activations finite through the whole depth
        weights = {
            name: torch.randn(shape, generator=draws) * 0.02 + ("norm" in name and name.endswith("weight"))
            for name, shape in shapes.items()
        }
        save_file(weights, folder / part / file, {"format": "pt"})


# ---- the two variants --------------------------------------------------------------------------------------------


def ours(options: argparse.Namespace) -> dict:
    """The kit's own training, with the caches of an earlier process, as every session but the first finds them."""
    from lorakit.config import from_dict
    from lorakit.events import Stepped
    from lorakit.project import Project
    from lorakit.run.config import RunConfig
    from lorakit.run.create import save_config
    from lorakit.training.loop import train

    side = options.px
    settings = {
        "model": {"family": "sd15", "source": base(options)},
        "data": {"resolution": side, "min_bucket_reso": side, "max_bucket_reso": side},
        "adapter": {"rank": options.rank, "alpha": options.rank},
        "loop": {"steps": 1000, "batch_size": options.batch, "precision": options.precision},
        "save": {"every_epochs": 0, "every_minutes": 0.0},
        "sample": {"every_epochs": 0},
    }
    run = Project(project_folder(options)).run(f"run-{os.getpid()}")
    save_config(run, from_dict(RunConfig, settings))
    ends = []
    for event in train(run):
        if isinstance(event, Stepped):
            ends.append(time.time())
            if len(ends) == options.steps:
                return figures(ends, options, flops=0)
    raise RuntimeError("the run ended before its steps were done")


def plain(options: argparse.Namespace) -> dict:
    """The documented recipe, timed; one more step counts its floating point operations."""
    from torch.utils.flop_counter import FlopCounterMode

    recipe, ends = Recipe(options), []
    for number in range(options.steps):
        recipe.step(number)
        ends.append(time.time())
    timed = figures(ends, options, flops=0)
    with FlopCounterMode(display=False) as counter:
        recipe.step(options.steps)
    return {**timed, "flops": counter.get_total_flops()}


class Recipe:
    """Every part loaded, LoRA by peft, images and captions encoded in each step, AdamW."""

    def __init__(self, options: argparse.Namespace):
        import torch
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from peft import LoraConfig
        from transformers import CLIPTextModel, CLIPTokenizer

        from lorakit.hub import fetch
        from lorakit.models.sd15 import Model

        self.options, self.dtype = options, dtype_of(options)
        source = fetch(base(options))
        self.tokenizer = CLIPTokenizer.from_pretrained(source, subfolder="tokenizer")
        self.noise_scheduler = DDPMScheduler.from_pretrained(source, subfolder="scheduler")
        self.text_encoder = CLIPTextModel.from_pretrained(source, subfolder="text_encoder", dtype=self.dtype)
        self.vae = AutoencoderKL.from_pretrained(source, subfolder="vae", torch_dtype=self.dtype)
        self.unet = UNet2DConditionModel.from_pretrained(source, subfolder="unet", torch_dtype=self.dtype)
        for frozen in (self.text_encoder, self.vae, self.unet):
            frozen.to(options.device).requires_grad_(False)
        self.unet.add_adapter(
            LoraConfig(
                r=options.rank,
                lora_alpha=options.rank,
                init_lora_weights="gaussian",
                target_modules=Model.TARGETS["unet"],
            )
        )
        self.trained = [weight for weight in self.unet.parameters() if weight.requires_grad]
        for weight in self.trained:
            weight.data = weight.data.float()
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4)
        self.files = sorted((project_folder(options) / "dataset").rglob("*.png"))

    def step(self, number: int) -> None:
        """Encode, add noise, predict, backward, clip, step."""
        import numpy as np
        import torch
        import torch.nn.functional as F
        from PIL import Image

        batch, device = self.options.batch, self.options.device
        images = [np.asarray(Image.open(self.files[(number + i) % len(self.files)])) for i in range(batch)]
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(device, self.dtype) / 127.5 - 1
        ids = self.tokenizer(
            [CAPTION] * batch, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        )
        with torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
            latents = self.vae.encode(pixels).latent_dist.sample() * self.vae.config.scaling_factor
            noise = torch.randn_like(latents)
            timesteps = torch.randint(0, 1000, (batch,), device=device)
            noisy = self.noise_scheduler.add_noise(latents, noise, timesteps)
            hidden = self.text_encoder(ids.input_ids.to(device))[0]
            loss = F.mse_loss(self.unet(noisy, timesteps, hidden).sample.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss.item()


def dtype_of(options: argparse.Namespace):
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[options.precision]


def figures(ends: list[float], options: argparse.Namespace, *, flops: int) -> dict:
    """Seconds a step (median, the first left out), seconds to the end of the first, peak memory in 1e9 bytes."""
    import torch

    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    if options.device == "cuda":
        memory = torch.cuda.max_memory_allocated() / 1e9
    steps = [later - earlier for earlier, later in zip(ends, ends[1:], strict=False)]
    return {
        "step": statistics.median(steps),
        "first": ends[0] - float(os.environ["BENCHMARK_STARTED"]),
        "memory": memory,
        "flops": flops,
    }


if __name__ == "__main__":
    main()
