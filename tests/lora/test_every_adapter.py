"""An adapter of every variant starts as the identity, round-trips bit for bit and computes what plain peft computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from peft import LoraConfig, inject_adapter_in_model

from lorakit.lora import variants
from lorakit.lora.adapter import Adapter
from lorakit.lora.variants import AdapterConfig
from lorakit.models import sd15

PARTS = ["unet", "text_encoder"]
# LoKr is trained by tests alone: whatever holds for one variant must not hold by chance
every_variant = pytest.mark.parametrize("variant", dict.fromkeys((*variants.trainable(), "lokr")))


pytestmark = pytest.mark.usefixtures("lokr_is_trained")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        yield tiny.save_sd15(root / "base")


def opened(base: Path, dtype: torch.dtype = torch.float32) -> sd15.Model:
    return sd15.Model(sd15.Config(source=str(base)), torch.device("cpu"), dtype, PARTS)


def config_of(variant: str, **changes) -> AdapterConfig:
    return variants.config_class(variant)(type=variant, **changes)


def adapted(base: Path, *, variant: str, dtype: torch.dtype = torch.float32, seed: int = 1, rank: int = 4):
    """A model with a new adapter whose rank and alpha differ."""
    model = opened(base, dtype)
    return model, Adapter(config_of(variant, rank=rank, alpha=3), model, PARTS, seed)


def learned(adapter: Adapter, seed: int = 2) -> dict[str, torch.Tensor]:
    """Random weights, as if trained."""
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.2 * torch.randn(weight.shape, generator=generator) for name, weight in adapter.weights().items()}


def prediction(model: sd15.Model) -> torch.Tensor:
    """What the denoiser predicts for fixed latents and a fixed caption."""
    generator = torch.Generator().manual_seed(3)
    xt, t = torch.randn(2, 4, 8, 8, generator=generator).to(model.dtype), torch.tensor([10, 700])
    return model.load("unet")(xt, t, tiny.conditioning(model, ["girl, hat", "boy"])["hidden"]).sample


@every_variant
def test_a_new_adapter_changes_nothing(base, variant):
    model = opened(base)
    before = prediction(model)
    adapter = Adapter(config_of(variant, rank=4, alpha=3), model, PARTS, 1)
    assert torch.equal(prediction(model), before)
    assert all(not adapter.delta(*key).any() for key in adapter.layers)
    for _, tensors in adapter.modules():
        zeros = {role for role, weight in tensors.items() if not weight.any()}
        assert zeros == adapter.variant.zero_roles & tensors.keys()


@every_variant
def test_weights_that_are_loaded_come_back_bit_for_bit(base, variant):
    model, adapter = adapted(base, variant=variant)
    parameters = [id(weight) for _, weight in adapter.named()]
    weights = learned(adapter)
    adapter.load(weights)
    assert all(torch.equal(weight, weights[name]) for name, weight in adapter.weights().items())
    assert adapter.weights().keys() == weights.keys()
    assert [id(weight) for _, weight in adapter.named()] == parameters
    other_model, other = adapted(base, variant=variant, seed=9)
    other.load(adapter.weights())
    assert torch.equal(prediction(other_model), prediction(model))


@every_variant
def test_weights_are_a_copy(base, variant):
    _, adapter = adapted(base, variant=variant)
    taken = adapter.weights()
    adapter.load(learned(adapter))
    assert not any(torch.equal(weight, taken[name]) for name, weight in adapter.weights().items())


@every_variant
def test_weights_of_another_adapter_are_refused_and_change_nothing(base, variant):
    _, adapter = adapted(base, variant=variant)
    before, weights = adapter.weights(), learned(adapter)
    first, last = next(iter(weights)), list(weights)[-1]
    missing = {name: weight for name, weight in weights.items() if name != first}
    with pytest.raises(ValueError, match=f"1 names differ.*{first}"):
        adapter.load(missing)
    with pytest.raises(ValueError, match="1 names differ.*unet.odd"):
        adapter.load(weights | {"unet.odd.lora_A.weight": torch.ones(1)})
    with pytest.raises(ValueError, match=rf"{last} is \(7,\).*another rank"):
        adapter.load(weights | {last: torch.ones(7)})
    with pytest.raises(ValueError, match="another rank|names differ"):
        adapter.load(learned(adapted(base, variant=variant, rank=2)[1]))
    assert all(torch.equal(weight, before[name]) for name, weight in adapter.weights().items())


@every_variant
def test_strength_0_is_the_base_and_1_is_as_trained(base, variant):
    plain = prediction(opened(base))
    model, adapter = adapted(base, variant=variant)
    adapter.load(learned(adapter))
    trained = prediction(model)
    assert not torch.allclose(trained, plain, atol=1e-3)
    adapter.set_strength(0.0)
    assert torch.equal(prediction(model), plain)
    adapter.set_strength(0.5)
    half = prediction(model)
    assert not torch.allclose(half, plain, atol=1e-3) and not torch.allclose(half, trained, atol=1e-3)
    adapter.set_strength(1.0)
    assert torch.equal(prediction(model), trained)


@every_variant
def test_strength_scales_the_change_of_a_layer_in_proportion(base, variant):
    model, adapter = adapted(base, variant=variant)
    adapter.load(learned(adapter))
    layer = next(iter(adapter.layers.values()))
    x = torch.randn(2, layer.in_features, 8, 8, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        plain = layer.base_layer(x)
        changes = []
        for strength in (0.25, 1.0, -2.0):
            adapter.set_strength(strength)
            changes.append((layer(x) - plain) / strength)
    torch.testing.assert_close(changes[0], changes[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(changes[2], changes[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)))
def test_lora_computes_what_peft_computes_and_so_do_its_gradients(base, dtype, tolerance):
    model, adapter = adapted(base, variant="lora", dtype=dtype)
    weights = learned(adapter)
    adapter.load(weights)
    plain = opened(base, dtype)
    for part in PARTS:
        config = LoraConfig(r=4, lora_alpha=3, target_modules=plain.targets(part))
        inject_adapter_in_model(config, plain.load(part), "default")
    theirs = {}
    for name, weight in weights.items():
        part, _, module = name.partition(".")
        theirs[name] = plain.load(part).get_parameter(module.replace(".weight", ".default.weight"))
        theirs[name].data = weight.clone()
    ours, expected = prediction(model), prediction(plain)
    torch.testing.assert_close(ours.float(), expected.float(), rtol=tolerance, atol=tolerance)
    ours.float().square().mean().backward()
    expected.float().square().mean().backward()
    for name, weight in adapter.named():
        size = theirs[name].grad.norm()
        assert size > 0 and weight.grad.dtype == torch.float32
        assert (weight.grad - theirs[name].grad).norm() <= 10 * tolerance * size, name


@every_variant
def test_delta_is_the_difference_that_merging_makes(base, variant):
    _, adapter = adapted(base, variant=variant)
    adapter.load(learned(adapter))
    for (part, module), layer in adapter.layers.items():
        before = layer.base_layer.weight.clone()
        layer.merge()
        change = adapter.delta(part, module)
        assert change.shape == before.shape and change.dtype == torch.float32
        torch.testing.assert_close(change, layer.base_layer.weight - before, rtol=1e-4, atol=1e-5)


@every_variant
def test_alpha_0_means_alpha_is_the_rank(base, variant):
    deltas = []
    for alpha in (0, 4, 2):
        adapter = Adapter(config_of(variant, rank=4, alpha=alpha), opened(base), ["unet"], 1)
        adapter.load(learned(adapter))
        deltas.append(adapter.delta(*next(iter(adapter.layers))))
    assert torch.equal(deltas[0], deltas[1])
    torch.testing.assert_close(deltas[2], deltas[1] / 2)


@every_variant
def test_adapter_weights_stay_float32_on_a_bf16_base(base, variant):
    model, adapter = adapted(base, variant=variant, dtype=torch.bfloat16)
    assert model.load("unet").conv_in.weight.dtype == torch.bfloat16
    assert {weight.dtype for _, weight in adapter.named()} == {torch.float32}
    assert {weight.dtype for weight in adapter.weights().values()} == {torch.float32}
    assert prediction(model).dtype == torch.bfloat16


@every_variant
def test_the_seed_alone_decides_the_first_weights(base, variant):
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    first = adapted(base, variant=variant, seed=1)[1].weights()
    assert torch.equal(torch.rand(3), expected)  # torch's own generator has not moved
    again, other = (adapted(base, variant=variant, seed=seed)[1].weights() for seed in (1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if first[name].any()]
    assert drawn and not any(torch.equal(first[name], other[name]) for name in drawn)


@every_variant
def test_each_part_has_its_own_weights_and_only_they_are_trained(base, variant):
    model, adapter = adapted(base, variant=variant)
    parts = {part: {id(weight) for weight in adapter.parameters(part)} for part in PARTS}
    assert not parts["unet"] & parts["text_encoder"]
    for part in PARTS:
        assert {id(w) for w in model.load(part).parameters() if w.requires_grad} == parts[part]
        assert len(parts[part]) == sum(len(tensors) for key, tensors in adapter.modules() if key[0] == part)


def test_unet_alone_does_not_touch_the_text_encoder(base):
    model = opened(base)
    adapter = Adapter(AdapterConfig(rank=2), model, ["unet"], 1)
    assert {part for part, _ in adapter.layers} == {"unet"}
    assert "text_encoder" not in model.loaded()
    assert adapter.parameters("text_encoder") == []
