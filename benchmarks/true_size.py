"""SDXL and Anima at true size with random weights: the memory of the host while parts load, and two real steps.

    python benchmarks/true_size.py --family sdxl                              # a single file, 256 px on the CPU
    python benchmarks/true_size.py --family anima --form folder
    python benchmarks/true_size.py --family sdxl --device cuda --px 1024

Makes the base once (SDXL 6.9 GB, Anima 5.6 GB). Then, each in a process of its own: loads every part as training does
(one image and one caption encoded, each part freed), and trains two steps and exports. Memory is sampled every
5 ms from /proc/self/status: RssAnon is what the process has for itself, RssFile are pages of mapped files, which the
system takes back when it needs them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The writers of single files, the inverse of reading them, are builders of the tests.
sys.path += [str(ROOT), str(ROOT / "tests" / "builders")]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "lorakit" / "benchmark"
CAPTION = "mofurin, 1girl, portrait, smile, blue hoodie, night sky"
LIMIT = 6.0  # GB for itself, the promise for loading
POOL = 2**24  # random numbers that all weights are made of


def main() -> None:
    """Parent: make the base, run both phases. Child (--child): one phase."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=("sdxl", "anima"), default="sdxl")
    parser.add_argument("--form", choices=("file", "folder"), default="file", help="the base as ComfyUI or diffusers")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--px", type=int, default=256)
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for the base and the project")
    parser.add_argument("--child", choices=("load", "train"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps({"load": load, "train": train}[options.child](options)))
        return
    base(options)
    print(f"\n{options.family} from a {options.form}, {options.px} px, bf16 on {options.device}; GB of the host")
    print(f"{'':34}{'RssAnon':>9}{'RssFile':>9}{'seconds':>9}")
    loaded = report(run_child(options, "load"))
    report(run_child(options, "train"))
    most = max(anon for anon, _, _ in loaded.values())
    verdict = "within" if most <= LIMIT else "OVER"
    print(f"loading takes at most {most:.2f} GB beside the mapped files, {verdict} {LIMIT:g} GB")


def report(phases: dict[str, tuple[float, float, float]]) -> dict[str, tuple[float, float, float]]:
    """Print a line for each phase."""
    for name, (anon, file, seconds) in phases.items():
        print(f"{name:34}{anon:9.2f}{file:9.2f}{seconds:9.1f}", flush=True)
    return phases


def run_child(options: argparse.Namespace, phase: str) -> dict[str, tuple[float, float, float]]:
    """A phase in a process of its own; what it prints last is its figures."""
    arguments = [f"--{name}={value}" for name, value in vars(options).items() if name != "child"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(options.cache / "digests")}
    if options.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(
        [sys.executable, __file__, f"--child={phase}", *arguments],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


# ---- the base --------------------------------------------------------------------------------------------------------


def base(options: argparse.Namespace) -> dict[str, str]:
    """The `model` settings of a run on the base, which is made if it is not there."""
    make = {"sdxl": sdxl, "anima": anima}[options.family]
    return {"family": options.family, **make(options.cache / f"{options.family}-{options.form}", options.form)}


def shapes(part: str, folder: Path) -> dict:
    """The weights of a part at true size, on the meta device."""
    import diffusers
    import transformers
    from accelerate import init_empty_weights

    classes = {
        "unet": diffusers.UNet2DConditionModel,
        "transformer": diffusers.CosmosTransformer3DModel,
        "text_conditioner": getattr(diffusers, "AnimaTextConditioner", None),
        "vae": diffusers.AutoencoderKLQwenImage if folder.parent.name == "anima_config" else diffusers.AutoencoderKL,
    }
    config = json.loads((folder / "config.json").read_text())
    with init_empty_weights():
        if part in classes:
            return classes[part].from_config(config).state_dict()
        name = config["architectures"][0]
        return getattr(transformers, name)(getattr(transformers, name_of_config(name)).from_dict(config)).state_dict()


def name_of_config(architecture: str) -> str:
    """CLIPTextModel -> CLIPTextConfig."""
    return architecture.replace("WithProjection", "").replace("Model", "Config")


def write(path: Path, tensors: dict, dtype: str) -> None:
    """A safetensors file of random weights under the names and in the shapes of `tensors`, written one by one.

    Weights of norms are 1 and the others small, so that activations stay finite through the whole depth.
    """
    import torch

    if path.exists():
        return
    print(f"Making {path}, once.", flush=True)
    kind = {"F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    pool = (0.02 * torch.randn(POOL, generator=torch.Generator().manual_seed(0))).to(kind).view(torch.int16).numpy()
    header, end = {}, 0
    for name, tensor in tensors.items():
        size = 2 * tensor.numel()
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    with open(unfinished, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            is_norm = name.endswith("gamma") or (tensor.ndim == 1 and name.endswith("weight"))
            numbers = torch.ones(POOL, dtype=kind).view(torch.int16).numpy() if is_norm else pool
            left = tensor.numel()
            while left:
                file.write(numbers[: min(left, POOL)].data)
                left -= min(left, POOL)
    unfinished.rename(path)


def sdxl(folder: Path, form: str) -> dict[str, str]:
    """SDXL in float16: a single file in the original layout, or a folder."""
    from original_layout import SDXL_PARTS, for_sdxl, original_part

    from lorakit.models.files import sdxl_names
    from lorakit.models.files.sd_sources import CLIP_VOCABULARY

    parts = {part: shapes(part, sdxl_names.LAYOUT.settings / part) for part in SDXL_PARTS}
    if form == "file":
        state = {}
        for part, weights in parts.items():
            config = json.loads((sdxl_names.LAYOUT.settings / part / "config.json").read_text())
            state |= original_part(part, config, weights)
        write(folder / "sdxl-random.safetensors", for_sdxl(state), "F16")
        return {"source": str(folder / "sdxl-random.safetensors")}
    shutil.copytree(sdxl_names.LAYOUT.settings, folder, dirs_exist_ok=True)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(CLIP_VOCABULARY, folder / name, dirs_exist_ok=True)
    for part, weights in parts.items():
        name = "model" if part.startswith("text") else "diffusion_pytorch_model"
        write(folder / part / f"{name}.safetensors", weights, "F16")
    return {"source": str(folder)}


def anima(folder: Path, form: str) -> dict[str, str]:
    """Anima in bfloat16: the three files of ComfyUI, or a folder."""
    from anima_layout import original_name

    from lorakit.models.files.anima import ANIMA_CONFIG, CLASSES

    parts = {part: shapes(part, ANIMA_CONFIG / part) for part in CLASSES}
    if form == "file":
        named = {
            part: {original_name(part, name): tensor for name, tensor in weights.items()}
            for part, weights in parts.items()
        }
        dit = {
            f"net.{name}": tensor
            for part in ("transformer", "text_conditioner")
            for name, tensor in named[part].items()
        }
        files = {"source": dit, "text_encoder": named["text_encoder"], "vae": named["vae"]}
        for name, tensors in files.items():
            write(folder / f"{name}.safetensors", tensors, "BF16")
        return {name: str(folder / f"{name}.safetensors") for name in files}
    save_index(folder)
    for part, weights in parts.items():
        (folder / part).mkdir(exist_ok=True)
        shutil.copy(ANIMA_CONFIG / part / "config.json", folder / part)
        name = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        write(folder / part / f"{name}.safetensors", weights, "BF16")
    return {"source": str(folder)}


def save_index(folder: Path) -> None:
    """The index, tokenizers and scheduler of a folder of Anima."""
    from anima_layout import save_anima, tiny_parts

    with_parts = folder.with_name(folder.name + "-tiny")
    save_anima(with_parts, tiny_parts())
    for path in with_parts.iterdir():
        if path.is_file():
            (folder / path.name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / path.name)
        elif not (path / "config.json").exists() or "tokenizer" in path.name:
            shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
    shutil.rmtree(with_parts)


# ---- memory ----------------------------------------------------------------------------------------------------------


class Watch:
    """Peaks of this process's memory, sampled by a thread."""

    def __init__(self) -> None:
        self.peaks: dict[str, tuple[float, float, float]] = {}
        self._peak = [0.0, 0.0]
        threading.Thread(target=self._sample, daemon=True).start()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Remember the peaks (GB, anonymous and of files) and the seconds of what happens inside."""
        self._peak[:] = resident()
        begun = time.perf_counter()
        yield
        seconds = time.perf_counter() - begun
        self._peak[:] = map(max, self._peak, resident())
        self.peaks[name] = (*self._peak, seconds)

    def _sample(self) -> None:
        while True:
            self._peak[:] = map(max, self._peak, resident())
            time.sleep(0.005)


def resident() -> tuple[float, float]:
    """GB that are in memory now: anonymous, and of mapped files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    anon, file = (int(lines[name].split()[0]) * 1024 / 1e9 for name in ("RssAnon", "RssFile"))
    return anon, file


def load(options: argparse.Namespace) -> dict[str, tuple[float, float, float]]:
    """Every part in turn, as a run would: encode, free, and the denoiser last."""
    import torch

    from lorakit import models
    from lorakit.models import Size

    watch = Watch()
    settings = base(options)
    module = models.family(options.family)
    with watch.phase("opening the files"):
        model = module.Model(module.Config(**settings), torch.device(options.device), torch.bfloat16, ())
    with watch.phase("VAE: load, encode an image"):
        model.load("vae")
        model.encode_image(torch.zeros(3, options.px, options.px))
        model.release("vae")
    with watch.phase("text parts: load, encode a caption"):
        encoded = model.encode_text(CAPTION)
        model.condition([encoded], [Size.whole(options.px, options.px)])
        model.release(*model.text_parts)
    with watch.phase(f"{model.denoiser}: load"):
        model.load(model.denoiser)
    if options.device == "cpu":
        model.release(model.denoiser)
    return watch.peaks


def train(options: argparse.Namespace) -> dict[str, tuple[float, float, float]]:
    """Two steps through the kit's own training, up to the exported file."""
    import numpy as np
    from PIL import Image

    from lorakit.events import Finished, Progress, Started, Stepped
    from lorakit.project import Project
    from lorakit.run.config import configure
    from lorakit.run.create import save_config
    from lorakit.training.loop import train

    watch, project = Watch(), Project(options.cache / f"project-{options.family}-{options.px}")
    shutil.rmtree(project.folder, ignore_errors=True)
    project.dataset.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((options.px, options.px)).save(project.dataset / "0.png")
    (project.dataset / "0.txt").write_text(CAPTION)
    side = {"resolution": options.px, "min_bucket_reso": options.px, "max_bucket_reso": options.px}
    config = configure(
        {
            "model": base(options),
            "data": side,
            "loop": {"steps": 2, "precision": "bf16"},
            "memory": {"gradient_checkpointing": True},
            "sample": {"prompts": []},
        }
    )
    run = project.run("true-size")
    save_config(run, config)
    events, names = train(run), {Progress: "caches", Started: "denoiser, adapter, optimizer", Stepped: "step"}
    return follow(watch, events, names, Finished)


def follow(watch: Watch, events, names: dict, last: type) -> dict[str, tuple[float, float, float]]:
    """A phase for each event of a run, called by what has been done when it comes."""
    phases: dict[str, tuple[float, float, float]] = {}
    while True:
        with watch.phase("next"):
            event = next(events)
        name = f"train: {names.get(type(event), type(event).__name__.lower())}"
        if name.endswith("step"):
            if event.loss is None or event.grad_norm is None:
                raise RuntimeError(f"step {event.step} is not finite: {event}")
            name += f" {event.step}, loss {event.loss:.3f}"
        anon, file, seconds = watch.peaks["next"]
        before = phases.get(name, (0.0, 0.0, 0.0))
        phases[name] = max(anon, before[0]), max(file, before[1]), seconds + before[2]
        if isinstance(event, last):
            return phases


if __name__ == "__main__":
    main()
