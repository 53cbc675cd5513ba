"""The Qwen-Image VAE for single images: a third of the arithmetic of a film of one frame, and no cache of frames."""

from __future__ import annotations

from types import MethodType

import torch
import torch.nn.functional as F
from torch import nn


def for_images(vae: nn.Module) -> nn.Module:
    """Make a frozen AutoencoderKLQwenImage one for single frames, in place; returns it.

    Before the first frame of a film there is nothing, and so of the taps in time of every convolution only the last
    ever meets more than zeros; the others are let go.
    """
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d

    for module in vae.modules():
        if isinstance(module, QwenImageCausalConv3d):
            module.weight = nn.Parameter(module.weight[:, :, -1].contiguous(), requires_grad=False)
            module.forward = MethodType(_convolved, module)
    return vae


def _convolved(self, x: torch.Tensor) -> torch.Tensor:
    """QwenImageCausalConv3d of one frame: x is [B, channels, 1, h, w]."""
    width, _, height, _, _, _ = self._padding
    return F.conv2d(x[:, :, 0], self.weight, self.bias, padding=(height, width))[:, :, None]


def encode(vae: nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the posterior, [B, 16, H/8, W/8], of images [B, 3, H, W] in -1..1."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    moments = vae.quant_conv(vae.encoder(pixels[:, :, None]))[:, :, 0]
    posterior = DiagonalGaussianDistribution(moments)
    return posterior.mean, posterior.std


def decode(vae: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """Images [B, 3, H, W] in -1..1 of latents [B, 16, H/8, W/8], which are not normalised."""
    return vae.decoder(vae.post_quant_conv(latents[:, :, None]))[:, :, 0].clamp(-1, 1)
