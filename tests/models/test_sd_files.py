"""Promise: each part of a base model loads bit for bit from any form people have, or is refused in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from original_layout import PARTS, SDXL_PARTS, original_names, original_state
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import save_sd15

from lorakit.hub import fetch
from lorakit.hub.header import ITEM_BITS, ModelFileError, verify_safetensors
from lorakit.models.files.sd import open_sd, open_vae
from lorakit.models.files.sd15_names import LAYOUT as SD15
from lorakit.models.files.sdxl_names import LAYOUT as SDXL

CPU = torch.device("cpu")
FORMS = (
    "folder",
    "fp16 folder",
    "sharded folder",
    "bin folder",
    "old names folder",
    "single file",
    "NAI form",
    "ckpt",
    "old ckpt",
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A diffusers folder with random weights."""
    return save_sd15(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def single(tiny, tmp_path_factory) -> Path:
    """The same weights as one file of the original layout."""
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    save_file(original_state(tiny), path)
    return path


def parts_of(folder: Path) -> tuple[str, ...]:
    """The parts with weights in a folder of SD 1.5 or SDXL."""
    return SDXL_PARTS if (folder / "text_encoder_2").is_dir() else PARTS


def bare(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors under names without the `text_model.` that came and went in transformers."""
    return {name.removeprefix("text_model."): tensor for name, tensor in state.items()}


def weights_of(folder: Path, part: str) -> dict[str, torch.Tensor]:
    """The weights of a part as they lie in a diffusers folder."""
    return bare(load_file(next((folder / part).glob("*.safetensors"))))


def old_name(name: str) -> str:
    """How diffusers called the weights of a VAE's attention when SD 1.5 was published."""
    if name.startswith(("encoder.mid", "decoder.mid")):
        for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
            name = name.replace(f".{new}.", f".{old}.")
    return name


def make_form(form: str, tiny: Path, target: Path) -> Path:
    """The tiny model in one of the FORMS."""
    if "folder" in form:
        shutil.copytree(tiny, target)
        for part in parts_of(tiny):
            file = next((target / part).glob("*.safetensors"))
            weights = load_file(file)
            file.unlink()
            if form == "fp16 folder":
                save_file({n: t.half() for n, t in weights.items()}, file.with_name(f"{file.stem}.fp16.safetensors"))
            elif form == "sharded folder":
                for i in range(3):
                    shard = {name: weights[name] for name in sorted(weights)[i::3]}
                    save_file(shard, file.with_name(f"{file.stem}-0000{i + 1}-of-00003.safetensors"))
            elif form == "old names folder":
                save_file({old_name(name): tensor for name, tensor in weights.items()}, file)
            elif form == "bin folder":
                torch.save(weights, file.with_suffix(".bin"))
            else:
                save_file(weights, file)
                save_file({}, file.with_name(f"{file.stem}.fp16.safetensors"))
        return target
    state = original_state(tiny)
    if form == "NAI form":
        state = {name.replace("transformer.text_model.", "transformer."): tensor for name, tensor in state.items()}
    if "ckpt" in form:
        path = target.with_suffix(".ckpt")
        torch.save({"state_dict": state, "epoch": 3}, path, _use_new_zipfile_serialization=form == "ckpt")
        return path
    save_file(state, target.with_suffix(".safetensors"))
    return target.with_suffix(".safetensors")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("form", FORMS)
def test_every_part_is_equal_bit_for_bit_in_every_form(form, part, tiny, tmp_path):
    check_part(open_sd(make_form(form, tiny, tmp_path / "model"), replace(SD15, settings=tiny)), form, part, tiny)


def check_part(files, form: str, part: str, tiny: Path) -> None:
    """A part has the weights of the tiny model, and nothing else."""
    dtype = torch.float16 if form == "fp16 folder" else torch.float32
    module = getattr(files, part)(dtype, CPU)
    loaded, expected = bare(module.state_dict()), weights_of(tiny, part)
    assert loaded.keys() == expected.keys()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, expected[name].to(dtype)), name
    assert not module.training and not any(weight.requires_grad for weight in module.parameters())
    assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
    assert all(file.is_file() for file in files.files(part))


@pytest.mark.parametrize("part", ("unet", "vae"))
def test_single_files_load_as_diffusers_loads_them(part, tiny, single):
    import diffusers

    kind = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}[part]
    reference = kind.from_single_file(str(single), config=str(tiny), subfolder=part, local_files_only=True).state_dict()
    ours = getattr(open_sd(single, replace(SD15, settings=tiny)), part)(torch.float32, CPU).state_dict()
    assert ours.keys() == reference.keys() and all(torch.equal(ours[name], reference[name]) for name in reference)


