"""Every LoRA variant keeps its contract: roles, spellings and shapes fit each other; what does not fit is refused."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations

import pytest
import torch
from trained_lokr import TrainedLokr

from lorakit.lora import variants
from lorakit.lora.change import Change
from lorakit.lora.names import contents
from lorakit.lora.variants import Variant

VARIANTS = [*map(variants.variant, variants.names()), TrainedLokr]
TRAINED = [variant for variant in VARIANTS if variant.trained]
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.__name__)
every_trained = pytest.mark.parametrize("variant", TRAINED, ids=lambda variant: variant.__name__)

# role -> shape in a module of rank 2 on a weight [12, 10]
SHAPES = {
    "down": (2, 10),
    "mid": (2, 2, 1, 1),
    "up": (12, 2),
    **{f"hada_w{i}_{side}": shape for i in (1, 2) for side, shape in (("a", (12, 2)), ("b", (2, 10)))},
    "lokr_w1": (3, 2),
    "lokr_w1_a": (3, 2),
    "lokr_w1_b": (2, 2),
    "lokr_w2": (4, 5),
    "lokr_w2_a": (4, 2),
    "lokr_w2_b": (2, 5),
}
# in Tucker form, on a kernel [12, 10, 3, 3]
TUCKER = {
    **{f"hada_w{i}_{side}": shape for i in (1, 2) for side, shape in (("a", (2, 12)), ("b", (2, 10)))},
    **{f"hada_t{i}": (2, 2, 3, 3) for i in (1, 2)},
    "lokr_w2_a": (2, 4),
    "lokr_w2_b": (2, 5),
    "lokr_t2": (2, 2, 3, 3),
    "mid": (2, 2, 3, 3),
}


def example(roles: frozenset[str]) -> tuple[dict[str, torch.Tensor], tuple[int, ...]]:
    """Random tensors of a module with these roles, and the shape of its weight."""
    is_tucker = bool(roles & {"hada_t1", "lokr_t2", "mid"})
    shapes = {**SHAPES, **TUCKER} if is_tucker else SHAPES
    generator = torch.Generator().manual_seed(1)
    tensors = {role: torch.randn(shapes[role], generator=generator) for role in sorted(roles)}
    return tensors, ((12, 10, 3, 3) if is_tucker else (12, 10))


def rank_of(variant: type[Variant], tensors: dict[str, torch.Tensor]) -> int | None:
    return variant.rank({role: tensor.shape for role, tensor in tensors.items()})


@every_variant
def test_each_complete_module_has_a_change_of_its_weights_shape(variant):
    for roles in variant.complete:
        tensors, shape = example(roles)
        assert rank_of(variant, tensors) in (2, None)
        change = Change(variant, tensors, 3.0, shape, rank_of(variant, tensors))
        assert change.fits() and change.delta().shape == shape and change.delta().any()
        plain = Change(variant, tensors, None, shape, change.rank).delta()
        torch.testing.assert_close(change.delta(), change.scale * plain)


@every_variant
def test_each_complete_module_of_a_wrong_shape_does_not_fit(variant):
    for roles in variant.complete:
        tensors, shape = example(roles)
        for role, tensor in tensors.items():
            for dimension in range(tensor.ndim):
                larger = {**tensors, role: torch.cat((tensor, tensor.narrow(dimension, 0, 1)), dimension)}
                assert not Change(variant, larger, None, shape, 2).fits(), (roles, role, dimension)
        assert not Change(variant, tensors, None, (shape[0], shape[1] + 1, *shape[2:]), 2).fits()


def test_roles_make_one_variant_or_none():
    registered = VARIANTS[:-1]
    for variant in registered:
        for roles in variant.complete:
            assert variants.of_roles({*roles}) is variants.of_roles({*roles, "alpha"}) is variant
            for role in roles:
                fewer = variants.of_roles({*roles} - {role})
                assert fewer is None or {*roles} - {role} in fewer.complete
            # read with its magnitudes, but not what a run can start from
            assert variants.of_roles({*roles, "dora"}) is variant
            assert "DoRA" in variant.why_not_trained({role: (1, 1) for role in (*roles, "dora")})
    for one, other in combinations(registered, 2):
        assert not {*one.complete} & {*other.complete}


@every_variant
def test_tensors_are_read_in_every_spelling(variant):
    assert variant.spellings.keys() == frozenset().union(*variant.complete)
    for role, spelled in variant.spellings.items():
        for spelling in spelled.replace("\\", "").split("|"):
            for end in ("", ".weight", ".default", ".default.weight"):
                name = f"unet.a.b.{spelling}{end}"
                assert contents({name: {"shape": [1, 1]}}, "a.safetensors").modules == {"unet.a.b": {role: name}}


@every_trained
def test_what_is_trained_fits_what_is_read(variant):
    trained = frozenset().union(*variant.trained)
    assert {*variant.trained} <= {*variant.complete} and trained <= variant.stored.keys()
    for roles in variant.trained:
        # one factor of zeros is enough for the identity
        assert variant.zero_roles & roles and variant.scaled_role(roles) in roles
        assert variant.why_not_trained({role: SHAPES[role] for role in roles}) == ""
        assert variant.why_not_trained({role: (*SHAPES[role], 3, 3) for role in roles}) == "is a convolution of 3x3"
        assert variant.why_not_trained({"hada_t1": (2, 2)}) == "has hada_t1"
    assert variant.help and variant.title and variant.network_module


@every_trained
@pytest.mark.parametrize("scale", (1.0, 0.75))
def test_a_packed_module_read_back_is_the_same_change(variant, scale):
    for layout in variant.written:
        for roles in variant.trained:
            tensors, shape = example(roles)
            packed = variant.pack(layout, "module", tensors, scale, torch.float32)
            ((name, names),) = contents(
                {key: {"shape": list(t.shape)} for key, t in packed.items()}, "a"
            ).modules.items()
            alpha = packed[names.pop("alpha")].item() if "alpha" in names else None
            assert name == "module" and names.keys() == tensors.keys()
            read = {role: packed[key] for role, key in names.items()}
            change = Change(variant, read, alpha, shape, rank_of(variant, read))
            expected = scale * variant.product(tensors).reshape(shape)
            torch.testing.assert_close(change.delta(), expected)


def test_a_variant_is_called_as_its_file_and_those_that_are_only_read_cannot_be_trained():
    for name in variants.names():
        variant = variants.variant(name)
        assert variant.name == name and variant.__name__ == name.capitalize() and variant.title in variants.titles()
        if name not in variants.trainable():
            assert "read only" in variant.help and not variant.stored and not variant.written
            with pytest.raises(NotImplementedError):
                variant.peft_config(variant.Config(), [])


def test_the_registry_and_its_settings_load_no_torch():
    code = "import sys; from lorakit.lora import variants; variants.config_class('lora'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
