"""Anima's transformer: diffusers' own answers in float32 and bfloat16, and finite ones in float16."""

from __future__ import annotations

import copy
import types

import pytest
import tiny_anima
import torch
from diffusers.models.transformers import transformer_cosmos
from torch import nn

from lorakit._frozen import slim
from lorakit.adapters import Adapter, AdapterConfig
from lorakit.models import _cosmos

DTYPES = (torch.float32, torch.bfloat16)
TARGETS = r".*\.(attn\d\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2))"


@pytest.fixture(scope="module")
def transformer() -> nn.Module:
    """The tiny transformer with weights large enough that every layer matters."""
    return noisy(tiny_anima.anima_pipeline().transformer)


def noisy(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        weight.data += 0.2 * torch.randn(weight.shape, generator=generator)
    return model.requires_grad_(False).eval()


def inputs(dtype: torch.dtype, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """xt, t and text; the picture is not square."""
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


def test_learned_positions_are_added_where_a_model_has_them(monkeypatch):
    config = dict(tiny_anima.anima_pipeline().transformer.config, extra_pos_embed_type="learnable")
    model = noisy(transformer_cosmos.CosmosTransformer3DModel.from_config(config))
    given = inputs(torch.float32)
    expected = plain(model, *given, monkeypatch)
    assert torch.equal(_cosmos.velocity(_cosmos.prepare(model, torch.float32), *given), expected)