def test_loaded_parts_compute_the_same_as_diffusers(tiny):
    from diffusers import StableDiffusionPipeline

    pipeline, files = StableDiffusionPipeline.from_pretrained(tiny), open_sd(tiny, SD15)
    ids = pipeline.tokenizer(["red hair, smile"], return_tensors="pt").input_ids
    assert torch.equal(files.tokenizer()(["red hair, smile"], return_tensors="pt").input_ids, ids)
    context = pipeline.text_encoder(ids).last_hidden_state
    assert torch.equal(files.text_encoder(torch.float32, CPU)(ids).last_hidden_state, context)
    latents, t = torch.linspace(-1, 1, 256).reshape(1, 4, 8, 8), torch.tensor([500])
    prediction = pipeline.unet(latents, t, context).sample
    assert torch.equal(files.unet(torch.float32, CPU)(latents, t, context).sample, prediction)
    assert torch.equal(files.vae(torch.float32, CPU).decode(latents).sample, pipeline.vae.decode(latents).sample)


def test_asking_for_one_part_does_not_read_another(tiny, tmp_path):
    folder = make_form("folder", tiny, tmp_path / "model")
    for part in ("vae", "text_encoder"):
        shutil.rmtree(folder / part)
    assert open_sd(folder, SD15).unet(torch.float32, CPU).dtype == torch.float32


def test_weights_of_the_right_dtype_are_the_file_and_not_a_copy_of_it(single, tiny):
    """A view of the file starts where its header says; a copy would start where the allocator likes."""
    weights = open_sd(single, replace(SD15, settings=tiny)).unet(torch.float32, CPU).state_dict()
    header = verify_safetensors(single)
    config = json.loads((tiny / "unet" / "config.json").read_text())
    starts = {n: header[o]["data_offsets"][0] for n, o in original_names("unet", config, list(weights)).items()}
    bases = {weights[name].data_ptr() - start for name, start in starts.items()}
    assert len(bases) == 1


@pytest.mark.parametrize(("mark", "shown"), ((None, "epsilon"), ("v_pred", "v_prediction")))
def test_a_file_marked_as_v_prediction_is_read_as_such(mark, shown, single, tiny, tmp_path):
    state = load_file(single) | ({mark: torch.tensor([])} if mark else {})
    save_file(state, tmp_path / "v.safetensors")
    config = open_sd(tmp_path / "v.safetensors", replace(SD15, settings=tiny)).scheduler_config()
    assert config["prediction_type"] == shown and config["beta_end"] == 0.012
    save_file(state | {"ztsnr": torch.tensor([])}, tmp_path / "z.safetensors")
    assert (
        open_sd(tmp_path / "z.safetensors", replace(SD15, settings=tiny)).scheduler_config()["rescale_betas_zero_snr"]
        is True
    )


def test_a_diffusers_folder_has_its_own_prediction_type(tmp_path):
    folder = save_sd15(tmp_path, prediction_type="v_prediction")
    assert open_sd(folder, SD15).scheduler_config()["prediction_type"] == "v_prediction"
    assert open_sd(folder, SD15).vae_config()["scaling_factor"] == 0.18215


