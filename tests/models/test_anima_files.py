"""Promise: each part of Anima loads bit for bit from any form people have, or is refused in one sentence."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from anima_layout import original_name, rewrite, save_anima, save_files, tiny_parts
from hub_server import running
from original_layout import original_state
from safetensors.torch import load_file, save_file
from tiny import save_sd15

from lorakit.hub import fetch
from lorakit.hub.files import ModelFileError, is_whole
from lorakit.models.files.anima import ANIMA_CONFIG, CLASSES, AnimaFiles, open_anima
from lorakit.models.files.anima_names import RENAMED

CPU = torch.device("cpu")
FORMS = (
    "folder",
    "folder with model_index.json",
    "folder with folders of other names",
    "folder in shards",
    "net. files",
    "bare files",
    "model.diffusion_model. files",
    "adapter apart",
    "adapter apart without prefix",
    "text encoder with a head",
    "VAE with diffusers' names",
    "DiT with the trainer's counters",
    "parts from elsewhere",
)


@pytest.fixture(scope="module")
def parts() -> dict[str, torch.nn.Module]:
    """Tiny modules with random weights."""
    return tiny_parts()


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory) -> Path:
    """The parts as diffusers saves them."""
    return save_anima(tmp_path_factory.mktemp("anima") / "folder", parts)


def opened(files: dict[str, Path]) -> AnimaFiles:
    """The model in single files; the adapter is named only where it has a file of its own."""
    apart = files["text_conditioner"] if files["text_conditioner"] != files["transformer"] else None
    return open_anima(
        files["transformer"], text_encoder=files["text_encoder"], vae=files["vae"], text_conditioner=apart
    )


def alone(source: Path) -> AnimaFiles:
    """A model named by one path."""
    return open_anima(source, text_encoder=None, vae=None, text_conditioner=None)


def written(form: str, parts: dict[str, torch.nn.Module], folder: Path, tmp_path: Path) -> AnimaFiles:
    """The same weights in one of FORMS."""
    from transformers import Qwen3ForCausalLM

    copy = tmp_path / "model"
    if form == "folder":
        return alone(folder)
    if form == "folder with model_index.json":
        shutil.copytree(folder, copy)
        index = json.loads((copy / "modular_model_index.json").read_text())
        plain = {name: value[:2] if isinstance(value, list) else value for name, value in index.items()}
        (copy / "model_index.json").write_text(json.dumps(plain))
        (copy / "modular_model_index.json").unlink()
        return alone(copy)
    if form == "folder with folders of other names":
        shutil.copytree(folder, copy)
        index = json.loads((copy / "modular_model_index.json").read_text())
        index["text_encoder"][2]["subfolder"] = "qwen"
        (copy / "text_encoder").rename(copy / "qwen")
        (copy / "modular_model_index.json").write_text(json.dumps(index))
        assert is_whole(copy)
        (copy / "qwen" / "config.json").rename(tmp_path / "config.json")
        assert not is_whole(copy)
        (tmp_path / "config.json").rename(copy / "qwen" / "config.json")
        return alone(copy)
    if form == "folder in shards":
        shutil.copytree(folder, copy)
        shutil.rmtree(copy / "transformer")
        parts["transformer"].save_pretrained(copy / "transformer", max_shard_size="80KB")
        assert len(list((copy / "transformer").glob("*-of-*.safetensors"))) > 1
        return alone(copy)
    if form == "parts from elsewhere":
        files = save_files(tmp_path, parts)
        with_head = Qwen3ForCausalLM(parts["text_encoder"].config)
        with_head.model.load_state_dict(parts["text_encoder"].state_dict())
        with_head.save_pretrained(copy)
        return open_anima(files["transformer"], text_encoder=copy, vae=folder, text_conditioner=None)
    prefix = {"bare files": "", "model.diffusion_model. files": "model.diffusion_model."}.get(form, "net.")
    files = save_files(tmp_path, parts, prefix=prefix)
    if form.startswith("adapter apart"):
        rewrite(
            files["transformer"], lambda found: {name: t for name, t in found.items() if "llm_adapter." not in name}
        )
        before = "" if form.endswith("without prefix") else "net.llm_adapter."
        files["text_conditioner"] = tmp_path / "adapter.safetensors"
        state = parts["text_conditioner"].state_dict()
        save_file({before + name: tensor.clone() for name, tensor in state.items()}, files["text_conditioner"])
    elif form == "text encoder with a head":
        rewrite(files["text_encoder"], lambda found: {**found, "lm_head.weight": torch.zeros(3, 16)})
    elif form == "VAE with diffusers' names":
        save_file({name: tensor.clone() for name, tensor in parts["vae"].state_dict().items()}, files["vae"])
    elif form == "DiT with the trainer's counters":
        spare = {"net.pos_embedder.seq": torch.arange(9.0), "net.accum_iteration": torch.tensor(7)}
        rewrite(files["transformer"], lambda found: {**found, **spare})
    return opened(files)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two modules have the same weights, bit for bit."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def decides(config: dict) -> dict:
    """A configuration without notes on who wrote it."""
    notes = ("dtype", "bos_token_id", "eos_token_id", "architectures", "transformers_version")
    kept = {name: value for name, value in config.items() if not name.startswith("_") and name not in notes}
    return json.loads(json.dumps(kept))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_loads_bit_for_bit(form, parts, folder, tmp_path):
    files = written(form, parts, folder, tmp_path)
    for name, part in parts.items():
        loaded = getattr(files, name)(torch.float32, CPU)
        assert type(loaded) is type(part) and same(loaded, part), name
        ours, theirs = loaded.config, part.config
        if name == "text_encoder":
            ours, theirs = ours.to_dict(), theirs.to_dict()
        assert decides(ours) == decides(theirs), name
        assert not loaded.training and not any(weight.requires_grad for weight in loaded.parameters())
        assert all(path.is_file() for path in [*files.files(name), *files.settings(name)])
    assert files.scheduler_config()["shift"] == 3.0
    assert len(files.vae_config()["latents_mean"]) == files.transformer_config()["in_channels"] == 16


@pytest.mark.parametrize("form", ["folder", "bare files"])
def test_a_text_parts_answer_depends_on_its_tokenizer_too(form, parts, folder, tmp_path):
    files = written(form, parts, folder, tmp_path)
    assert {path.parent.name for path in files.settings("text_encoder")} == {"text_encoder", "tokenizer"}
    assert {path.parent.name for path in files.settings("text_conditioner")} == {"text_conditioner", "t5_tokenizer"}
    assert [path.name for path in files.settings("vae")] == ["config.json"]


@pytest.mark.parametrize(("layers", "width"), [(1, 32), (5, 16)])
def test_any_depth_and_width_is_measured_from_the_file(layers, width, tmp_path):
    parts = tiny_parts(seed=layers, layers=layers, width=width)
    files = opened(save_files(tmp_path, parts))
    assert files.transformer_config()["num_layers"] == layers
    assert all(same(getattr(files, name)(torch.float32, CPU), part) for name, part in parts.items())


def test_weights_are_converted_and_buffers_stay_exact(parts, folder, tmp_path):
    for files in (alone(folder), opened(save_files(tmp_path, parts))):
        for name, part in parts.items():
            loaded = getattr(files, name)(torch.bfloat16, CPU)
            assert {weight.dtype for weight in loaded.parameters()} == {torch.bfloat16}
            assert same(loaded, type(part).from_pretrained(folder / name, torch_dtype=torch.bfloat16)), name
            exact = dict(part.named_buffers())
            assert all(torch.equal(buffer, exact[key]) for key, buffer in loaded.named_buffers()), name


def test_a_text_encoder_answers_as_the_library_loads_it(parts, folder, tmp_path):
    from transformers import Qwen3Model

    tokens = torch.tensor([[9707, 1879, 11]])
    expected = Qwen3Model.from_pretrained(folder / "text_encoder")(tokens).last_hidden_state
    for files in (alone(folder), opened(save_files(tmp_path, parts))):
        assert torch.equal(files.text_encoder(torch.float32, CPU)(tokens).last_hidden_state, expected)


def test_a_modular_repository_is_downloaded_and_then_cached(parts, folder, monkeypatch, tmp_path):
    with running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        content = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        hub.repos["someone/Anima-Diffusers"] = {**content, "README.md": b"#", "other.safetensors": b"not needed"}
        fetched = fetch("someone/Anima-Diffusers", tmp_path / "hub")
        names = {path.relative_to(fetched).as_posix() for path in fetched.rglob("*") if path.is_file()}
        assert names == set(content)
        assert same(alone(fetched).transformer(torch.float32, CPU), parts["transformer"])
        hub.asked.clear()
        assert fetch("someone/Anima-Diffusers", tmp_path / "hub") == fetched and hub.asked == []
        shutil.rmtree(fetched / "text_conditioner")
        assert fetch("someone/Anima-Diffusers", tmp_path / "hub") == fetched and hub.asked
    assert same(alone(fetched).text_conditioner(torch.float32, CPU), parts["text_conditioner"])
    assert fetch(str(folder)) == folder


def test_diffusers_own_pipeline_reads_the_same_folder(folder):
    from diffusers import ModularPipeline

    pipeline = ModularPipeline.from_pretrained(str(folder))
    pipeline.load_components(names=[*CLASSES])
    files = alone(folder)
    assert all(same(getattr(pipeline, name), getattr(files, name)(torch.float32, CPU)) for name in CLASSES)


# ---- true size -------------------------------------------------------------------------------------------------------

ATTENTION = ("q_proj", "k_proj", "v_proj", "q_norm", "k_norm")
TRUE_TRANSFORMER = [
    "x_embedder.proj.1.weight",
    "t_embedder.1.linear_1.weight",
    "t_embedder.1.linear_2.weight",
    "t_embedding_norm.weight",
    "final_layer.linear.weight",
    "final_layer.adaln_modulation.1.weight",
    "final_layer.adaln_modulation.2.weight",
    *(
        f"blocks.{i}.{name}.weight"
        for i in range(28)
        for name in (
            *(
                f"{attention}.{each}"
                for attention in ("self_attn", "cross_attn")
                for each in (*ATTENTION, "output_proj")
            ),
            *(f"adaln_modulation_{each}.{j}" for each in ("self_attn", "cross_attn", "mlp") for j in (1, 2)),
            "mlp.layer1",
            "mlp.layer2",
        )
    ),
]
TRUE_CONDITIONER = [
    *(f"llm_adapter.{name}" for name in ("embed.weight", "out_proj.weight", "out_proj.bias", "norm.weight")),
    *(
        f"llm_adapter.blocks.{i}.{name}"
        for i in range(6)
        for name in (
            *(f"{each}.{name}.weight" for each in ("self_attn", "cross_attn") for name in (*ATTENTION, "o_proj")),
            *(f"norm_{each}.weight" for each in ("self_attn", "cross_attn", "mlp")),
            *(f"mlp.{j}.{each}" for j in (0, 2) for each in ("weight", "bias")),
        )
    ),
]


def true_parts() -> dict[str, torch.nn.Module]:
    """The parts in their true size, without memory for weights."""
    import diffusers
    from accelerate import init_empty_weights
    from transformers import Qwen3Config, Qwen3Model

    shown = {name: json.loads((ANIMA_CONFIG / name / "config.json").read_text()) for name in CLASSES}
    with init_empty_weights():
        made = {
            name: getattr(diffusers, CLASSES[name]).from_config(shown[name]) for name in CLASSES if "enc" not in name
        }
        return made | {"text_encoder": Qwen3Model(Qwen3Config.from_dict(shown["text_encoder"]))}


def save_hollow(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A .safetensors of bfloat16 zeros that takes no room on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def test_the_true_names_convert_to_the_libraries_names():
    true = true_parts()
    originals = {"transformer": TRUE_TRANSFORMER, "text_conditioner": TRUE_CONDITIONER}
    assert len(TRUE_TRANSFORMER) == 567 and len(TRUE_CONDITIONER) == 118  # as counted in the released file
    for name in ("text_encoder", "vae"):
        originals[name] = [original_name(name, own) for own in true[name].state_dict()]
    assert len(originals["text_encoder"]) == 310 and len(originals["vae"]) == 194
    for name, names in originals.items():
        renamed = RENAMED[name](names)
        assert renamed.keys() == true[name].state_dict().keys()
        assert all(original_name(name, own) == file for own, file in renamed.items())


def test_files_of_true_size_are_measured_as_the_released_model(tmp_path):
    true = true_parts()
    shapes = {
        name: {original_name(name, own): tuple(tensor.shape) for own, tensor in part.state_dict().items()}
        for name, part in true.items()
    }
    dit = {f"net.{key}": shape for name in ("transformer", "text_conditioner") for key, shape in shapes[name].items()}
    assert dit["net.x_embedder.proj.1.weight"] == (2048, 68) and dit["net.llm_adapter.embed.weight"] == (32128, 1024)
    files = open_anima(
        save_hollow(tmp_path / "dit.safetensors", dit),
        text_encoder=save_hollow(tmp_path / "qwen.safetensors", shapes["text_encoder"]),
        vae=save_hollow(tmp_path / "vae.safetensors", shapes["vae"]),
        text_conditioner=None,
    )
    for name in CLASSES:
        shown = json.loads((ANIMA_CONFIG / name / "config.json").read_text())
        assert json.loads(json.dumps(files._parts[name].config)) == shown
        assert files._parts[name].names.keys() == true[name].state_dict().keys()


# ---- tokenizers ------------------------------------------------------------------------------------------------------


def test_the_tokenizers_in_the_package_are_those_of_qwen3_and_t5(parts, tmp_path):
    files = opened(save_files(tmp_path, parts))
    qwen, t5 = files.tokenizer(), files.t5_tokenizer()
    assert qwen("Hello world").input_ids == [9707, 1879] and qwen("").input_ids == []
    assert qwen("Hello, my name is").input_ids == [9707, 11, 847, 829, 374]
    assert len(qwen) == 151669 and qwen.pad_token_id == 151643 and qwen.padding_side == "right"
    marks = qwen("<|im_start|><|im_end|></think>").input_ids
    assert marks == [151644, 151645, 151668] and qwen.decode(marks, skip_special_tokens=True) == "</think>"
    sentence = "translate English to German: The house is wonderful."
    assert t5(sentence).input_ids == [13959, 1566, 12, 2968, 10, 37, 629, 19, 1627, 5, 1]
    assert t5("Hello world").input_ids == [8774, 296, 1] and t5("").input_ids == [1]
    assert len(t5) == 32100 and t5.pad_token_id == 0 and t5("<extra_id_0>").input_ids == [32099, 1]
    assert len(t5("house " * 700).input_ids) == 701  # nothing is cut unless that is asked for
    text = "1girl, @artist, 日本語 ünïcödé 🦊 long_hair"
    assert qwen.decode(qwen(text).input_ids) == text


def test_a_folders_own_tokenizers_answer_as_those_in_the_package(parts, folder, tmp_path):
    theirs, ours = alone(folder), opened(save_files(tmp_path, parts))
    texts = ["Hello world", "", "1girl, 日本 Ａ\n\nb  c <extra_id_0> </s> <|im_end|>"]
    assert theirs.tokenizer()(texts).input_ids == ours.tokenizer()(texts).input_ids
    assert theirs.t5_tokenizer()(texts).input_ids == ours.t5_tokenizer()(texts).input_ids


# ---- refusals --------------------------------------------------------------------------------------------------------


def refusal(*paths: Path | None) -> str:
    """The sentence that source, text encoder, VAE and adapter are refused with, when opened or loaded."""
    source, text_encoder, vae, conditioner = (*paths, *[None] * (4 - len(paths)))
    with pytest.raises(ModelFileError) as refused:
        files = open_anima(source, text_encoder=text_encoder, vae=vae, text_conditioner=conditioner)
        for name in CLASSES:
            getattr(files, name)(torch.float32, CPU)
    shown = str(refused.value)
    assert len(shown.splitlines()) == 1
    return shown


def test_a_dit_alone_names_what_is_missing_and_where_it_is(parts, tmp_path):
    files = save_files(tmp_path, parts)
    shown = refusal(files["transformer"])
    assert "text_encoder, such as circlestone-labs/Anima/split_files/text_encoders/qwen_3_06b_base.safetensors" in shown
    assert "vae, such as circlestone-labs/Anima/split_files/vae/qwen_image_vae.safetensors" in shown
    assert "text_conditioner" not in shown
    rewrite(files["transformer"], lambda found: {name: t for name, t in found.items() if "llm_adapter." not in name})
    shown = refusal(files["transformer"], files["text_encoder"], files["vae"])
    assert "without LLM adapter" in shown and "text_conditioner, such as" in shown and "text_encoder" not in shown


def test_a_file_in_the_wrong_place_is_named(parts, folder, tmp_path):
    files = save_files(tmp_path, parts)
    dit, qwen, vae = files["transformer"], files["text_encoder"], files["vae"]
    assert f"{qwen} is a Qwen3 text encoder; for the transformer expected was an Anima DiT" in refusal(qwen, dit, vae)
    assert f"{vae} is a Qwen-Image VAE (of Anima); for the text_encoder" in refusal(dit, vae, qwen)
    assert f"{qwen} is a Qwen3 text encoder; for the vae" in refusal(dit, qwen, qwen)
    assert f"{vae} is a Qwen-Image VAE (of Anima); for the text_conditioner" in refusal(dit, qwen, vae, vae)
    lora, other = tmp_path / "lora.safetensors", tmp_path / "sd15.safetensors"
    save_file({"diffusion_model.blocks.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 2)}, lora)
    assert "is a LoRA (an adapter, not a base model)" in refusal(lora, qwen, vae)
    save_file(original_state(save_sd15(tmp_path / "sd15")), other)
    assert "is a Stable Diffusion 1.x checkpoint" in refusal(other, qwen, vae)
    assert "There is no file or folder" in refusal(tmp_path / "none.safetensors", qwen, vae)
    assert "holds a StableDiffusionPipeline with" in refusal(tmp_path / "sd15")
    shown = refusal(dit, folder / "vae", vae)
    assert f"{folder / 'vae'} holds AutoencoderKLQwenImage; for the text_encoder expected was Qwen3Model" in shown


def test_damaged_files_are_refused(parts, folder, tmp_path):
    files = save_files(tmp_path, parts)
    dit, qwen, vae = files["transformer"], files["text_encoder"], files["vae"]
    whole = dit.read_bytes()
    dit.write_bytes(whole[:-1])
    assert "is truncated" in refusal(dit, qwen, vae)
    dit.write_bytes(b"<!doctype html>")
    assert "but a web page" in refusal(dit, qwen, vae)
    dit.write_bytes(b"GGUF" + bytes(100))
    assert "a GGUF file" in refusal(dit, qwen, vae)
    dit.write_bytes(whole)
    rewrite(dit, lambda found: {name: tensor for name, tensor in found.items() if "1.mlp.layer2" not in name})
    assert "1 are missing, such as transformer_blocks.1.ff.net.2.weight" in refusal(dit, qwen, vae)
    rewrite(
        dit,
        lambda found: {
            **found,
            "net.blocks.0.surprise": torch.zeros(1),
            "net.blocks.1.mlp.layer2.weight": torch.zeros(32, 64),
        },
    )
    assert "1 are unknown, such as transformer_blocks.0.surprise" in refusal(dit, qwen, vae)
    rewrite(dit, lambda found: {name: tensor for name, tensor in found.items() if not name.startswith("net.final")})
    assert "cannot be measured" in refusal(dit, qwen, vae)


def test_weights_in_8_bits_are_refused(parts, tmp_path):
    files = save_files(tmp_path, parts)
    dit, qwen, vae = files["transformer"], files["text_encoder"], files["vae"]
    plain = load_file(dit)
    save_file({name: tensor.to(torch.float8_e4m3fn) for name, tensor in plain.items()}, dit)
    assert "8 bits or fewer" in refusal(dit, qwen, vae)
    save_file({**plain, "net.blocks.0.mlp.layer1.scale_weight": torch.ones(1)}, dit)
    assert "8 bits or fewer" in refusal(dit, qwen, vae)


def test_parts_of_different_models_are_refused(parts, tmp_path):
    files = save_files(tmp_path / "one", parts)
    wide = save_files(tmp_path / "wide", tiny_parts(width=32))
    shown = refusal(files["transformer"], wide["text_encoder"], files["vae"])
    assert "The text encoder has 32 channels, the text conditioner takes 16" in shown
    shown = refusal(files["transformer"], files["text_encoder"], files["vae"], wide["transformer"])
    assert "The text conditioner has 32 channels, the transformer takes 16" in shown


def test_a_folder_without_a_part_names_the_part_and_its_origin(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "model")
    index = json.loads((copy / "modular_model_index.json").read_text())
    index["text_encoder"][2]["pretrained_model_name_or_path"] = "Qwen/Qwen3-0.6B-Base"
    (copy / "modular_model_index.json").write_text(json.dumps(index))
    shutil.rmtree(copy / "text_encoder")
    assert "no folder text_encoder" in refusal(copy) and "from Qwen/Qwen3-0.6B-Base" in refusal(copy)
    shutil.rmtree(copy / "t5_tokenizer")
    shutil.copytree(folder / "text_encoder", copy / "text_encoder")
    assert "no folder t5_tokenizer" in refusal(copy)
    shutil.copytree(folder / "t5_tokenizer", copy / "t5_tokenizer")
    (copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert "lacks weights" in refusal(copy)
    (copy / "modular_model_index.json").write_text("{")
    assert "not readable JSON" in refusal(copy)
