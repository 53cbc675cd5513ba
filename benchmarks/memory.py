"""What fits into small GPUs: each family goes down the memory ladder under a cap, with real steps at true size.

    python benchmarks/memory.py --fp16-steps 300       # on a GPU; bases with random weights are made once (17 GB)
    python benchmarks/memory.py --base anima=PATH --fp16-steps 300     # with a real base
    python benchmarks/memory.py --dry --fp16-steps 3          # tiny models on the CPU: shows that this script works

For SD 1.5 (512 px, 6 GB), SDXL (1024 px, 8 GB) and Anima (1024 px, 8, 12 and 16 GB), all with rank 16 and batch 1,
every rung of the ladder trains three steps in a process of its own, whose memory is capped at that of the GPU less
what CUDA itself takes. Prints peak memory and seconds a step, which is the price of each rung, and which is the first
that fits. With --fp16-steps Anima then trains in float16: all losses and gradients must be finite, and the first loss
within 2 % of that in bfloat16. Ends with status 1 when something does not fit or is not finite.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from true_size import CACHE, CAPTION, ROOT, base  # noqa: E402

CASES = (("sd15", 512, 6), ("sdxl", 1024, 8), ("anima", 1024, 8), ("anima", 1024, 12), ("anima", 1024, 16))  # px, GB
NAMES = [f"{family}-{limit}" for family, _, limit in CASES]
CONTEXT = 0.6  # GB that CUDA takes beside what is allocated
TOP = {"cache_latents": False, "cache_text": False}  # of the ladder
SEARCH = 20  # first steps in which loss scaling may still look for its scale


def main() -> None:
    """Parent: every case. Child (--child): one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="tiny models on the CPU, no cap")
    parser.add_argument("--case", choices=(*NAMES, "none"), help="this one alone, e.g. anima-8 is Anima under 8 GB")
    parser.add_argument("--fp16-steps", type=int, default=0, metavar="N", help="steps of Anima in float16 (0: none)")
    parser.add_argument("--base", action="append", default=[], metavar="FAMILY=SOURCE", help="a base to use instead")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(train_once(**json.loads(options.child))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        cases = [case for name, case in zip(NAMES, CASES, strict=True) if options.case in (None, name)]
        fits = [descend(options, folder, *case) for case in cases]
        if options.fp16_steps:
            fits.append(stays_finite(options, folder))
    sys.exit(not all(fits))


def model(options: argparse.Namespace, folder: Path, family: str) -> dict[str, str]:
    """The `model` settings of a run: the base of --base, a tiny one, or one of true size."""
    sources = dict(pair.split("=", 1) for pair in options.base)
    if family in sources:
        return {"family": family, "source": sources[family]}
    if options.dry:
        from tiny import save_base

        path = folder / f"{family}-base"
        return {"family": family, "source": str(path if path.exists() else save_base(family, path))}
    if family == "sd15":
        from train_step import save_random_sd15

        if not (CACHE / "sd15-random" / "model_index.json").exists():
            save_random_sd15(CACHE / "sd15-random")
        return {"family": family, "source": str(CACHE / "sd15-random")}
    return base(argparse.Namespace(family=family, form="file", cache=CACHE))


def settings(options: argparse.Namespace, folder: Path, family: str, px: int, **loop: object) -> dict:
    """A run of rank 16 and batch 1 over two images, at the top of the ladder."""
    from PIL import Image

    px = 64 if options.dry else px
    images = folder / f"images-{px}"
    images.mkdir(exist_ok=True)
    for index in range(2):
        Image.effect_noise((px, px), 80 + index).convert("RGB").save(images / f"{index}.png")
        (images / f"{index}.txt").write_text(CAPTION)
    return {
        "model": model(options, folder, family),
        "data": {"folder": str(images), "resolution": px, "min_bucket_reso": px, "max_bucket_reso": px, **TOP},
        "adapter": {"rank": 16, "alpha": 16},
        "loop": {"batch_size": 1, "gradient_accumulation_steps": 1, **loop},
        "memory": {"gradient_checkpointing": False, "offload": 0.0},
        "save": {"every_epochs": 0},
        "sample": {"prompts": []},
    }


def run_child(options: argparse.Namespace, **arguments: object) -> dict:
    """The figures of one run in a process of its own."""
    environment = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    if options.dry:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


# ---- down the ladder -------------------------------------------------------------------------------------------------


def descend(options: argparse.Namespace, folder: Path, family: str, px: int, limit: int) -> bool:
    """Every rung of one case, from the top to the foot; True when one fits."""
    from lorakit.config import assign, to_dict
    from lorakit.run.config import configure
    from lorakit.run.memory import next_rung

    config = configure(settings(options, folder, family, px, steps=3, precision="fp32" if options.dry else "auto"))
    print(f"\n{family}, {px} px, rank 16, batch 1, under {limit} GB{' (dry: tiny, no cap)' if options.dry else ''}")
    print(f"{'':44}{'encoding':>10}{'training':>10}{'s/step':>9}")
    name, fitted = "without savings", ""
    while True:
        cap = 0.0 if options.dry else limit - CONTEXT
        figures = run_child(options, folder=str(folder / f"{family}-{px}"), settings=to_dict(config), cap=cap)
        if "failed" in figures:
            print(f"{name:44}  {figures['failed']}", flush=True)
        else:
            fitted = fitted or name
            print(f"{name:44}{figures['encoding']:10.2f}{figures['training']:10.2f}{figures['step']:9.2f}", flush=True)
        rung = next_rung(config)
        if rung is None:
            print(f"first that fits: {fitted or 'NONE'}")
            return bool(fitted)
        data = to_dict(config)
        for setting, value in rung.change(config).items():
            assign(data, setting, str(value).lower())
        config, name = configure(data), f"+ {rung.name}"


def train_once(folder: str, settings: dict, cap: float) -> dict:
    """One run up to its end, in at most `cap` GB (0: all there is).

    Peaks of GB allocated while encoding and while training, seconds a step, losses and gradient norms, and a digest of
    the weights at the end; or `failed`, the reason in a sentence.
    """
    import torch

    from lorakit.errors import UserError
    from lorakit.events import Started, Stepped
    from lorakit.machine.device import peak_memory_gb
    from lorakit.project import Project
    from lorakit.run import checkpoint
    from lorakit.run.config import configure
    from lorakit.run.create import save_config
    from lorakit.training.loop import train

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if cap:
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, cap * 1e9 / torch.cuda.get_device_properties(0).total_memory)
        )
    run = Project(Path(folder)).run(f"run-{os.getpid()}")
    save_config(run, configure(settings))
    encoding, steps = 0.0, []
    try:
        for event in train(run):
            if isinstance(event, Started):
                encoding = peak_memory_gb(device)
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
            elif isinstance(event, Stepped):
                steps.append(event)
    except UserError as error:
        return {"failed": str(error).splitlines()[0]}
    return {
        "encoding": encoding,
        "training": peak_memory_gb(device),
        "step": statistics.median(1 / event.images_per_second for event in steps[1:] or steps),  # batch 1
        "losses": [event.loss for event in steps],
        "norms": [event.grad_norm for event in steps],
        "digest": digest(checkpoint.newest(run.states).state["adapter"]),
    }


