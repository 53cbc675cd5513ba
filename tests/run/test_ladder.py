"""The memory ladder leads down in order, GPU presets follow it, and running out of memory names the next rung."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable

import pytest
import torch
from sessions import new_run
from tiny import save_base

from lorakit import models
from lorakit.cli import main
from lorakit.config import ConfigError, assign, to_dict
from lorakit.events import Finished
from lorakit.machine.gpu import GPUS
from lorakit.project import Project
from lorakit.run.config import configure, read_config
from lorakit.run.memory import LADDER, OutOfMemory, next_rung
from lorakit.training.loop import Session, train


@pytest.fixture(params=models.names())
def family(request) -> str:
    return request.param


# ---- the ladder ------------------------------------------------------------------------------------------------------


def changed(config, changes: dict):
    """A run's config after settings {part.name: value}."""
    data = to_dict(config)
    for name, value in changes.items():
        assign(data, name, str(value))
    return configure(data)


def test_the_ladder_leads_down_in_order_and_ends(family):
    start = {
        "model": {"family": family, "source": "base"},
        "data": {"cache_latents": False, "cache_text": False},
        "loop": {"batch_size": 6, "gradient_accumulation_steps": 2},
        "memory": {"gradient_checkpointing": False},
    }
    config, taken = configure(start), []
    while rung := next_rung(config):
        config = changed(config, rung.change(config))
        taken.append(LADDER.index(rung))
        assert config.loop.batch_size * config.loop.gradient_accumulation_steps == 12
        assert rung.cost and rung.name
    assert taken == [0, 1, 2, 2, 3, 4, 5]
    assert config.data.cache_latents and config.data.cache_text and config.memory.gradient_checkpointing
    assert (config.loop.batch_size, config.optimizer.name, config.memory.offload) == (1, "adamw8bit", 1.0)


def test_a_run_that_has_begun_keeps_to_the_rungs_that_change_no_result(family):
    config, taken = configure({"model": {"family": family, "source": "base"}, "loop": {"batch_size": 4}}), []
    config = changed(config, {"memory.gradient_checkpointing": False})
    while rung := next_rung(config, keeps_run=True):
        config = changed(config, rung.change(config))
        taken.append(LADDER.index(rung))
    assert taken == [1, 3, 4] and config.loop.batch_size == 4


def test_a_rung_that_cannot_be_taken_is_skipped():
    config = configure(
        {
            "model": {"family": "sd15", "source": "base"},
            "loop": {"batch_size": 7, "gradient_accumulation_steps": 64},
            "optimizer": {"name": "prodigy", "learning_rate": 1.0},
            "memory": {"gradient_checkpointing": True},
        }
    )
    assert next_rung(config) is LADDER[3]


# ---- GPU presets -----------------------------------------------------------------------------------------------------


def on_gpu(family: str, gpu_preset: str):
    return configure({"model": {"family": family, "source": "base"}}, gpu_preset)


def gigabytes(gpu_preset: str) -> int:
    return int(re.match(r"(\d+) GB", gpu_preset)[1])


def test_every_family_has_settings_for_the_usual_gpus(family):
    gpu_presets = list(models.config_class(family).gpu_presets)
    assert [gigabytes(gpu_preset) for gpu_preset in gpu_presets] == [6, 8, 12, 16, 24, 32, 40] == list(GPUS)
    for gpu_preset in gpu_presets:
        config = on_gpu(family, gpu_preset)
        assert config.loop.batch_size * config.loop.gradient_accumulation_steps == 4
        assert config.data.cache_latents and config.data.cache_text
        assert config.loop.precision == "auto"  # fp16 on a T4


def test_a_smaller_gpu_is_never_higher_on_the_ladder(family):
    configs = [on_gpu(family, gpu_preset) for gpu_preset in models.config_class(family).gpu_presets]
    for smaller, larger in zip(configs, configs[1:], strict=False):
        places = [LADDER.index(next_rung(config)) for config in (smaller, larger)]
        assert places[0] >= places[1]
        assert smaller.loop.batch_size <= larger.loop.batch_size
        assert smaller.memory.offload >= larger.memory.offload
        assert smaller.memory.gradient_checkpointing >= larger.memory.gradient_checkpointing
    for config in configs:
        # batches of 4 pay for a copy of the weights once, those of 1 four times
        if config.memory.offload or config.loop.batch_size < 4:
            assert config.memory.gradient_checkpointing


