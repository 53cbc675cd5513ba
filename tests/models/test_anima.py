"""Anima computes what diffusers' own pipeline computes, reads long captions whole, and stays finite in float16."""

from __future__ import annotations

import types
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_anima
import torch
from diffusers import AnimaTextConditioner, CosmosTransformer3DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_anima_lora_to_diffusers as convert_lora
from diffusers.models.transformers import transformer_cosmos
from diffusers.modular_pipelines.anima.before_denoise import AnimaTextConditioningStep
from diffusers.modular_pipelines.anima.encoders import AnimaTextEncoderStep
from PIL import Image
from torch.nn import functional as F

from lorakit.config import from_dict
from lorakit.data.images import to_tensor
from lorakit.diffusion.weightings import LossConfig
from lorakit.hub.settings import read_settings
from lorakit.lora import export
from lorakit.lora.adapter import Adapter, AdapterConfig
from lorakit.models import Size, _qwen_vae, anima
from lorakit.models.files.anima import ANIMA_CONFIG

CPU = torch.device("cpu")
SIZE = Size.whole(64, 64)
WORDS = [("girl", "boy", "red", "blue", "hair", "smile", "hat")[i % 7] for i in range(900)]  # one T5 token each
CAPTIONS = ("", "girl", "mofu, girl, red hair", "a girl, standing in the rain. " * 5, " ".join(WORDS[:100]))


