"""The Qwen-Image VAE, a video VAE, for single images: a third of the arithmetic, and no cache of frames."""

from __future__ import annotations

from types import MethodType

import torch
import torch.nn.functional as F
from torch import nn

from lorakit.machine.device import to_device


def for_images(vae: nn.Module) -> nn.Module:
    """Turn a frozen AutoencoderKLQwenImage into one for single frames, in place; returns it.

    Its convolutions are causal in time: for the first frame all their taps but the last see only zeros, so the other
    taps are removed and the convolutions become two-dimensional.
    """
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d

    for module in vae.modules():
        if isinstance(module, QwenImageCausalConv3d):
            # [out, in, time, height, width] -> [out, in, height, width]; the last tap in time is the frame itself.
            module.weight = nn.Parameter(module.weight[:, :, -1].contiguous(), requires_grad=False)
            module.forward = MethodType(_convolved, module)
    return vae


def _convolved(self, x: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
    """The forward pass of QwenImageCausalConv3d for one frame, x [B, channels, 1, h, w], which has none before it."""
    # As F.pad takes it, (left, right, top, bottom, before, after); both sides of an axis are equal.
    width, _, height, _, _, _ = self._padding
    return F.conv2d(x[:, :, 0], self.weight, self.bias, padding=(height, width))[:, :, None]


def encode(vae: nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the posterior, [B, 16, H/8, W/8], of images [B, 3, H, W] in -1..1."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    # [B, 32, H/8, W/8]: mean and logarithm of the variance, 16 channels each
    moments = vae.quant_conv(vae.encoder(pixels[:, :, None]))[:, :, 0]
    posterior = DiagonalGaussianDistribution(moments)
    return posterior.mean, posterior.std


def decode(vae: nn.Module, latents: torch.Tensor, in_tiles: bool = False) -> torch.Tensor:
    """Images [B, 3, H, W] in -1..1 from latents [B, 16, H/8, W/8] that are not normalised.

    in_tiles    of diffusers' size (256 px), blended at their seams: a sixteenth of the memory at 1024 px
    """
    frames = latents[:, :, None]
    if in_tiles:
        frames = vae.tiled_decode(frames, return_dict=False)[0]
    else:
        frames = vae.decoder(vae.post_quant_conv(frames))
    # Clamped as in diffusers: a decoder may go slightly beyond the range of pixels.
    return frames[:, :, 0].clamp(-1, 1)


def channels(config: dict, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each latent channel by the VAE's configuration, [16, 1, 1], of the type and on
    the device of `like`.
    """
    numbers = (torch.tensor(config[name], dtype=like.dtype) for name in ("latents_mean", "latents_std"))
    return tuple(to_device(number, like.device)[:, None, None] for number in numbers)