def test_the_bundled_vocabulary_is_that_of_clip():
    tokenizer = open_sd_tokenizer()
    assert len(tokenizer) == 49408 and tokenizer.model_max_length == 77 and tokenizer.pad_token_id == 49407
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("A Photo  of a CAT").input_ids == tokenizer("a photo of a cat").input_ids
    assert tokenizer("").input_ids == [49406, 49407]


def open_sd_tokenizer():
    """The tokenizer that single files get."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(SD15.settings / "tokenizer")


# ---- what is refused -------------------------------------------------------------------------------------------------


def damage(path: Path, how: str) -> None:
    """Makes a whole file into one that people really have."""
    data = path.read_bytes()
    length = 8 + struct.unpack("<Q", data[:8])[0]
    path.write_bytes(
        {
            "empty": b"",
            "three bytes": data[:3],
            "cut in the header": data[: length // 2],
            "cut in the data": data[:-1000],
            "too long": data + b"\0" * 16,
            "zeroed": b"\0" * len(data),
            "header garbage": data[:8] + b"\xff" * (length - 8) + data[length:],
            "no header at all": struct.pack("<Q", 4) + b"null" + data,
            "HTML": b"<!DOCTYPE html><html><body>Sign in</body></html>",
            "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4265146304\n",
            "renamed ckpt": b"PK\x03\x04" + data,
        }[how]
    )


DAMAGES = {
    "empty": "is empty (0 bytes)",
    "three bytes": "does not begin like",
    "cut in the header": "truncated inside its header",
    "cut in the data": "is truncated:",
    "too long": "longer than it should be",
    "zeroed": "does not begin like",
    "header garbage": "no readable .safetensors header",
    "no header at all": "no readable .safetensors header",
    "HTML": "a web page",
    "LFS pointer": "git lfs pull",
    "renamed ckpt": "suffix .ckpt",
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_is_refused_in_one_sentence(how, single, tiny, tmp_path):
    path = shutil.copy(single, tmp_path / "broken.safetensors")
    damage(path, how)
    for read in (verify_safetensors, lambda path: open_sd(path, SD15), lambda path: fetch(str(path))):
        with pytest.raises(ModelFileError) as refused:
            read(path)
        assert DAMAGES[how] in str(refused.value) and "broken.safetensors" in str(refused.value)
        assert len(str(refused.value).splitlines()) == 1


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
CRAFTED = {
    "deep nesting": "[" * 200_000,
    "a list": [1],
    "an entry that is a list": {"a": [1]},
    "offsets in words": {"a": ENTRY | {"data_offsets": "08"}},
    "offsets as text": {"a": ENTRY | {"data_offsets": ["0", "8"]}},
    "three offsets": {"a": ENTRY | {"data_offsets": [0, 8, 8]}},
    "offsets below zero": {"a": ENTRY, "b": ENTRY | {"data_offsets": [-8, 0]}},
    "no shape": {"a": {"dtype": "F32", "data_offsets": [0, 8]}},
    "a shape that is no list": {"a": {"dtype": "F64", "shape": {}, "data_offsets": [0, 8]}},
    "a shape in words": {"a": ENTRY | {"shape": "x"}},
    "a shape of text": {"a": ENTRY | {"shape": ["2"]}},
    "a shape with a fraction": {"a": ENTRY | {"shape": [2.0]}},
    "a shape below zero": {"a": ENTRY | {"shape": [-1, -2]}},
    "a number as dtype": {"a": ENTRY | {"dtype": 5}},
    "a shape of another size": {"a": ENTRY | {"shape": [3]}},
    "an unknown dtype": {"a": ENTRY, "b": {"dtype": "X", "shape": [], "data_offsets": [8, 8]}},
    "an overlap": {"a": ENTRY, "b": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}},
    "the same bytes twice": {"a": ENTRY, "b": ENTRY},
    "a hole at the start": {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
    "a hole": {name: {"dtype": "U8", "shape": [2], "data_offsets": [at, at + 2]} for name, at in (("a", 0), ("b", 6))},
    "a tensor of a hundred dimensions": {"a": ENTRY | {"shape": [2] + [1] * 100}},
    "elements beyond any number": {"a": ENTRY | {"shape": [10**9] * 8}},
    "a name twice": f'{{"a": {json.dumps(ENTRY)}, "a": {json.dumps(ENTRY)}}}',
    "half a character as name": {"\ud800": ENTRY},
    "numbers in the metadata": {"a": ENTRY, "__metadata__": {"step": 5}},
    "metadata null": {"a": ENTRY, "__metadata__": None},
}


def save_crafted(path: Path, header: str | dict | list) -> Path:
    """A file with this header and 8 bytes of data."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 8)
    return path