def test_settings_override_the_gpu_preset_which_overrides_the_family(monkeypatch):
    given = {"model": {"family": "anima", "source": "base"}, "loop": {"batch_size": 3}}
    config = configure(given, "6 GB")
    assert (config.loop.batch_size, config.loop.gradient_accumulation_steps) == (3, 4)
    assert config.memory.offload == 0.5 and config.data.resolution == 1024
    assert configure(given).memory.offload == 0 and configure(given).memory.gradient_checkpointing
    gpu_presets = {"80 GB": {"memory": {"gradient_checkpointing": False}}}
    monkeypatch.setattr(models.config_class("anima"), "gpu_presets", gpu_presets)
    assert not configure(given, "80 GB").memory.gradient_checkpointing


def test_an_unknown_gpu_preset_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="'7 GB'.*8 GB, 12 GB, 16 GB"):
        on_gpu("sd15", "7 GB")


# ---- out of memory ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sd15(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield save_base("sd15", tmp_path_factory.mktemp("sd15") / "base")


@pytest.fixture
def tight(tmp_path, sd15):
    """A run of 3 steps, each of 3 batches of 2, with a state after each."""
    loop = {"steps": 3, "gradient_accumulation_steps": 3}
    return new_run(
        tmp_path, sd15, {"loop": loop, "save": {"every_steps": 1}, "memory": {"gradient_checkpointing": True}}
    )


def no_memory_cuda() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def no_memory_host() -> None:
    torch.empty(2**55, dtype=torch.uint8)


def no_memory_python() -> None:
    bytearray(2**60)


def no_memory_of(text: str) -> Callable[[], None]:
    def fail() -> None:
        raise RuntimeError(text)

    return fail


# What CUDA and its libraries report for memory that they take themselves.
LIBRARIES = (
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "GET was unable to find an engine to execute this computation",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
)


@pytest.mark.parametrize("fail", (no_memory_cuda, no_memory_host, no_memory_python, *map(no_memory_of, LIBRARIES)))
def test_out_of_memory_in_a_step_names_remedies_and_the_run_resumes(tight, fail):
    session, calls = Session(tight), []
    loss = session.model.loss

    def full(*arguments):
        calls.append(1)
        return loss(*arguments) if len(calls) <= 3 else fail()

    session.model.loss = full
    with pytest.raises(OutOfMemory) as failed:
        list(session.events(threading.Event()))
    message = str(failed.value)
    assert (
        "in step 2" in message
        and re.search(r"\d\.\d GB were in use", message)
        and "last training state is kept" in message
    )
    assert "new run with loop.batch_size=1 loop.gradient_accumulation_steps=6" in message
    assert "Continue this run with memory.offload=0.5" in message and message.count("Cost:") == 2
    assert isinstance(list(train(tight))[-1], Finished)


def test_at_the_foot_of_the_ladder_other_ways_are_named(tmp_path, sd15):
    foot = {
        "loop": {"batch_size": 1},
        "optimizer": {"name": "prodigy", "learning_rate": 1.0},
        "memory": {"gradient_checkpointing": True, "offload": 1.0},
    }
    session = Session(new_run(tmp_path, sd15, foot))
    session.model.load = lambda part: no_memory_cuda()
    with pytest.raises(OutOfMemory, match="while encoding") as failed:
        list(session.events(threading.Event()))
    assert "All memory savings are on" in str(failed.value) and "data.resolution" in str(failed.value)


def test_other_errors_stay_what_they_are(tight):
    session = Session(tight)
    session.model.loss = lambda *arguments: torch.ones(2) @ torch.ones(3)
    with pytest.raises(RuntimeError, match="size"):
        list(session.events(threading.Event()))


# ---- the terminal ----------------------------------------------------------------------------------------------------


def test_a_gpu_preset_is_chosen_at_the_terminal(tmp_path, sd15, capsys):
    run = new_run(tmp_path, sd15, {"loop": {"steps": 1}})
    folder = str(tmp_path)
    assert main(["train", folder, "--run", "r", "--gpu-preset", "7 GB"]) == 2
    assert "8 GB" in capsys.readouterr().err
    assert main(["train", folder, "--run", "r", "--gpu-preset", "6 GB", "--set", "loop.batch_size=2"]) == 0
    config = read_config(Project(tmp_path).run("r"))
    assert config.loop.batch_size == 2 and config.memory.gradient_checkpointing and run.lora_steps() == [1]
