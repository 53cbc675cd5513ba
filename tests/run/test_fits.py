"""How much VRAM a run needs is computed without a GPU, a download or weights; GPU presets are what fits by it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from sessions import new_run, rates
from tiny import save_base

from lorakit import models, optimizers
from lorakit.cli import main
from lorakit.machine import gpu
from lorakit.machine.gpu import Gpu
from lorakit.optimizers import OPTIMIZERS
from lorakit.run import ledger
from lorakit.run.config import configure, read_config
from lorakit.run.fits import AROUND, ROOM, Fit, Need, descend, first_that_fits, need, with_settings
from lorakit.run.memory import next_rung
from lorakit.run.rehearsal import Rehearsal

# Parameters of the bases' denoisers: those of the checkpoints on Hugging Face.
DENOISERS = {"sd15": 859_520_964, "sdxl": 2_567_463_684, "anima": 1_956_407_296}
# The smallest GPU with compute capability 7.5 that a preset is for.
T4 = Gpu("T4", 15_835_660_288, (7, 5))


def settings(family: str, gpu_preset: str = "", **changes):
    """A run at the top of the ladder but for its caches, with sample images; its base is nowhere."""
    given = {"model": {"family": family, "source": "none"}, "sample": {"prompts": ["girl"]}, **changes}
    return configure(given, gpu_preset)


@pytest.fixture(scope="module")
def rehearsal(family) -> Rehearsal:
    """In true size, in bfloat16, from the configuration that comes with the package."""
    return Rehearsal(settings(family), torch.bfloat16, has_flash=True)


def test_weights_take_two_bytes_for_each_parameter_of_the_usual_base(family, rehearsal):
    assert rehearsal.is_usual
    held = rehearsal.weights([rehearsal.model.denoiser])
    assert 1 <= held / (2 * DENOISERS[family]) < 1.001  # blocks of 512 bytes


def test_a_gpu_preset_is_the_first_rung_that_fits_with_the_largest_batch_there_is_room_for(family, rehearsal):
    gpu_presets = models.config_class(family).gpu_presets
    for name in gpu_presets:
        memory = ROOM * 1e9 * gpu.gigabytes(name)
        config = settings(family, loop={"batch_size": 4}, memory={"gradient_checkpointing": False})
        while need(config, rehearsal).least > memory:
            rung = next_rung(config)
            config = with_settings(config, rung.change(config))
        for batch in (2, 4):
            parts = {"loop.batch_size": batch, "loop.gradient_accumulation_steps": 4 // batch}
            larger = with_settings(config, parts)
            if batch > config.loop.batch_size and need(larger, rehearsal).least <= memory:
                config = larger
        preset = settings(family, name)
        assert (preset.loop, preset.memory, preset.optimizer.name) == (config.loop, config.memory, "adamw"), name


def test_the_16_gb_preset_fits_a_t4_which_has_no_flash_attention():
    fit = next(descend(settings("anima", "16 GB"), T4.capability))
    assert fit.precision == "fp16" and fit.need.least <= ROOM * T4.memory
    assert first_that_fits([fit], T4.memory) == (fit, fit)


def test_each_rung_needs_less_for_training_than_the_one_before(rehearsal, family):
    config = settings(family, loop={"batch_size": 4}, memory={"gradient_checkpointing": False})
    needs = [need(config, rehearsal)]
    while rung := next_rung(config):
        config = with_settings(config, rung.change(config))
        needs.append(need(config, rehearsal))
    assert all(after.training < before.training for before, after in zip(needs, needs[1:], strict=False))
    assert all(0 < each.tiled <= each.sampling for each in needs)
    assert len({each.caching for each in needs}) == 1


# ---- how it is counted -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    base = save_base("sd15", tmp_path_factory.mktemp("sd15") / "base")
    sample = {"sample": {"prompts": ["girl --w 96"]}}
    return new_run(tmp_path_factory.mktemp("fits"), base, {"loop": {"batch_size": 2}}, sample)


def test_a_base_on_this_machine_is_counted_in_its_own_size_and_what_is_not_cached_stays(tiny_run):
    config = read_config(tiny_run)
    plain = next(descend(config))
    assert not plain.is_usual and plain.need.least - 1e9 < 50e6  # bytes
    uncached = with_settings(config, {"data.cache_latents": False, "data.cache_text": False})
    stays = next(descend(uncached))
    assert stays.need.caching == 0 and stays.need.training > plain.need.training
    assert [fit.rung for fit in descend(uncached)][1].change(uncached) == {
        "data.cache_latents": True,
        "data.cache_text": True,
    }
    without = next(descend(with_settings(config, {"sample.prompts": "[]"}))).need
    assert (without.sampling, without.tiled) == (0, 0) and without.training == pytest.approx(
        plain.need.training, abs=1e5
    )


def test_results_that_are_remembered_count_as_computed_ones(tiny_run, monkeypatch):
    config = with_settings(read_config(tiny_run), {"memory.gradient_checkpointing": True})
    remembered = next(descend(config)).need
    monkeypatch.setattr(ledger, "_computed", lambda func, args, kwargs: func(*args, **kwargs))
    computed = next(descend(config)).need
    for phase in ("caching", "training", "sampling", "tiled"):
        found, expected = (getattr(each, phase) - AROUND for each in (remembered, computed))
        assert found == pytest.approx(expected, rel=0.01), phase  # what waits for garbage collection differs


def test_the_ledger_counts_what_lives_at_once_and_attention_without_its_scores():
    held = torch.empty(1000, 1000, device="meta")
    with ledger.Ledger([held]) as counted:
        a = torch.empty(128, device="meta")  # 512 bytes
        b = held.t() + 1  # the view is not counted, the sum is
        assert counted.now == 512 + 4_000_256
        del a, b
        assert (counted.now, counted.peak) == (0, 512 + 4_000_256)
        q = torch.empty(1, 8, 4096, 64, dtype=torch.bfloat16, device="meta")
        y = torch.nn.functional.scaled_dot_product_attention(q, q, q)
        assert y.shape == q.shape and counted.now < 4 * q.nbytes < 8 * 4096**2
    assert torch.nn.functional.scaled_dot_product_attention is torch._C._nn.scaled_dot_product_attention


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_keeps_as_many_bytes_as_its_row_says(name):
    if optimizers.why_unusable(name):
        pytest.skip(f"{name} is not usable here")
    given = rates(name)["optimizer"]
    weight = torch.nn.Parameter(torch.full((256, 128), 0.1))
    weight.grad = torch.full_like(weight, 0.01)
    optimizer = optimizers.build(
        optimizers.OptimizerConfig(name=name, args=given.get("args", {})), {"unet": ([weight], 1e-3)}
    )
    optimizer.step()
    kept = [tensor for tensor in optimizer.state[weight].values() if isinstance(tensor, torch.Tensor)]
    # tables of 8-bit optimizers and scales of blocks are small
    sizes = sorted(math.floor(tensor.nbytes / weight.numel()) for tensor in kept if tensor.numel() == weight.numel())
    assert sizes == sorted(OPTIMIZERS[name].state)


def test_nothing_that_fits_as_set_is_changed_and_else_the_first_rung_with_room_is_taken():
    def fit(least: int) -> Fit:
        return Fit(None, {}, None, Need(0, least, 0, 0), "bf16", True)

    rungs = [fit(100), fit(95), fit(90), fit(10)]
    assert first_that_fits(rungs, 100) == (rungs[0], rungs[0])
    assert first_that_fits(iter(rungs), 99) == (rungs[0], rungs[3]) and ROOM * 99 < 90
    assert first_that_fits(rungs, 9) == (rungs[0], None)


# ---- the GPU, the terminal -------------------------------------------------------------------------------------------


def test_the_gpu_is_the_one_that_torch_uses(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = SimpleNamespace(name="L4", total_memory=23_000_000_000, major=8, minor=9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: found)
    assert gpu.at_hand() == Gpu("L4", 23_000_000_000, (8, 9))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.at_hand() is None


def test_the_terminal_says_what_fits_and_where_nothing_does(tiny_run, capsys):
    folder = str(tiny_run.project.folder)
    before = sorted(tiny_run.project.folder.rglob("*"))
    command = ["fits", folder, "--run", tiny_run.name, "--set", "memory.gradient_checkpointing=false"]
    assert main([*command, "--vram", "8"]) == 0
    text = capsys.readouterr().out
    assert "not measured on a GPU" in text and "as set (batch size 2)" in text and "it fits as set" in text
    assert "The base model is not on this machine" not in text and "8-bit optimizer" in text
    assert main([*command, "--vram", "0.9"]) == 1 and "nothing fits" in capsys.readouterr().out
    assert main([*command, "--capability", "7.5"]) == 0
    text = capsys.readouterr().out
    assert "fp16" in text and "There is no GPU here" in text
    assert main([*command, "--set", "adapter.rank=x"]) == 2
    assert sorted(tiny_run.project.folder.rglob("*")) == before
