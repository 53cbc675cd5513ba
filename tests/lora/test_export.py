"""Exported files: kohya's form, true numbers, proved; a plain diffusers pipeline reads them and generates the same."""

from __future__ import annotations

import json
import logging
import re
import warnings
from base64 import b64decode
from dataclasses import fields, replace
from datetime import datetime
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import diffusers
import numpy as np
import pytest
import tiny
import torch
import transformers
from diffusers import DiffusionPipeline, ModularPipeline, StableDiffusionPipeline
from original_layout import original_state
from packaging.version import Version
from peft.tuners.lora import LoraLayer
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from lorakit import api, events, models
from lorakit.cli import main
from lorakit.events import Sampled, Saved
from lorakit.lora import export
from lorakit.lora.adapter import Adapter, AdapterConfig
from lorakit.lora.hashes import front
from lorakit.models import sd15
from lorakit.models.files.marks import key_layouts
from lorakit.project import Project
from lorakit.run.checkpoint import SaveConfig
from lorakit.run.config import configure
from lorakit.run.create import save_config
from lorakit.run.stages import stages
from lorakit.training.loop import train
from lorakit.training.metadata import DETAILS, Origin, base_hashes, base_name, metadata

PARTS = {"unet": ["unet"], "unet and text encoder": ["unet", "text_encoder"]}
LOOK = {"width": 64, "height": 64, "steps": 3, "guidance_scale": 4.0, "sampler": "ddim", "seed": 11}
PROMPT, NEGATIVE = "mofu, girl", "boy"
# transformers 5.6 took `text_model.` out of CLIPTextModel; before 0.41 diffusers fails there on every text encoder key
IS_BROKEN = Version(diffusers.__version__) < Version("0.41") and Version(transformers.__version__) >= Version("5.6")
BROKEN = "this diffusers cannot put any LoRA on the text encoder of this transformers"
reads_text_encoders = pytest.mark.skipif(IS_BROKEN, reason=BROKEN)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        yield tiny.save_sd15(root / "secretfolder" / "base-v1")


def trained(base: Path, parts: list[str], *, rank: int = 4, alpha: float = 3, scale: float = 0.2):
    """A model with an adapter that holds random weights; rank and alpha differ."""
    model = sd15.Model(sd15.Config(source=str(base)), torch.device("cpu"), torch.float32)
    return model, random_adapter(model, parts, rank=rank, alpha=alpha, scale=scale)


def random_adapter(model, parts: list[str], *, rank: int = 4, alpha: float = 3, scale: float = 0.2) -> Adapter:
    adapter = Adapter(AdapterConfig(rank=rank, alpha=alpha), model, parts, 1)
    generator = torch.Generator().manual_seed(2)
    adapter.load({name: scale * torch.randn(w.shape, generator=generator) for name, w in adapter.weights().items()})
    return adapter


@pytest.fixture(scope="module")
def both(base):
    return trained(base, PARTS["unet and text encoder"])


def run_of(base: Path, folder: Path, **changes) -> tuple:
    """A short run that has learned something strong, and its events."""
    project = Project(folder)
    tiny.save_images(project.dataset, repeats=2)
    run = project.run("mine")
    changes = {
        "data": {"trigger": "mofu"},
        "adapter": {"rank": 4, "alpha": 3},
        "optimizer": {"learning_rate": 0.2, "text_encoder_lr": 0.2},
        "loop": {"epochs": 1, "batch_size": 4, "seed": 5},
        "sample": {"prompts": [PROMPT], "negative_prompt": NEGATIVE, **LOOK},
        **changes,
    }
    save_config(run, configure(tiny.settings(base, **changes)))
    return run, list(train(run))


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    return run_of(base, tmp_path_factory.mktemp("run"), save={"dtype": "fp32"})


# ---- the form --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, kind", (("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)))
def test_a_file_holds_kohyas_names_the_dtype_asked_for_and_the_true_alpha(both, tmp_path, dtype, kind):
    model, adapter = both
    file = tmp_path / "lora.safetensors"
    assert export.write(file, adapter, model, {}, dtype, "kohya") == 66
    tensors = load_file(file)
    modules = {key.partition(".")[0] for key in tensors}
    assert len(modules) == 66 and len(tensors) == 3 * 66
    for name in modules:
        assert re.fullmatch(r"lora_(unet|te_text_model)_[a-z0-9_]+", name)
        down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
        assert down.dtype == up.dtype == kind
        assert down.shape[0] == up.shape[1] == 4
        assert tensors[f"{name}.alpha"].item() == 3 and tensors[f"{name}.alpha"].ndim == 0
    assert tensors["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"].shape == (4, 16, 1, 1)
    assert "lora_te_text_model_encoder_layers_2_mlp_fc1.alpha" in tensors
    assert list(tmp_path.iterdir()) == [file]


