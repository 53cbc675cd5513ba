"""LoRA files of every form and variant are read as the same change of the same weights, or refused in a sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import golden_names
import pytest
import torch
from peft import LoHaConfig, LoKrConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from tiny import save_base

from lorakit import models
from lorakit.lora import export, variants, warm_start
from lorakit.lora import file as lora_file
from lorakit.lora.adapter import Adapter
from lorakit.lora.change import Change
from lorakit.lora.names import LoraFileError
from lorakit.lora.variants import AdapterConfig
from lorakit.lora.variants.lokr import Lokr
from lorakit.lora.variants.lora import Lora
from lorakit.models.files.check import check
from lorakit.models.files.kinds import lora_family

CPU = torch.device("cpu")
RANK, ALPHA = 4, 3.0
KEY_LAYOUTS = [(family, form) for family in models.names() for form in models.config_class(family).key_layouts]


@pytest.fixture(scope="module", params=models.names())
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("forms")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        yield {name: save_base(name, root / name) for name in models.names()}


def opened(bases: dict[str, Path], family: str):
    module = models.family(family)
    return module.Model(module.Config(source=str(bases[family])), CPU, torch.float32)


@pytest.fixture(scope="module")
def fresh(bases) -> Callable:
    """A family's model without adapters, opened once."""
    by_family = {name: opened(bases, name) for name in models.names()}
    return by_family.__getitem__


@pytest.fixture(scope="module")
def trained(bases) -> Callable:
    """A family's model with an adapter on all parts that may have one, with random weights."""
    by_family = {name: with_adapter(opened(bases, name)) for name in models.names()}
    return by_family.__getitem__


def with_adapter(model, alpha: float = ALPHA, parts: tuple[str, ...] = ()):
    adapter = Adapter(AdapterConfig(rank=RANK, alpha=alpha), model, list(parts or model.config.rates), 1)
    generator = torch.Generator().manual_seed(2)
    adapter.load({name: 0.2 * torch.randn(w.shape, generator=generator) for name, w in adapter.weights().items()})
    return model, adapter


def sides_of(adapter: Adapter) -> dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]]:
    """(part, module) -> down [rank, in, ...] and up [out, rank, ...]."""
    return {key: (t["down"].detach(), t["up"].detach()) for key, t in adapter.modules()}


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family, form", KEY_LAYOUTS)
def test_every_name_at_true_size_is_known_to_those_who_read_the_form(bases, tmp_path, family, form):
    known, model = golden_names.golden(family), golden_names.true_size(family, bases[family], tmp_path)
    readers = {"kohya": (known.kohya, known.comfy), "comfy": (known.comfy,)}[form]
    for part in model.config.rates:
        names = [model.names(part, module)[form] for module in model.targets(part)]
        assert len(names) == len(set(names)) > 0
        for reader in readers:
            assert not set(names) - reader


def test_a_familys_names_are_not_taken_for_anothers(family):
    known = golden_names.golden(family)
    shapes = {"down": [4, 320], "up": [320, 4]}  # too narrow to tell anything
    dotted_names = {name for name in known.comfy if name.startswith("diffusion_model.")}
    # nobody writes SD 1.5 under its original names
    for names in (known.kohya,) if family == "sd15" else (known.kohya, dotted_names):
        header = {f"{name}.lora_{side}.weight": {"shape": shape} for name in names for side, shape in shapes.items()}
        summary = lora_file.describe({"__metadata__": {}, **header})
        found = (lora_family(summary.shapes), summary.variants, summary.modules, summary.ranks)
        assert found == (family, ("lora",), len(names), (4,))
        assert summary.key_layout == ("kohya" if names is known.kohya else "comfy")


