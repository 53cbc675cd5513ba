"""The parts that SD 1.5 and SDXL share: a UNet with DDPM training, CLIP, AutoencoderKL."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from lorakit import config as configs
from lorakit.config import ConfigError, Field, setting
from lorakit.diffusion import ddpm
from lorakit.diffusion.weightings import WEIGHTINGS, LossConfig, masked
from lorakit.hub import SourceError, fetch
from lorakit.machine.device import to_device
from lorakit.models._base import Parts, decode
from lorakit.models.files.marks import Layout
from lorakit.models.files.sd import open_sd

# Modules that get adapters: those of kohya's plain LoRA (LierLa).
UNET_TARGETS = (
    r".*attentions\.\d+\.(proj_(in|out)|transformer_blocks\.\d+\."
    r"(attn\d\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2)))"
)
CLIP_TARGETS = r".*layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"
TILE = 64  # latents: side of the tiles that a large image is decoded in, 512 px
SAMPLERS = ("ddim", "euler", "euler_a", "dpmpp_2m")
REFUSED = {
    "loss.timestep_sampling": "SD 1.5 and SDXL train all timesteps equally often; use loss.weighting to weight them.",
    "sample.shift": "only flow models (Anima) have a sampling shift; remove this setting.",
}


VAE_FILES = ("config.json", "diffusion_pytorch_model.safetensors")
NEEDS_V = (
    "zero terminal SNR needs v prediction: its last timestep is pure noise, where predicting the noise teaches nothing "
    "and sampling would divide by zero (Lin et al. 2023, arXiv:2305.08891)"
)


@dataclass(frozen=True, kw_only=True)
class UNetConfig(configs.Config):
    """The settings of SD 1.5 and SDXL that are alike; each family overrides the first two."""

    family: str = setting(help="model family")
    source: str = setting(help="the base model", ui=Field(label="base model"))
    vae: str = setting(
        "", help="replaces the VAE of the base model: a file, a folder or an id such as stabilityai/sd-vae-ft-mse"
    )
    prediction_type: str = setting(
        "auto",
        help="what the base model predicts: noise (epsilon) or velocity (v_prediction); auto = read from its files",
        choices=("auto", "epsilon", "v_prediction"),
    )
    zero_terminal_snr: str = setting(
        "auto",
        help="whether the last timestep of the base model is pure noise; auto = read from its files",
        choices=("auto", "enabled", "disabled"),
    )

    def conflicts(self) -> list[str]:
        return [f"{NEEDS_V}."] if (self.prediction_type, self.zero_terminal_snr) == ("epsilon", "enabled") else []


def fetch_vae(source: str) -> Path:
    """The local file or folder of a VAE: what `hub.fetch` takes, and folders that are or have one (in `vae`)."""
    if (folder := Path(source).expanduser()).is_dir():
        return folder
    try:
        return fetch(source, patterns=VAE_FILES)
    except SourceError:
        # the repository may be of a whole model, with the VAE in a folder
        return fetch(source, patterns=tuple(f"vae/{name}" for name in VAE_FILES))


class UNetModel(Parts):
    """A latent diffusion model with a UNet2DConditionModel and an AutoencoderKL; its family has a LAYOUT of files."""

    denoiser = "unet"
    LAYOUT: ClassVar[Layout]

    def __init__(self, config: UNetConfig, device: torch.device, dtype: torch.dtype, trained: Collection[str] = ()):
        vae = fetch_vae(config.vae) if config.vae else None
        super().__init__(config, open_sd(fetch(config.source), self.LAYOUT, vae), device, dtype, trained)
        if self.zero_terminal_snr and self.prediction_type == "epsilon":
            raise ConfigError(f"{config.source}: {NEEDS_V}; set prediction_type or zero_terminal_snr.")

    def settings(self, part: str) -> list[Path]:
        """The configuration of a part (a replaced VAE has its own), with the tokenizer of a text encoder and the noise
        schedule of the UNet.
        """
        if part == "vae" and self.config.vae:
            return [self.files.config_file(part)]
        patterns = [f"{part}/config.json"]
        patterns += [f"{part.replace('text_encoder', 'tokenizer')}/*"] if part in self.text_parts else []
        patterns += ["scheduler/*.json"] if part == self.denoiser else []
        files = (file for pattern in patterns for file in sorted(self.files.settings.glob(pattern)))
        return [file for file in files if file.is_file()]

    @cached_property
    def tokenizer(self):
        """The CLIP tokenizer of the base model."""
        return self.files.tokenizer()

    def token_count(self, caption: str) -> int:
        """Tokens of a caption, without the begin and end tokens."""
        return len(self.tokenizer(caption)["input_ids"]) - 2

    # ---- images ------------------------------------------------------------------------------------------------

    def image_key(self) -> tuple[str, ...]:
        """What encoded images depend on besides the pixels; part of the cache key."""
        return ("posterior", self.fingerprint("vae"))

    @torch.no_grad()
    def encode_image(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Posterior of one image [3, H, W] in -1..1: `mean` and `std`, float32 [4, H/8, W/8]."""
        vae = self.load("vae")
        posterior = vae.encode(to_device(pixels[None], self.device).to(vae.dtype)).latent_dist
        return {"mean": posterior.mean[0].float(), "std": posterior.std[0].float()}

    def latents(self, encoded: list[dict[str, torch.Tensor]], generator: torch.Generator) -> torch.Tensor:
        """x0 of a batch, float32 [B, 4, H/8, W/8] on the device: a sample of each posterior, scaled."""
        stacked = (torch.stack([item[name] for item in encoded]) for name in ("mean", "std"))
        mean, std = (to_device(tensor, self.device) for tensor in stacked)
        # Drawn on the CPU, so that a run gives the same numbers on every GPU; a new draw in every step.
        x0 = mean + std * to_device(torch.randn(mean.shape, generator=generator), self.device)
        return x0 * self.files.vae_config()["scaling_factor"]

    # ---- training ------------------------------------------------------------------------------------------------

    @cached_property
    def scheduler_config(self) -> dict:
        """The noise schedule of the base model, overridden by the settings."""
        schedule = dict(self.files.scheduler_config())
        if self.config.prediction_type != "auto":
            schedule["prediction_type"] = self.config.prediction_type
        if self.config.zero_terminal_snr != "auto":
            schedule["rescale_betas_zero_snr"] = self.config.zero_terminal_snr == "enabled"
        if schedule.get("rescale_betas_zero_snr"):
            # sampling must start at the last timestep, which is pure noise (Lin et al. 2023, section 3.3)
            schedule["timestep_spacing"] = "trailing"
        return schedule

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether the last timestep is pure noise: as configured, or according to the base model's files."""
        return bool(self.scheduler_config.get("rescale_betas_zero_snr"))

    @property
    def prediction_type(self) -> str:
        """epsilon or v_prediction: as configured, or according to the base model's files."""
        return self.scheduler_config["prediction_type"]

    @cached_property
    def alphas_cumprod(self) -> torch.Tensor:
        """abar_t (the cumulative product of alpha_t), float32 [1000], on the device."""
        return ddpm.alphas_cumprod(self.scheduler_config).to(self.device)

    def sample_noise(
        self, x0: torch.Tensor, generator: torch.Generator, loss: LossConfig
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise and timesteps for a batch, see `ddpm.sample_noise`."""
        return ddpm.sample_noise(x0, generator, loss.noise_offset)

    def predict(self, xt: torch.Tensor, t: torch.Tensor, text: dict[str, torch.Tensor]) -> torch.Tensor:
        """The UNet's prediction for xt [B, 4, h, w] at t int64 [B]."""
        raise NotImplementedError

    def loss(
        self,
        x0: torch.Tensor,
        eps: torch.Tensor,
        t: torch.Tensor,
        text: dict[str, torch.Tensor],
        config: LossConfig,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Weighted mean squared error of each sample, float32 [B]; x0 and eps [B, 4, h, w], t int64 [B], mask
        [B, 1, h, w], see `weightings.masked`.
        """
        abar = self.alphas_cumprod[t].view(-1, 1, 1, 1)  # [B, 1, 1, 1]
        xt = ddpm.add_noise(x0, eps, abar)  # [B, 4, h, w]
        # The UNet computes in its own precision; the error is taken in float32.
        predicted = self.predict(xt.to(self.dtype), t, text).float()  # [B, 4, h, w]
        error = (predicted - ddpm.target(x0, eps, abar, self.prediction_type)).square()
        error = masked(error, mask).mean(dim=(1, 2, 3))  # [B]
        snr = (abar / (1 - abar)).flatten()  # [B]
        return error * WEIGHTINGS[config.weighting].weight(snr, self.prediction_type, config.min_snr_gamma)

    @torch.no_grad()
    def measured_prediction_type(self, x0: torch.Tensor, eps: torch.Tensor, text: dict[str, torch.Tensor]) -> str:
        """What the UNet predicts by its own output: "epsilon", "v_prediction", or "" where it shows neither.

        At t = 999 x_t is noise almost alone: the output of an epsilon model is nearly that noise (correlation above
        0.99 on the demo base), that of a v model is about -x0. As random weights give no noise either, v must also be
        seen halfway, where a v model's output is more like v than like the noise. x0 and eps are [1, 4, h, w].
        """
        noise, _ = _likeness(self, x0, eps, 999, text)
        if noise >= 0.9:
            return "epsilon"
        if noise > 0.5:
            return ""
        noise, velocity = _likeness(self, x0, eps, 500, text)
        return "v_prediction" if velocity >= 0.4 and velocity > noise else ""

    # ---- sampling ----------------------------------------------------------------------------------------------

    def pixels(self, latents: torch.Tensor, in_tiles: bool = False) -> torch.Tensor:
        """An image, float32 [1, 3, H, W] in -1..1, from latents [1, 4, h, w]; tiles, blended at their seams, take less
        memory.
        """
        vae = self.load("vae")
        latents = latents.to(vae.dtype) / self.files.vae_config()["scaling_factor"]
        if not in_tiles:
            return vae.decode(latents).sample
        # diffusers takes the size that the VAE was trained at, for SDXL 1024 px: as large as the image itself
        vae.tile_latent_min_size = min(vae.tile_latent_min_size, TILE)
        vae.tile_sample_min_size = 8 * vae.tile_latent_min_size
        vae.enable_tiling()
        try:
            return vae.decode(latents).sample
        finally:
            # images are encoded whole
            vae.disable_tiling()


def run_pipeline(
    model: UNetModel, pipeline: Any, embeddings: dict[str, torch.Tensor], sampling: Any, seed: int
) -> Image.Image:
    """The image that a pipeline of diffusers samples from embeddings; `sampling` is a SamplingConfig."""
    pipeline.set_progress_bar_config(disable=True)
    latents = pipeline(
        **{**embeddings, **_of_one_length(embeddings)},
        width=sampling.width,
        height=sampling.height,
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance_scale,
        output_type="latent",
        # A CPU generator: the same seed starts from the same noise on every device.
        generator=torch.Generator("cpu").manual_seed(seed),
    ).images
    return decode(model, latents)


def _likeness(
    model: UNetModel, x0: torch.Tensor, eps: torch.Tensor, step: int, text: dict[str, torch.Tensor]
) -> tuple[float, float]:
    """Correlation of the UNet's output at timestep `step` with eps and with v."""
    t = torch.full((len(x0),), step, device=model.device)
    abar = model.alphas_cumprod[t].view(-1, 1, 1, 1)  # [B, 1, 1, 1]
    predicted = model.predict(ddpm.add_noise(x0, eps, abar).to(model.dtype), t, text).float()
    rows = torch.stack([predicted, eps, ddpm.target(x0, eps, abar, "v_prediction")]).flatten(1)
    return tuple(torch.corrcoef(rows)[0, 1:].tolist())


def _of_one_length(embeddings: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Prompt and negative prompt [1, tokens, width] of one length, which pipelines need: BREAK makes prompts longer.

    Both are repeated up to a common multiple, as ComfyUI does: attention over repeated keys gives the same result.
    """
    pair = {name: embeddings[name] for name in ("prompt_embeds", "negative_prompt_embeds")}
    length = math.lcm(*(embeds.shape[1] for embeds in pair.values()))
    return {name: embeds.repeat(1, length // embeds.shape[1], 1) for name, embeds in pair.items()}
