"""Anima's transformer: diffusers' own answers in float32 and bfloat16, and finite ones in float16."""

from __future__ import annotations

import copy
import types

import numpy as np
import pytest
import tiny
import tiny_anima
import torch
from diffusers.models.transformers import transformer_cosmos
from torch import nn

from lorakit.config import from_dict
from lorakit.diffusion.weightings import LossConfig
from lorakit.layers.frozen import slim
from lorakit.lora.adapter import Adapter, AdapterConfig
from lorakit.models import Size, _cosmos, anima

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(scope="module")
def transformer() -> nn.Module:
    """The tiny transformer."""
    return tiny_anima.anima_pipeline().transformer.requires_grad_(False)


def inputs(dtype: torch.dtype, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """xt, t and text; the image is not square."""
    generator = torch.Generator().manual_seed(2)
    xt, text = (torch.randn(*shape, generator=generator) for shape in ((batch, 16, 6, 8), (batch, 7, 16)))
    return xt.to(_cosmos.stream_dtype(dtype)), torch.tensor([0.3, 0.9])[:batch], text.to(dtype)


def prepared(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return _cosmos.prepare(slim(copy.deepcopy(model).to(dtype)), dtype)


def plain(model: nn.Module, xt: torch.Tensor, t: torch.Tensor, text: torch.Tensor, monkeypatch) -> torch.Tensor:
    """diffusers' own forward pass; its one call to torchvision, which is not there, is nearest interpolation."""
    functional = types.SimpleNamespace(resize=lambda mask, size, interpolation: nn.functional.interpolate(mask, size))
    stand_in = types.SimpleNamespace(functional=functional, InterpolationMode=types.SimpleNamespace(NEAREST="nearest"))
    monkeypatch.setattr(transformer_cosmos, "transforms", stand_in, raising=False)
    mask = xt.new_zeros(1, 1, *(8 * side for side in xt.shape[-2:]))
    return model(xt[:, :, None], t, text, padding_mask=mask, return_dict=False)[0][:, :, 0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_pass_is_diffusers_own_bit_for_bit(transformer, dtype, monkeypatch):
    given = inputs(dtype)
    model = copy.deepcopy(transformer).to(dtype)
    expected = plain(model, *given, monkeypatch)
    assert torch.equal(_cosmos.velocity(_cosmos.prepare(model, dtype), *given), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_slim_layers_say_the_same(transformer, dtype, monkeypatch):
    given = inputs(dtype)
    expected = plain(copy.deepcopy(transformer).to(dtype), *given, monkeypatch)
    tolerance = 1e-5 if dtype == torch.float32 else 0.0
    torch.testing.assert_close(
        _cosmos.velocity(prepared(transformer, dtype), *given), expected, rtol=tolerance, atol=tolerance
    )


def test_learned_positions_are_added_if_a_model_has_them(monkeypatch):
    config = dict(tiny_anima.anima_pipeline().transformer.config, extra_pos_embed_type="learnable")
    model = transformer_cosmos.CosmosTransformer3DModel.from_config(config).requires_grad_(False)
    for weight in model.learnable_pos_embed.parameters():
        weight.normal_()
    given = inputs(torch.float32)
    expected = plain(model, *given, monkeypatch)
    assert torch.equal(_cosmos.velocity(_cosmos.prepare(model, torch.float32), *given), expected)


# ---- float16 ---------------------------------------------------------------------------------------------------------


def loud(model: nn.Module, outputs: float) -> nn.Module:
    """Modulation so strong that the stream leaves float16's range; outputs of attention and MLP times `outputs`."""
    model.time_embed.t_embedder.linear_2.weight.data *= 300
    for block in model.transformer_blocks:
        for layer in (block.attn1.to_out[0], block.attn2.to_out[0], block.ff.net[2]):
            layer.weight.data *= outputs
    return model


@pytest.mark.parametrize("outputs", (1.0, 100.0))
def test_float16_stays_finite_where_diffusers_overflows(transformer, outputs, monkeypatch):
    model, (xt, t, text) = loud(copy.deepcopy(transformer), outputs), inputs(torch.float16)
    expected = _cosmos.velocity(prepared(model, torch.float32), xt, t, text.float())
    assert not plain(copy.deepcopy(model).half(), xt.half(), t, text, monkeypatch).isfinite().all()
    found = _cosmos.velocity(prepared(model, torch.float16), xt, t, text)
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 5e-3 * expected.norm()


def test_only_the_large_matrices_are_float16(transformer):
    model = prepared(transformer, torch.float16)
    halves = {name for name, weight in model.named_parameters() if weight.dtype == torch.float16}
    assert halves == {name for name, _ in model.named_parameters() if ".attn" in name or ".ff." in name}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield tiny_anima.save_anima(tmp_path_factory.mktemp("cosmos") / "base")


def trained(base, transformer: nn.Module, dtype: torch.dtype, how: str):
    """A model of these weights with an adapter on its transformer, whose weights are not zero."""
    config = from_dict(anima.Config, {"family": "anima", "source": str(base)})
    model = anima.Model(config, CPU, dtype, ("transformer",))
    with torch.no_grad():
        for weight, value in zip(model.load("transformer").parameters(), transformer.parameters(), strict=True):
            weight.copy_(value)
    adapter = Adapter(AdapterConfig(rank=2), model, ["transformer"], 1)
    generator = torch.Generator().manual_seed(3)
    adapter.load({name: 0.1 * torch.randn(w.shape, generator=generator) for name, w in adapter.weights().items()})
    if how == "recomputed":
        model.enable_gradient_checkpointing()
    elif how != "plain":
        model.load("transformer").transformer_blocks[0].compile(backend=how)
    return model, adapter


def backward(model: anima.Model) -> tuple[torch.Tensor, int]:
    """Losses after a backward pass, and how many bytes were kept for it."""
    x0, t, text = inputs(model.dtype)
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = model.loss(x0.float(), -x0.float(), t, {"hidden": text}, LossConfig())
    losses.mean().backward()
    return losses.detach(), sum(kept)


@pytest.mark.parametrize("how", ("plain", "recomputed", "aot_eager"))
def test_float16_learns_the_same_as_float32(base, transformer, how):
    """The stream in float32, weights of the adapter in float32, what they adapt in float16."""
    noise = loud(copy.deepcopy(transformer), 1.0)
    exact, expected = trained(base, noise, torch.float32, "plain")
    model, adapter = trained(base, noise, torch.float16, how)
    assert torch.allclose(backward(model)[0], backward(exact)[0], rtol=1e-2)
    assert {weight.dtype for _, weight in adapter.named()} == {torch.float32}
    exact, found = (torch.cat([weight.grad.flatten() for _, weight in each.named()]) for each in (expected, adapter))
    assert (found - exact).norm() < 5e-2 * exact.norm()  # of the sharp softmax of such a model; bfloat16: 1e-1


@pytest.mark.parametrize("sampler", anima.Config.samplers)
def test_images_in_float16_are_those_of_float32(base, transformer, sampler):
    noise, images = loud(copy.deepcopy(transformer), 1.0), []
    look = {"width": 64, "height": 64, "seed": 7, "steps": 4, "guidance_scale": 4.0, "sampler": sampler, "shift": 0.0}
    for dtype in (torch.float32, torch.float16):
        model, _ = trained(base, noise, dtype, "plain")
        texts = [model.condition([model.encode_text(words)], [Size.whole(64, 64)]) for words in ("girl, hat", "")]
        images.append(np.asarray(tiny.painted(model, *texts, **look), int))
    exact, found = images
    assert found.std() > 10 and np.abs(found - exact).mean() < 2  # of 255


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
def test_recomputing_keeps_less_and_gives_the_same_gradients(base, transformer, dtype):
    model, adapter = trained(base, transformer, dtype, "plain")
    losses, kept = backward(model)
    thin, other = trained(base, transformer, dtype, "recomputed")
    again, less = backward(thin)
    assert torch.equal(losses, again) and less < kept / 4
    for (name, weight), (_, same) in zip(adapter.named(), other.named(), strict=True):
        assert torch.equal(weight.grad, same.grad), name