def test_whoever_may_read_other_files_may_read_a_lora_file(both, tmp_path):
    (tmp_path / "other").write_text("")
    export.write(tmp_path / "lora.safetensors", *reversed(both), {}, "fp16", "kohya")
    assert (tmp_path / "lora.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_alpha_0_is_written_as_the_rank_it_means(base, tmp_path):
    model, adapter = trained(base, ["unet"], alpha=0)
    export.write(tmp_path / "lora.safetensors", adapter, model, {}, "fp16", "kohya")
    alphas = {t.item() for name, t in load_file(tmp_path / "lora.safetensors").items() if name.endswith("alpha")}
    assert alphas == {4}


@pytest.mark.parametrize("dtype", ("fp16", "bf16", "fp32"))
def test_a_files_change_is_the_trained_one_in_every_module(both, tmp_path, dtype):
    model, adapter = both
    file = tmp_path / "lora.safetensors"
    export.write(file, adapter, model, {}, dtype, "kohya")
    tensors = load_file(file)
    rounding = {"fp16": 1e-3, "bf16": 1e-2, "fp32": 1e-6}[dtype]
    for part, module in adapter.layers:
        name = model.names(part, module)["kohya"]
        down, up = (tensors[f"{name}.lora_{side}.weight"].float() for side in ("down", "up"))
        change = tensors[f"{name}.alpha"].item() / 4 * (up.flatten(1) @ down.flatten(1))
        expected = adapter.delta(part, module).flatten(1)
        assert (change - expected).abs().max() <= rounding * expected.abs().max(), module


def test_a_file_in_fp32_read_back_is_the_adapter_bit_for_bit(both, tmp_path):
    model, adapter = both
    export.write(tmp_path / "lora.safetensors", adapter, model, {}, "fp32", "kohya")
    found = export.weights(tmp_path / "lora.safetensors", adapter, model)
    own = adapter.weights()
    assert found.keys() == own.keys() and all(torch.equal(found[name], own[name]) for name in own)


# ---- the proof -------------------------------------------------------------------------------------------------------


def corrupted(tensors: dict, change: str) -> dict:
    up = "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"
    name = up.partition(".")[0]
    if change == "one number":
        tensors[up].view(-1)[3] += 0.1
    elif change == "not a number":
        tensors[up].view(-1)[3] = torch.nan
    elif change == "alpha":
        tensors[f"{name}.alpha"] *= 2
    elif change == "swapped":
        other = up.replace("proj_in", "proj_out")
        tensors[up], tensors[other] = tensors[other], tensors[up]
    elif change == "a module is missing":
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(name + ".")}
    elif change == "half a module":
        del tensors[up]
    elif change == "a foreign module":
        tensors |= {
            key.replace(name, "lora_unet_conv_in"): t.clone() for key, t in tensors.items() if key.startswith(name)
        }
    elif change == "another rank":
        tensors[up] = tensors[up][:, :2].contiguous()
    return tensors


@pytest.mark.parametrize(
    "change, reason",
    (
        ("one number", "not the trained one"),
        ("not a number", "not finite"),
        ("alpha", "not the trained one"),
        ("swapped", "not the trained one"),
        ("a module is missing", "holds 65 of 66 modules"),
        ("half a module", "has alpha, down: no complete LoHa, LoKr or LoRA"),
        ("a foreign module", "1 of 67 modules are not in it.*lora_unet_conv_in"),
        ("another rank", "do not multiply to"),
    ),
)
def test_the_proof_finds_what_is_wrong_with_a_file(both, tmp_path, change, reason):
    model, adapter = both
    file = tmp_path / "lora.safetensors"
    export.write(file, adapter, model, {}, "fp16", "kohya")
    assert export.prove(file, adapter, model, "fp16") == 66
    save_file(corrupted(load_file(file), change), file)
    with pytest.raises(export.LoraFileError, match=reason):
        export.prove(file, adapter, model, "fp16")


