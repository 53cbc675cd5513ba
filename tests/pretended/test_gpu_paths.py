"""Every path of a GPU, on a device that calls itself CUDA and computes in host memory; `make pretended` runs these."""

from __future__ import annotations

import json
import os
import shutil
import time
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from sessions import assert_same_end, at, family_settings, new_run, rates, until

from lorakit import optimizers
from lorakit.diffusion import ddpm
from lorakit.events import Finished, Saved, Started, Stepped, Warned
from lorakit.generation.grid import Axis, Done, grid
from lorakit.generation.regularize import Generated, RegularizeConfig, regularize
from lorakit.models import config_class
from lorakit.models._base import decode
from lorakit.models._unet import UNetModel
from lorakit.models.sd15 import Model
from lorakit.run.config import read_config
from lorakit.run.memory import OutOfMemory
from lorakit.run.sampling import SamplingConfig
from lorakit.training import probe
from lorakit.training.loop import Session, train

pytestmark = pytest.mark.pretended

PRECISIONS = ("fp32", "bf16", "fp16")
EACH_STEP = {"save": {"every_epochs": 0, "every_steps": 1}}
SAMPLES = {"sample": {"prompts": ["girl"], "every_epochs": 0, "every_steps": 2, "width": 64, "height": 64, "steps": 2}}
UNCACHED = {"data": {"cache_latents": False, "cache_text": False}}
MASKED = {"data": {"alpha_mask": True}, "loss": {"prior_loss_weight": 0.5}}
TIGHT = {"memory": {"gradient_checkpointing": True, "offload": 0.5}}
FEW = ((64, 64), (96, 64), (64, 64))


def loop(precision: str, steps: int = 2) -> dict:
    return {"loop": {"precision": precision, "steps": steps, "gradient_accumulation_steps": 2}}


def trained(run, most_waits: int = 1) -> list[Stepped]:
    """The steps of a whole session, which ended well on the pretended device, and each waited for it `most_waits` times
    at most: nothing else makes the host stand still. The first step of a session may load and make what it needs.
    """
    from pretended_cuda import waits_seen

    waits, step = [], Session.step

    def watched(session, number):
        with waits_seen() as seen:
            done = step(session, number)
        waits.append(seen)
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "step", watched)
        seen = list(train(run))
    assert isinstance(seen[-1], Finished)
    assert next(event for event in seen if isinstance(event, Started)).device == "cuda"
    steps = [event for event in seen if isinstance(event, Stepped)]
    assert all(step.loss is not None for step in steps)
    for where in waits[1:]:
        assert len(where) <= most_waits, "\n".join(where)
    return steps


def mask_and_regularize(run) -> None:
    """Every second image becomes transparent in part, and there are regularization images."""
    images = run.project.dataset / "1_mofu"
    shutil.copytree(images, run.project.dataset / "reg" / "1_girl")
    for file in sorted(images.glob("*.png"))[::2]:
        image = Image.open(file).convert("RGBA")
        image.paste((0, 0, 0, 0), (32, 0, *image.size))
        image.save(file)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_all_parts_train_uncached_masked_and_regularized_with_one_wait_a_step(family, base, tmp_path, precision):
    hard, text = family_settings(family, base)
    run = new_run(tmp_path, base, hard, text, SAMPLES, UNCACHED, MASKED, loop(precision, 3))
    mask_and_regularize(run)
    trained(run)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_cut_recomputed_and_offloaded_run_ends_bit_for_bit_with_one_wait_a_step(family, base, tmp_path, precision):
    hard, text = family_settings(family, base)
    change = (hard, text, loop(precision, 3), EACH_STEP)
    uncut = new_run(tmp_path / "uncut", base, *change)
    trained(uncut)
    cut = new_run(tmp_path / "cut", base, *change, SAMPLES, TIGHT)
    until(cut, at(Saved, 1))
    trained(cut)
    assert_same_end(cut, uncut)


@pytest.mark.parametrize("name", list(optimizers.OPTIMIZERS))
def test_every_optimizer_steps_in_fp16_with_loss_scaling(base, family, tmp_path, name):
    if optimizers.why_unusable(name):
        pytest.skip(f"{name} has no kernel for a pretended device")
    model = {"model": {"family": family, "source": str(base)}}
    refused = config_class(family).unsupported
    own = {key: value for key, value in rates(name)["optimizer"].items() if f"optimizer.{key}" not in refused}
    run = new_run(tmp_path, base, model, {"optimizer": own}, loop("fp16", 3), sizes=FEW)
    # an estimated rate is one more number that the host must know
    trained(run, most_waits=1 + optimizers.OPTIMIZERS[name].adapts_rate)


def test_every_sampler_gives_a_grid_and_the_base_its_regularization_images(family, base, tmp_path):
    model = {"model": {"family": family, "source": str(base)}}
    run = new_run(tmp_path, base, model, loop("bf16", 1), SAMPLES, sizes=FEW[:2])
    trained(run)
    x, y = Axis("checkpoint", ("off", 1)), Axis("strength", (1.0,))
    for sampler in config_class(family).samplers:
        sampling = SamplingConfig(width=64, height=64, steps=2, sampler=sampler)
        assert isinstance(list(grid(run, x, y, prompt="girl", sampling=sampling, name=sampler))[-1], Done)
    events = list(regularize(run.project, read_config(run), RegularizeConfig()))
    assert [event.done for event in events if isinstance(event, Generated)] == [1, 2]


