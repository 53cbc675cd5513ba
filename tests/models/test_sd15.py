"""Stable Diffusion 1.5 computes what plain diffusers computes, and the adapters' modules are kohya's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.training_utils import compute_snr
from original_layout import original_state
from PIL import Image
from safetensors.torch import save_file
from tiny import conditioning
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.models.clip.modeling_clip import CLIPMLP, CLIPAttention

from lorakit.config import ConfigError, for_hash, from_dict
from lorakit.data.images import to_tensor
from lorakit.diffusion.weightings import LossConfig
from lorakit.hub.files import ModelFileError
from lorakit.models import sd15
from lorakit.models._clip import with_text_model

CPU = torch.device("cpu")
PREDICTIONS = ("epsilon", "v_prediction")
FULL_SIZE = Path(sd15.__file__).parent / "sd15_config"
TOKENS = [("girl", "boy", "red", "blue", "hair", "smile", "hat")[i % 7] for i in range(300)]  # one token each
LONG = " ".join(TOKENS[:120])


@pytest.fixture(scope="module", autouse=True)
def one_memory_of_digests(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    """A tiny base of each prediction type."""
    root = tmp_path_factory.mktemp("bases")
    return {kind: tiny.save_sd15(root / kind, prediction_type=kind) for kind in PREDICTIONS}


def opened(base: Path, **settings) -> sd15.Model:
    return sd15.Model(from_dict(sd15.Config, {"source": str(base), **settings}), CPU, torch.float32)


def drawn(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fixed x0, eps and t."""
    generator = torch.Generator().manual_seed(1)
    x0, eps = (torch.randn(batch, 4, 8, 8, generator=generator) for _ in range(2))
    return x0, eps, torch.tensor([3, 500, 999])[:batch]


def plain_hidden(base: Path, captions: list[str]) -> torch.Tensor:
    tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer")
    encoder = CLIPTextModel.from_pretrained(base, subfolder="text_encoder")
    ids = tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        return encoder(ids).last_hidden_state


# ---- loss ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_the_loss_is_that_of_plain_diffusers_calls(bases, prediction_type):
    base, captions = bases[prediction_type], ["girl, red hair", "boy, smile", ""]
    x0, eps, t = drawn()
    scheduler = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    with torch.no_grad():
        predicted = unet(scheduler.add_noise(x0, eps, t), t, plain_hidden(base, captions)).sample
    aim = eps if prediction_type == "epsilon" else scheduler.get_velocity(x0, eps, t)
    expected = F.mse_loss(predicted, aim, reduction="none").mean(dim=(1, 2, 3))

    model = opened(base)
    with torch.no_grad():
        loss = model.loss(x0, eps, t, conditioning(model, captions), LossConfig())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


def test_the_prediction_type_is_that_of_the_files_unless_configured(bases):
    assert opened(bases["v_prediction"]).prediction_type == "v_prediction"
    assert opened(bases["epsilon"]).prediction_type == "epsilon"
    assert opened(bases["epsilon"], prediction_type="v_prediction").prediction_type == "v_prediction"


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_min_snr_weights_are_those_of_diffusers_compute_snr(bases, prediction_type):
    model, (x0, eps, t) = opened(bases[prediction_type]), drawn()
    snr = compute_snr(DDPMScheduler.from_pretrained(bases[prediction_type], subfolder="scheduler"), t)
    weight = torch.stack([snr, torch.full_like(snr, 5.0)]).amin(dim=0)
    weight = weight / (snr if prediction_type == "epsilon" else snr + 1)  # as in diffusers' training examples
    with torch.no_grad():
        text = conditioning(model, ["girl", "boy", "hat"])
        plain = model.loss(x0, eps, t, text, LossConfig())
        weighted = model.loss(x0, eps, t, text, LossConfig(weighting="min_snr", min_snr_gamma=5.0))
    torch.testing.assert_close(weighted / plain, weight, rtol=1e-4, atol=0)


def test_noise_offset_shifts_each_channel_of_each_image_and_nothing_else(bases):
    model, x0 = opened(bases["epsilon"]), torch.zeros(64, 4, 8, 8)
    eps, t = model.sample_noise(x0, torch.Generator().manual_seed(5), LossConfig())
    shifted, same_t = model.sample_noise(x0, torch.Generator().manual_seed(5), LossConfig(noise_offset=0.1))
    shift = shifted - eps
    torch.testing.assert_close(shift, shift[:, :, :1, :1].expand_as(shift), rtol=0, atol=1e-6)
    assert shift[:, :, 0, 0].unique().numel() == 64 * 4
    assert shift[:, :, 0, 0].std().item() == pytest.approx(0.1, rel=0.15)
    assert torch.equal(t, same_t)
    assert 0 <= int(t.min()) and int(t.max()) < 1000
    assert eps.std().item() == pytest.approx(1, rel=0.02)