def digest(weights: dict) -> str:
    """SHA-256 of named tensors, bit for bit."""
    import torch

    whole = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        whole.update(name.encode() + weight.contiguous().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


# ---- float16 ---------------------------------------------------------------------------------------------------------


def stays_finite(options: argparse.Namespace, folder: Path) -> bool:
    """Anima at 1024 px in float16 against bfloat16; a dry run has float32 in place of float16, which needs a GPU."""
    figures = {}
    for precision, steps in (("bf16", 1), ("fp32" if options.dry else "fp16", options.fp16_steps)):
        changed = settings(options, folder, "anima", 1024, steps=steps, precision=precision)
        changed["data"] = {**changed["data"], "cache_latents": True, "cache_text": True}
        changed["memory"]["gradient_checkpointing"] = True
        figures = run_child(options, folder=str(folder / "finite"), settings=changed, cap=0.0)
        if "failed" in figures:
            print(f"Anima in {precision}: {figures['failed']}")
            return False
        if precision == "bf16":
            reference = figures["losses"][0]
    losses, norms = figures["losses"], figures["norms"]
    lost = [step for step, loss in enumerate(losses, 1) if loss is None or not math.isfinite(loss)]
    left_out = [step for step, norm in enumerate(norms, 1) if norm is None]
    late = [step for step in left_out if step > SEARCH]
    apart = abs(losses[0] - reference) / reference if losses[0] is not None else math.inf
    print(
        f"\nAnima, {len(losses)} steps in {precision}: {len(lost)} losses and {len(left_out)} gradients not finite, "
        f"{len(late)} of these after the search for the loss scale\n"
        f"first loss {losses[0]}, in bf16 {reference}: {apart:.2%} apart"
    )
    return not lost and not late and apart <= 0.02


if __name__ == "__main__":
    sys.path += [str(ROOT), str(ROOT / "tests" / "builders")]
    main()
