"""Stable Diffusion XL and its derivatives (Illustrious, NoobAI, Pony, Animagine)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from PIL import Image

from lorakit.config import Field, setting
from lorakit.diffusion import ddpm
from lorakit.diffusion.prompts import Prompt
from lorakit.machine.device import to_device
from lorakit.models import Size, _clip, _unet
from lorakit.models.files.ldm_names import original_name
from lorakit.models.files.sd import bundled_sd
from lorakit.models.files.sdxl_names import LAYOUT, MARKS

# Token that fills up short captions; None is the tokenizer's own. The second tokenizer differs from the first in this
# alone. diffusers also drops "!" there, which is a word of some tags; A1111 and ComfyUI do not.
PADDING = {"text_encoder": None, "text_encoder_2": 0}
PREFIX = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
COMFY = {"text_encoder": "text_encoders.clip_l.transformer", "text_encoder_2": "text_encoders.clip_g.transformer"}


@dataclass(frozen=True, kw_only=True)
class Config(_unet.UNetConfig):
    """The base model and how it is used."""

    family: str = setting("sdxl", help="model family", choices=("sdxl",))
    source: str = setting(
        help="a file, a diffusers folder, an id on Hugging Face or ModelScope (owner/name, modelscope:owner/name), "
        "or a URL",
        ui=Field(label="base model"),
    )
    vae: str = setting(
        "", help="replaces the VAE of the base model: a file, a folder or an id such as madebyollin/sdxl-vae-fp16-fix"
    )
    prediction_type: str = setting(
        "auto",
        help="what the base model predicts: noise (epsilon) or velocity (v_prediction, as NoobAI V-Pred); auto = "
        "read from its files",
        choices=("auto", "epsilon", "v_prediction"),
    )
    zero_terminal_snr: str = setting(
        "auto",
        help="whether the last timestep of the base model is pure noise (NoobAI V-Pred: enabled); auto = read from "
        "its files",
        choices=("auto", "enabled", "disabled"),
    )
    max_token_length: int = setting(225, help="longer captions are cut", unit="tokens", choices=(75, 150, 225))

    # Defaults that work for anime characters. Rank 16 holds as much as 64 does in SD 1.5. 1e-4 at alpha = rank is a
    # little gentler than 3e-4 at alpha = rank / 2 with batches of four, which the most used notebook has; 225 tokens
    # are as there. No min-SNR: it takes weight from the noisy timesteps that zero terminal SNR adds. Sampling follows
    # the model cards of Illustrious and NoobAI (Euler a, 28 steps, CFG 5 to 7).
    defaults: ClassVar[dict] = {
        "data": {"resolution": 1024, "min_bucket_reso": 512, "max_bucket_reso": 2048, "bucket_reso_steps": 64},
        "adapter": {"rank": 16, "alpha": 16.0},
        "optimizer": {"learning_rate": 1e-4},
        "sample": {"width": 1024, "height": 1024, "steps": 28, "guidance_scale": 6.0, "sampler": "euler_a"},
    }
    # Four images per optimizer step on every GPU: a smaller one costs speed and little else. Each is the first rung
    # of the memory ladder that fits, with the largest batch that it has room for, as computed by run/fits.py.
    gpu_presets: ClassVar[dict] = {
        "6 GB": {
            "loop": {"batch_size": 1, "gradient_accumulation_steps": 4},
            "memory": {"gradient_checkpointing": True, "offload": 0.5},
        },
        "8 GB": {"loop": {"batch_size": 4}, "memory": {"gradient_checkpointing": True, "offload": 0.5}},
        "12 GB": {"loop": {"batch_size": 4}, "memory": {"gradient_checkpointing": True}},
        "16 GB": {"loop": {"batch_size": 4}, "memory": {"gradient_checkpointing": True}},
        "24 GB": {"loop": {"batch_size": 4}, "memory": {"gradient_checkpointing": True}},
        "32 GB": {"loop": {"batch_size": 4}, "memory": {"gradient_checkpointing": True}},
        "40 GB": {"loop": {"batch_size": 4}},
    }
    unsupported: ClassVar[dict] = {
        **_unet.REFUSED,
        "clip_skip": "SDXL always uses the second to last layer of both text encoders, which is called clip skip 2 "
        "elsewhere; remove this setting.",
    }
    rates: ClassVar[dict] = {
        "unet": "learning_rate",
        "text_encoder": "text_encoder_lr",
        "text_encoder_2": "text_encoder_2_lr",
    }
    samplers: ClassVar[tuple] = _unet.SAMPLERS
    key_layouts: ClassVar[tuple] = MARKS.key_layouts
    resolution_multiple: ClassVar[int] = 8  # px of one latent


def excess(config: Config) -> Callable[[str], str]:
    """A function caption -> its end that is cut ("" when all fits); loads only the tokenizer, downloads nothing."""
    return _clip.excess(config.source, config.max_token_length)


class Model(_unet.UNetModel):
    """A Stable Diffusion XL model; see `models.family`."""

    text_parts = ("text_encoder", "text_encoder_2")
    # in a full-size model 722 modules of the UNet, 66 and 192 of the text encoders
    TARGETS = {"unet": _unet.UNET_TARGETS, **dict.fromkeys(text_parts, _unet.CLIP_TARGETS)}
    LAYOUT = LAYOUT
    bundled = staticmethod(partial(bundled_sd, LAYOUT))

    def targets(self, part: str) -> list[str]:
        """Names of the modules of a part that get adapters, in the module's order: kohya's set, but for one layer."""
        # one without effect could not learn
        return [name for name in super().targets(part) if not self.is_unused(part, name)]

    def is_unused(self, part: str, module: str) -> bool:
        """Whether a module is of the last layer of the first text encoder: the second to last one's output is taken."""
        return part == "text_encoder" and f"layers.{self.load(part).config.num_hidden_layers - 1}." in module

    @cached_property
    def _unet_config(self) -> dict:
        return self.files.unet_config()

    def names(self, part: str, module: str) -> dict[str, str]:
        """Form of LoRA files -> the module's name in them, without the names of its tensors."""
        if part == "unet":
            original = original_name(module, self._unet_config)
            return {
                "kohya": f"lora_unet_{original}".replace(".", "_"),
                "comfy": f"diffusion_model.{original}",
                "diffusers": f"unet.{module}",
                "kohya_diffusers": f"lora_unet_{module}".replace(".", "_"),
            }
        module = _clip.with_text_model(module) if part == "text_encoder" else module
        return {
            "kohya": f"{PREFIX[part]}_{module}".replace(".", "_"),
            "comfy": f"{COMFY[part]}.{module}",
            "diffusers": f"{part}.{module}",
        }

    def metadata(self) -> dict[str, str]:
        """Metadata about the base model, for the LoRA files (keys of sd-scripts and of modelspec)."""
        return {
            "ss_base_model_version": "sdxl_base_v1-0",
            "ss_v2": "False",
            "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
            # whose names a file of SDXL has
            "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
            "ss_max_token_length": str(self.config.max_token_length),
            "ss_v_parameterization": str(self.prediction_type == "v_prediction"),
            "ss_zero_terminal_snr": str(self.zero_terminal_snr),
            "modelspec.prediction_type": {"epsilon": "epsilon", "v_prediction": "v"}[self.prediction_type],
        }

    # ---- captions ------------------------------------------------------------------------------------------------

    def text_key(self) -> tuple:
        """What encoded captions depend on besides their text; part of the cache key."""
        parts = (value for part in self.text_parts for value in (self.fingerprint(part), part in self.trained))
        return ("sdxl", *parts, self.config.max_token_length, str(self.dtype))

    @torch.no_grad()
    def encode_text(self, caption: str) -> dict[str, torch.Tensor]:
        """One caption, for each text encoder: `<part>.ids` int64 [chunks, 77] of a trained one, of a frozen one
        `<part>.hidden` [77 x chunks, width] and of the second `<part>.pooled` [1280]."""
        length = self.config.max_token_length
        ids = {part: _clip.token_ids(self.tokenizer, [caption], length, fill) for part, fill in PADDING.items()}
        return self._encoded(ids)

    @torch.no_grad()
    def encode_prompt(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        """A prompt as `encode_text` gives it; one with weights or BREAK with `weights` float32 [77 x chunks]."""
        if prompt.is_plain:
            return self.encode_text(prompt.text)
        length = self.config.max_token_length
        tokens = {part: _clip.prompt_ids(self.tokenizer, prompt, length, fill) for part, fill in PADDING.items()}
        # both text encoders have the same tokens but for the padding
        weights = tokens["text_encoder"][1]
        return {**self._encoded({part: ids[None] for part, (ids, _) in tokens.items()}), "weights": weights}

    def _encoded(self, ids: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What is cached of one caption, from its token ids [1, chunks, 77] for each text encoder."""
        encoded = {}
        for part in self.text_parts:
            # a trained text encoder runs in every step, so its input is cached; a frozen one runs once
            features = {f"{part}.ids": ids[part]} if part in self.trained else self._encode(part, ids[part])
            encoded |= {name: tensor[0] for name, tensor in features.items()}
        return encoded

    def condition(self, texts: list[dict[str, torch.Tensor]], sizes: list[Size]) -> dict[str, torch.Tensor]:
        """Conditioning of a batch: `hidden` [B, 77 x chunks, 2048] and `pooled` [B, 1280] in the model's precision,
        `time_ids` float32 [B, 6]: original height and width, crop from top and left, target height and width."""
        features = {name: to_device(torch.stack([text[name] for text in texts]), self.device) for name in texts[0]}
        for part in self.text_parts:
            if part in self.trained:
                features |= self._encode(part, features[f"{part}.ids"])
        if "weights" in features:
            # each by itself, as A1111; `pooled` has no weights
            for part in self.text_parts:
                features[f"{part}.hidden"] = _clip.weighted(features[f"{part}.hidden"], features["weights"])
        # SDXL takes (height, width) and (top, left); Size holds them the other way round.
        numbers = [[*size.original[::-1], *size.crop[::-1], *size.target[::-1]] for size in sizes]
        return {
            # In a full-size model 768 channels of the first text encoder, then 1280 of the second.
            "hidden": torch.cat([features[f"{part}.hidden"] for part in self.text_parts], dim=-1),
            "pooled": features["text_encoder_2.pooled"],
            # float32 whatever the precision: bfloat16 cannot represent sizes such as 1537
            "time_ids": to_device(torch.tensor(numbers, dtype=torch.float32), self.device),
        }

    def _encode(self, part: str, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        features = _clip.penultimate(self.load(part), to_device(ids, self.device))
        return {f"{part}.{name}": tensor for name, tensor in features.items()}

    # ---- training and sampling -----------------------------------------------------------------------------------

    def predict(self, xt: torch.Tensor, t: torch.Tensor, text: dict[str, torch.Tensor]) -> torch.Tensor:
        """The UNet's prediction for xt [B, 4, h, w] at t int64 [B]."""
        added = {"text_embeds": text["pooled"], "time_ids": text["time_ids"]}
        return self.load("unet")(xt, t, text["hidden"], added_cond_kwargs=added, return_dict=False)[0]

    @torch.no_grad()
    def sample(
        self, text: dict[str, torch.Tensor], negative: dict[str, torch.Tensor], sampling: Any, seed: int
    ) -> Image.Image:
        """One image with the current weights; the conditionings are of a batch of 1, `sampling` is a SamplingConfig."""
        from diffusers import StableDiffusionXLPipeline

        pipeline = StableDiffusionXLPipeline(
            # not in memory while the UNet works
            vae=None,
            unet=self.load("unet"),
            text_encoder=None,
            text_encoder_2=None,
            tokenizer=None,
            tokenizer_2=None,
            scheduler=ddpm.scheduler(sampling.sampler, self.scheduler_config),
            add_watermarker=False,
        )
        embeddings = {
            "prompt_embeds": text["hidden"],
            "negative_prompt_embeds": negative["hidden"],
            "pooled_prompt_embeds": text["pooled"],
            "negative_pooled_prompt_embeds": negative["pooled"],
        }
        return _unet.run_pipeline(self, pipeline, embeddings, sampling, seed)