# ---- captions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_skip", (1, 2, 3))
def test_clip_skip_counts_layers_from_the_last_and_applies_the_final_norm(bases, clip_skip):
    base = bases["epsilon"]
    tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer")
    encoder = CLIPTextModel.from_pretrained(base, subfolder="text_encoder")
    ids = tokenizer(["mofu, girl"], padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        output = encoder(ids, output_hidden_states=True)
        norm = getattr(encoder, "text_model", encoder).final_layer_norm
        expected = norm(output.hidden_states[-clip_skip])
        hidden = conditioning(opened(base, clip_skip=clip_skip), ["mofu, girl"])["hidden"]
    torch.testing.assert_close(hidden, expected, rtol=1e-5, atol=1e-6)
    assert torch.allclose(hidden, output.last_hidden_state, atol=1e-6) == (clip_skip == 1)


def test_clip_skip_beyond_the_layers_of_the_base_is_refused(bases):
    with pytest.raises(ConfigError, match="clip_skip is 4.*3 layers"):
        opened(bases["epsilon"], clip_skip=4)


@pytest.mark.parametrize("caption", ("", "mofu, girl, red hair", LONG))
def test_a_caption_of_75_tokens_is_encoded_as_diffusers_does(bases, caption):
    pipeline = StableDiffusionPipeline.from_pretrained(bases["epsilon"], safety_checker=None)
    with torch.no_grad():
        expected = pipeline.encode_prompt(caption, CPU, 1, False)[0]
        ours = conditioning(opened(bases["epsilon"]), [caption])["hidden"]
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", (75, 150, 225))
def test_long_captions_are_read_in_whole_windows(bases, length):
    model, short = opened(bases["epsilon"], max_token_length=length), opened(bases["epsilon"])
    with torch.no_grad():
        hidden = conditioning(model, [" ".join(TOKENS)])["hidden"]
        parts = [conditioning(short, [" ".join(TOKENS[i : i + 75])])["hidden"] for i in range(0, length, 75)]
    torch.testing.assert_close(hidden, torch.cat(parts, dim=1), rtol=1e-5, atol=1e-6)


def test_only_tokens_within_the_limit_matter(bases):
    words = TOKENS[:150]
    ended, changed = [*words, "mofu"], [*words[:149], "mofu"]
    model = opened(bases["epsilon"], max_token_length=150)
    with torch.no_grad():
        whole, cut, other = (conditioning(model, [" ".join(text)])["hidden"] for text in (words, ended, changed))
    assert torch.equal(whole, cut)
    assert not torch.equal(whole, other)


def test_captions_encoded_together_are_those_encoded_alone(bases):
    model = opened(bases["epsilon"], max_token_length=150)
    with torch.no_grad():
        together = conditioning(model, ["girl", LONG])["hidden"]
        alone = torch.cat([conditioning(model, [caption])["hidden"] for caption in ("girl", LONG)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


# ---- images --------------------------------------------------------------------------------------------------------


def test_images_are_encoded_as_diffusers_does(bases):
    image = Image.effect_mandelbrot((64, 96), (-2, -1, 1, 1), 50).convert("RGB")
    vae = AutoencoderKL.from_pretrained(bases["epsilon"], subfolder="vae")
    with torch.no_grad():
        posterior = vae.encode(VaeImageProcessor().preprocess(image).contiguous()).latent_dist
    model = opened(bases["epsilon"])
    encoded = model.encode_image(to_tensor(image))
    torch.testing.assert_close(encoded["mean"], posterior.mean[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(encoded["std"], posterior.std[0], rtol=1e-5, atol=1e-6)
    x0 = model.latents([encoded], torch.Generator().manual_seed(3))
    expected = posterior.sample(torch.Generator().manual_seed(3)) * vae.config.scaling_factor
    torch.testing.assert_close(x0, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sampler", sd15.Config.samplers)
def test_an_image_depends_on_its_seed_alone(bases, sampler):
    model = opened(bases["epsilon"])
    look = {"width": 64, "height": 64, "steps": 3, "guidance_scale": 5.0, "sampler": sampler, "shift": 0.0}
    with torch.no_grad(), model.eval_mode():
        text, negative = conditioning(model, ["girl"]), conditioning(model, [""])
        first, other, again = (tiny.painted(model, text, negative, seed=seed, **look).tobytes() for seed in (7, 8, 7))
    assert first == again != other


def test_a_part_that_was_released_is_read_again_and_is_the_same(bases):
    model = opened(bases["epsilon"])
    before = conditioning(model, ["girl"])["hidden"]
    assert model.loaded() == ("text_encoder",)
    model.release("text_encoder")
    assert model.loaded() == ()
    assert torch.equal(conditioning(model, ["girl"])["hidden"], before)


# ---- modules that adapters go on -------------------------------------------------------------------------------------


def full_size(part: str) -> torch.nn.Module:
    """A part of Stable Diffusion 1.5 without memory for its weights."""
    config = json.loads((FULL_SIZE / part / "config.json").read_text())
    with torch.device("meta"):
        if part == "unet":
            return UNet2DConditionModel.from_config(config)
        return CLIPTextModel(CLIPTextConfig.from_dict(config))


def inside(root: torch.nn.Module, owners: tuple[type, ...]) -> set[str]:
    """kohya's rule: linear layers and 1x1 convolutions inside modules of the classes `owners`."""
    return {
        f"{name}.{child}"
        for name, owner in root.named_modules()
        if isinstance(owner, owners)
        for child, layer in owner.named_modules()
        if isinstance(layer, torch.nn.Linear) or (isinstance(layer, torch.nn.Conv2d) and layer.kernel_size == (1, 1))
    }


@pytest.mark.parametrize(
    "part, owners, count", (("unet", (Transformer2DModel,), 192), ("text_encoder", (CLIPAttention, CLIPMLP), 72))
)
def test_adapters_go_on_kohyas_modules_of_a_full_size_model(bases, part, owners, count):
    model, root = opened(bases["epsilon"]), full_size(part)
    model.load = lambda name: root
    targets = model.targets(part)
    assert len(targets) == len(set(targets)) == count
    assert set(targets) == inside(root, owners)
    names = {model.names(part, target)["kohya"] for target in targets}
    assert len(names) == count
    known = {
        "unet": {"lora_unet_mid_block_attentions_0_proj_in", "lora_unet_down_blocks_0_attentions_1_proj_out"}
        | {"lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_attn2_to_out_0"}
        | {"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_ff_net_0_proj"},
        "text_encoder": {"lora_te_text_model_encoder_layers_0_self_attn_q_proj"}
        | {"lora_te_text_model_encoder_layers_11_mlp_fc2"},
    }
    assert known[part] <= names


@pytest.mark.parametrize("prefix", ("", "text_model."))
def test_text_encoder_names_in_files_do_not_depend_on_the_installed_transformers(bases, prefix):
    name = f"{prefix}encoder.layers.3.mlp.fc1"
    expected = "lora_te_text_model_encoder_layers_3_mlp_fc1"
    assert opened(bases["epsilon"]).names("text_encoder", name)["kohya"] == expected
    assert with_text_model(name) == "text_model.encoder.layers.3.mlp.fc1"


# ---- v prediction, zero terminal SNR, another VAE --------------------------------------------------------------------


@pytest.mark.parametrize("sampler", sd15.Config.samplers)
def test_with_zero_terminal_snr_the_last_timestep_is_pure_noise_and_sampling_starts_there(bases, sampler):
    for setting, is_zero in (("enabled", True), ("disabled", False), ("auto", False)):
        model = opened(bases["v_prediction"], zero_terminal_snr=setting)
        scheduler = sd15.ddpm.scheduler(sampler, model.scheduler_config)
        scheduler.set_timesteps(25)
        assert (int(scheduler.timesteps[0]) == 999) == is_zero == (model.alphas_cumprod[-1] == 0)
        assert ("ss_zero_terminal_snr" in model.metadata()) == is_zero


def test_zero_terminal_snr_needs_v_prediction(bases):
    with pytest.raises(ConfigError, match="zero terminal SNR needs v prediction"):
        sd15.Config(source="x", prediction_type="epsilon", zero_terminal_snr="enabled")
    with pytest.raises(ConfigError, match="set prediction_type or zero_terminal_snr"):
        opened(bases["epsilon"], zero_terminal_snr="enabled")


def test_another_vae_replaces_that_of_the_base(bases, tmp_path):
    other = tiny.save_sd15(tmp_path / "other", seed=9)
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1
    plain, replaced = opened(bases["epsilon"]), opened(bases["epsilon"], vae=str(other / "vae"))
    assert replaced.encode_image(image)["mean"].equal(opened(other).encode_image(image)["mean"])
    assert not replaced.encode_image(image)["mean"].equal(plain.encode_image(image)["mean"])
    assert replaced.image_key() == opened(other).image_key() != plain.image_key()


def test_settings_that_earlier_versions_lacked_change_no_hash_until_they_are_set(bases):
    before = {"family": "sd15", "source": "x", "prediction_type": "auto", "clip_skip": 1, "max_token_length": 75}
    assert json.dumps(for_hash(sd15.Config(source="x"))) == json.dumps(before)
    assert for_hash(sd15.Config(source="x", vae="y")) == {**before, "vae": "y"}


def test_a_file_without_vae_is_refused_with_the_setting_that_helps(bases, tmp_path, monkeypatch):
    monkeypatch.setattr(sd15.Model, "LAYOUT", replace(sd15.LAYOUT, settings=bases["epsilon"]))
    state = {k: v for k, v in original_state(bases["epsilon"]).items() if not k.startswith("first_stage_model.")}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ModelFileError, match="model.safetensors cannot be trained on: it holds no VAE: set model.vae"):
        opened(tmp_path / "model.safetensors").load("vae")
    assert opened(tmp_path / "model.safetensors", vae=str(bases["epsilon"] / "vae")).load("vae")
