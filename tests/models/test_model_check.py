"""Promise: `model check` says what each model file is, whether it is whole, and what is missing, from headers alone."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest
import torch
from anima_layout import original_name, rewrite, save_anima, save_files, tiny_parts
from original_layout import original_state
from safetensors.torch import load_file, save_file
from tiny import save_sd15

from lorakit.cli import main
from lorakit.data.cache import Cache
from lorakit.models.files.anima_names import QWEN
from lorakit.models.files.check import ModelFile, check, missing
from lorakit.run.checkpoint import STATE

LORAS = {
    "kohya.safetensors": ("lora_unet_blocks_0_self_attn_q_proj", "lora_down", "lora_up"),
    "comfy.safetensors": ("diffusion_model.blocks.0.self_attn.q_proj", "lora_A", "lora_B"),
}


@pytest.fixture(scope="module")
def parts() -> dict[str, torch.nn.Module]:
    """Tiny modules of Anima with random weights."""
    return tiny_parts()


@pytest.fixture(scope="module")
def zoo(parts, tmp_path_factory) -> Path:
    """A folder like ComfyUI's `models`, with much in it that is whole, and much that is not."""
    folder = tmp_path_factory.mktemp("zoo") / "models"
    save_anima(folder / "diffusers" / "anima", parts)
    save_sd15(folder / "diffusers" / "sd15")
    single = save_files(folder / "anima", parts)
    encoder_of_true_width(single["text_encoder"])
    shutil.copytree(folder / "diffusers" / "anima" / "text_encoder", folder / "qwen folder")
    (folder / "checkpoints").mkdir()
    save_file(original_state(folder / "diffusers" / "sd15"), folder / "checkpoints" / "sd15.safetensors")
    torch.save({"state_dict": original_state(folder / "diffusers" / "sd15")}, folder / "checkpoints" / "sd15.ckpt")
    (folder / "loras").mkdir()
    for name, (module, down, up) in LORAS.items():
        pair = {f"{module}.{down}.weight": torch.zeros(4, 16), f"{module}.{up}.weight": torch.zeros(16, 4)}
        save_file(pair, folder / "loras" / name)
    save_file({"some.tensor": torch.zeros(2)}, folder / "strange.safetensors")
    save_broken(folder / "broken", single["vae"])
    (folder / ".cache").mkdir()
    (folder / ".cache" / "hidden.safetensors").write_bytes(b"not looked at")
    (folder / "notes.txt").write_text("no model")
    (folder / "round").symlink_to(folder)
    shutil.copy(single["vae"], folder / "qwen folder" / "vae beside.safetensors")
    shutil.copy(single["vae"], folder / "diffusers" / "sd15" / "vae beside.safetensors")
    return folder


def encoder_of_true_width(path: Path) -> None:
    """Widen a tiny text encoder to what Anima takes; a header is all that is read of it."""
    save_file(
        {name: torch.zeros(*tensor.shape[:-1], QWEN.width[1]) for name, tensor in tiny_encoder(path).items()}, path
    )


def tiny_encoder(path: Path) -> dict[str, torch.Tensor]:
    """Its tensors with a vocabulary of a few words."""
    return {name: tensor[:8] if "embed" in name else tensor for name, tensor in load_file(path).items()}


