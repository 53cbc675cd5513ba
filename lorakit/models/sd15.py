"""The family of Stable Diffusion 1.5 and its derivatives (AnyLoRA, NAI-like bases)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image

from lorakit._frozen import slim
from lorakit.config import Config, ConfigError, setting
from lorakit.fingerprint import file_digest
from lorakit.models import _clip, _ddpm
from lorakit.models._sd_files import open_sd
from lorakit.weightings import WEIGHTINGS, LossConfig


@dataclass(frozen=True, kw_only=True)
class Config(Config):
    """The base model and how it is used."""

    family: str = setting("sd15", help="model family", choices=("sd15",))
    source: str = setting(help="the base model: 'demo', a file, a diffusers folder, a hub id (owner/name) or an URL")
    prediction_type: str = setting(
        "auto",
        help="what the base was trained to say; auto: as its files tell",
        choices=("auto", "epsilon", "v_prediction"),
    )
    clip_skip: int = setting(
        1,
        help="use the text encoder's last layer but this many, less one; 2 for NAI-like bases, 1 for others",
        minimum=1,
        maximum=12,
    )
    max_token_length: int = setting(75, help="captions longer than this are cut", unit="tokens", choices=(75, 150, 225))


# kohya's module set for LoRA-LierLa: 192 modules of a full-size UNet, 72 of its text encoder
TARGETS = {
    "unet": r".*attentions\.\d+\.(proj_(in|out)|transformer_blocks\.\d+\."
    r"(attn\d\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2)))",
    "text_encoder": r".*layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])",
}
SETTINGS = {  # beside the weights, what a part's answer depends on
    "unet": ("unet/config.json", "scheduler/*.json"),
    "vae": ("vae/config.json",),
    "text_encoder": ("text_encoder/config.json", "tokenizer/*"),
}
# what diffusers, newer and older transformers call it
CHECKPOINTING = (
    "enable_gradient_checkpointing",
    "activation_checkpointing_enable",
    "gradient_checkpointing_enable",
)
PREFIX = {"unet": "lora_unet", "text_encoder": "lora_te"}


class Model:
    """A base model whose parts are read from disk when they are first asked for."""

    denoiser = "unet"
    text_encoders = ("text_encoder",)
    resolution_multiple = 8  # px of one latent

    def __init__(self, config: Config, path: Path, device: torch.device, dtype: torch.dtype):
        self.config, self.device, self.dtype = config, device, dtype
        self.files = open_sd(path)
        layers = self.files.text_config()["num_hidden_layers"]
        if config.clip_skip > layers:
            raise ConfigError(f"clip_skip is {config.clip_skip}, but this base's text encoder has {layers} layers.")
        self._parts: dict[str, torch.nn.Module] = {}
        self._fingerprints: dict[str, str] = {}

    # ---- parts ---------------------------------------------------------------------------------------------------

    def load(self, part: str) -> torch.nn.Module:
        """The frozen module of a part (unet, text_encoder, vae), on the device, in its precision."""
        if part not in self._parts:
            # the VAE overflows in float16: its latents would be NaN
            dtype = torch.float32 if part == "vae" else self.dtype
            self._parts[part] = slim(getattr(self.files, part)(dtype)).to(self.device)
        return self._parts[part]

    def release(self, *parts: str) -> None:
        """Let go of parts that are not needed any more; `load` brings them back without adapters."""
        for part in parts:
            self._parts.pop(part, None)

    def loaded(self) -> tuple[str, ...]:
        """The parts in memory."""
        return tuple(self._parts)

    def fingerprint(self, part: str) -> str:
        """SHA-256 of the files a part is read from, weights and settings, as hexadecimal text; they are read once."""
        if part not in self._fingerprints:
            found = (file for pattern in SETTINGS[part] for file in sorted(self.files.settings.glob(pattern)))
            self._fingerprints[part] = file_digest([*self.files.files(part), *filter(Path.is_file, found)])
        return self._fingerprints[part]

    def targets(self, part: str) -> list[str]:
        """Names of the modules of a part that adapters go on, in the module's order."""
        return [name for name, _ in self.load(part).named_modules() if re.fullmatch(TARGETS[part], name)]

    def export_name(self, part: str, module: str) -> str:
        """The name that kohya's files, A1111/Forge, ComfyUI and diffusers know a module by."""
        return f"{PREFIX[part]}_{_clip.with_text_model(module) if part == 'text_encoder' else module}".replace(".", "_")

    def metadata(self) -> dict[str, str]:
        """What LoRA files of this family tell about their base."""
        return {
            "ss_base_model_version": "sd_v1",
            "ss_v2": "False",
            "modelspec.architecture": "stable-diffusion-v1/lora",
            "ss_clip_skip": str(self.config.clip_skip),
            "ss_max_token_length": str(self.config.max_token_length),
            "ss_v_parameterization": str(self.prediction_type == "v_prediction"),
            "modelspec.prediction_type": {"epsilon": "epsilon", "v_prediction": "v"}[self.prediction_type],
        }

    # ---- pictures and captions -----------------------------------------------------------------------------------

    def image_key(self) -> tuple[str, ...]:
        """What encoded pictures depend on beside the pixels."""
        return ("sd15 posterior", self.fingerprint("vae"))

    @torch.no_grad()
    def encode_image(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Posterior of one picture [3, H, W] in -1..1: `mean` and `std`, float32 [4, H/8, W/8]."""
        posterior = self.load("vae").encode(pixels[None].to(self.device)).latent_dist
        return {"mean": posterior.mean[0], "std": posterior.std[0]}

    def latents(self, encoded: list[dict[str, torch.Tensor]], generator: torch.Generator) -> torch.Tensor:
        """x0 of a batch, float32 [B, 4, H/8, W/8] on the device: a draw from each posterior, scaled."""
        mean, std = (torch.stack([item[name] for item in encoded]) for name in ("mean", "std"))
        x0 = mean + std * torch.randn(mean.shape, generator=generator).to(std)
        return (x0 * self.files.vae_config()["scaling_factor"]).to(self.device)

    def text_key(self) -> tuple[str | int, ...]:
        """What encoded captions depend on beside the text."""
        return (
            "sd15 hidden",
            self.fingerprint("text_encoder"),
            self.config.clip_skip,
            self.config.max_token_length,
            str(self.dtype),
        )

    @cached_property
    def tokenizer(self):
        """The base's CLIP tokenizer."""
        return self.files.tokenizer()

    def encode_text(self, captions: list[str]) -> dict[str, torch.Tensor]:
        """Conditioning of captions: `hidden` [B, 77 x chunks, width] in the model's precision; carries gradients."""
        ids = _clip.token_ids(self.tokenizer, captions, self.config.max_token_length).to(self.device)
        return {"hidden": _clip.hidden_states(self.load("text_encoder"), ids, self.config.clip_skip)}

    # ---- training ------------------------------------------------------------------------------------------------

    @cached_property
    def prediction_type(self) -> str:
        """epsilon or v_prediction: as configured, or as the base's files tell."""
        told = self.files.scheduler_config()["prediction_type"]
        return told if self.config.prediction_type == "auto" else self.config.prediction_type

    @cached_property
    def alphas_cumprod(self) -> torch.Tensor:
        """abar_t, float32 [1000], on the device."""
        return _ddpm.alphas_cumprod(self.files.scheduler_config()).to(self.device)

    def draw(self, x0: torch.Tensor, generator: torch.Generator, loss: LossConfig) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise and timesteps for a batch, see `_ddpm.draw`."""
        return _ddpm.draw(x0, generator, loss.noise_offset)

    def loss(
        self, x0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor, text: dict[str, torch.Tensor], config: LossConfig
    ) -> torch.Tensor:
        """Weighted mean squared error of each sample, float32 [B]; x0 and eps [B, 4, h, w], t int64 [B]."""
        abar = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        xt = _ddpm.mix(x0, eps, abar).to(self.dtype)
        predicted = self.load("unet")(xt, t, text["hidden"], return_dict=False)[0].float()
        error = (predicted - _ddpm.target(x0, eps, abar, self.prediction_type)).square().mean(dim=(1, 2, 3))
        snr = (abar / (1 - abar)).flatten()
        return error * WEIGHTINGS[config.weighting].weight(snr, self.prediction_type, config.min_snr_gamma)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass: less memory, more time."""
        for part in self._parts.values():
            part.train()  # diffusers and transformers recompute in training mode only; nothing frozen here has dropout
            getattr(part, next(name for name in CHECKPOINTING if hasattr(part, name)))()

    # ---- pictures out --------------------------------------------------------------------------------------------

    @contextmanager
    def painting(self) -> Iterator[None]:
        """Modules in evaluation mode (no dropout, nothing recomputed), and back as they were."""
        training = [module for part in self._parts.values() for module in part.modules() if module.training]
        for part in self._parts.values():
            part.eval()
        yield
        for module in training:
            module.training = True

    @torch.no_grad()
    def paint(
        self,
        text: dict[str, torch.Tensor],
        negative: dict[str, torch.Tensor],
        *,
        width: int,
        height: int,
        seed: int,
        steps: int,
        guidance_scale: float,
        sampler: str,
    ) -> Image.Image:
        """One picture of the current weights from encoded texts [1, T, width]; the noise is diffusers' own."""
        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline(
            vae=self.load("vae"),
            unet=self.load("unet"),
            text_encoder=None,
            tokenizer=None,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            scheduler=_ddpm.scheduler(
                sampler, {**self.files.scheduler_config(), "prediction_type": self.prediction_type}
            ),
        )
        pipeline.set_progress_bar_config(disable=True)
        latents = pipeline(
            prompt_embeds=text["hidden"],
            negative_prompt_embeds=negative["hidden"],
            width=width,
            height=height,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            output_type="latent",
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images
        vae = self.load("vae")
        pixels = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample
        return pipeline.image_processor.postprocess(pixels, output_type="pil")[0]