@pytest.fixture(scope="module", autouse=True)
def one_memory_of_digests(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_anima.save_anima(tmp_path_factory.mktemp("anima") / "base")


@pytest.fixture
def pipeline(monkeypatch):
    """diffusers' own pipeline of the same weights; its one call to torchvision is nearest interpolation."""
    functional = types.SimpleNamespace(resize=lambda mask, size, interpolation: F.interpolate(mask, size))
    stand_in = types.SimpleNamespace(functional=functional, InterpolationMode=types.SimpleNamespace(NEAREST="nearest"))
    monkeypatch.setattr(transformer_cosmos, "transforms", stand_in, raising=False)
    made = tiny_anima.anima_pipeline()
    made.set_progress_bar_config(disable=True)
    return made


def opened(base: Path, dtype: torch.dtype = torch.float32, trained: tuple[str, ...] = (), **settings) -> anima.Model:
    config = from_dict(anima.Config, {"family": "anima", "source": str(base), **settings})
    return anima.Model(config, CPU, dtype, trained)


def drawn(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fixed x0, eps and t."""
    generator = torch.Generator().manual_seed(1)
    x0, eps = (torch.randn(batch, 16, 8, 6, generator=generator) for _ in range(2))
    return x0, eps, torch.tensor([0.02, 0.5, 0.98])[:batch]


def hidden(model: anima.Model, *captions: str) -> torch.Tensor:
    return model.condition([model.encode_text(caption) for caption in captions], [SIZE] * len(captions))["hidden"]


def plain_hidden(pipeline, caption: str, tokens: int = 512) -> torch.Tensor:
    """What the steps of diffusers' pipeline make of one caption."""
    said = AnimaTextEncoderStep.encode_prompt(pipeline, caption, None, False, tokens, CPU)
    with torch.no_grad():
        return AnimaTextConditioningStep._condition_prompt_embeds(
            pipeline,
            said["qwen_prompt_embeds"],
            said["qwen_attention_mask"],
            said["t5_input_ids"],
            said["t5_attention_mask"],
            CPU,
            pipeline.text_conditioner.dtype,
            pipeline.transformer.dtype,
        )


# ---- captions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("caption", CAPTIONS)
def test_a_caption_is_encoded_as_the_pipeline_does_bit_for_bit(base, pipeline, caption, dtype):
    for trained in ((), ("text_conditioner",)):
        model = opened(base, dtype, trained)
        # the same weights at the same addresses: the kernels of CPUs round by these
        pipeline.update_components(
            text_encoder=model.load("text_encoder"),
            text_conditioner=model.load("text_conditioner"),
            transformer=pipeline.transformer.to(dtype),
        )
        found, expected = hidden(model, caption), plain_hidden(pipeline, caption)
        assert found.dtype == dtype and found.shape[1] == 512 and torch.equal(found, expected)


def test_a_caption_of_700_tokens_is_kept_whole_when_allowed(base, pipeline):
    caption = " ".join(WORDS[:700])
    model = opened(base, max_token_length=4096)
    pipeline.update_components(text_encoder=model.load("text_encoder"), text_conditioner=model.load("text_conditioner"))
    whole = hidden(model, caption)
    assert torch.equal(whole, plain_hidden(pipeline, caption, 4096))
    assert whole.shape[1] == 701 and not torch.equal(whole[:, 512:], hidden(model, " ".join(WORDS[1:701]))[:, 512:])
    cut = hidden(opened(base), caption)
    assert cut.shape[1] == 512 and not torch.allclose(cut, whole[:, :512])


def test_the_token_count_shows_which_captions_are_cut(base):
    model = opened(base, max_token_length=64)
    for words in (3, 70):
        caption, longer = " ".join(WORDS[:words]), " ".join([*WORDS[:words], "hat"])
        fits = model.token_count(longer) <= 64
        assert fits == (words == 3)
        assert torch.equal(hidden(model, caption), hidden(model, longer)) == (not fits)
    assert opened(base).token_count("") == 1  # T5's end


def test_cached_captions_have_no_padding_and_batches_are_padded_to_the_longest(base):
    model = opened(base, max_token_length=1024)
    captions = ("", "mofu, girl", " ".join(WORDS[:600]))
    kept = [model.encode_text(caption)["hidden"] for caption in captions]
    assert [len(item) for item in kept] == [1, 4, 601]
    batch = hidden(model, *captions)
    assert batch.shape == (3, 601, 16)
    for row, item in zip(batch, kept, strict=True):
        assert torch.equal(row[: len(item)], item) and not row[len(item) :].any()


def test_a_trained_conditioner_learns_and_the_text_encoder_does_not(base):
    model = opened(base, trained=("transformer", "text_conditioner"))
    adapter = Adapter(AdapterConfig(rank=2), model, ["transformer", "text_conditioner"], 1)
    for _, weight in adapter.named():
        weight.data.normal_(0, 0.1)
    texts = [model.encode_text(caption) for caption in ("girl", "", "mofu, boy")]
    assert all(set(text) == {"states", "ids"} and not text["states"].requires_grad for text in texts)
    model.loss(*drawn(), model.condition(texts, [SIZE] * 3), LossConfig()).sum().backward()
    assert not [name for name, weight in adapter.named() if weight.grad is None or not weight.grad.any()]
    assert all(weight.grad is None for weight in model.load("text_encoder").parameters())
    assert len(model.targets("text_conditioner")) == 10 and len(model.targets("transformer")) == 20


def test_the_cache_key_of_captions_changes_with_everything_they_depend_on(base):
    plain = opened(base)
    others = [
        opened(base, torch.bfloat16),
        opened(base, trained=("text_conditioner",)),
        opened(base, max_token_length=1024),
    ]
    assert len({plain.text_key(), *(other.text_key() for other in others)}) == 4
    assert opened(base, trained=("transformer",)).text_key() == plain.text_key()


def test_in_float16_the_parts_that_are_read_once_are_float32(base):
    model, exact = opened(base, torch.float16), opened(base)
    assert {part: model.load(part).dtype for part in (*model.text_parts, "vae")} == {
        part: torch.float32 for part in (*model.text_parts, "vae")
    }
    assert torch.equal(hidden(model, "mofu, girl"), hidden(exact, "mofu, girl").half())


# ---- images --------------------------------------------------------------------------------------------------------


def test_images_are_encoded_and_normalised_as_diffusers_does(base, pipeline):
    image = Image.effect_mandelbrot((64, 96), (-2, -1, 1, 1), 50).convert("RGB")
    vae, model = pipeline.vae, opened(base)
    with torch.no_grad():
        posterior = vae.encode(VaeImageProcessor().preprocess(image)[:, :, None]).latent_dist
    encoded = model.encode_image(to_tensor(image))
    torch.testing.assert_close(encoded["mean"], posterior.mean[0, :, 0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(encoded["std"], posterior.std[0, :, 0], rtol=1e-5, atol=1e-6)
    x0 = model.latents([encoded] * 2, torch.Generator().manual_seed(3))
    noise = torch.randn(2, 16, 12, 8, generator=torch.Generator().manual_seed(3))
    sample = posterior.mean[:, :, 0] + posterior.std[:, :, 0] * noise
    centre, width = (
        torch.tensor(values)[:, None, None] for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    torch.testing.assert_close(x0, (sample - centre) / width, rtol=1e-5, atol=1e-6)


def test_the_vae_for_images_decodes_as_diffusers_does_and_keeps_one_tap_in_time(base, pipeline):
    latents, vae = torch.randn(2, 16, 6, 4, generator=torch.Generator().manual_seed(1)), opened(base).load("vae")
    with torch.no_grad():
        expected = pipeline.vae.decode(latents[:, :, None]).sample[:, :, 0]
        torch.testing.assert_close(_qwen_vae.decode(vae, latents), expected, rtol=0, atol=1e-4)
    ours, theirs = (sum(weight.numel() for weight in each.parameters()) for each in (vae, pipeline.vae))
    assert ours < theirs / 2


@pytest.mark.parametrize("shift", (0.0, 1.5))
@pytest.mark.parametrize("guidance_scale", (4.0, 1.0))
def test_an_image_is_that_of_diffusers_pipeline(base, pipeline, shift, guidance_scale):
    model = opened(base)
    look = {"width": 64, "height": 96, "seed": 7, "steps": 4, "guidance_scale": guidance_scale, "sampler": "euler"}
    texts = [{"hidden": hidden(model, caption)} for caption in ("mofu, girl", "hat")]
    ours = tiny.painted(model, *texts, shift=shift, **look)
    if shift:
        pipeline.scheduler.set_shift(shift)
    pipeline.guider.guidance_scale = guidance_scale
    assert np.abs(np.asarray(ours, int) - painted(pipeline)).max() <= 1  # of 255
    other = tiny.painted(model, *texts, shift=2.5, **look)
    assert np.abs(np.asarray(ours, int) - np.asarray(other, int)).max() > 1


def test_the_pipeline_with_the_exported_file_samples_the_trainers_image(base, pipeline, tmp_path):
    model = opened(base, trained=("transformer", "text_conditioner"))
    adapter = Adapter(AdapterConfig(rank=2, alpha=3), model, sorted(model.trained), 1)
    off = painted(pipeline)
    for _, weight in adapter.named():
        weight.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(weight.numel()))
    export.write(tmp_path / "lora.safetensors", adapter, model, {}, "fp32", "comfy")
    with torch.no_grad():
        texts = [{"hidden": hidden(model, caption)} for caption in ("mofu, girl", "hat")]
    look = {"width": 64, "height": 96, "seed": 7, "steps": 4, "guidance_scale": 4.0, "sampler": "euler", "shift": 0.0}
    ours = np.asarray(tiny.painted(model, *texts, **look), int)
    pipeline.load_lora_weights(tmp_path / "lora.safetensors")
    assert np.abs(ours - painted(pipeline)).max() <= 1 and np.abs(ours - off).max() > 10


def painted(pipeline) -> np.ndarray:
    """The pipeline's image of fixed words and noise."""
    images = pipeline(
        prompt="mofu, girl",
        negative_prompt="hat",
        width=64,
        height=96,
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(7),
    ).images
    return np.asarray(images[0], int)


@pytest.mark.parametrize("sampler", anima.Config.samplers)
def test_an_image_depends_on_its_seed_and_words_alone(base, sampler):
    model = opened(base)
    look = {"width": 64, "height": 64, "steps": 3, "guidance_scale": 4.0, "sampler": sampler, "shift": 0.0}
    girl, boy, none = ({"hidden": hidden(model, caption)} for caption in ("girl", "boy, red hat", ""))
    first, other, again = (tiny.painted(model, girl, none, seed=seed, **look).tobytes() for seed in (7, 8, 7))
    assert first == again != other
    assert tiny.painted(model, boy, none, seed=7, **look).tobytes() != first


def test_sampling_does_not_change_training(base):
    model = opened(base, trained=("transformer",))
    adapter = Adapter(AdapterConfig(rank=2, dropout=0.5), model, ["transformer"], 1)
    model.enable_gradient_checkpointing()
    text = {"hidden": hidden(model, "girl")}
    modes = {name: module.training for name, module in model.load("transformer").named_modules()}
    look = {"width": 64, "height": 64, "steps": 2, "guidance_scale": 2.0, "sampler": "euler", "shift": 0.0}
    state = torch.get_rng_state()
    with model.eval_mode():
        first, again = (tiny.painted(model, text, text, seed=1, **look).tobytes() for _ in range(2))
    assert first == again and torch.equal(torch.get_rng_state(), state)
    assert {name: module.training for name, module in model.load("transformer").named_modules()} == modes
    assert model.load("transformer").gradient_checkpointing
    assert all(weight.requires_grad and weight.grad is None for _, weight in adapter.named())


# ---- loss ------------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_plain_diffusers_calls(base, pipeline):
    x0, eps, t = drawn()
    captions = ("girl, red hair", "boy, smile", "")
    with torch.no_grad():
        text = torch.cat([plain_hidden(pipeline, caption) for caption in captions])
        pipeline.scheduler.set_timesteps(sigmas=t.flip(0).tolist())  # moved by its shift, so taken as it then is
        t = pipeline.scheduler.sigmas[:-1]
        xt = pipeline.scheduler.scale_noise(x0, pipeline.scheduler.timesteps, eps)
        said = pipeline.transformer(xt[:, :, None], t, text, padding_mask=torch.zeros(1, 1, 64, 48)).sample
    expected = F.mse_loss(said[:, :, 0], eps - x0, reduction="none").mean(dim=(1, 2, 3))
    model = opened(base)
    with torch.no_grad():
        found = model.loss(x0, eps, t, {"hidden": hidden(model, *captions)}, LossConfig())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


# ---- names in files --------------------------------------------------------------------------------------------------


def test_every_module_of_a_full_size_model_has_the_name_that_hosts_know(base):
    model, names = opened(base), {}
    with torch.device("meta"):
        full = {
            "transformer": CosmosTransformer3DModel.from_config(
                read_settings(ANIMA_CONFIG / "transformer" / "config.json")
            ),
            "text_conditioner": AnimaTextConditioner(),
        }
    model.load = full.__getitem__
    for part in full:
        names |= {(part, target): model.names(part, target) for target in model.targets(part)}
    assert [sum(part == key for key, _ in names) for part in full] == [280, 60]
    theirs = convert_lora({name["comfy"]: name["diffusers"] for name in names.values()})
    assert all(found == wanted for found, wanted in theirs.items())
    assert all(name["diffusers"] == f"{part}.{target}" for (part, target), name in names.items())
    for form in ("comfy", "kohya", "diffusers"):
        assert len({name[form] for name in names.values()}) == 340
    assert {
        "lora_unet_blocks_0_self_attn_q_proj",
        "lora_unet_blocks_27_cross_attn_output_proj",
        "lora_unet_blocks_9_mlp_layer1",
        "lora_unet_llm_adapter_blocks_0_self_attn_q_proj",
        "lora_unet_llm_adapter_blocks_5_mlp_2",
    } <= {name["kohya"] for name in names.values()}


def test_a_part_may_be_a_folder_of_its_own(tmp_path):
    folder = tiny_anima.save_anima(tmp_path / "base")
    plain = anima.Model(anima.Config(source=str(folder)), CPU, torch.float32)
    own = anima.Config(source=str(folder), text_encoder=str(folder / "text_encoder"), vae=str(folder / "vae"))
    apart = anima.Model(own, CPU, torch.float32)
    assert {part: apart.files.files(part) for part in apart.parts} == {p: plain.files.files(p) for p in plain.parts}