@pytest.fixture(scope="module")
def anima(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        base = tiny.save_base("anima", tmp_path_factory.mktemp("anima") / "base")
        module = models.family("anima")
        model = module.Model(module.Config(source=str(base)), torch.device("cpu"), torch.float32)
        yield model, random_adapter(model, [model.denoiser], scale=1e-3)  # fp16 has no normal numbers for some


@pytest.mark.parametrize("dtype", ("fp16", "bf16", "fp32"))
@pytest.mark.parametrize("form", ("comfy", "kohya"))
@pytest.mark.parametrize("side", (0, 1))
def test_the_proof_finds_one_number_off_by_a_little_in_every_form(anima, tmp_path, form, dtype, side):
    model, adapter = anima
    file = tmp_path / "lora.safetensors"
    export.write(file, adapter, model, {}, dtype, form)
    tensors = load_file(file)
    start = model.names(*list(adapter.layers)[-1])[form]
    name = [key for key in sorted(tensors) if key.startswith(start) and not key.endswith("alpha")][side]
    tensors[name].view(-1)[tensors[name].abs().argmax()] *= 1 + {"fp16": 2**-9, "bf16": 2**-6, "fp32": 2**-18}[dtype]
    save_file(tensors, file)
    with pytest.raises(export.LoraFileError, match="not the trained one"):
        export.prove(file, adapter, model, dtype)


def test_the_proof_finds_a_wrong_scale_where_a_file_has_no_alpha(anima, tmp_path):
    model, adapter = anima
    file = tmp_path / "lora.safetensors"
    export.write(file, adapter, model, {}, "fp16", "comfy")
    scaled = {key: t / adapter.config.scale if "lora_B" in key else t for key, t in load_file(file).items()}
    save_file(scaled, file)
    with pytest.raises(export.LoraFileError, match="not the trained one"):
        export.prove(file, adapter, model, "fp16")


def test_a_whole_file_of_another_rank_is_not_the_trained_one(both, base, tmp_path):
    model, adapter = both
    file = tmp_path / "lora.safetensors"
    other = trained(base, PARTS["unet and text encoder"], rank=1)
    export.write(file, *reversed(other), {}, "fp16", "kohya")
    with pytest.raises(export.LoraFileError, match="not the trained one"):
        export.prove(file, adapter, model, "fp16")


def test_a_truncated_file_is_refused_in_a_sentence(both, tmp_path):
    model, adapter = both
    file = tmp_path / "lora.safetensors"
    export.write(file, adapter, model, {}, "fp16", "kohya")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(export.LoraFileError, match="is truncated"):
        export.weights(file, adapter, model)


def test_a_file_of_another_alpha_is_refused_on_reading(both, base, tmp_path):
    model, adapter = both
    file = tmp_path / "lora.safetensors"
    export.write(file, *reversed(trained(base, list(PARTS["unet and text encoder"]), alpha=2)), {}, "fp16", "kohya")
    with pytest.raises(export.LoraFileError, match="alpha / rank is 2 / 4, the run's is 0.75"):
        export.weights(file, adapter, model)


@pytest.mark.parametrize(
    "value, dtype", ((torch.nan, "fp32"), (torch.inf, "fp32"), (-torch.inf, "fp16"), (70_000.0, "fp16"))
)
def test_numbers_that_are_not_finite_are_never_written(base, tmp_path, value, dtype):
    model, adapter = trained(base, ["unet"])
    weights = adapter.weights()
    weights["unet.mid_block.attentions.0.proj_in.lora_B.weight"].view(-1)[0] = value
    adapter.load(weights)
    with pytest.raises(export.LoraFileError, match="1 tensors are not finite.*mid_block_attentions_0_proj_in.lora_up"):
        export.write(tmp_path / "lora" / "lora.safetensors", adapter, model, {}, dtype, "kohya")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_does_not_hold_what_was_trained_is_not_left(base, tmp_path):
    class AllAlike(sd15.Model):
        def names(self, part, module):
            return {"kohya": "lora_unet_mid_block_attentions_0_proj_in"}

    model = AllAlike(sd15.Config(source=str(base)), torch.device("cpu"), torch.float32)
    with pytest.raises(export.LoraFileError, match="do not multiply to"):
        export.write(tmp_path / "lora.safetensors", random_adapter(model, ["unet"]), model, {}, "fp16", "kohya")
    assert list(tmp_path.iterdir()) == []


# ---- what a file tells -----------------------------------------------------------------------------------------------


def read_metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata()


def test_a_files_metadata_says_how_it_was_trained(run):
    trained_run, events = run
    header = read_metadata(trained_run.folder / events[-1].lora)
    expected = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "3.0",
        "ss_base_model_version": "sd_v1",
        "ss_sd_model_name": "base-v1",
        "ss_output_name": trained_run.title,
        "ss_unet_lr": "0.2",
        "ss_text_encoder_lr": "0.2",
        "ss_seed": "5",
        "ss_steps": "4",
        "ss_epoch": "1",
        "ss_num_train_images": "14",
        "ss_clip_skip": "1",
        "ss_v2": "False",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": trained_run.title,
        "modelspec.trigger_phrase": "mofu",
        "modelspec.resolution": "64x64",
        "modelspec.prediction_type": "epsilon",
    }
    assert {key: header[key] for key in expected} == expected
    assert header["ss_dataset_dirs"] == '{"2_mofu": {"n_repeats": 2, "img_count": 7}}'
    assert header["ss_reg_dataset_dirs"] == "{}"
    buckets = json.loads(header["ss_bucket_info"])
    assert sum(bucket["count"] for bucket in buckets["buckets"].values()) == 14
    assert buckets["buckets"]["0"] == {"resolution": [64, 64], "count": 12} and buckets["mean_img_ar_error"] < 0.2
    for name, value in {"ss_learning_rate": "0.2", "ss_max_grad_norm": "1.0", "ss_lr_warmup_steps": "0"}.items():
        assert header[name] == value
    tags = json.loads(header["ss_tag_frequency"])["2_mofu"]
    assert tags["mofu"] == tags["girl"] == 7 and tags["red hair"] == 3
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", header["modelspec.date"])


