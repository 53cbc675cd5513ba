"""Saving memory changes no gradient, and what is released is gone."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sessions import assert_same_end, at, family_settings, merged, new_run, until

from lorakit import models
from lorakit.diffusion.weightings import LossConfig
from lorakit.events import Finished, Saved
from lorakit.layers.frozen import FrozenConv2d, FrozenLinear
from lorakit.layers.offload import Prefetcher
from lorakit.lora.adapter import Adapter, AdapterConfig
from lorakit.models import Size
from lorakit.models._base import decode
from lorakit.training.loop import train

CPU = torch.device("cpu")
RECOMPUTED = pytest.mark.parametrize("recomputed", (False, True), ids=("kept", "recomputed"))


def opened(family: str, base, *, offload: float = 0.0, recomputed: bool = False, device=CPU, dtype=torch.float32):
    """A model with trained text parts, as a run of this family would open it, before its adapter is attached."""
    module = models.family(family)
    model = module.Model(module.Config(source=str(base)), device, dtype, list(module.Config.rates))
    model.offload = offload
    for part in module.Config.rates:
        model.load(part)
    if recomputed:
        model.enable_gradient_checkpointing()
    return model


def attached(model, *, dropout: float = 0.0) -> Adapter:
    """An adapter on every part that can learn, with weights that are not zero."""
    adapter = Adapter(AdapterConfig(rank=2, dropout=dropout), model, list(model.config.rates), 1)
    draws = torch.Generator().manual_seed(2)
    adapter.load({name: 0.3 * torch.randn(w.shape, generator=draws) for name, w in adapter.weights().items()})
    return adapter


def learn(model, adapter: Adapter, *, side: int = 64, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """The losses and the gradients, times `scale`, of one step over two images."""
    draws, config = torch.Generator().manual_seed(3), LossConfig()
    encoded = [model.encode_image(2 * torch.rand(3, side, side, generator=draws) - 1) for _ in range(2)]
    torch.manual_seed(4)  # dropout
    x0 = model.latents(encoded, draws)
    eps, t = model.sample_noise(x0, draws, config)
    texts = [model.encode_text(caption) for caption in ("mofu, girl", "a boy with a red hat, smile")]
    text = model.condition(texts, [Size.whole(side, side)] * 2)
    losses = model.loss(x0, eps, t, text, config)
    (scale * losses.mean()).backward()
    return {"losses": losses.detach(), **{name: weight.grad for name, weight in adapter.named()}}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
        assert tensor.abs().sum() > 0, name


def offloaded(model) -> list:
    """The layers whose weights stay on the host."""
    return [layer for layer in model.load(model.denoiser).modules() if getattr(layer, "prefetcher", None)]


# ---- equal gradients -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=(0.0, 0.3), ids=("plain", "dropout"))
def dropout(request) -> float:
    return request.param


@pytest.fixture(scope="module")
def expected(family, base, dropout) -> dict[str, torch.Tensor]:
    """Losses and gradients of the model that saves no memory."""
    model = opened(family, base)
    return learn(model, attached(model, dropout=dropout))


def test_recomputing_activations_changes_no_gradient(family, base, dropout, expected):
    model = opened(family, base, recomputed=True)
    assert_equal(learn(model, attached(model, dropout=dropout)), expected)


@pytest.mark.parametrize("share, recomputed", ((0.5, False), (1.0, True)), ids=("half", "all, recomputed"))
def test_offloaded_weights_are_fetched_wherever_they_are_used(
    family, base, dropout, expected, monkeypatch, share, recomputed
):
    """Host weights are kept negated here, as if on a device that cannot compute; fetching alone makes them right."""
    model = opened(family, base, offload=share, recomputed=recomputed)
    adapter = attached(model, dropout=dropout)
    layers = offloaded(model)
    for layer in layers:
        layer.weight.data = -layer.weight.data
    fetched = []
    monkeypatch.setattr(Prefetcher, "fetch", lambda prefetcher, weight: fetched.append(weight) or -weight)
    assert_equal(learn(model, adapter), expected)
    assert {id(weight) for weight in fetched} == {id(layer.weight) for layer in layers}
    assert len(fetched) > (2 if recomputed else 1) * len(layers)  # not all inputs need a gradient


@pytest.mark.parametrize("share", (0.25, 1.0))
def test_the_share_that_stays_is_the_one_set(family, base, share):
    model = opened(family, base, offload=share)
    blocks = [
        layer.weight.nbytes
        for name, layer in model.load(model.denoiser).named_modules()
        if "block" in name and isinstance(layer, (FrozenLinear, FrozenConv2d))
    ]
    staying = sum(layer.weight.nbytes for layer in offloaded(model))
    assert abs(staying - share * sum(blocks)) <= max(blocks) / 2
    assert sum(blocks) > 0.6 * sum(weight.nbytes for weight in model.load(model.denoiser).parameters())


def test_a_run_may_change_its_memory_settings_between_sessions(tmp_path, family, base):
    short = merged(family_settings(family, base)[0], {"loop": {"steps": 3}, "save": {"every_steps": 1}})
    uncut = new_run(tmp_path / "uncut", base, short)
    list(train(uncut))
    for last, given in ((1, {"offload": 1.0, "gradient_checkpointing": True}), (2, {"offload": 0.5}), (3, {})):
        run = new_run(tmp_path / "cut", base, short, {"memory": given})
        until(run, at(Finished if last == 3 else Saved, last))
    assert_same_end(run, uncut)


def test_a_released_part_is_gone_at_once(family, base):
    model = opened(family, base)
    gone = [(part, weakref.ref(module)) for part in model.parts for module in model.load(part).modules()]
    model.release(*model.parts)
    assert not [part for part, module in gone if module()]


# ---- images --------------------------------------------------------------------------------------------------------


def test_an_image_that_does_not_fit_is_decoded_in_tiles_which_lie_in_their_places(family, base, monkeypatch):
    model = opened(family, base)
    vae, channels = model.load("vae"), {"anima": 16}.get(family, 4)
    if family == "anima":
        vae.tile_sample_min_height = vae.tile_sample_min_width = 128
        vae.tile_sample_stride_height = vae.tile_sample_stride_width = 96
    else:
        vae.tile_latent_min_size = 16
    # large patches: of noise a VAE with random weights makes other noise in each tile
    z = F.interpolate(torch.randn(1, channels, 2, 2, generator=torch.Generator().manual_seed(1)), (32, 24))
    with torch.no_grad():
        whole, tried, pixels = decode(model, z), [], model.pixels

        def full(latents, in_tiles):
            tried.append(in_tiles)
            if not in_tiles:
                raise RuntimeError("GET was unable to find an engine to execute this computation")
            return pixels(latents, in_tiles)

        monkeypatch.setattr(model, "pixels", full)
        tiled = decode(model, z)
    assert tried == [False, True] and tiled.size == whole.size == (192, 256)
    likeness = np.corrcoef(np.asarray(tiled).ravel(), np.asarray(whole).ravel())[0, 1]
    assert likeness > 0.4
    assert not getattr(vae, "use_tiling", False)


# ---- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@RECOMPUTED
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
def test_offloading_on_cuda_changes_no_gradient_and_takes_less_memory(family, base, recomputed, dtype):
    cuda, found, held = torch.device("cuda"), [], []
    scale = 1024.0 if dtype == torch.float16 else 1.0  # small gradients become 0 in float16
    for share in (0.0, 0.5, 1.0):
        gc.collect()  # what earlier tests left must not go while memory is measured
        before = torch.cuda.memory_allocated()
        model = opened(family, base, offload=share, recomputed=recomputed, device=cuda, dtype=dtype)
        adapter = attached(model)
        assert {weight.device.type for _, weight in adapter.named()} == {"cuda"}
        assert all(layer.weight.is_pinned() for layer in offloaded(model))
        held.append(torch.cuda.memory_allocated() - before)
        learn(model, adapter, scale=scale)  # the order is learned
        for _, weight in adapter.named():
            weight.grad = None
        found.append(learn(model, adapter, scale=scale))
        del adapter
        model.release(*model.parts)
    assert_equal(found[1], found[0])
    assert_equal(found[2], found[0])
    assert held[2] < held[0]


@pytest.mark.gpu
def test_weights_on_the_host_take_no_room_on_cuda():
    """Ten products of 16 MB of weights each: two slots of one weight instead of all."""
    from lorakit.layers.frozen import slim
    from lorakit.layers.offload import place

    def peak(share: float) -> tuple[int, torch.Tensor]:
        torch.manual_seed(0)
        block = torch.nn.Sequential(*(torch.nn.Linear(2048, 2048, bias=False) for _ in range(10)))
        module = torch.nn.ModuleDict({"block": block}).requires_grad_(False)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        module = place(slim(module), torch.device("cuda"), share)
        x = torch.randn(8, 2048, generator=torch.Generator().manual_seed(1)).cuda().requires_grad_()
        for _ in range(3):  # the host runs ahead of the device, and must not pile copies up
            x.grad = None
            module["block"](x).square().sum().backward()
        return torch.cuda.max_memory_allocated() - before, x.grad

    torch.ones(8, 8, device="cuda") @ torch.ones(8, 8, device="cuda")  # cuBLAS's workspace counts as memory, too
    (all_there, expected), (half, same), (none, alike) = peak(0.0), peak(0.5), peak(1.0)
    assert torch.equal(same, expected) and torch.equal(alike, expected)
    weight = 4 * 2048**2
    assert all_there > 10 * weight and half < 8 * weight and none < 3 * weight
