"""Promise: each part of an SDXL base loads bit for bit from any form people have, its VAE from elsewhere too."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hub_server import running
from original_layout import SDXL_PARTS, original_state
from safetensors.torch import save_file
from test_sd_files import FOREIGN, check_part, make_form, weights_of
from tiny import save_sd15
from tiny_sdxl import save_sdxl

from lorakit.hub import SourceError
from lorakit.hub.files import ModelFileError
from lorakit.models import _unet, sdxl
from lorakit.models.files.sd import open_sd
from lorakit.models.files.sdxl_names import LAYOUT as SDXL

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny_xl(tmp_path_factory) -> Path:
    """An SDXL folder with random weights."""
    return save_sdxl(tmp_path_factory.mktemp("xl"))


@pytest.fixture(scope="module")
def single_xl(tiny_xl, tmp_path_factory) -> Path:
    """The same weights as one file of the original layout."""
    path = tmp_path_factory.mktemp("single-xl") / "model.safetensors"
    save_file(original_state(tiny_xl), path)
    return path


@pytest.mark.parametrize("part", SDXL_PARTS)
@pytest.mark.parametrize("form", ("folder", "fp16 folder", "sharded folder", "single file", "ckpt"))
def test_every_part_of_sdxl_is_equal_bit_for_bit_in_every_form(form, part, tiny_xl, tmp_path):
    path = make_form(form, tiny_xl, tmp_path / "model")
    check_part(open_sd(path, replace(SDXL, settings=tiny_xl)), form, part, tiny_xl)


def test_single_files_of_sdxl_get_the_one_vocabulary(single_xl):
    assert open_sd(single_xl, SDXL).tokenizer()("a cat!").input_ids == [49406, 320, 2368, 256, 49407]
    assert not list(SDXL.settings.glob("tokenizer*"))


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ("refiner", "EDM", "without text encoders", "1.x", "VAE alone"))
def test_a_file_that_is_not_sdxl_is_named_and_refused(kind, tmp_path):
    names = next((names for shown, names in FOREIGN.items() if kind in shown), ["cond_stage_model.transformer.x"])
    save_file({name: torch.zeros(2) for name in names}, tmp_path / "other.safetensors")
    with pytest.raises(ModelFileError, match=f"{kind}.*expected was a Stable Diffusion XL checkpoint"):
        open_sd(tmp_path / "other.safetensors", SDXL)


@pytest.mark.parametrize(
    ("part", "change", "shown"),
    (
        ("scheduler", {"_class_name": "EDMDPMSolverMultistepScheduler"}, "schedule of EDM"),
        ("scheduler", {"prediction_type": "sample"}, "prediction type sample"),
    ),
)
def test_folders_of_models_that_train_in_another_way_are_refused(part, change, shown, tiny_xl, tmp_path):
    folder = shutil.copytree(tiny_xl, tmp_path / "model")
    file = next((folder / part).glob("*config.json"))
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    files = open_sd(folder, SDXL)
    with pytest.raises(ModelFileError, match=shown):
        files.scheduler_config()


def test_a_refiner_folder_is_refused(tiny_xl, tmp_path):
    folder = shutil.copytree(tiny_xl, tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text()) | {"text_encoder": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(
        ModelFileError, match="with text_encoder_2, unet; expected was a Stable Diffusion XL model with"
    ):
        open_sd(folder, SDXL)


# ---- a VAE from elsewhere --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form", ("folder with vae", "vae folder", "diffusers", "prefixed", "bare", "ckpt", "checkpoint")
)
def test_another_vae_replaces_the_one_inside_in_every_form(form, tiny_xl, single_xl, tmp_path):
    other = save_sdxl(tmp_path / "other", seed=5)
    weights, state, path = weights_of(other, "vae"), original_state(other), tmp_path / "vae.safetensors"
    inside = {name: tensor for name, tensor in state.items() if name.startswith("first_stage_model.")}
    bare_names = {name.removeprefix("first_stage_model."): tensor for name, tensor in inside.items()}
    if form == "ckpt":  # as the CompVis repository saved them
        torch.save({"state_dict": bare_names | {"loss.logvar": torch.zeros(1)}}, path.with_suffix(".ckpt"))
        path = path.with_suffix(".ckpt")
    elif "folder" in form:
        path = other if form == "folder with vae" else other / "vae"
    else:
        save_file({"diffusers": weights, "prefixed": inside, "bare": bare_names, "checkpoint": state}[form], path)
    for base in (tiny_xl, single_xl):
        files = open_sd(base, replace(SDXL, settings=tiny_xl), vae=path)
        loaded = files.vae(torch.float32, CPU).state_dict()
        assert loaded.keys() == weights.keys() and all(torch.equal(loaded[name], weights[name]) for name in weights)
        assert str(path) in str(files.files("vae")[0])
        assert files.vae_config()["scaling_factor"] == 0.13025
        assert not torch.equal(loaded["encoder.conv_in.weight"], weights_of(tiny_xl, "vae")["encoder.conv_in.weight"])


def test_a_vae_of_another_family_or_no_vae_is_refused(tiny_xl, tmp_path):
    layout, tiny = replace(SDXL, settings=tiny_xl), save_sd15(tmp_path / "sd15")
    single = tmp_path / "sd15.safetensors"
    save_file(original_state(tiny), single)
    with pytest.raises(
        ModelFileError, match="scaling_factor is 0.18215, that of a Stable Diffusion XL model is 0.13025"
    ):
        open_sd(tiny_xl, layout, vae=tiny)
    with pytest.raises(ModelFileError, match="is a Stable Diffusion 1.x checkpoint; expected was a VAE alone"):
        open_sd(tiny_xl, layout, vae=single)
    with pytest.raises(ModelFileError, match="There is no .*config.json"):
        open_sd(tiny_xl, layout, vae=tmp_path)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server that speaks like the hub, with nothing on it and nothing in the cache."""
    with running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        yield server


@pytest.mark.parametrize("where", ("", "vae/"))
def test_a_vae_comes_from_a_repository_of_its_own_or_a_whole_models_without_the_model(hub, tiny_xl, where):
    files = {f"{where}{file.name}": file.read_bytes() for file in (tiny_xl / "vae").iterdir()}
    hub.repos["someone/model"] = files | {"model_index.json": b"{}", "unet/config.json": b"{}", "big.safetensors": b"0"}
    found = open_sd(tiny_xl, replace(SDXL, settings=tiny_xl), vae=_unet.fetch_vae("someone/model"))
    assert torch.equal(
        found.vae(torch.float32, CPU).state_dict()["quant_conv.bias"], weights_of(tiny_xl, "vae")["quant_conv.bias"]
    )
    assert not hub.ranges("big.safetensors") and not hub.ranges("unet/config.json")


def test_a_missing_vae_is_reported(hub):
    with pytest.raises(SourceError, match="There is no model someone/none"):
        _unet.fetch_vae("someone/none")


def test_a_model_is_downloaded_from_hugging_face(hub, tiny_xl):
    files = (file for file in tiny_xl.rglob("*") if file.is_file())
    hub.repos["someone/xl"] = {file.relative_to(tiny_xl).as_posix(): file.read_bytes() for file in files}
    model, local = (
        sdxl.Model(sdxl.Config(source=source), CPU, torch.float32) for source in ("someone/xl", str(tiny_xl))
    )
    for part in model.parts:
        found, wanted = model.load(part).state_dict(), local.load(part).state_dict()
        assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