def kohyas_hashes(tensors: dict, metadata: dict[str, str]) -> tuple[str, str]:
    """What sd-scripts' `precalculate_safetensors_hashes` (library/train_util.py) computes: a fact to compare with."""
    whole = save(tensors, {name: text for name, text in metadata.items() if name.startswith("ss_")})
    start = 8 + int.from_bytes(whole[:8], "little")
    return sha256(whole[start:]).hexdigest(), sha256(whole[0x100000:0x110000]).hexdigest()[:8]


@pytest.mark.parametrize("size", (10, 300_000, 600_000))
def test_the_hashes_of_a_file_are_kohyas_and_those_of_modelspec(tmp_path, size):
    generator = torch.Generator().manual_seed(size)
    tensors = {f"a{i}": torch.rand(size, generator=generator) for i in range(2)}
    said = {"ss_output_name": "夏", "ss_steps": "4", "modelspec.title": "x" * 99, "sshs_legacy_hash": "of another file"}
    plain = save(tensors)
    start = 8 + int.from_bytes(plain[:8], "little")
    header = json.loads(plain[8:start]) | {"__metadata__": said}
    file = tmp_path / "lora.safetensors"
    file.write_bytes(front(header, sha256(plain[start:]).hexdigest(), plain[start:]) + plain[start:])
    found = read_metadata(file)
    assert (found["sshs_model_hash"], found["sshs_legacy_hash"]) == kohyas_hashes(tensors, said)
    assert found["modelspec.hash_sha256"] == f"0x{sha256(plain[start:]).hexdigest()}"
    assert all(torch.equal(load_file(file)[name], tensor) for name, tensor in tensors.items())
    # a copy under another name has the same tensors, and the hashes of what it says
    copy = tmp_path / "copy.safetensors"
    export.copy_described(file, copy, {"ss_output_name": "a much longer name"}, ("modelspec.title", "ss_steps"))
    found = read_metadata(copy)
    assert (found["sshs_model_hash"], found["sshs_legacy_hash"]) == kohyas_hashes(tensors, found)
    assert found.keys().isdisjoint({"modelspec.title", "ss_steps"}) and found["ss_output_name"] == "a much longer name"
    assert all(torch.equal(load_file(copy)[name], tensor) for name, tensor in tensors.items())