@pytest.mark.parametrize("how", CRAFTED)
def test_a_crafted_header_is_refused_in_one_sentence(how, tmp_path):
    with pytest.raises(ModelFileError, match="model.safetensors has no readable .safetensors header"):
        verify_safetensors(save_crafted(tmp_path / "model.safetensors", CRAFTED[how]))


@pytest.mark.parametrize("dtype", ITEM_BITS)
def test_a_header_of_every_type_that_the_library_knows_is_read_in_any_order(dtype, tmp_path):
    entry = {"dtype": dtype, "shape": [32 // ITEM_BITS[dtype] or 0, 1], "data_offsets": [0, 0]}
    entry["data_offsets"] = [4, 4 + entry["shape"][0] * ITEM_BITS[dtype] // 8]
    if ITEM_BITS[dtype] == 6:
        entry |= {"shape": [4, 1], "data_offsets": [4, 7]}
    end = entry["data_offsets"][1]
    rest = {"a": {"dtype": "U8", "shape": [8 - end], "data_offsets": [end, 8]}, "__metadata__": {"format": "pt"}}
    header = {"b": entry, **rest, "c": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    path = save_crafted(tmp_path / "model.safetensors", header)
    assert verify_safetensors(path) == header
    with safe_open(path, "np") as opened:
        assert set(opened.keys()) == header.keys() - {"__metadata__"}


def test_a_pipe_and_a_folder_are_refused_as_a_file_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    for name, what in (("pipe", "a pipe"), ("folder", "a folder")):
        with pytest.raises(ModelFileError, match=f"{name}.safetensors is {what}"):
            verify_safetensors(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize("how", ("empty", "cut", "garbage", "HTML", "code inside"))
def test_a_damaged_or_dangerous_ckpt_is_refused_in_one_sentence(how, tiny, tmp_path):
    path = make_form("ckpt", tiny, tmp_path / "model")
    data = path.read_bytes()
    if how == "code inside":
        torch.save({"state_dict": original_state(tiny), "callbacks": subprocess.Popen}, path)
    else:
        path.write_bytes({"empty": b"", "cut": data[:-5000], "garbage": b"\x01\x02" * 500, "HTML": b"<html>"}[how])
    with pytest.raises(ModelFileError, match="model.ckpt"):
        open_sd(path, replace(SD15, settings=tiny))


FOREIGN = {
    "a LoRA": ["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"],
    "a Stable Diffusion XL": ["model.diffusion_model.input_blocks.0.0.weight", "conditioner.embedders.0.transformer.x"],
    "a Stable Diffusion XL refiner": [
        "model.diffusion_model.input_blocks.0.0.weight",
        "conditioner.embedders.0.model.ln_final.bias",
    ],
    "an SDXL diffusion model without text encoders": [
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.label_emb.0.0.weight",
    ],
    "an SDXL derivative with EDM's noise": ["edm_mean", "conditioner.embedders.0.transformer.x"],
    "a Stable Diffusion 2": ["model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.model.ln_final.bias"],
    "a VAE alone": ["encoder.conv_in.weight", "decoder.conv_in.weight", "quant_conv.weight"],
    "one part of a diffusers folder": ["conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"],
    "a textual inversion": ["emb_params"],
    "a ControlNet": ["control_model.input_blocks.0.0.weight"],
    "no model known here": ["layers.0.weight"],
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_another_kind_of_file_is_named_and_refused(kind, tmp_path):
    save_file({name: torch.zeros(2) for name in FOREIGN[kind]}, tmp_path / "other.safetensors")
    with pytest.raises(ModelFileError, match=f"other.safetensors is {kind}.*expected was a Stable Diffusion 1.x"):
        open_sd(tmp_path / "other.safetensors", SD15)


@pytest.mark.parametrize(
    ("change", "shown"),
    (
        (lambda state: state.pop("model.diffusion_model.out.2.bias"), "1 are missing, such as conv_out.bias"),
        (
            lambda state: state.update({"model.diffusion_model.extra": torch.zeros(3)}),
            "such as model.diffusion_model.extra",
        ),
        (lambda state: state.update({"model.diffusion_model.out.2.bias": torch.zeros(9)}), r"conv_out.bias is \(9,\)"),
    ),
)
def test_missing_unknown_and_misshapen_weights_are_reported(change, shown, single, tiny, tmp_path):
    state = load_file(single)
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ModelFileError, match=shown):
        open_sd(tmp_path / "model.safetensors", replace(SD15, settings=tiny)).unet(torch.float32, CPU)


def test_a_folder_that_lacks_a_shard_or_is_of_another_family_is_refused(tiny, tmp_path):
    folder = make_form("sharded folder", tiny, tmp_path / "model")
    next((folder / "unet").glob("*-00002-*")).unlink()
    with pytest.raises(ModelFileError, match="unet lacks weights"):
        open_sd(folder, SD15).unet(torch.float32, CPU)
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "StableDiffusionXLPipeline", "text_encoder_2": ["transformers", "CLIPTextModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelFileError, match="StableDiffusionXLPipeline"):
        open_sd(folder, SD15)


HINTS = {  # tensors of a file -> the family that trains on it
    "sdxl": FOREIGN["a Stable Diffusion XL"],
    "sd15": ["model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.transformer.x"],
    "anima": ["model.diffusion_model.blocks.0.adaln_modulation_self_attn.1.weight"],
}


@pytest.mark.parametrize("family", HINTS)
def test_the_file_of_another_family_comes_with_the_family_to_set(family, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({name: torch.zeros(2) for name in HINTS[family]}, path)
    layout = SDXL if family == "sd15" else SD15
    with pytest.raises(ModelFileError, match=rf"To train on it set model\.family={family}\.$"):
        open_sd(path, layout)
    if family != "sd15":
        with pytest.raises(ModelFileError, match="or a diffusers folder.$"):
            open_vae(path, SD15)


@pytest.mark.parametrize("name", ("decoder.middle.0.residual.0.gamma", "decoder.mid_block.resnets.0.norm1.gamma"))
def test_the_vae_of_anima_is_refused_at_once(name, tmp_path):
    save_file({name: torch.zeros(2), "encoder.conv1.weight": torch.zeros(2)}, tmp_path / "vae.safetensors")
    with pytest.raises(ModelFileError, match=r"vae.safetensors is a Qwen-Image VAE \(of Anima\); expected was a VAE"):
        open_vae(tmp_path / "vae.safetensors", SDXL)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKLQwenImage", "z_dim": 16}')
    with pytest.raises(ModelFileError, match=r"holds AutoencoderKLQwenImage \(of Anima\); as the VAE of a Stable"):
        open_vae(tmp_path, SDXL)


def test_a_folder_of_another_family_comes_with_the_family_to_set(tiny, tmp_path):
    with pytest.raises(ModelFileError) as refused:
        open_sd(tiny, SDXL)
    assert str(refused.value).endswith(
        "holds a StableDiffusionPipeline with text_encoder, unet; expected was a Stable Diffusion XL model with "
        "text_encoder, text_encoder_2, unet. To train on it set model.family=sd15."
    )
    (tmp_path / "modular_model_index.json").write_text('{"_class_name": "AnimaModularPipeline"}')
    with pytest.raises(ModelFileError, match=r"holds a AnimaModularPipeline.*set model\.family=anima\.$"):
        open_sd(tmp_path, SD15)
