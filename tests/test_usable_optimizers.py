"""Whether an optimizer works on this machine is decided by a step, and a broken package spoils nothing else."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorakit import optimizers
from lorakit.config import ConfigError
from lorakit.optimizers import OPTIMIZERS, OptimizerConfig, build, why_unusable

ROOT = Path(__file__).parents[1]
BROKEN = [
    ImportError("No module named 'bitsandbytes'"),
    OSError("libcudart.so.13: cannot open shared object file"),
    RuntimeError("CUDA Setup failed despite GPU being available"),
    AttributeError("module 'triton' has no attribute 'ops'"),
]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_a_step_here(name):
    assert why_unusable(name) == ""


@pytest.mark.parametrize("error", BROKEN, ids=lambda error: type(error).__name__)
def test_a_package_that_cannot_be_imported_is_the_reason_and_the_others_work(error, monkeypatch):
    def broken(name):
        if name == "bitsandbytes":
            raise error
        return importlib.import_module(name)

    monkeypatch.setattr(optimizers, "importlib", type("", (), {"import_module": staticmethod(broken)}))
    reason = why_unusable("adamw8bit")
    assert "bitsandbytes" in reason and str(error) in reason and "choose optimizer.name adamw" in reason
    assert why_unusable("adamw") == ""
    with pytest.raises(ConfigError, match="bitsandbytes, which is not usable here"):
        build(OptimizerConfig(name="adamw8bit"), {"unet": ([torch.nn.Parameter(torch.ones(2))], 1e-3)})


class NoStep(torch.optim.SGD):
    def step(self):
        raise NotImplementedError("no kernel for this device\nand more")


class Idle(torch.optim.SGD):
    def step(self):
        return None


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (NoStep, "adamw8bit fails on this machine (no kernel for this device)"),
        (Idle, "does not change the weights"),
    ],
)
def test_a_step_that_fails_or_does_nothing_is_the_reason(kind, reason, monkeypatch):
    row = replace(OPTIMIZERS["adamw8bit"], build=lambda groups, args: kind(groups))
    monkeypatch.setitem(OPTIMIZERS, "adamw8bit", row)
    assert reason in why_unusable("adamw8bit") and "choose optimizer.name adamw" in why_unusable("adamw8bit")


def test_the_kit_is_imported_with_a_broken_bitsandbytes(tmp_path):
    (tmp_path / "bitsandbytes.py").write_text("raise OSError('libbitsandbytes_cuda125.so: not found')")
    code = (
        "import lorakit.training.loop, widgets.project.opening; "
        "from lorakit.optimizers import why_unusable; print(why_unusable('adamw8bit'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "libbitsandbytes_cuda125.so: not found" in done.stdout