def test_the_times_of_a_file_are_the_logs_so_it_can_be_written_again(run, base, tmp_path):
    trained_run, logged = run
    header = read_metadata(trained_run.folder / logged[-1].lora)
    log = list(events.read(trained_run.log))
    done = next(time for time, event in log if isinstance(event, events.Stepped) and event.step == 4)
    assert (float(header["ss_training_started_at"]), float(header["ss_training_finished_at"])) == (log[0][0], done)
    assert datetime.fromisoformat(header["modelspec.date"].replace("Z", "+00:00")).timestamp() == int(done)
    model, adapter = trained(base, ["unet"])
    for name in "ab":
        export.write(tmp_path / f"{name}.safetensors", adapter, model, header, "fp16", "kohya")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_base_in_one_file_is_known_by_its_hashes(base, tmp_path, monkeypatch):
    monkeypatch.setattr(sd15.Model, "LAYOUT", replace(sd15.LAYOUT, settings=base))
    file, vae = tmp_path / "anylora.safetensors", tmp_path / "kl.safetensors"
    save_file(original_state(base), file)
    save_file(load_file(base / "vae" / "diffusion_pytorch_model.safetensors"), vae)
    model = sd15.Model(sd15.Config(source=str(file), vae=str(vae)), torch.device("cpu"), torch.float32)
    whole, empty = sha256(file.read_bytes()).hexdigest(), sha256(file.read_bytes()[0x100000:0x110000]).hexdigest()[:8]
    assert base_hashes(model) == {
        "ss_sd_model_hash": empty,
        "ss_new_sd_model_hash": whole,
        "ss_vae_hash": sha256(vae.read_bytes()[0x100000:0x110000]).hexdigest()[:8],
        "ss_new_vae_hash": sha256(vae.read_bytes()).hexdigest(),
        "ss_vae_name": "kl.safetensors",
    }
    assert base_hashes(sd15.Model(sd15.Config(source=str(base)), torch.device("cpu"), torch.float32)) == {}


def test_what_a_copy_says_about_itself_is_chosen_at_export_and_private_details_can_go(run, tmp_path, capsys):
    trained_run, _ = run
    texts = {"author": "me", "description": "a fox\nof two lines", "license": "CC-BY-4.0", "tags": "fox, 狐"}
    plain = read_metadata(api.export(trained_run, to=tmp_path / "plain.safetensors"))
    assert plain.keys().isdisjoint({f"modelspec.{name}" for name in (*texts, "usage_hint", "thumbnail")})
    assert plain.keys() >= set(DETAILS)
    about = {**texts, "usage_hint": "strength 0.8", "thumbnail": True, "dataset_details": False}
    full = read_metadata(api.export(trained_run, to=tmp_path / "full.safetensors", **about))
    assert {name: full[f"modelspec.{name}"] for name in texts} == texts
    assert full["modelspec.title"] == full["ss_output_name"] == "full"
    assert full.keys().isdisjoint(DETAILS)
    with Image.open(BytesIO(b64decode(full["modelspec.thumbnail"].removeprefix("data:image/jpeg;base64,")))) as image:
        assert image.size == (256, 256) and image.format == "JPEG"
    options = ["--run", "mine", "--output", str(tmp_path / "cli.safetensors"), "--set", "save.author=a, b: c"]
    assert main(["export", str(trained_run.project.folder), *options]) == 0
    assert read_metadata(tmp_path / "cli.safetensors")["modelspec.author"] == "a, b: c"
    assert main(["export", str(trained_run.project.folder), "--run", "mine", "--set", "loop.epochs=3"]) == 2
    assert "only save.* settings" in capsys.readouterr().err


def test_the_help_of_the_key_layout_says_who_reads_each(tmp_path):
    (shown,) = (f.metadata["help"] for f in fields(SaveConfig) if f.name == "key_layout")
    for layout in key_layouts():
        assert f"{layout}" in shown
    for host in ("A1111/Forge", "ComfyUI", "sd-scripts", "diffusers"):
        assert host in shown


