"""SDXL computes what plain diffusers computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import tiny
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from original_layout import original_state
from packaging.version import Version
from PIL import Image
from safetensors.torch import save_file
from tiny import conditioning
from tiny_sdxl import save_sdxl
from torch.nn import functional as F

from lorakit.config import ConfigError
from lorakit.data.images import to_tensor
from lorakit.diffusion.weightings import LossConfig
from lorakit.lora import export
from lorakit.lora.adapter import Adapter, AdapterConfig
from lorakit.models import Size, sdxl
from lorakit.models.files.sdxl_names import LAYOUT as SDXL

CPU = torch.device("cpu")
CAPTIONS = ["girl, red hair", "boy, smile", ""]
SIZES = [Size((832, 1216), (0, 32), (64, 96)), Size((1537, 900), (7, 0), (64, 64)), Size.whole(64, 64)]
WORDS = [("girl", "boy", "red", "blue", "hair", "smile", "hat")[i % 7] for i in range(300)]  # one token each
LONG = " ".join(WORDS[:120])
BASES = {
    "epsilon": {},
    "v_prediction": {"prediction_type": "v_prediction"},
    "ztsnr": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    """A tiny base of each prediction type, with the same weights."""
    root = tmp_path_factory.mktemp("sdxl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        yield {name: save_sdxl(root / name, **made) for name, made in BASES.items()}


@pytest.fixture(scope="module")
def base(bases) -> Path:
    return bases["epsilon"]


def opened(source: Path, trained=(), dtype: torch.dtype = torch.float32, **settings) -> sdxl.Model:
    config = sdxl.Config(source=str(source), **{"max_token_length": 75, **settings})
    return sdxl.Model(config, CPU, dtype, trained)


def with_adapter(model: sdxl.Model, parts: tuple[str, ...]) -> Adapter:
    """An adapter with random weights."""
    adapter = Adapter(AdapterConfig(rank=2, alpha=1), model, list(parts), 1)
    generator = torch.Generator().manual_seed(2)
    adapter.load({name: 0.3 * torch.randn(w.shape, generator=generator) for name, w in adapter.weights().items()})
    return adapter


def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fixed x0, eps and t, the last timestep among them."""
    generator = torch.Generator().manual_seed(1)
    x0, eps = (torch.randn(3, 4, 8, 8, generator=generator) for _ in range(2))
    return x0, eps, torch.tensor([3, 500, 999])


# ---- loss ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASES)
def test_the_loss_is_that_of_plain_diffusers_calls(bases, name):
    x0, eps, t = drawn()
    pipeline = StableDiffusionXLPipeline.from_pretrained(bases[name])
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    numbers = [[*s.original[::-1], *s.crop[::-1], *s.target[::-1]] for s in SIZES]  # as in diffusers' training example
    with torch.no_grad():
        hidden, _, pooled, _ = pipeline.encode_prompt(CAPTIONS, do_classifier_free_guidance=False)
        added = {"text_embeds": pooled, "time_ids": torch.tensor(numbers, dtype=torch.float32)}
        predicted = pipeline.unet(scheduler.add_noise(x0, eps, t), t, hidden, added_cond_kwargs=added).sample
    aim = eps if name == "epsilon" else scheduler.get_velocity(x0, eps, t)
    expected = F.mse_loss(predicted, aim, reduction="none").mean(dim=(1, 2, 3))

    model = opened(bases[name])
    with torch.no_grad():
        text = model.condition([model.encode_text(caption) for caption in CAPTIONS], SIZES)
        loss = model.loss(x0, eps, t, text, LossConfig())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", BASES)
