"""Every path of a GPU, on a device that calls itself CUDA and computes in host memory; `make pretended` runs these."""

from __future__ import annotations

import types

import pytest
import torch
from sessions import assert_same_end, at, family_settings, new_run, rates, until

from lorakit import optimizers
from lorakit.diffusion import ddpm
from lorakit.events import Finished, Saved, Started, Stepped, Warned
from lorakit.generation.grid import Axis, Done, grid
from lorakit.models import config_class
from lorakit.models._base import decode
from lorakit.models._unet import UNetModel
from lorakit.run.memory import OutOfMemory
from lorakit.run.sampling import SamplingConfig
from lorakit.training.loop import train

pytestmark = pytest.mark.pretended

EACH_STEP = {"save": {"every_epochs": 0, "every_steps": 1}}
SAMPLES = {"sample": {"prompts": ["girl"], "every_epochs": 0, "every_steps": 2, "width": 64, "height": 64, "steps": 2}}
UNCACHED = {"data": {"cache_latents": False, "cache_text": False, "alpha_mask": True}}
TIGHT = {"memory": {"gradient_checkpointing": True, "offload": 0.5}}


def loop(precision: str, steps: int = 2) -> dict:
    return {"loop": {"precision": precision, "steps": steps, "gradient_accumulation_steps": 2}}


def trained(run) -> list[Stepped]:
    """The steps of a whole session, which ended well on the pretended device."""
    seen = list(train(run))
    assert isinstance(seen[-1], Finished)
    assert next(event for event in seen if isinstance(event, Started)).device == "cuda"
    steps = [event for event in seen if isinstance(event, Stepped)]
    assert all(step.loss is not None for step in steps)
    return steps


@pytest.mark.parametrize("precision", ("fp32", "bf16", "fp16"))
@pytest.mark.parametrize("memory", ("uncached and masked", "cached, recomputed and half offloaded"))
def test_all_parts_train_and_samples_are_generated(family, base, tmp_path, precision, memory):
    hard, text = family_settings(family, base)
    changes = UNCACHED if memory.startswith("uncached") else TIGHT
    trained(new_run(tmp_path, base, hard, text, SAMPLES, changes, loop(precision)))


@pytest.mark.parametrize("precision", ("bf16", "fp16"))
def test_a_cut_and_offloaded_run_ends_bit_for_bit_and_gives_a_grid(family, base, tmp_path, precision):
    hard, text = family_settings(family, base)
    change = (hard, text, loop(precision, 3), EACH_STEP)
    uncut = new_run(tmp_path / "uncut", base, *change)
    trained(uncut)
    cut = new_run(tmp_path / "cut", base, *change, {"memory": {"offload": 1.0}})
    until(cut, at(Saved, 2))
    trained(cut)
    assert_same_end(cut, uncut)
    x, y = Axis("checkpoint", ("off", 3)), Axis("strength", (0.5, 1.0))
    sampling = SamplingConfig(width=64, height=64, steps=2, sampler=config_class(family).samplers[-1])
    assert isinstance(list(grid(cut, x, y, prompt="girl", sampling=sampling))[-1], Done)


@pytest.mark.parametrize("name", list(optimizers.OPTIMIZERS))
def test_every_optimizer_steps_in_fp16_with_loss_scaling(base, family, tmp_path, name):
    if optimizers.why_unusable(name):
        pytest.skip(f"{name} has no kernel for a pretended device")
    model = {"model": {"family": family, "source": str(base)}}
    refused = config_class(family).unsupported
    own = {key: value for key, value in rates(name)["optimizer"].items() if f"optimizer.{key}" not in refused}
    trained(new_run(tmp_path, base, model, {"optimizer": own}, loop("fp16")))


def test_every_sampler_of_a_family_generates_in_bf16(family, base, tmp_path):
    model = {"model": {"family": family, "source": str(base)}}
    for sampler in config_class(family).samplers:
        sample = {"sample": {**SAMPLES["sample"], "every_steps": 1, "sampler": sampler}}
        trained(new_run(tmp_path / sampler, base, model, loop("bf16", 1), sample))


# ---- running out of memory


@pytest.fixture
def sd15(tmp_path):
    """(folder, base, settings) of a small run in bf16 that saves at each step."""
    from tiny import save_base

    base = save_base("sd15", tmp_path / "base")
    return tmp_path, base, {"model": {"family": "sd15", "source": str(base)}, **loop("bf16", 3), **EACH_STEP}


def test_too_little_memory_for_a_step_names_the_next_rung(sd15, native):
    folder, base, plain = sd15
    with pytest.raises(OutOfMemory, match=r"Out of memory in step 1.*\n.*memory.gradient_checkpointing=true"):
        for event in train(new_run(folder, base, plain)):
            if isinstance(event, Started):
                native.set_limit(native.allocated() + 20_000)


def test_too_little_memory_for_a_sample_is_a_warning_and_holds_nothing(sd15, native):
    folder, base, plain = sd15
    big = {"sample": {"prompts": ["girl"], "width": 192, "height": 192, "every_epochs": 0, "every_steps": 1}}
    held, warned = [], []
    for event in train(new_run(folder, base, plain, big)):
        if isinstance(event, Stepped):
            held.append(native.allocated())
            native.set_limit(native.peak() + 100_000 if not warned else 0)
        if isinstance(event, Warned) and "Out of memory" in event.text:
            warned.append(event.text)
            native.set_limit(0)
    assert len(warned) == 1 and isinstance(event, Finished)
    assert held[1] <= held[2] <= held[1] + 100_000, "bytes"


def test_a_decode_that_does_not_fit_is_done_in_tiles(sd15, native):
    from lorakit import models

    _, base, _ = sd15
    module = models.family("sd15")
    model = module.Model(module.Config(source=str(base)), torch.device("cuda"), torch.bfloat16, ())
    vae = model.load("vae")
    vae.tile_latent_min_size, vae.tile_sample_min_size = 16, 128
    z = torch.randn(1, 4, 32, 32).to("cuda")
    native.reset_peak()
    with torch.no_grad():
        whole = decode(model, z)
        native.set_limit(native.allocated() + (native.peak() - native.allocated()) // 2)
        tiled = decode(model, z)
    assert tiled.size == whole.size and not vae.use_tiling


# ---- faults that are put in are found


def on_cpu(function):
    """The function, with all tensors that it returns left on the CPU."""
    return lambda *arguments: torch.utils._pytree.tree_map(lambda value: value.cpu(), function(*arguments))


FAULTS = {
    "noise": (ddpm, "sample_noise", on_cpu),
    "latents": (UNetModel, "latents", on_cpu),
    "schedule": (ddpm, "alphas_cumprod", lambda f: lambda config: types.SimpleNamespace(to=lambda _: f(config))),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_tensor_left_on_the_cpu_is_found(sd15, monkeypatch, fault):
    folder, base, plain = sd15
    owner, name, change = FAULTS[fault]
    monkeypatch.setattr(owner, name, change(getattr(owner, name)))
    with pytest.raises(RuntimeError, match="on the same device"):
        list(train(new_run(folder, base, plain)))