@pytest.mark.parametrize("family", models.names())
def test_learning_rates_are_written_as_kohyas_tools_do(tmp_path, monkeypatch, family):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = tiny.save_base(family, tmp_path / "base")
    rates = models.config_class(family).rates
    text_rates = [1e-5 * (i + 1) for i in range(len(rates) - 1)]
    learned = dict(zip(rates.values(), [1e-3, *text_rates], strict=True))
    config = configure({"model": {"family": family, "source": str(base)}, "optimizer": learned})
    found = stages(config, tiny.save_images(tmp_path / "project" / "dataset").parent)
    model = models.family(family).Model(config.model, torch.device("cpu"), torch.float32)
    header = metadata(found, model, 1, Origin(title="mine"))
    assert header["ss_unet_lr"] == "0.001"
    assert json.loads(header["ss_text_encoder_lr"]) == (text_rates if len(text_rates) > 1 else text_rates[0])
    assert header["ss_sd_model_name"] == "base" and str(tmp_path) not in json.dumps(header)
    assert all(isinstance(value, str) for value in header.values())


@pytest.mark.parametrize(
    "sampling, expected",
    (
        ("uniform", set()),
        ("sigmoid", {"ss_sigmoid_scale"}),
        ("logit_normal", {"ss_logit_mean", "ss_logit_std"}),
        ("shift", {"ss_sigmoid_scale", "ss_discrete_flow_shift"}),
    ),
)
def test_metadata_has_only_the_timestep_settings_that_were_used(anima, tmp_path, sampling, expected):
    model, _ = anima
    source = {"family": "anima", "source": model.config.source}
    config = configure({"model": source, "loss": {"timestep_sampling": sampling}})
    found = stages(config, tiny.save_images(tmp_path / "project" / "dataset").parent)
    header = metadata(found, model, 1, Origin(title="mine"))
    keys = {key for key in header if re.match("ss_(timestep_sampling|sigmoid|logit|discrete)", key)}
    assert keys == {"ss_timestep_sampling"} | expected


def test_a_file_tells_no_path_and_no_user(run, base):
    trained_run, events = run
    header = json.dumps(read_metadata(trained_run.folder / events[-1].lora))
    folders = {*base.parent.parts, *trained_run.folder.parts, *Path.home().parts} - {"/", "mine", "run", "runs", "base"}
    # the title says project and run
    folders -= {trained_run.project.folder.name}
    assert "secretfolder" in folders
    found = [name for name in folders if re.search(rf"\b{re.escape(name)}\b", header)]
    assert found == []
    assert "/tmp" not in header and '"/' not in header and "\\\\" not in header


@pytest.mark.parametrize(
    "source, name",
    (
        ("/home/alice/models/anylora.safetensors", "anylora.safetensors"),
        ("C:\\Users\\alice\\anylora.safetensors", "anylora.safetensors"),
        ("https://example.org/files/anylora.safetensors?token=secret/1", "anylora.safetensors"),
        ("owner/anylora", "anylora"),
        ("demo", "demo"),
    ),
)
def test_the_name_of_a_base_holds_no_folder_and_no_token(source, name):
    assert base_name(source) == name


# ---- in a plain diffusers pipeline -----------------------------------------------------------------------------------


class Complaints(logging.Handler):
    """Collects what diffusers, transformers and peft complain about, logged or warned."""

    LIBRARIES = ("diffusers", "transformers", "peft")

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    def __enter__(self) -> Complaints:
        for name in self.LIBRARIES:
            logging.getLogger(name).addHandler(self)
        self.caught = warnings.catch_warnings(record=True)
        self.warned = self.caught.__enter__()
        warnings.simplefilter("always")
        return self

    def __exit__(self, *error) -> None:
        self.caught.__exit__(*error)
        for name in self.LIBRARIES:
            logging.getLogger(name).removeHandler(self)
        self.texts += [str(warning.message) for warning in self.warned]


def of_diffusers(base: Path):
    """diffusers' own pipeline of a base, modular or not."""
    if (base / "modular_model_index.json").exists():
        pipeline = ModularPipeline.from_pretrained(str(base))
        # diffusers before 0.40 writes the folder's own path into its index, where a copy of the folder is not found.
        pipeline.load_components(pretrained_model_name_or_path=str(base))
        return pipeline
    return DiffusionPipeline.from_pretrained(base)


def plain_pipeline(base: Path, file: Path | None) -> tuple[StableDiffusionPipeline, list[str]]:
    """diffusers' own pipeline with the file loaded, and what the libraries complained about."""
    pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    with Complaints() as complaints:
        if file:
            pipeline.load_lora_weights(file)
    return pipeline, complaints.texts