# ---- what the kit writes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", (ALPHA, RANK / 2))
@pytest.mark.parametrize("family, form", KEY_LAYOUTS)
def test_a_file_read_back_is_the_trained_change(bases, fresh, tmp_path, family, form, alpha):
    model, adapter = with_adapter(opened(bases, family), alpha)
    file = tmp_path / "lora.safetensors"
    assert export.write(file, adapter, model, {}, "fp32", form) == len(adapter.layers)
    changes = lora_file.read(file, fresh(family))
    assert changes.keys() == adapter.layers.keys()
    for key, change in changes.items():
        assert change.variant is Lora and change.rank == RANK
        expected = adapter.delta(*key)
        if form == "kohya" or alpha != ALPHA:  # powers of two are folded in without rounding
            assert torch.equal(change.delta(), expected)
        torch.testing.assert_close(change.delta(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", [family for family, form in KEY_LAYOUTS if form == "comfy"])
def test_the_comfy_form_is_dotted_has_no_alpha_and_has_the_scale_in_its_b(trained, tmp_path, family):
    model, adapter = trained(family)
    export.write(tmp_path / "lora.safetensors", adapter, model, {}, "bf16", "comfy")
    tensors = load_file(tmp_path / "lora.safetensors")
    assert len(tensors) == 2 * len(adapter.layers)
    for key, (down, up) in sides_of(adapter).items():
        name = model.names(*key)["comfy"]
        assert re.fullmatch(r"diffusion_model(\.\w+)+", name)
        assert torch.equal(tensors[f"{name}.lora_A.weight"], down.bfloat16())
        assert torch.equal(tensors[f"{name}.lora_B.weight"], (ALPHA / RANK * up).bfloat16())


@pytest.mark.parametrize("family, form", KEY_LAYOUTS)
def test_a_file_of_either_form_put_back_into_the_adapter_is_the_same_change(bases, tmp_path, family, form):
    model, adapter = with_adapter(opened(bases, family), alpha=0.3)  # no float32 is 0.3
    expected = {key: adapter.delta(*key) for key in adapter.layers}
    export.write(tmp_path / "lora.safetensors", adapter, model, {}, "fp32", form)
    adapter.load({name: torch.zeros_like(weight) for name, weight in adapter.weights().items()})
    adapter.load(export.weights(tmp_path / "lora.safetensors", adapter, model))
    for key, change in expected.items():
        torch.testing.assert_close(adapter.delta(*key), change, rtol=1e-5, atol=1e-7)


# ---- what others write -----------------------------------------------------------------------------------------------


def both(
    name: str, down: torch.Tensor, up: torch.Tensor, spelled: tuple[str, str], alpha: float | None = ALPHA
) -> dict:
    """Tensors of a module; without alpha the scale stands in `up`."""
    if alpha is None:
        return {f"{name}.{spelled[0]}": down, f"{name}.{spelled[1]}": ALPHA / RANK * up}
    return {f"{name}.{spelled[0]}": down, f"{name}.{spelled[1]}": up, f"{name}.alpha": torch.tensor(alpha)}


def dotted(names: dict[str, str]) -> str:
    return names.get("comfy") or re.sub(r"^\w+\.", "diffusion_model.", names["diffusers"])


def path(names: dict[str, str]) -> str:
    """The module's name in the library, without its part."""
    return names["diffusers"].partition(".")[2]


def in_processors(name: str) -> str:
    """A module of the attention as diffusers named its LoRA before 0.22; the name of others is as it was later."""
    return re.sub(r"\.to_(q|k|v|out)(\.0)?$", r".processor.to_\1_lora", name) if "to_" in name else f"{name}.lora"


DOWN_UP, A_B = ("lora_down.weight", "lora_up.weight"), ("lora_A.weight", "lora_B.weight")
# who writes it -> (names, down, up) -> tensors of one module of the denoiser
WILD = {
    "kohya": lambda names, *sides: both(names["kohya"], *sides, DOWN_UP),
    "kohya without alpha": lambda names, *sides: both(names["kohya"], *sides, DOWN_UP, None),
    "lora_transformer, flat": lambda names, *sides: both(
        "lora_transformer_" + path(names).replace(".", "_"), *sides, DOWN_UP
    ),
    "lycoris, flat": lambda names, *sides: both("lycoris_" + path(names).replace(".", "_"), *sides, DOWN_UP),
    "comfy": lambda names, *sides: both(dotted(names), *sides, A_B, None),
    "comfy with alpha": lambda names, *sides: both(dotted(names), *sides, A_B),
    "comfy, down and up": lambda names, *sides: both(dotted(names), *sides, DOWN_UP),
    "as in a checkpoint": lambda names, *sides: both("model." + dotted(names), *sides, A_B, None),
    "diffusers": lambda names, *sides: both(names["diffusers"], *sides, A_B, None),
    "diffusers, old": lambda names, *sides: both(
        names["diffusers"], *sides, ("lora.down.weight", "lora.up.weight"), None
    ),
    "peft": lambda names, *sides: both("base_model.model." + path(names), *sides, A_B, None),
    "diffusers' processors": lambda names, *sides: both(
        in_processors(names["diffusers"]), *sides, ("down.weight", "up.weight"), None
    ),
    "NVIDIA's net": lambda names, *sides: both("net." + dotted(names).removeprefix("diffusion_model."), *sides, A_B),
    "net, flat": lambda names, *sides: both(names["kohya"].replace("lora_unet_", "lora_unet_net_"), *sides, DOWN_UP),
    "peft with the adapter's name": lambda names, *sides: both(
        "base_model.model." + path(names), *sides, ("lora_A.default.weight", "lora_B.default.weight"), None
    ),
}


@pytest.mark.parametrize("writer", WILD)
def test_a_file_of_any_writer_is_the_same_change(fresh, trained, tmp_path, family, writer):
    model, adapter = trained(family)
    tensors = {}
    keys = [key for key in adapter.layers if key[0] == model.denoiser]
    pairs = sides_of(adapter)
    for key in keys:
        tensors |= WILD[writer](model.names(*key), *pairs[key])
    save_file(tensors, tmp_path / "wild.safetensors")
    changes = lora_file.read(tmp_path / "wild.safetensors", fresh(family))
    assert changes.keys() == set(keys)
    for key, change in changes.items():
        torch.testing.assert_close(change.delta(), adapter.delta(*key), rtol=1e-5, atol=1e-6)


TEXT = {
    "kohya": lambda names, *sides: both(names["kohya"], *sides, DOWN_UP),
    "te1 for te": lambda names, *sides: both(names["kohya"].replace("lora_te_", "lora_te1_"), *sides, DOWN_UP),
    "without text_model": lambda names, *sides: both(names["diffusers"].replace("text_model.", ""), *sides, A_B, None),
    "diffusers, old": lambda names, *sides: both(
        names["diffusers"], *sides, ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"), None
    ),
}


@pytest.mark.parametrize("writer", TEXT)
def test_text_parts_of_any_writer_are_the_same_change(fresh, trained, tmp_path, family, writer):
    model, adapter = trained(family)
    expected = {key: adapter.delta(*key) for key in adapter.layers if key[0] != model.denoiser}
    tensors = {}
    for key, sides in sides_of(adapter).items():
        tensors |= TEXT[writer](model.names(*key), *sides) if key in expected else {}
    save_file(tensors, tmp_path / "wild.safetensors")
    changes = lora_file.read(tmp_path / "wild.safetensors", fresh(family))
    assert changes.keys() == expected.keys()
    for key, change in changes.items():
        torch.testing.assert_close(change.delta(), expected[key], rtol=1e-5, atol=1e-6)


def weight_decompose(dora, weight, change, scale, strength):
    """ComfyUI's function of this name (comfy/weight_adapter/base.py), for magnitudes of inputs: a fact."""
    merged = weight + change * scale
    flat = merged.transpose(0, 1).reshape(merged.shape[1], -1)
    norm = flat.norm(dim=1, keepdim=True).reshape(merged.shape[1], *[1] * (merged.dim() - 1)).transpose(0, 1)
    merged = merged * (dora / norm)
    return merged if strength == 1 else weight + strength * (merged - weight)


@pytest.mark.parametrize("kind", ("linear", "3x3"))
def test_a_dora_is_the_change_that_comfyui_makes_at_every_strength(kind):
    weight = LAYERS[kind]().weight.detach()
    down, up = torch.randn(4, *weight.shape[1:]), torch.randn(36, 4, *[1] * (weight.ndim - 2))
    dora = torch.rand(1, 24, *[1] * (weight.ndim - 2)) + 0.5
    change = Change(Lora, {"down": down, "up": up}, 3.0, tuple(weight.shape), 4, dora, weight)
    product = torch.einsum("or...,ri...->oi...", up, down)
    for strength in (0.6, 1, 1.2):
        theirs = weight_decompose(dora, weight, product, 3 / 4, strength)
        torch.testing.assert_close(weight + strength * change.delta(), theirs, rtol=1e-4, atol=1e-5)


# tensor's name (with the module's in braces) -> shape; and how it is named when it is left out
BESIDE = {
    "bundle_emb.mytoken.clip_l": ((2, 8), "bundled embeddings (2, such as bundle_emb.mytoken.clip_"),
    "bundle_emb.mytoken.clip_g": ((2, 8), ""),
    "{}.diff_b": ((5,), "changes of biases (2, such as "),
    "{}_norm.diff": ((5,), "changes of norms (3, such as "),
    "{}_norm.diff_b": ((), ""),
    "{}_norm.w_norm": ((5,), ""),
    "{}_norm.b_norm": ((5,), ""),
    "{}_norm.alpha": ((), ""),
}


def test_what_is_no_lora_is_left_out_by_name_before_a_run_and_in_it(fresh, trained, tmp_path, family):
    model, adapter = trained(family)
    plain, file = tmp_path / "plain.safetensors", tmp_path / "lora.safetensors"
    export.write(plain, adapter, model, {}, "fp32", "kohya")
    name = model.names(*next(iter(adapter.layers)))["kohya"]
    beside = {key.format(name): torch.ones(shape) for key, (shape, _) in BESIDE.items()}
    save_file(load_file(plain) | beside, file)
    alone, changes = (lora_file.read(path, fresh(family)) for path in (plain, file))
    assert changes.keys() == alone.keys()
    assert all(torch.equal(changes[key].delta(), alone[key].delta()) for key in changes)
    assert warm_start.adapter_settings(file) == warm_start.adapter_settings(plain)
    (found,) = check([file])
    notes = warm_start.read(str(file), fresh(family)).left_out
    for _, shown in BESIDE.values():
        assert shown in found.kind and any(shown in note for note in notes)
    assert not found.problem and not found.unfit


def test_the_unused_modules_of_an_sdxl_text_encoder_are_left_out_by_name(bases, tmp_path):
    model = opened(bases, "sdxl")
    names = [name for name, _ in model.load("text_encoder").named_modules() if re.search(r"(_proj|fc\d)$", name)]
    assert len(names) > len(model.targets("text_encoder"))
    tensors = {}
    for name in names:
        weight = model.load("text_encoder").get_submodule(name).weight
        sides = torch.randn(4, weight.shape[1]), torch.randn(len(weight), 4)
        tensors |= both(model.names("text_encoder", name)["kohya"], *sides, DOWN_UP)
    save_file(tensors, tmp_path / "te1.safetensors")
    weights = warm_start.read(str(tmp_path / "te1.safetensors"), model)
    adapter = Adapter(AdapterConfig(rank=4, alpha=3), model, ["unet", "text_encoder"], 1)
    notes = warm_start.put(weights, adapter)
    assert any(f"{len(names) - len(model.targets('text_encoder'))} modules whose output" in note for note in notes)
    for key in (key for key in adapter.layers if key[0] == "text_encoder"):
        torch.testing.assert_close(adapter.delta(*key), weights.changes[key].delta())


@pytest.mark.parametrize("start", ("lora_te_", "lora_te_model_", "text_encoders.qwen3_06b.transformer.model."))
def test_a_qwen3_of_animas_files_is_read_and_left_out_by_name(bases, trained, tmp_path, start):
    model, adapter = trained("anima")
    file = tmp_path / "lora.safetensors"
    export.write(file, adapter, model, {}, "fp32", "kohya")
    other = opened(bases, "anima")
    weight = other.load("text_encoder").get_submodule("layers.0.self_attn.q_proj").weight
    name = start + ("layers.0.self_attn.q_proj" if "." in start else "layers_0_self_attn_q_proj")
    sides = torch.randn(4, weight.shape[1]), torch.randn(len(weight), 4)
    save_file(load_file(file) | both(name, *sides, DOWN_UP), file)
    weights = warm_start.read(str(file), other)
    notes = warm_start.put(weights, Adapter(AdapterConfig(rank=4, alpha=3), other, list(other.config.rates), 1))
    assert any("not train are left out: 1 of text_encoder" in note for note in notes)


@pytest.mark.parametrize("is_rslora", (False, True))
@pytest.mark.parametrize("where", ("in the file", "beside it"))
def test_the_alpha_of_pefts_settings_counts(fresh, trained, tmp_path, family, where, is_rslora):
    model, adapter = trained(family)
    (key, (down, up)), (other, sides) = list(sides_of(adapter).items())[:2]
    names = [model.names(*key), model.names(*other)]
    alpha = 6.0 / RANK**0.5 if is_rslora else 6.0
    own = {path(names[1]): alpha / 2}
    settings = {"r": RANK, "lora_alpha": alpha, "alpha_pattern": own, "use_rslora": is_rslora}
    if where == "in the file":
        starts = [name["diffusers"] for name in names]
        part = key[0]
        metadata = {"lora_adapter_metadata": json.dumps({f"{part}.{name}": value for name, value in settings.items()})}
    else:
        starts, metadata = [f"base_model.model.{path(name)}" for name in names], {}
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    tensors = {f"{starts[0]}.lora_A.weight": down, f"{starts[0]}.lora_B.weight": up}
    tensors |= {f"{starts[1]}.lora_A.weight": sides[0], f"{starts[1]}.lora_B.weight": sides[1]}
    save_file(tensors, tmp_path / "adapter_model.safetensors", metadata)
    changes = lora_file.read(tmp_path / "adapter_model.safetensors", fresh(family))
    assert [changes[key].scale, changes[other].scale] == pytest.approx([1.5, 0.75])


def test_modules_that_are_never_trained_here_are_read_too(fresh, tmp_path, family):
    model = fresh(family)
    part, tensors, expected = model.denoiser, {}, {}
    for module in golden_names.matrices(model.load(part)):
        weight = model.load(part).get_submodule(module).weight
        down, up = torch.randn(2, *weight.shape[1:]), torch.randn(len(weight), 2, *[1] * (weight.ndim - 2))
        tensors |= both(model.names(part, module)["diffusers"], down, up, A_B, None)
        expected[part, module] = ALPHA / RANK * torch.einsum("or...,ri...->oi...", up, down)
    save_file(tensors, tmp_path / "locon.safetensors")
    changes = lora_file.read(tmp_path / "locon.safetensors", model)
    assert changes.keys() == expected.keys() and len(changes) > len(model.targets(part))
    for key, change in changes.items():
        torch.testing.assert_close(change.delta(), expected[key], rtol=1e-4, atol=1e-5)


def test_parts_that_a_file_does_not_name_are_not_loaded(bases, trained, tmp_path, family):
    model, adapter = with_adapter(opened(bases, family), parts=(opened(bases, family).denoiser,))
    export.write(tmp_path / "lora.safetensors", adapter, model, {}, "fp16", model.config.key_layouts[0])
    other = opened(bases, family)
    lora_file.read(tmp_path / "lora.safetensors", other)
    assert other.loaded() == (other.denoiser,)


# ---- variants --------------------------------------------------------------------------------------------------------

LAYERS = {
    "linear": lambda: torch.nn.Linear(24, 36, bias=False),
    "1x1": lambda: torch.nn.Conv2d(24, 36, 1, bias=False),
    "3x3": lambda: torch.nn.Conv2d(24, 36, 3, bias=False),
}
PEFT = {
    "loha": LoHaConfig(r=4, alpha=3),
    "loha tucker": LoHaConfig(r=4, alpha=3, use_effective_conv2d=True),
    "lokr": LoKrConfig(r=2, alpha=3),
    "lokr tucker": LoKrConfig(r=2, alpha=3, use_effective_conv2d=True),
    "lokr of two pairs": LoKrConfig(r=2, alpha=3, decompose_both=True),
    "lokr with a factor": LoKrConfig(r=2, alpha=3, decompose_factor=4),
    "lokr of full matrices": LoKrConfig(r=64, alpha=64),
}


def with_peft(root: torch.nn.Module, config: LoHaConfig | LoKrConfig, targets: list[str]) -> dict[str, torch.nn.Module]:
    """peft's layers of LoHa or LoKr on modules, with random weights."""
    config.target_modules = targets
    inject_adapter_in_model(config, root)
    layers = {name: root.get_submodule(name) for name in targets}
    generator = torch.Generator().manual_seed(3)
    for layer in layers.values():
        for name, weight in layer.named_parameters():
            if "hada" in name or "lokr" in name:
                weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
    return layers


def tensors_of(layer: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: w.detach() for name, w in layer.named_parameters() if "hada" in name or "lokr" in name}
    return {name.removesuffix(".default"): weight for name, weight in found.items()}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", PEFT)
def test_loha_and_lokr_are_pefts(kind, layer):
    root = torch.nn.Sequential(LAYERS[layer]())
    shape = tuple(root[0].weight.shape)
    layer = with_peft(root, PEFT[kind], ["0"])["0"]
    tensors = tensors_of(layer)
    variant = variants.of_roles(set(tensors))
    assert variant.name == kind.partition(" ")[0]
    change = Change(variant, tensors, PEFT[kind].alpha, shape, PEFT[kind].r)
    assert variant.rank({role: weight.shape for role, weight in tensors.items()}) in (PEFT[kind].r, None)
    assert change.fits()
    torch.testing.assert_close(change.delta(), layer.get_delta_weight("default"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ("loha", "lokr"))
def test_pefts_own_files_of_loha_and_lokr_are_read_with_their_alpha(bases, fresh, tmp_path, family, kind):
    model = opened(bases, family)
    targets = model.targets(model.denoiser)[:3]
    layers = with_peft(model.load(model.denoiser), PEFT[kind], targets)
    tensors = {
        f"base_model.model.{module}.{role}": weight.contiguous()
        for module, layer in layers.items()
        for role, weight in tensors_of(layer).items()
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": PEFT[kind].r, "alpha": PEFT[kind].alpha}))
    for (_, module), change in lora_file.read(tmp_path / "adapter_model.safetensors", fresh(family)).items():
        torch.testing.assert_close(change.delta(), layers[module].get_delta_weight("default"), rtol=1e-5, atol=1e-6)


def test_a_lokr_of_two_full_matrices_has_no_rank_and_minds_no_alpha():
    tensors = {"lokr_w1": torch.randn(2, 3), "lokr_w2": torch.randn(4, 5)}
    change = Change(Lokr, tensors, 7.0, (8, 15), Lokr.rank({role: tensor.shape for role, tensor in tensors.items()}))
    assert change.rank is None and torch.equal(change.delta(), torch.kron(tensors["lokr_w1"], tensors["lokr_w2"]))


def test_a_convolution_between_down_and_up_is_that_of_three_layers():
    down, mid, up = (torch.randn(shape) for shape in ((4, 6, 1, 1), (4, 4, 3, 3), (8, 4, 1, 1)))
    change = Change(Lora, {"down": down, "mid": mid, "up": up}, 2.0, (8, 6, 3, 3), 4)
    x = torch.randn(1, 6, 9, 9)
    conv = torch.nn.functional.conv2d
    assert change.fits()
    torch.testing.assert_close(conv(x, change.delta()), 0.5 * conv(conv(conv(x, down), mid), up), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", ("lycoris_", "lora_unet_"))
@pytest.mark.parametrize("kind", ("loha", "lokr", "lokr of two pairs"))
def test_files_of_loha_and_lokr_are_read(bases, fresh, tmp_path, family, kind, start):
    model = opened(bases, family)
    root, targets = model.load(model.denoiser), model.targets(model.denoiser)
    layers = with_peft(root, PEFT[kind], targets)
    tensors = {}
    for module, layer in layers.items():
        name = start + model.names(model.denoiser, module)["kohya"].removeprefix("lora_unet_")
        tensors |= {f"{name}.{role}": weight for role, weight in tensors_of(layer).items()}
        tensors[f"{name}.alpha"] = torch.tensor(3.0)
    save_file(tensors, tmp_path / "wild.safetensors")
    changes = lora_file.read(tmp_path / "wild.safetensors", fresh(family))
    assert changes.keys() == {(model.denoiser, module) for module in targets}
    for (_, module), change in changes.items():
        if change.rank is not None:
            expected = layers[module].get_delta_weight("default")
            torch.testing.assert_close(change.delta(), expected, rtol=1e-5, atol=1e-6)


# ---- what is refused -------------------------------------------------------------------------------------------------


def changed(tensors: dict[str, torch.Tensor], change: str, name: str) -> dict[str, torch.Tensor]:
    """The tensors of a kohya file with something wrong about the module `name`."""
    down, up = f"{name}.lora_down.weight", f"{name}.lora_up.weight"
    if change == "dora":
        return tensors | {f"{name}.dora_scale": torch.ones(1)}
    if change == "half":
        return {key: tensor for key, tensor in tensors.items() if key != up}
    if change == "another width":
        return tensors | {down: tensors[down][:, :1].contiguous()}
    if change == "another rank":
        return tensors | {up: tensors[up][:, :1].contiguous()}
    if change == "turned":
        return tensors | {
            down: tensors[up].transpose(0, 1).contiguous(),
            up: tensors[down].transpose(0, 1).contiguous(),
        }
    if change == "nan":
        return tensors | {up: tensors[up] * torch.nan}
    if change == "a module more":
        return tensors | {
            key.replace(name, "lora_unet_somewhere"): t.clone() for key, t in tensors.items() if name in key
        }
    if change == "two forms":
        return tensors | {f"lycoris_{name.removeprefix('lora_unet_')}.alpha": torch.ones(1)}
    if change == "two adapters":
        return tensors | {f"{name}.lora_A.{which}.weight": tensors[down].clone() for which in "ab"}
    if change == "a whole weight":
        return tensors | {f"{name}_elsewhere.diff": torch.ones(2, 2)}
    return {f"lora_unet_nowhere_{key}": tensor for key, tensor in tensors.items()}


WRONG = {
    "dora": r"DoRA with magnitudes of shape \(1,\)",
    "half": "has alpha, down: no complete LoHa, LoKr or LoRA",
    "another width": "do not multiply to",
    "another rank": "do not multiply to",
    "turned": "do not multiply to",
    "nan": "not finite",
    "a module more": r"does not fit this base: 1 of \d+ modules are not in it, the first is lora_unet_somewhere\.$",
    "two forms": "holds 1 modules twice",
    "two adapters": "two adapters",
    "a whole weight": r"1 of \d+ tensors are of no LoHa, LoKr or LoRA.*changes of whole weights",
    "all else": r"The base is \w+, the file's names are like those of unknown in the key layout kohya\.$",
}


@pytest.mark.parametrize("change", WRONG)
def test_a_file_that_would_be_applied_in_part_or_wrongly_is_refused(fresh, trained, tmp_path, family, change):
    model, adapter = trained(family)
    file = tmp_path / "lora.safetensors"
    export.write(file, adapter, model, {}, "fp16", "kohya")
    # a weight that is not square, so that turning it shows
    key = next(key for key, change in lora_file.read(file, fresh(family)).items() if change.shape[0] != change.shape[1])
    save_file(changed(load_file(file), change, model.names(*key)["kohya"]), file)
    with pytest.raises(LoraFileError, match=WRONG[change]):
        lora_file.read(file, fresh(family))


def test_a_module_under_the_names_of_two_systems_is_refused(fresh, trained, tmp_path, family):
    model, adapter = trained(family)
    key, sides = next(iter(sides_of(adapter).items()))
    names = model.names(*key)
    tensors = both(names["kohya"], *sides, DOWN_UP) | both(names["diffusers"], *(t.clone() for t in sides), A_B)
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(LoraFileError, match="twice"):
        lora_file.read(tmp_path / "lora.safetensors", fresh(family))


def test_a_file_with_another_kind_in_it_is_refused_for_a_run(trained, tmp_path, family):
    model, adapter = trained(family)
    file = tmp_path / "lora.safetensors"
    export.write(file, adapter, model, {}, "fp32", "kohya")
    tensors = load_file(file)
    key, (down, up) = next(iter(sides_of(adapter).items()))
    name = model.names(*key)["kohya"]
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(f"{name}.")}
    for i in (1, 2):
        tensors |= {f"{name}.hada_w{i}_a": up.flatten(1).clone(), f"{name}.hada_w{i}_b": down.flatten(1).clone()}
    save_file(tensors, file)
    with pytest.raises(LoraFileError, match="hada_w1_a.*expected are down, up"):
        export.weights(file, adapter, model)


def test_a_file_for_another_family_is_recognised_by_its_names(fresh, trained, tmp_path, family):
    model, adapter = trained(family)
    for other in set(models.names()) - {family}:
        file = tmp_path / f"{other}.safetensors"
        theirs, their_adapter = trained(other)
        export.write(file, their_adapter, theirs, {}, "fp16", theirs.config.key_layouts[0])
        reason = f"does not fit this base.*The base is {family}, the file's names are like those of {other}"
        with pytest.raises(LoraFileError, match=reason):
            lora_file.read(file, fresh(family))


def test_what_is_no_lora_file_is_refused(bases, fresh, tmp_path, family):
    model = fresh(family)
    weights = next(iter((bases[family] / model.denoiser).glob("*.safetensors")))
    with pytest.raises(LoraFileError, match="are of no LoHa, LoKr or LoRA, such as"):
        lora_file.read(weights, model)
    (tmp_path / "page.safetensors").write_text("<html>")
    with pytest.raises(LoraFileError, match="not a .safetensors file but a web page"):
        lora_file.read(tmp_path / "page.safetensors", model)
    with pytest.raises(LoraFileError, match="This is no LoRA file: 1 of 1 tensors"):
        lora_file.describe({"__metadata__": {}, "conv_in.weight": {"shape": [1, 2]}})


def test_a_file_of_another_rank_is_refused_for_a_run(bases, trained, tmp_path, family):
    model, adapter = trained(family)
    export.write(tmp_path / "lora.safetensors", adapter, model, {}, "fp16", model.config.key_layouts[0])
    other = opened(bases, family)
    smaller = Adapter(AdapterConfig(rank=2, alpha=1.5), other, list(other.config.rates), 1)
    with pytest.raises(LoraFileError, match="the rank is 4, the run's is 2"):
        export.weights(tmp_path / "lora.safetensors", smaller, other)


STRANGE = {  # of peft's settings
    "no JSON": ("{", "cannot be read as JSON"),
    "deep nesting": ("[" * 100_000, "cannot be read as JSON"),
    "a list": ("[1]", "is no table of settings"),
    "a broken pattern": ('{"r": 4, "lora_alpha": 1, "alpha_pattern": {"(": 1}}', r"the pattern '\('"),
    "a pattern that takes for ever": ('{"r": 4, "lora_alpha": 1, "alpha_pattern": {"(.+)+x": 1}}', "names of modules"),
    "a list of patterns": ('{"r": 4, "lora_alpha": 1, "alpha_pattern": [1]}', r"has \[1\] as alpha_pattern"),
    "a pattern's alpha in words": ('{"r": 4, "lora_alpha": 1, "alpha_pattern": {"a": "b"}}', "as alpha_pattern"),
    "an alpha in words": ('{"r": 4, "unet.lora_alpha": "much"}', "'much' as unet.lora_alpha"),
    "an alpha that is no number": ('{"r": 4, "lora_alpha": NaN}', "nan as lora_alpha"),
}


@pytest.mark.parametrize("where", ("in the file", "beside it"))
@pytest.mark.parametrize("how", STRANGE)
def test_strange_settings_of_peft_are_refused_in_one_sentence(tmp_path, how, where):
    settings, reason = STRANGE[how]
    is_inside = where == "in the file"
    pair = {"unet.a.lora_A.weight": torch.zeros(4, 8), "unet.a.lora_B.weight": torch.zeros(8, 4)}
    file = tmp_path / "adapter_model.safetensors"
    save_file(pair, file, {"lora_adapter_metadata": settings} if is_inside else None)
    if not is_inside:
        (tmp_path / "adapter_config.json").write_text(settings)
    with pytest.raises(LoraFileError, match=reason) as refused:
        lora_file.read(file, None)
    assert ("lora_adapter_metadata in" if is_inside else "adapter_config.json") in str(refused.value)


@pytest.mark.parametrize(
    "pattern, is_meant",
    (
        ("b.to_k", True),
        ("a.b.to_k", True),
        ("^a.b.to_k", True),
        ("^a\\.b\\.to_k$", True),
        ("to_k", True),
        ("^b.to_k", False),
        ("o_k", False),
        ("a.b", False),
    ),
)
def test_alpha_patterns_are_names_or_their_ends_as_peft_takes_them(pattern, is_meant):
    from peft.utils.other import get_pattern_key

    assert (get_pattern_key([pattern], "a.b.to_k") == pattern) == is_meant
    settings = {"r": 4, "lora_alpha": 2, "alpha_pattern": {pattern: 8}}
    assert lora_file._peft_alpha(settings, "unet.a.b.to_k", 4) == (8 if is_meant else 2, 4)


def test_a_missing_file_and_a_number_for_a_matrix_are_refused(tmp_path):
    with pytest.raises(LoraFileError, match="none.safetensors cannot be read"):
        lora_file.read(tmp_path / "none.safetensors", None)
    for name in ("lora_unet_a", "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"):
        with pytest.raises(LoraFileError, match="a single number where a matrix should be"):
            lora_file.describe({f"{name}.lora_{side}.weight": {"shape": []} for side in ("down", "up")})
    narrow = {f"lora_unet_down_blocks_0_attn2_to_k.lora_{side}.weight": {"shape": [4]} for side in ("down", "up")}
    assert lora_file.describe(narrow).ranks == (4,)
