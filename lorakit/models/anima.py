"""The family of Anima: Cosmos Predict2's transformer, Qwen3 and T5's words, Qwen-Image's VAE, rectified flow."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image

from lorakit.config import Config, Field, setting
from lorakit.diffusion import flow
from lorakit.diffusion.weightings import LossConfig
from lorakit.errors import UserError
from lorakit.hub import downloading_nothing, fetch
from lorakit.layers.frozen import slim
from lorakit.models import Size, _cosmos, _qwen_vae
from lorakit.models._base import Parts
from lorakit.models.files.anima import ANIMA_CONFIG, open_anima, tokenizers_at
from lorakit.models.files.anima_names import MARKS


@dataclass(frozen=True, kw_only=True)
class Config(Config):
    """The base model, where its parts are, and how it is used."""

    family: str = setting("anima", help="model family", choices=("anima",))
    source: str = setting(
        help="the base model: a diffusers folder, a hub id (owner/name, modelscope:owner/name), or its transformer as "
        "a file or an URL",
        ui=Field(label="base model"),
    )
    text_encoder: str = setting(
        "", help="with a transformer file: Qwen3 0.6B (qwen_3_06b_base.safetensors); empty: the source's own"
    )
    vae: str = setting(
        "", help="with a transformer file: the VAE (qwen_image_vae.safetensors); empty: the source's own"
    )
    text_conditioner: str = setting(
        "", help="the text conditioner (LLM adapter) when it is not in the transformer's file; empty: the source's own"
    )
    max_token_length: int = setting(
        512,
        help="captions longer than this are cut; above 512 long captions count whole, and cost time",
        unit="tokens",
        range=(16, 4096),
    )

    defaults: ClassVar = {
        "data": {
            "resolution": 1024,
            "min_bucket_reso": 512,
            "max_bucket_reso": 1536,
            "caption_dropout_rate": 0.05,
        },
        "adapter": {"rank": 16, "alpha": 16.0},
        "optimizer": {"learning_rate": 5e-5},
        "loss": {"timestep_sampling": "sigmoid"},
        "memory": {"gradient_checkpointing": True},  # without it the blocks keep 14 GB at 1024 px
        "sample": {"width": 1024, "height": 1024, "steps": 30, "guidance_scale": 4.0, "sampler": "euler"},
    }
    # Four images per optimizer step on every GPU: a smaller one costs speed and little else. The presets for 24 and
    # 32 GB are those of the Anima training guide.
    gpu_presets: ClassVar = {
        "8 GB": {
            "optimizer": {"name": "adamw8bit"},
            "loop": {"batch_size": 1, "gradient_accumulation_steps": 4},
            "memory": {"gradient_checkpointing": True, "offload": 0.5},
        },
        "12 GB": {
            "loop": {"batch_size": 1, "gradient_accumulation_steps": 4},
            "memory": {"gradient_checkpointing": True},
        },
        "16 GB": {  # a T4: `auto` is fp16 there
            "loop": {"batch_size": 1, "gradient_accumulation_steps": 4},
            "memory": {"gradient_checkpointing": True},
        },
        "24 GB": {
            "loop": {"batch_size": 1, "gradient_accumulation_steps": 4, "precision": "bf16"},
            "memory": {"gradient_checkpointing": True},
        },
        "32 GB": {
            "loop": {"batch_size": 2, "gradient_accumulation_steps": 2, "precision": "bf16"},
            "memory": {"gradient_checkpointing": True},
        },
    }
    unsupported: ClassVar = {
        "clip_skip": "its text encoder is Qwen3, not CLIP, and its last layer is the one that counts.",
        "prediction_type": "it always says velocities (rectified flow).",
        "optimizer.text_encoder_lr": "its text encoder stays frozen; optimizer.text_conditioner_lr trains its reader.",
        "loss.weighting": "SNR weights are for DDPM; loss.timestep_sampling says which times count most.",
        "loss.noise_offset": "a flow begins at pure noise, so that dark and bright images need no offset.",
    }
    rates: ClassVar = {"transformer": "learning_rate", "text_conditioner": "text_conditioner_lr"}
    samplers: ClassVar = ("euler", "dpmpp_2m")
    forms: ClassVar = MARKS.forms
    resolution_multiple: ClassVar = 16  # px of one patch: 8 of a latent, 2 latents


# diffusers' names -> those of the original files, which ComfyUI and kohya use; the conditioner's are the same in both
ORIGINAL = {
    "transformer_blocks.": "blocks.",
    "attn1.": "self_attn.",
    "attn2.": "cross_attn.",
    "to_q": "q_proj",
    "to_k": "k_proj",
    "to_v": "v_proj",
    "to_out.0": "output_proj",
    "ff.net.0.proj": "mlp.layer1",
    "ff.net.2": "mlp.layer2",
    "norm1.linear_": "adaln_modulation_self_attn.",  # this and what follows other tools may have trained
    "norm2.linear_": "adaln_modulation_cross_attn.",
    "norm3.linear_": "adaln_modulation_mlp.",
    "norm_out.linear_": "final_layer.adaln_modulation.",
    "proj_out": "final_layer.linear",
    "patch_embed.proj": "x_embedder.proj.1",
    "time_embed.t_embedder": "t_embedder.1",
}


def fetch_part(source: str) -> Path:
    """The local file or folder of one part: what `hub.fetch` takes, and folders with config.json and weights."""
    folder = Path(source).expanduser()
    return folder if folder.is_dir() else fetch(source, patterns=("config.json", "*.safetensors"))


def excess(config: Config) -> Callable[[str], str]:
    """What is cut from the end of a caption for either tokenizer, "" when all of it fits; loads these alone, downloads
    nothing."""
    try:
        with downloading_nothing():
            source = fetch(config.source)
    except UserError:  # it is not here yet, or cannot be used, which is for others to say
        source = ANIMA_CONFIG
    tokenizers, limit = tokenizers_at(source), config.max_token_length

    def cut(caption: str) -> str:
        kept = len(caption)
        for tokenizer in tokenizers:
            if len(tokenizer(caption)["input_ids"]) > limit:
                short = tokenizer(caption, truncation=True, max_length=limit, return_offsets_mapping=True)
                kept = min(kept, max(end for _, end in short["offset_mapping"]))
        return caption[kept:]

    return cut


class Model(Parts):
    """An Anima model; see `models.family`."""

    denoiser = "transformer"
    text_parts = ("text_encoder", "text_conditioner")
    # 280 modules of the full-size transformer, 60 of its text conditioner
    TARGETS = {
        "transformer": r"transformer_blocks\.\d+\.(attn[12]\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2))",
        "text_conditioner": r"blocks\.\d+\.((self|cross)_attn\.(q|k|v|o)_proj|mlp\.[02])",
    }

    def __init__(self, config: Config, device: torch.device, dtype: torch.dtype, trained: Collection[str] = ()):
        given = {name: getattr(config, name) for name in ("text_encoder", "vae", "text_conditioner")}
        parts = {name: fetch_part(source) if source else None for name, source in given.items()}
        files = open_anima(fetch(config.source), **parts)
        super().__init__(config, files, device, dtype, trained)

    def settings(self, part: str) -> list[Path]:
        """The configuration of a part, and the tokenizer before it."""
        return self.files.settings(part)

    def part_dtype(self, part: str) -> torch.dtype:
        """float32 for the VAE, and for the text parts instead of float16, where they overflow; they are read once."""
        if part == "vae":
            return torch.float32
        return self.dtype if part == self.denoiser else _cosmos.stream_dtype(self.dtype)

    def prepared(self, part: str, module: torch.nn.Module) -> torch.nn.Module:
        """The transformer with its passes, the VAE for single images; text parts, which keep next to nothing for a
        backward pass, stay as they are, so that their answers are diffusers' bit for bit.
        """
        if part == self.denoiser:
            return _cosmos.prepare(slim(module), self.dtype)
        return _qwen_vae.for_images(module) if part == "vae" else module

    def names(self, part: str, module: str) -> dict[str, str]:
        """Form of LoRA files -> the name they know a module by, without what follows (.lora_A.weight)."""
        original = f"llm_adapter.{module}"
        if part == self.denoiser:
            original = module
            for ours, theirs in ORIGINAL.items():
                original = original.replace(ours, theirs)
        return {
            "comfy": f"diffusion_model.{original}",
            "kohya": f"lora_unet_{original}".replace(".", "_"),
            "diffusers": f"{part}.{module}",
        }

    def metadata(self) -> dict[str, str]:
        """What LoRA files of this family tell about their base."""
        return {
            "ss_base_model_version": "anima",
            "modelspec.architecture": "anima-preview/lora",  # sd-scripts' name of the architecture, of V1 too
            "ss_max_token_length": str(self.config.max_token_length),
        }

    # ---- images ------------------------------------------------------------------------------------------------

    def image_key(self) -> tuple[str, ...]:
        """What encoded images depend on beside the pixels."""
        return ("anima posterior", self.fingerprint("vae"))

    @torch.no_grad()
    def encode_image(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Posterior of one image [3, H, W] in -1..1: `mean` and `std`, float32 [16, H/8, W/8], not normalised."""
        mean, std = _qwen_vae.encode(self.load("vae"), pixels[None].to(self.device))
        return {"mean": mean[0], "std": std[0]}

    def latents(self, encoded: list[dict[str, torch.Tensor]], generator: torch.Generator) -> torch.Tensor:
        """x0 of a batch, float32 [B, 16, H/8, W/8] on the device: a draw from each posterior, normalised by channel."""
        mean, std = (torch.stack([item[name] for item in encoded]) for name in ("mean", "std"))
        x0 = mean + std * torch.randn(mean.shape, generator=generator).to(std)
        centre, width = self._channels(x0)
        return ((x0 - centre) / width).to(self.device)

    def _channels(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of each latent channel, [16, 1, 1]."""
        config = self.files.vae_config()
        return tuple(like.new_tensor(config[name])[:, None, None] for name in ("latents_mean", "latents_std"))

    # ---- captions ------------------------------------------------------------------------------------------------

    def text_key(self) -> tuple:
        """What encoded captions depend on beside the text."""
        parts = (self.fingerprint(part) for part in self.text_parts)
        return ("anima", *parts, self.config.max_token_length, str(self.dtype), "text_conditioner" in self.trained)

    @cached_property
    def tokenizers(self) -> tuple:
        """Of Qwen3, whose states are read, and of T5, whose tokens read them."""
        return self.files.tokenizer(), self.files.t5_tokenizer()

    def token_count(self, caption: str) -> int:
        """Tokens of a caption, the greater number of both tokenizers; above `max_token_length` its end is cut."""
        return max(len(tokenizer(caption)["input_ids"]) for tokenizer in self.tokenizers)

    @torch.no_grad()
    def encode_text(self, caption: str) -> dict[str, torch.Tensor]:
        """One caption: `hidden` [T5's tokens, width], the frozen conditioner's answer in the transformer's precision.

        For a trained conditioner what it is asked: `states` [Qwen3's tokens, width] and `ids` int64 [T5's tokens].
        """
        ids, t5_ids = (
            tokenizer(caption, truncation=True, max_length=self.config.max_token_length)["input_ids"]
            for tokenizer in self.tokenizers
        )
        if ids:
            encoder = self.load("text_encoder")
            read = torch.tensor([ids], device=self.device)
            states = encoder(input_ids=read).last_hidden_state[0]  # one caption: nothing of it is masked
        else:  # an empty caption: one state of zeros, as diffusers has it
            width = self.files.text_conditioner_config()["source_dim"]
            states = torch.zeros(1, width, dtype=self.part_dtype("text_encoder"))
        asked = {"states": states, "ids": torch.tensor(t5_ids)}
        return asked if "text_conditioner" in self.trained else {"hidden": self._conditioned(**asked)}

    def condition(self, texts: list[dict[str, torch.Tensor]], sizes: list[Size]) -> dict[str, torch.Tensor]:
        """Conditioning of a batch: `hidden` [B, tokens, width] in the transformer's precision.

        Zeros follow each caption up to the longest of the batch, and to 512 at least: the transformer, which has no
        text mask, was trained so.
        """
        hidden = [text["hidden"] if "hidden" in text else self._conditioned(**text) for text in texts]
        tokens = max(self.files.text_conditioner_config()["min_sequence_length"], *map(len, hidden))
        padded = [F.pad(item.to(self.device), (0, 0, 0, tokens - len(item))) for item in hidden]
        return {"hidden": torch.stack(padded)}

    def _conditioned(self, states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The conditioner's answer to one caption, without padding: [T5's tokens, width]."""
        conditioner = self.load("text_conditioner")
        states, ids = states[None].to(self.device), ids[None].to(self.device)
        seen = torch.ones(states.shape[:2], dtype=torch.int64, device=self.device)
        hidden = conditioner(states, ids, target_attention_mask=torch.ones_like(ids), source_attention_mask=seen)
        return hidden[0, : ids.shape[1]].to(self.dtype)

    # ---- training ------------------------------------------------------------------------------------------------

    def sample_noise(
        self, x0: torch.Tensor, generator: torch.Generator, loss: LossConfig
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise and times for a batch, see `flow.sample_noise`."""
        return flow.sample_noise(x0, generator, loss)

    def loss(
        self,
        x0: torch.Tensor,
        eps: torch.Tensor,
        t: torch.Tensor,
        text: dict[str, torch.Tensor],
        config: LossConfig,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mean squared error of each sample's velocity, float32 [B]; x0 and eps [B, 16, h, w], t float32 [B], mask
        [B, 1, h, w], see `_base.masked`.
        """
        return flow.loss(self._velocity(flow.add_noise(x0, eps, t), t, text), x0, eps, mask)

    def _velocity(self, xt: torch.Tensor, t: torch.Tensor, text: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the transformer says, float32 like xt."""
        xt = xt.to(_cosmos.stream_dtype(self.dtype))
        return _cosmos.velocity(self.load("transformer"), xt, t, text["hidden"]).float()

    # ---- images out --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self, text: dict[str, torch.Tensor], negative: dict[str, torch.Tensor], look: Any, seed: int
    ) -> Image.Image:
        """One image of the current weights from conditionings of a batch of 1; `look` is a SamplingConfig.

        Noise and steps are diffusers' own.
        """
        from diffusers.utils.torch_utils import randn_tensor

        scheduler = flow.scheduler(look.sampler, self.files.scheduler_config(), look.shift, look.steps)
        shape = (1, self.files.transformer_config()["in_channels"], look.height // 8, look.width // 8)
        latents = randn_tensor(shape, torch.Generator("cpu").manual_seed(seed), self.device, torch.float32)
        for step, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
            t = sigma.to(self.device)[None]
            said = self._velocity(latents, t, text)
            if look.guidance_scale != 1:
                unconditioned = self._velocity(latents, t, negative)
                said = unconditioned + look.guidance_scale * (said - unconditioned)
            latents = scheduler.step(said, step, latents, return_dict=False)[0]
        return self._decode(latents)

    def _decode(self, latents: torch.Tensor) -> Image.Image:
        """The image of normalised latents [1, 16, h, w]."""
        from diffusers.image_processor import VaeImageProcessor

        centre, width = self._channels(latents)
        pixels = _qwen_vae.decode(self.load("vae"), latents * width + centre)
        return VaeImageProcessor().postprocess(pixels, output_type="pil")[0]