def test_min_snr_weights_are_those_of_diffusers_and_finite_at_pure_noise(bases, name):
    model, (x0, eps, t) = opened(bases[name]), drawn()
    snr = compute_snr(DDPMScheduler.from_config(model.scheduler_config), t)
    weight = snr.clamp(max=5.0) / (snr if name == "epsilon" else snr + 1)
    with torch.no_grad():
        text = conditioning(model, CAPTIONS)
        plain = model.loss(x0, eps, t, text, LossConfig())
        weighted = model.loss(x0, eps, t, text, LossConfig(weighting="min_snr", min_snr_gamma=5.0))
    assert plain.isfinite().all() and (plain > 0).all()
    assert (snr[-1] == 0) == (name == "ztsnr")
    torch.testing.assert_close(weighted / plain, weight, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("part", range(3))
def test_each_size_that_an_image_comes_from_counts(base, part):
    model, (x0, eps, t) = opened(base), drawn()
    numbers = [list(pair) for pair in (SIZES[0].original, SIZES[0].crop, SIZES[0].target)]
    numbers[part][1] += 8
    changed = Size(*map(tuple, numbers))
    text = model.encode_text("girl")
    with torch.no_grad():
        both = model.condition([text, text], [SIZES[0], changed])
        loss = model.loss(x0[[0, 0]], eps[[0, 0]], t[[1, 1]], both, LossConfig())
    assert both["time_ids"][0].tolist() == [1216, 832, 32, 0, 96, 64]
    assert both["time_ids"][1].nonzero().flatten().tolist() and not torch.equal(loss[0], loss[1])


# ---- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("caption", ("", "mofu, girl, red hair", LONG))
def test_a_caption_of_75_tokens_is_encoded_as_diffusers_does(base, caption):
    pipeline, model = StableDiffusionXLPipeline.from_pretrained(base), opened(base)
    with torch.no_grad():
        hidden, _, pooled, _ = pipeline.encode_prompt(caption, do_classifier_free_guidance=False)
    ours = conditioning(model, [caption])
    torch.testing.assert_close(ours["hidden"], hidden, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours["pooled"], pooled, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", (75, 150, 225))
def test_long_captions_are_read_in_whole_windows_and_pooled_from_the_first(base, length):
    model, short = opened(base, max_token_length=length), opened(base)
    whole = conditioning(model, [" ".join(WORDS)])
    parts = [conditioning(short, [" ".join(WORDS[i : i + 75])]) for i in range(0, length, 75)]
    torch.testing.assert_close(whole["hidden"], torch.cat([part["hidden"] for part in parts], 1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whole["pooled"], parts[0]["pooled"], rtol=1e-5, atol=1e-6)


def test_an_exclamation_mark_is_a_tag_and_not_padding(base):
    model = opened(base, trained=("text_encoder", "text_encoder_2"))
    ids = model.encode_text("girl !")
    mark = model.tokenizer("!")["input_ids"][1]
    assert mark != 0 and ids["text_encoder.ids"][0, 2] == ids["text_encoder_2.ids"][0, 2] == mark
    assert set(ids["text_encoder_2.ids"][0, 4:].tolist()) == {0}
    assert set(ids["text_encoder.ids"][0, 4:].tolist()) == {model.tokenizer.eos_token_id}


@pytest.mark.parametrize("trained", ((), ("text_encoder",), ("text_encoder_2",), ("text_encoder", "text_encoder_2")))
def test_trained_text_encoders_get_gradients_and_frozen_ones_are_cached_and_freed(base, trained):
    model = opened(base, trained=("unet", *trained))
    adapter = with_adapter(model, ("unet", *trained))
    encoded = [model.encode_text(caption) for caption in CAPTIONS]
    frozen = set(model.text_parts) - set(trained)
    assert {name for name in encoded[0] if name.endswith(".ids")} == {f"{part}.ids" for part in trained}
    assert {name.partition(".")[0] for name in encoded[0] if name.endswith(".hidden")} == frozen
    assert not any(tensor.requires_grad for tensor in encoded[0].values())
    model.release(*frozen)
    x0, eps, t = drawn()
    model.loss(x0, eps, t, model.condition(encoded, SIZES), LossConfig()).sum().backward()
    assert not frozen & set(model.loaded())
    silent = [name for name, weight in adapter.named() if weight.grad is None or not weight.grad.abs().max() > 0]
    assert not silent


def test_the_cache_key_changes_with_trained_parts_and_caption_length(base):
    kinds = [(), ("text_encoder",), ("text_encoder_2",)]
    keys = [opened(base, trained=parts).text_key() for parts in kinds]
    keys += [opened(base, max_token_length=150).text_key(), opened(base, dtype=torch.bfloat16).text_key()]
    assert len(set(keys)) == 5
    assert opened(base, trained=("unet",)).text_key() == keys[0]


def test_clip_skip_is_refused_with_the_reason():
    assert "second to last layer" in sdxl.Config.unsupported["clip_skip"]


# ---- noise schedules -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASES)
def test_the_schedule_of_a_folder_is_in_its_scheduler(bases, name):
    model = opened(bases[name])
    assert model.prediction_type == ("epsilon" if name == "epsilon" else "v_prediction")
    assert model.zero_terminal_snr == (name == "ztsnr")
    assert (model.alphas_cumprod[-1] == 0) == (name == "ztsnr")
    metadata = model.metadata()
    assert metadata["ss_v_parameterization"] == str(name != "epsilon")
    assert metadata["ss_zero_terminal_snr"] == str(name == "ztsnr")
    assert metadata["modelspec.prediction_type"] == ("epsilon" if name == "epsilon" else "v")
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"


@pytest.mark.parametrize(
    ("marks", "metadata", "told"),
    (
        ((), {}, ("epsilon", False)),
        (("v_pred",), {}, ("v_prediction", False)),
        (("v_pred", "ztsnr"), {}, ("v_prediction", True)),
        (("ztsnr",), {"modelspec.prediction_type": "v"}, ("v_prediction", True)),
    ),
)
def test_the_schedule_of_a_single_file_is_in_its_keys(base, tmp_path, marks, metadata, told):
    state = original_state(base) | {mark: torch.tensor([]) for mark in marks}
    save_file(state, tmp_path / "model.safetensors", metadata)
    model = opened(tmp_path / "model.safetensors")
    assert (model.prediction_type, model.zero_terminal_snr) == told
    by_hand = opened(tmp_path / "model.safetensors", prediction_type="v_prediction", zero_terminal_snr="enabled")
    assert (by_hand.prediction_type, by_hand.zero_terminal_snr) == ("v_prediction", True)
    off = opened(tmp_path / "model.safetensors", prediction_type="epsilon", zero_terminal_snr="disabled")
    assert (off.prediction_type, off.zero_terminal_snr) == ("epsilon", False)


def test_zero_terminal_snr_without_v_prediction_is_refused(bases):
    with pytest.raises(ConfigError, match="zero terminal SNR needs v prediction"):
        sdxl.Config(source="x", prediction_type="epsilon", zero_terminal_snr="enabled")
    for name, settings in (("epsilon", {"zero_terminal_snr": "enabled"}), ("ztsnr", {"prediction_type": "epsilon"})):
        with pytest.raises(ConfigError, match="set prediction_type or zero_terminal_snr"):
            opened(bases[name], **settings)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_single_file_is_the_folder_bit_for_bit(base, tmp_path, monkeypatch):
    save_file(original_state(base), tmp_path / "model.safetensors")
    monkeypatch.setattr(sdxl.Model, "LAYOUT", replace(SDXL, settings=base))
    x0, eps, t = drawn()
    losses, latents = [], []
    for source in (base, tmp_path / "model.safetensors"):
        model = opened(source)
        with torch.no_grad():
            losses.append(model.loss(x0, eps, t, conditioning(model, CAPTIONS), LossConfig()))
        latents.append(model.encode_image(torch.linspace(-1, 1, 3 * 64 * 64).view(3, 64, 64))["mean"])
    assert torch.equal(*losses) and torch.equal(*latents)


def test_another_vae_encodes_decodes_and_counts_as_another_part(base, tmp_path):
    other = save_sdxl(tmp_path / "other", seed=7)
    plain, changed = opened(base), opened(base, vae=str(other / "vae"))
    image = Image.effect_mandelbrot((64, 96), (-2, -1, 1, 1), 50).convert("RGB")
    vae = AutoencoderKL.from_pretrained(other, subfolder="vae")
    with torch.no_grad():
        expected = vae.encode(to_tensor(image)[None]).latent_dist
    encoded = changed.encode_image(to_tensor(image))
    torch.testing.assert_close(encoded["mean"], expected.mean[0], rtol=1e-5, atol=1e-6)
    x0 = changed.latents([encoded], torch.Generator().manual_seed(3))
    sample = expected.sample(torch.Generator().manual_seed(3)) * 0.13025
    torch.testing.assert_close(x0, sample, rtol=1e-5, atol=1e-6)
    differing = [part for part in plain.parts if plain.fingerprint(part) != changed.fingerprint(part)]
    assert differing == ["vae"]
    file = other / "vae" / "config.json"
    file.write_text(file.read_text() + "\n")
    assert opened(base, vae=str(other / "vae")).fingerprint("vae") != changed.fingerprint("vae")


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_the_vae_never_computes_in_half_precision(base, dtype):
    model = opened(base, dtype=dtype)
    assert model.load("vae").dtype == torch.float32 and model.load("unet").dtype == dtype
    assert model.encode_image(torch.zeros(3, 64, 64))["mean"].dtype == torch.float32


def test_bfloat16_computes_nearly_the_same_and_keeps_sizes_exact(base):
    x0, eps, t = drawn()
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        model = opened(base, dtype=dtype)
        with torch.no_grad():
            text = model.condition([model.encode_text(caption) for caption in CAPTIONS], SIZES)
            losses.append(model.loss(x0, eps, t, text, LossConfig()))
        assert text["hidden"].dtype == text["pooled"].dtype == dtype
        assert text["time_ids"][1].tolist() == [900, 1537, 0, 7, 64, 64]
    assert losses[1].dtype == torch.float32
    torch.testing.assert_close(*losses, rtol=0.03, atol=0)


# ---- images out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sampler"), (("epsilon", "euler_a"), ("epsilon", "ddim"), ("ztsnr", "euler"), ("ztsnr", "dpmpp_2m"))
)
def test_an_image_is_the_pipelines_with_the_exported_file_loaded(bases, tmp_path, name, sampler):
    # before 0.41 diffusers puts no LoRA on the text encoders of transformers 5.6 and later
    parts = (
        ("unet", "text_encoder", "text_encoder_2") if Version(diffusers.__version__) >= Version("0.41") else ("unet",)
    )
    model = opened(bases[name], trained=parts)
    adapter = with_adapter(model, parts)
    modules = export.write(tmp_path / "lora.safetensors", adapter, model, {}, "fp32", "kohya")
    pipeline = StableDiffusionXLPipeline.from_pretrained(bases[name])
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    loaded = sum(hasattr(m, "lora_A") for part in parts for m in getattr(pipeline, part).modules())
    assert modules == loaded == len(adapter.layers)

    pipeline.scheduler = type(sdxl.ddpm.scheduler(sampler, {})).from_config(
        pipeline.scheduler.config, **({"timestep_spacing": "trailing"} if name == "ztsnr" else {})
    )
    pipeline.set_progress_bar_config(disable=True)
    look = {"width": 64, "height": 96, "guidance_scale": 5.0}
    draws = torch.Generator().manual_seed(7)
    expected = pipeline("mofu, girl", negative_prompt="hat", num_inference_steps=3, generator=draws, **look).images[0]
    with torch.no_grad(), model.eval_mode():
        size = [Size.whole(64, 96)]
        text, negative = (model.condition([model.encode_text(words)], size) for words in ("mofu, girl", "hat"))
        ours = tiny.painted(model, text, negative, seed=7, steps=3, sampler=sampler, shift=0.0, **look)
    assert (to_tensor(ours) - to_tensor(expected)).abs().max() <= 2 / 127.5
    adapter.set_strength(0.0)
    with torch.no_grad(), model.eval_mode():
        text, negative = (model.condition([model.encode_text(words)], size) for words in ("mofu, girl", "hat"))
        without = tiny.painted(model, text, negative, seed=7, steps=3, sampler=sampler, shift=0.0, **look)
    assert (to_tensor(without) - to_tensor(expected)).abs().max() > 8 / 127.5


@pytest.mark.parametrize("sampler", sdxl.Config.samplers)
def test_with_zero_terminal_snr_sampling_starts_at_pure_noise(bases, sampler):
    for name in BASES:
        scheduler = sdxl.ddpm.scheduler(sampler, opened(bases[name]).scheduler_config)
        scheduler.set_timesteps(4)
        assert (int(scheduler.timesteps[0]) == 999) == (name == "ztsnr")
        assert bool(scheduler.config.rescale_betas_zero_snr) == (name == "ztsnr")


# ---- slim layers -----------------------------------------------------------------------------------------------------


def test_slim_blocks_compute_the_same_as_plain_ones(base):
    model, plain = opened(base), UNet2DConditionModel.from_pretrained(base, subfolder="unet").requires_grad_(False)
    x0, _, t = drawn()
    text = {name: tensor.requires_grad_() for name, tensor in conditioning(model, CAPTIONS).items()}
    answers, gradients = [], []
    for unet in (plain, model.load("unet")):
        x, hidden = x0.clone().requires_grad_(), text["hidden"].detach().clone().requires_grad_()
        added = {"text_embeds": text["pooled"], "time_ids": text["time_ids"]}
        answers.append(unet(x, t, hidden, added_cond_kwargs=added).sample)
        gradients.append(torch.autograd.grad(answers[-1].square().sum(), (x, hidden)))
    assert type(model.load("unet").conv_in) is not type(plain.conv_in)
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