def test_a_probe_measures_the_gpu(family, base, tmp_path):
    hard, _ = family_settings(family, base)
    run = new_run(tmp_path / "p", base, hard, SAMPLES, loop("bf16", probe.WARM_UP + probe.TIMED), sizes=FEW)
    with open(tmp_path / "messages", "w+") as messages:
        stdout = os.dup(1)
        os.dup2(messages.fileno(), 1)
        try:
            probe.main(str(run.project.folder), str(run.folder), str(time.time()))
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)
        messages.seek(0)
        *_, last = map(json.loads, messages)
    assert last["device"] == "Pretended GPU" and last["total_memory_gb"] == 24 * 2**30 / 1e9
    assert 0 < last["peak_memory_gb"] < 0.1 and last["seconds_per_sample"] > 0


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


DEVICES, TYPES = "on the same device", "same dtype|should be the same"
FAULTS = {
    "noise on the CPU": (ddpm, "sample_noise", on_cpu, DEVICES),
    "latents on the CPU": (UNetModel, "latents", on_cpu, DEVICES),
    "schedule on the CPU": (
        ddpm,
        "alphas_cumprod",
        lambda f: lambda config: SimpleNamespace(to=lambda _: f(config)),
        DEVICES,
    ),
    "float32 where weights are bfloat16": (
        Model,
        "predict",
        lambda f: lambda model, xt, t, text: f(model, xt.float(), t, text),
        TYPES,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_tensor_of_another_device_or_type_is_found(sd15, monkeypatch, fault):
    folder, base, plain = sd15
    owner, name, change, message = FAULTS[fault]
    monkeypatch.setattr(owner, name, change(getattr(owner, name)))
    with pytest.raises(RuntimeError, match=message):
        list(train(new_run(folder, base, plain)))


def test_a_weight_that_is_used_before_its_copy_has_arrived_is_found(sd15, monkeypatch):
    from pretended_cuda import Stream

    folder, base, plain = sd15
    monkeypatch.setattr(Stream, "wait_stream", lambda stream, other: None)
    seen = list(train(new_run(folder, base, plain, {"memory": {"offload": 1.0}})))
    assert [event.loss for event in seen if isinstance(event, Stepped)] == [None] * 3


# name -> what is done with numbers of the device, of the host, and a pinned copy of these; whether it waits
WAITING = {
    "item": (lambda there, here, pinned: there[0].item(), True),
    "tolist": (lambda there, here, pinned: there.tolist(), True),
    "bool": (lambda there, here, pinned: bool(there[0] > 0), True),
    "equal": (lambda there, here, pinned: torch.equal(there, there), True),
    "nonzero": (lambda there, here, pinned: there.nonzero(), True),
    "mask as index": (lambda there, here, pinned: there[there > 0], True),
    "index on the host": (lambda there, here, pinned: there[torch.tensor([0, 1])], True),
    "tensor from a list": (lambda there, here, pinned: torch.tensor([1.0, 2.0], device="cuda"), True),
    "copy": (lambda there, here, pinned: here.to("cuda"), True),
    "copy of pageable memory": (lambda there, here, pinned: here.to("cuda", non_blocking=True), True),
    "copy of pinned memory": (lambda there, here, pinned: pinned.to("cuda"), True),
    "copy of pinned memory in the background": (
        lambda there, here, pinned: pinned.to("cuda", non_blocking=True),
        False,
    ),
    "copy to the host in the background": (lambda there, here, pinned: there.to("cpu", non_blocking=True), False),
    "index on the device": (lambda there, here, pinned: there[there.long()], False),
    "arithmetic": (lambda there, here, pinned: (there * here.new_tensor(2.0) + 1).where(there > 0, 0.0).sum(), False),
    "synchronize": (lambda there, here, pinned: torch.cuda.synchronize(), True),
}


@pytest.mark.parametrize("name", WAITING)
def test_what_waits_on_cuda_counts_as_a_wait(native, name):
    here = torch.tensor([1.0, 2.0, 3.0, 0.0])
    there, pinned = here.to("cuda"), here.pin_memory()
    action, waits = WAITING[name]
    before = native.waits()
    action(there, here, pinned)
    assert (native.waits() > before) == waits


def test_copies_in_the_background_arrive_when_somebody_waits():
    there, pinned = torch.ones(4, device="cuda"), torch.ones(4).pin_memory()
    back = there.to("cpu", non_blocking=True)
    assert back.isnan().all()
    torch.cuda.synchronize()
    assert torch.equal(back, torch.ones(4))
    sent = pinned.to("cuda", non_blocking=True)
    pinned.fill_(2)
    assert sent.tolist() == [2] * 4, "memory that is written again too early"
