"""The modules of SDXL that adapters go on, and their names in LoRA files, at true size."""

from __future__ import annotations

import json
import re

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from original_layout import original_state
from safetensors.torch import save_file
from tiny_sdxl import save_sdxl
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from transformers.models.clip.modeling_clip import CLIPMLP, CLIPAttention

from lorakit.models import sdxl
from lorakit.models.files.sdxl_names import LAYOUT as SDXL


@pytest.fixture(scope="module")
def full_size() -> dict[str, torch.nn.Module]:
    """The parts of SDXL that adapters go on at their true size, without memory for their weights."""
    configs = {part: json.loads((SDXL.settings / part / "config.json").read_text()) for part in sdxl.Config.rates}
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel.from_config(configs["unet"]),
            "text_encoder": CLIPTextModel(CLIPTextConfig.from_dict(configs["text_encoder"])),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig.from_dict(configs["text_encoder_2"])),
        }


@pytest.fixture(scope="module")
def full(full_size, tmp_path_factory) -> sdxl.Model:
    """A model whose parts are those of true size."""
    folder = tmp_path_factory.mktemp("full")
    save_file(original_state(save_sdxl(folder / "tiny")), folder / "model.safetensors")  # so: bundled configuration
    model = sdxl.Model(sdxl.Config(source=str(folder / "model.safetensors")), torch.device("cpu"), torch.float32)
    model.load = full_size.__getitem__
    return model


def inside(root: torch.nn.Module, owners: tuple[type, ...]) -> set[str]:
    """kohya's rule: linear layers inside modules of the classes `owners`."""
    return {
        f"{name}.{child}"
        for name, owner in root.named_modules()
        if isinstance(owner, owners)
        for child, layer in owner.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }


@pytest.mark.parametrize(
    "part, owners, count",
    (
        ("unet", (Transformer2DModel,), 722),
        ("text_encoder", (CLIPAttention, CLIPMLP), 72),
        ("text_encoder_2", (CLIPAttention, CLIPMLP), 192),
    ),
)
def test_adapters_go_on_kohyas_modules_but_for_those_that_cannot_learn(full, full_size, part, owners, count):
    kohyas, targets = inside(full_size[part], owners), full.targets(part)
    assert len(kohyas) == count and len(targets) == len(set(targets))
    dead = {name for name in kohyas if part == "text_encoder" and "layers.11." in name}
    assert set(targets) == kohyas - dead and len(dead) in (0, 6)


def kohya_names() -> set[str]:
    """lora_unet names of SDXL by the rule of sd-scripts' conversion: three levels of two residual blocks and a change
    of size on the way down, of three blocks on the way up; 0, 2 and 10 transformer blocks."""
    depths = (0, 2, 10)
    places = {f"input_blocks_{3 * i + j + 1}_1": depths[i] for i in range(3) for j in range(2)}
    places |= {f"output_blocks_{3 * i + j}_1": depths[2 - i] for i in range(3) for j in range(3)}
    places["middle_block_1"] = depths[-1]
    layers = [f"attn{i}_to_{side}" for i in (1, 2) for side in ("q", "k", "v", "out_0")] + ["ff_net_0_proj", "ff_net_2"]
    found = {f"lora_unet_{place}_proj_{way}" for place, depth in places.items() if depth for way in ("in", "out")}
    return found | {
        f"lora_unet_{place}_transformer_blocks_{block}_{layer}"
        for place, depth in places.items()
        for block in range(depth)
        for layer in layers
    }


def test_exported_names_are_those_that_kohya_and_comfyui_know(full):
    unet = [full.names("unet", module) for module in full.targets("unet")]
    assert {names["kohya"] for names in unet} == kohya_names() and len(kohya_names()) == 722
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q" in kohya_names()
    for names in unet:  # ComfyUI: every weight of the checkpoint, with dots, or flat behind lora_unet
        assert names["comfy"].removeprefix("diffusion_model.").replace(".", "_") == names["kohya"][len("lora_unet_") :]
    for part, head, layers in (("text_encoder", "lora_te1", 12), ("text_encoder_2", "lora_te2", 32)):
        attention = [f"self_attn_{side}_proj" for side in ("q", "k", "v", "out")]
        known = {
            f"{head}_text_model_encoder_layers_{layer}_{module}"
            for layer in range(layers)
            for module in (*attention, "mlp_fc1", "mlp_fc2")
        }
        exported = {full.names(part, module)["kohya"] for module in full.targets(part)}
        assert exported <= known and len(exported) == len(full.targets(part))


def test_diffusers_own_loader_knows_every_exported_name(full, full_size):
    state = {}
    for part, root in full_size.items():
        for module in full.targets(part):
            out, width = root.get_submodule(module).weight.shape
            name = full.names(part, module)["kohya"]
            state[f"{name}.lora_down.weight"] = torch.zeros(1, 1).expand(1, width)
            state[f"{name}.lora_up.weight"] = torch.zeros(1, 1).expand(out, 1)
            state[f"{name}.alpha"] = torch.tensor(1.0)
    found, _ = StableDiffusionXLPipeline.lora_state_dict(state, unet_config=full_size["unet"].config)
    # on its way to the model diffusers calls attention's layers as it did of old
    steps = ((r"\.processor\.(to_\w+)_lora\..*", r".\1"), (r"\.self_attn\.to_(\w+)_lora\..*", r".self_attn.\1_proj"))
    steps += ((r"\.lora.*", ""), (r"\.to_out$", ".to_out.0"))
    modules = {name for name in found if not name.endswith(".alpha")}
    for pattern, new in steps:
        modules = {re.sub(pattern, new, name) for name in modules}
    assert modules == {full.names(part, module)["diffusers"] for part in full_size for module in full.targets(part)}
