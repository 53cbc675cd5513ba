"""Slim models compute what they computed before, with the same gradients, and keep less for them."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny import save_sd15

from lorakit.layers.frozen import slim


@pytest.fixture(scope="module")
def unet(tmp_path_factory) -> UNet2DConditionModel:
    """The tiny UNet with weights large enough that every layer matters."""
    model = UNet2DConditionModel.from_pretrained(save_sd15(tmp_path_factory.mktemp("frozen")), subfolder="unet")
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return model.requires_grad_(False).eval()


def predictions(model: UNet2DConditionModel, dtype: torch.dtype, batch: int = 2):
    """What a model predicts for fixed inputs, and the gradients of its inputs."""
    generator = torch.Generator().manual_seed(2)
    xt, text = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((batch, 4, 16, 16), (batch, 7, 16)))
    xt.requires_grad_(), text.requires_grad_()
    predicted = model(xt, torch.tensor([500] * batch), text).sample
    predicted.float().square().mean().backward()
    return predicted.detach(), xt.grad, text.grad


@pytest.mark.parametrize("batch", (1, 3))
@pytest.mark.parametrize("dtype, tolerance", ((torch.float64, 1e-9), (torch.float32, 1e-4), (torch.bfloat16, 5e-2)))
def test_a_slim_model_predicts_the_same_with_the_same_gradients(unet, dtype, tolerance, batch):
    plain = copy.deepcopy(unet).to(dtype)
    thin = slim(copy.deepcopy(plain))
    for expected, found in zip(predictions(plain, dtype, batch), predictions(thin, dtype, batch), strict=True):
        assert (found - expected).norm() <= tolerance * expected.norm() and expected.norm() > 0


def test_a_slim_model_predicts_the_same_bits_each_time(unet):
    thin = slim(copy.deepcopy(unet))
    for first, second in zip(predictions(thin, torch.float32), predictions(thin, torch.float32), strict=True):
        assert torch.equal(first, second)


def test_names_and_weights_do_not_change(unet):
    before, after = unet.state_dict(), slim(copy.deepcopy(unet)).state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)


def test_layers_that_are_trained_keep_their_gradients(unet):
    model = copy.deepcopy(unet)
    model.conv_in.requires_grad_(True)
    predictions(slim(model), torch.float32)
    assert model.conv_in.weight.grad.norm() > 0


def test_a_slim_model_keeps_less_than_two_thirds_for_the_backward_pass(unet):
    def kept(model: UNet2DConditionModel) -> int:
        weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        storages: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            predictions(model, torch.float32)
        return sum(storages.values())

    assert kept(slim(copy.deepcopy(unet))) < 2 / 3 * kept(unet)