def save_broken(folder: Path, whole: Path) -> None:
    """A truncated file, one cut in its header, an empty one, a web page, a pointer, an unfinished download."""
    folder.mkdir()
    content = whole.read_bytes()
    (folder / "cut.safetensors").write_bytes(content[:-100])
    (folder / "cut early.safetensors").write_bytes(content[:1000])
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "page.safetensors").write_bytes(b"<!doctype html><html>")
    (folder / "pointer.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (folder / "vae.safetensors.part").write_bytes(content[:1000])
    (folder / "page.ckpt").write_bytes(b"<html>")


@pytest.fixture(scope="module")
def found(zoo) -> dict[str, ModelFile]:
    """What `check` finds in the zoo, by path inside it."""
    return {finding.path.relative_to(zoo).as_posix(): finding for finding in check([zoo])}


def test_every_model_below_a_folder_is_found_once_and_nothing_else(found, zoo):
    assert set(found) == {
        "anima/anima-base-v1.0.safetensors",
        "anima/qwen_3_06b_base.safetensors",
        "anima/qwen_image_vae.safetensors",
        "broken/cut early.safetensors",
        "broken/cut.safetensors",
        "broken/empty.safetensors",
        "broken/page.ckpt",
        "broken/page.safetensors",
        "broken/pointer.safetensors",
        "broken/vae.safetensors.part",
        "checkpoints/sd15.ckpt",
        "checkpoints/sd15.safetensors",
        "diffusers/anima",
        "diffusers/sd15",
        "diffusers/sd15/vae beside.safetensors",
        "loras/comfy.safetensors",
        "loras/kohya.safetensors",
        "qwen folder",
        "qwen folder/vae beside.safetensors",
        "strange.safetensors",
    }
    assert len(check([zoo])) == len(found)


def test_each_file_is_named(found):
    kinds = {name: finding.kind for name, finding in found.items()}
    assert kinds["anima/anima-base-v1.0.safetensors"] == "an Anima DiT with its LLM adapter inside"
    assert kinds["anima/qwen_3_06b_base.safetensors"] == "a Qwen3 text encoder of width 1024"
    assert kinds["anima/qwen_image_vae.safetensors"] == "a Qwen-Image VAE (of Anima)"
    assert kinds["qwen folder"] == "a Qwen3 text encoder of width 16 (Anima's has 1024)"
    assert (
        kinds["checkpoints/sd15.safetensors"] == kinds["checkpoints/sd15.ckpt"] == "a Stable Diffusion 1.x checkpoint"
    )
    assert kinds["diffusers/anima"] == "a diffusers folder with AnimaModularPipeline (Anima)"
    assert kinds["diffusers/sd15"] == "a diffusers folder with StableDiffusionPipeline (SD 1.5)"
    assert kinds["loras/kohya.safetensors"] == "a LoRA for Anima (lora, rank 4, 1 modules, kohya key layout)"
    assert kinds["loras/comfy.safetensors"] == "a LoRA for Anima (lora, rank 4, 1 modules, comfy key layout)"
    assert "no model known here" in kinds["strange.safetensors"]


def test_sizes_types_and_blocks_are_reported(found, zoo, parts):
    dit = found["anima/anima-base-v1.0.safetensors"]
    assert dit.size == dit.path.stat().st_size and dit.dtypes == ("fp32",)
    assert found["checkpoints/sd15.ckpt"].dtypes == found["checkpoints/sd15.safetensors"].dtypes == ("fp32",)
    assert dit.blocks == len(parts["transformer"].transformer_blocks) == found["diffusers/anima"].blocks
    assert (
        found["anima/qwen_3_06b_base.safetensors"].blocks == 2 and found["anima/qwen_image_vae.safetensors"].blocks == 0
    )
    folder = found["diffusers/sd15"]
    assert folder.size == sum(file.stat().st_size for file in folder.path.rglob("*") if file.is_file())


def test_broken_files_are_explained(found):
    broken = {name.removeprefix("broken/"): finding.problem for name, finding in found.items() if finding.problem}
    reasons = {
        "cut.safetensors": "is truncated",
        "cut early.safetensors": "truncated inside its header",
        "empty.safetensors": "is empty",
        "page.safetensors": "a web page",
        "pointer.safetensors": "git lfs pull",
        "vae.safetensors.part": "download is not finished",
        "page.ckpt": "a web page",
    }
    assert broken.keys() == reasons.keys()
    assert all(reason in broken[name] for name, reason in reasons.items())


@pytest.mark.parametrize("damage", ["part", "shard", "index", "weights"])
def test_an_incomplete_folder_names_the_missing_file(damage, parts, zoo, tmp_path):
    copy = shutil.copytree(zoo / "diffusers" / "anima", tmp_path / "model")
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    if damage == "part":
        shutil.rmtree(copy / "t5_tokenizer")
    elif damage == "shard":
        shutil.rmtree(copy / "transformer")
        parts["transformer"].save_pretrained(copy / "transformer", max_shard_size="80KB")
        assert not check([copy])[0].problem and check([copy])[0].blocks == 2
        next((copy / "transformer").glob("*-of-*.safetensors")).unlink()
    elif damage == "index":
        (copy / "modular_model_index.json").write_text("{")
    else:
        weights.write_bytes(weights.read_bytes()[:-1])
    (finding,) = check([copy])
    reasons = {
        "part": "names the t5_tokenizer",
        "shard": "all of their shards",
        "index": "JSON",
        "weights": "truncated",
    }
    assert reasons[damage] in finding.problem
    if damage == "shard":
        assert "all of their shards" in check([copy / "transformer"])[0].problem


def test_parts_that_are_missing_to_train_are_named_with_their_address(zoo, tmp_path):
    files = [zoo / "anima" / name for name in ("anima-base-v1.0.safetensors", "qwen_image_vae.safetensors")]
    encoder = zoo / "anima" / "qwen_3_06b_base.safetensors"
    address = "circlestone-labs/Anima/split_files/text_encoders/qwen_3_06b_base.safetensors"
    assert missing(check(files)) == [f"Anima: DiT, LLM adapter, VAE found, text encoder missing: {address}"]
    assert missing(check([*files, encoder])) == missing(check([zoo / "diffusers" / "anima"])) == []
    assert len(missing(check([files[0], zoo / "qwen folder"]))) == 1  # of another width
    assert missing(check([zoo / "checkpoints", zoo / "loras"])) == []
    assert len(missing(check([encoder]))) == 3 and missing(check([files[1]])) == []


def test_parts_left_out_of_a_checkpoint_are_missing(zoo, tmp_path):
    state = load_file(zoo / "checkpoints" / "sd15.safetensors")
    save_file({name: t for name, t in state.items() if "first_stage" not in name}, tmp_path / "no vae.safetensors")
    (line,) = missing(check([tmp_path]))
    assert line.startswith("SD 1.5: unet, text encoder found, VAE missing: ")
    save_file({name: t for name, t in state.items() if "first_stage" in name}, tmp_path / "vae.safetensors")
    assert missing(check([tmp_path])) == []


def test_an_adapter_apart_and_a_dit_without_it_go_together(parts, tmp_path):
    dit = save_files(tmp_path, parts)["transformer"]
    rewrite(dit, lambda state: {name: tensor for name, tensor in state.items() if "llm_adapter." not in name})
    state = parts["text_conditioner"].state_dict()
    save_file({f"net.llm_adapter.{name}": t.clone() for name, t in state.items()}, tmp_path / "adapter.safetensors")
    kinds = {finding.path.name: finding for finding in check([tmp_path])}
    assert kinds[dit.name].kind == "a Cosmos-Predict2 DiT, as of Anima, without LLM adapter"
    assert kinds["adapter.safetensors"].kind == "Anima's LLM adapter" and kinds["adapter.safetensors"].blocks == 2
    assert not [line for line in missing(kinds.values()) if "LLM adapter missing" in line]
    assert [line for line in missing([kinds[dit.name]]) if "LLM adapter missing" in line]


def test_weights_in_8_bits_do_not_count(parts, tmp_path):
    dit = save_files(tmp_path, parts)["transformer"]
    rewrite(dit, lambda state: {name: tensor.to(torch.float8_e4m3fn) for name, tensor in state.items()})
    (finding,) = check([dit])
    assert "too coarse to train on" in finding.unfit and finding.dtypes == ("fp8",) and not finding.holds


def test_only_headers_are_read(parts, tmp_path):
    path, size = tmp_path / "huge.safetensors", 1 << 40  # a terabyte that takes no room on the disk
    name = original_name("vae", "decoder.mid_block.resnets.0.norm1.gamma")
    header = f'{{"{name}":{{"dtype":"BF16","shape":[{size // 2}],"data_offsets":[0,{size}]}}}}'.encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    (finding,) = check([path])
    assert finding.kind == "a Qwen-Image VAE (of Anima)" and finding.size > size and not finding.problem


def test_the_terminal_says_the_same_and_fails_for_what_is_broken(zoo, capsys):
    assert main(["model", "check", str(zoo / "anima"), str(zoo / "loras")]) == 0
    shown = capsys.readouterr().out
    assert "anima-base-v1.0.safetensors: an Anima DiT with its LLM adapter inside" in shown and "missing" not in shown
    assert main(["model", "check", str(zoo / "anima" / "qwen_image_vae.safetensors"), str(zoo / "broken")]) == 1
    assert "is truncated" in capsys.readouterr().out
    assert main(["model", "check", str(zoo / "none")]) == 1
    assert "There is no " in capsys.readouterr().out
    assert main(["model", "check", str(zoo / "anima" / "anima-base-v1.0.safetensors")]) == 0
    assert (
        "! Anima: DiT, LLM adapter found, VAE missing: circlestone-labs/Anima/split_files/vae"
        in capsys.readouterr().out
    )


def test_linked_folders_are_searched_once(zoo, tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").symlink_to(tmp_path / other)
        shutil.copy(zoo / "strange.safetensors", tmp_path / name / f"{name}.safetensors")
    assert sorted(finding.path.name for finding in check([tmp_path])) == ["a.safetensors", "b.safetensors"]


def test_unreadable_files_are_reported_beside_the_others(zoo, tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    shutil.copy(zoo / "strange.safetensors", tmp_path)
    iterdir = Path.iterdir

    def locked(folder: Path):
        if folder.name == "locked":
            raise PermissionError(13, "Permission denied", str(folder))
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", locked)  # the superuser may read everything
    second, first, third = check([tmp_path, tmp_path / ("x" * 300)])
    assert f"{tmp_path / 'locked'} cannot be used: permission denied" in first.problem
    assert not second.problem and "no model known here" in second.kind
    assert "the name is too long" in third.problem


@pytest.mark.parametrize(
    "names, shown",
    (
        (("lora_unet_a.lora_down.weight", "lora_unet_a.lora_up.weight"), "a single number where a matrix should be"),
        (("model.embed_tokens.weight", "model.layers.0.self_attn.q_norm.weight"), "a Qwen3 text encoder of width 0"),
    ),
)
def test_numbers_in_place_of_matrices_do_not_crash(names, shown, tmp_path):
    save_file({name: torch.tensor(1.0) for name in names}, tmp_path / "model.safetensors")
    (found,) = check([tmp_path])
    assert shown in found.kind + found.unfit


def test_states_and_caches_of_a_project_are_no_models(tmp_path):
    latents, state = Cache(tmp_path / "cache" / "latents"), tmp_path / "runs" / "r" / "states" / "00000010"
    latents.write(latents.path("an image"), {"latents": torch.zeros(1, 4, 8, 8)})
    state.mkdir(parents=True)
    torch.save({"step": 10}, state / STATE)
    save_file({"encoder.conv_in.weight": torch.zeros(2, 2)}, tmp_path / "vae.safetensors")
    assert [finding.path.name for finding in check([tmp_path])] == ["vae.safetensors"]


def test_other_suffixes_are_found_but_not_a_trainers_state(tmp_path):
    (tmp_path / "anima.gguf").write_bytes(b"GGUF" + b"\0" * 1500)
    state = {"decoder.conv_in.weight": torch.zeros(2, 2), "encoder.conv_in.weight": torch.zeros(2, 2)}
    names = ("vae.pt", "vae.pth", "vae.bin", "optimizer.bin", "training_args.bin")
    for name in names:
        torch.save(state, tmp_path / name)
    found = {finding.path.name: finding for finding in check([tmp_path])}
    assert found.keys() == {"anima.gguf", *names[:3]}
    assert "too coarse to train on" in found["anima.gguf"].kind and "1.5 kB" in str(found["anima.gguf"])
    assert not any(finding.problem for finding in found.values())
    assert {found[name].kind for name in names[:3]} == {"a VAE alone"}


@pytest.mark.parametrize("size, shown", ((0, "0 bytes"), (1500, "1.5 kB"), (9_540_000, "9.5 MB"), (6.94e9, "6.94 GB")))
def test_sizes_have_suitable_units(size, shown):
    assert str(ModelFile(path=Path("a"), kind="a model", size=int(size))) == f"a: a model, {shown}"


def test_v_prediction_is_reported(tmp_path):
    names = ("model.diffusion_model.out.2.bias", "conditioner.embedders.0.transformer.x", "v_pred", "ztsnr")
    save_file({name: torch.zeros(2) for name in names}, tmp_path / "noob.safetensors")
    shown = "a Stable Diffusion XL checkpoint, with v prediction, with zero terminal SNR"
    assert check([tmp_path])[0].kind == shown


@pytest.mark.parametrize(
    "index", ("[]", '{"unet": []}', '{"unet": ["a", "b", 1]}', '{"_class_name": []}', "[" * 100_000)
)
def test_a_strange_index_is_reported(index, tmp_path):
    (tmp_path / "model_index.json").write_text(index)
    assert "model_index.json" in check([tmp_path])[0].problem