def changes(root: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Module -> the change of its weight that a loaded LoRA makes."""
    return {
        name: layer.get_delta_weight(layer.active_adapters[0]).detach()
        for name, layer in root.named_modules()
        if isinstance(layer, LoraLayer)
    }


@pytest.mark.parametrize("parts", ("denoiser", "all parts"))
@pytest.mark.parametrize("family", models.names())
def test_diffusers_loads_every_module_with_the_trained_change(tmp_path, monkeypatch, family, parts):
    module = models.family(family)
    if IS_BROKEN and parts == "all parts" and "text_encoder" in module.Config.rates:
        pytest.skip(BROKEN)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = tiny.save_base(family, tmp_path / "base")
    model = module.Model(module.Config(source=str(base)), torch.device("cpu"), torch.float32)
    adapter = random_adapter(model, list(model.config.rates) if parts == "all parts" else [model.denoiser])
    file = tmp_path / "lora.safetensors"
    export.write(file, adapter, model, {"ss_network_dim": "4"}, "fp32", model.config.key_layouts[0])
    pipeline = of_diffusers(base)
    with Complaints() as complaints:
        pipeline.load_lora_weights(file)
    # to files without text encoder diffusers says "No LoRA keys associated to CLIPTextModel found ... safe to ignore"
    unmatched = [text for text in complaints.texts if "deprecat" not in text and "safe to ignore" not in text]
    assert unmatched == []
    assert not any("safe to ignore" in text for text in complaints.texts) or parts == "denoiser"
    loaded = {
        (part, name): change for part in model.config.rates for name, change in changes(getattr(pipeline, part)).items()
    }
    assert loaded.keys() == adapter.layers.keys()
    for key, change in loaded.items():
        torch.testing.assert_close(change, adapter.delta(*key), rtol=1e-4, atol=1e-6, msg=str(key))


def generated(pipeline: StableDiffusionPipeline) -> np.ndarray:
    trained_run = pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        width=LOOK["width"],
        height=LOOK["height"],
        num_inference_steps=LOOK["steps"],
        guidance_scale=LOOK["guidance_scale"],
        generator=torch.Generator("cpu").manual_seed(LOOK["seed"]),
    ).images[0]
    return np.asarray(trained_run).astype(int)


def sample_of(run, events) -> np.ndarray:
    (sampled,) = [event for event in events if isinstance(event, Sampled)]
    return np.asarray(Image.open(run.folder / sampled.image)).astype(int)


@reads_text_encoders
def test_a_plain_pipeline_generates_the_trainers_own_sample(base, run):
    trained_run, events = run
    sample = sample_of(trained_run, events)
    off = generated(plain_pipeline(base, None)[0])
    assert abs(sample - off).mean() > 5  # the LoRA is plain to see
    on = generated(plain_pipeline(base, trained_run.folder / events[-1].lora)[0])
    assert abs(sample - on).max() <= 1


def test_a_file_in_fp16_of_the_unet_generates_the_sample_within_its_rounding(base, tmp_path):
    trained_run, events = run_of(base, tmp_path, optimizer={"learning_rate": 0.2})
    (saved,) = [event for event in events if isinstance(event, Saved)]
    assert saved.matched == "48"
    sample = sample_of(trained_run, events)
    assert abs(sample - generated(plain_pipeline(base, None)[0])).mean() > 5
    difference = abs(sample - generated(plain_pipeline(base, trained_run.folder / saved.lora)[0]))
    assert difference.mean() < 0.5 and difference.max() <= 8


@pytest.mark.parametrize("prefix", ("", "text_model."))
def test_a_file_is_the_same_whatever_transformers_calls_the_text_encoders_modules(base, tmp_path, prefix):
    model, adapter = trained(base, PARTS["unet and text encoder"])
    export.write(tmp_path / "here.safetensors", adapter, model, {}, "fp16", "kohya")
    renamed = {
        (part, prefix + name.removeprefix("text_model.") if part == "text_encoder" else name): layer
        for (part, name), layer in adapter.layers.items()
    }
    adapter.layers = renamed
    assert export.write(tmp_path / "there.safetensors", adapter, model, {}, "fp16", "kohya") == 66
    assert (tmp_path / "there.safetensors").read_bytes() == (tmp_path / "here.safetensors").read_bytes()
