"""Promise: a base that no run can start from gets one reason, in `model check`, in `model fetch` and when opened."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from anima_layout import rewrite, save_anima, save_files, tiny_parts
from original_layout import original_state
from safetensors.torch import load_file, save_file
from tiny import save_sd15
from tiny_sdxl import save_sdxl

from lorakit import models
from lorakit.cli import main
from lorakit.hub.header import ModelFileError
from lorakit.models import sd15, sdxl
from lorakit.models.files.check import check

FP8 = torch.float8_e4m3fn
UNET = "model.diffusion_model."
FIRST = f"{UNET}input_blocks.0.0.weight"


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {"sd15": save_sd15(root / "sd15"), "sdxl": save_sdxl(root / "sdxl")}


@pytest.fixture(autouse=True)
def tiny_single_files(bases, monkeypatch):
    """Single files have no settings of their own: those of the tiny models stand in for the package's."""
    for module in (sd15, sdxl):
        name = module.__name__.rpartition(".")[2]
        monkeypatch.setattr(module.Model, "LAYOUT", replace(module.LAYOUT, settings=bases[name]))


def without(*starts: str):
    return lambda state: {name: t for name, t in state.items() if not name.startswith(starts)}


def wider(state: dict) -> dict:
    """With the channels of a mask and of the masked image."""
    return state | {name: t.repeat(1, 3, 1, 1)[:, :9].clone() for name, t in state.items() if name == FIRST}


def coarse(state: dict) -> dict:
    return {name: t.to(FP8) if t.is_floating_point() else t for name, t in state.items()}


# how -> family, what becomes of the tensors of a whole checkpoint, words of the reason
FILES = {
    "fp8": ("sd15", coarse, "in 8 bits or fewer"),
    "fp8 of SDXL": ("sdxl", coarse, "in 8 bits or fewer"),
    "inpainting": ("sd15", wider, "for inpainting or editing (its UNet takes 9 channels instead of 4)"),
    "inpainting of SDXL": ("sdxl", wider, "for inpainting or editing"),
    "no VAE": ("sd15", without("first_stage_model."), "it holds no VAE: set model.vae"),
    "no VAE of SDXL": ("sdxl", without("first_stage_model."), "it holds no VAE: set model.vae"),
    "bare UNet": ("sd15", without("cond_stage_model."), "it holds no text encoder"),
    "bare UNet of SDXL": ("sdxl", without("conditioner.", "first_stage_model."), "it is a part of a model alone"),
    "half the texts of SDXL": ("sdxl", without("conditioner.embedders.1."), "it holds no second text encoder"),
    "refiner": (
        "sdxl",
        lambda state: without("conditioner.")(state) | {"conditioner.embedders.0.model.ln_final.bias": torch.zeros(2)},
        "a refiner only finishes images",
    ),
}


def reason_everywhere(path: Path, family: str, capsys) -> str:
    """The reason that `model check` gives, after a look whether the others give the same."""
    (finding,) = check([path])
    assert finding.unfit.startswith("cannot be trained on: ") and not finding.problem
    reason = finding.unfit.removeprefix("cannot be trained on: ")
    module = models.family(family)
    with pytest.raises(ModelFileError) as refused:
        module.Model(module.Config(source=str(path)), torch.device("cpu"), torch.float32)
    assert reason in str(refused.value) and path.name in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert main(["model", "check", str(path)]) == 0 and reason in capsys.readouterr().out
    assert main(["model", "fetch", "--set", f"model.family={family}", "--set", f"model.source={path}"]) == 2
    shown = capsys.readouterr()
    assert reason in shown.err and "can be trained as" not in shown.out
    return reason


@pytest.mark.parametrize("suffix", ("safetensors", "ckpt"))
@pytest.mark.parametrize("how", FILES)
def test_a_file_that_cannot_be_trained_on_gets_one_reason_everywhere(how, suffix, bases, tmp_path, capsys):
    family, change, words = FILES[how]
    state = change(original_state(bases[family]))
    path = tmp_path / f"model.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save({"state_dict": state}, path)
    assert words in reason_everywhere(path, family, capsys)


def test_a_whole_file_is_fetched_and_one_without_vae_with_that_setting(bases, tmp_path, capsys):
    state = original_state(bases["sd15"])
    save_file(state, tmp_path / "whole.safetensors")
    save_file(without("first_stage_model.")(state), tmp_path / "pruned.safetensors")
    vae = ["--set", f"model.vae={bases['sd15'] / 'vae'}"]
    for name, options in (("whole", []), ("pruned", vae)):
        source = ["--set", "model.family=sd15", "--set", f"model.source={tmp_path / name}.safetensors", *options]
        assert main(["model", "fetch", *source]) == 0
        shown = capsys.readouterr().out
        assert "can be trained as sd15" in shown and "cannot" not in shown


def drop_vae(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    del index["vae"]
    (folder / "model_index.json").unlink()
    (folder / "model_index.json").write_text(json.dumps(index))


def fp8_unet(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = coarse(load_file(file))
    file.unlink()
    save_file(state, file)


def inpainting_unet(folder: Path) -> None:
    file = folder / "unet" / "config.json"
    config = json.loads(file.read_text()) | {"in_channels": 9}
    file.unlink()
    file.write_text(json.dumps(config))


@pytest.mark.parametrize("family", ("sd15", "sdxl"))
@pytest.mark.parametrize(
    ("damage", "words"),
    ((drop_vae, "it holds no VAE"), (fp8_unet, "in 8 bits"), (inpainting_unet, "takes 9 channels instead of 4")),
)
def test_a_folder_that_cannot_be_trained_on_gets_one_reason_everywhere(family, damage, words, bases, tmp_path, capsys):
    folder = Path(shutil.copytree(bases[family], tmp_path / "model", copy_function=os.link))
    damage(folder)
    assert words in reason_everywhere(folder, family, capsys)


def test_an_anima_in_8_bits_gets_one_reason_as_a_file_and_as_a_folder(tmp_path, capsys):
    parts = tiny_parts()
    rewrite(save_files(tmp_path, parts)["transformer"], coarse)
    assert "in 8 bits" in reason_everywhere(tmp_path / "anima-base-v1.0.safetensors", "anima", capsys)
    folder = save_anima(tmp_path / "anima", parts)
    rewrite(folder / "transformer" / "diffusion_pytorch_model.safetensors", coarse)
    assert "in 8 bits" in reason_everywhere(folder, "anima", capsys)
