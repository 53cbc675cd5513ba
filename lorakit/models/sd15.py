"""Stable Diffusion 1.5 and its derivatives (AnyLoRA, NAI-like models)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from PIL import Image

from lorakit.config import ConfigError, Field, setting
from lorakit.diffusion import ddpm
from lorakit.diffusion.prompts import Prompt
from lorakit.machine.device import to_device
from lorakit.models import Size, _clip, _unet
from lorakit.models.files.sd import bundled_sd
from lorakit.models.files.sd15_names import LAYOUT, MARKS


@dataclass(frozen=True, kw_only=True)
class Config(_unet.UNetConfig):
    """The base model and how it is used."""

    family: str = setting("sd15", help="model family", choices=("sd15",))
    source: str = setting(
        help="a file, a diffusers folder, an id on Hugging Face or ModelScope (owner/name, modelscope:owner/name), "
        "a URL, or demo",
        ui=Field(label="base model"),
    )
    clip_skip: int = setting(
        1,
        help="layer of the text encoder, counted from its end; 2 for NAI-like anime models, 1 for others",
        range=(1, 12),
    )
    max_token_length: int = setting(75, help="longer captions are cut", unit="tokens", choices=(75, 150, 225))

    later: ClassVar[tuple] = ("vae", "zero_terminal_snr")
    defaults: ClassVar[dict] = {}
    # Four images per optimizer step on every GPU: a smaller one only costs speed. Each is the first rung
    # of the memory ladder that fits, with the largest batch that it has room for, as computed by run/fits.py.
    gpu_presets: ClassVar[dict] = {
        "6 GB": {"loop": {"batch_size": 4}, "memory": {"gradient_checkpointing": True}},
        "8 GB": {"loop": {"batch_size": 4}},
        "12 GB": {"loop": {"batch_size": 4}},
        "16 GB": {"loop": {"batch_size": 4}},
        "24 GB": {"loop": {"batch_size": 4}},
        "32 GB": {"loop": {"batch_size": 4}},
        "40 GB": {"loop": {"batch_size": 4}},
    }
    unsupported: ClassVar[dict] = _unet.REFUSED
    rates: ClassVar[dict] = {"unet": "learning_rate", "text_encoder": "text_encoder_lr"}
    samplers: ClassVar[tuple] = _unet.SAMPLERS
    key_layouts: ClassVar[tuple] = MARKS.key_layouts
    resolution_multiple: ClassVar[int] = 8  # px of one latent


def excess(config: Config) -> Callable[[str], str]:
    """A function caption -> its end that is cut ("" when all fits); loads only the tokenizer, downloads nothing."""
    return _clip.excess(config.source, config.max_token_length)


class Model(_unet.UNetModel):
    """A Stable Diffusion 1.5 model; see `models.family`."""

    text_parts = ("text_encoder",)
    # in a full-size model 192 modules of the UNet and 72 of the text encoder
    TARGETS = {"unet": _unet.UNET_TARGETS, "text_encoder": _unet.CLIP_TARGETS}
    LAYOUT = LAYOUT
    bundled = staticmethod(partial(bundled_sd, LAYOUT))

    def __init__(self, config: Config, device: torch.device, dtype: torch.dtype, trained: Collection[str] = ()):
        super().__init__(config, device, dtype, trained)
        layers = self.files.text_config()["num_hidden_layers"]
        if config.clip_skip > layers:
            raise ConfigError(
                f"clip_skip is {config.clip_skip}, but the text encoder of this base model has {layers} layers: "
                f"set 1 to {layers}."
            )

    def names(self, part: str, module: str) -> dict[str, str]:
        """Form of LoRA files -> the module's name in them, without the names of its tensors."""
        if part == "unet":
            flat = f"lora_unet_{module}".replace(".", "_")
        else:
            module = _clip.with_text_model(module)
            flat = f"lora_te_{module}".replace(".", "_")
        return {"kohya": flat, "diffusers": f"{part}.{module}"}

    def metadata(self) -> dict[str, str]:
        """Metadata about the base model, for the LoRA files (keys of sd-scripts and of modelspec)."""
        return {
            "ss_base_model_version": "sd_v1",
            "ss_v2": "False",
            "modelspec.architecture": "stable-diffusion-v1/lora",
            "ss_clip_skip": str(self.config.clip_skip),
            "ss_max_token_length": str(self.config.max_token_length),
            "ss_v_parameterization": str(self.prediction_type == "v_prediction"),
            "modelspec.prediction_type": {"epsilon": "epsilon", "v_prediction": "v"}[self.prediction_type],
            # not in the files of earlier versions, so only where it says something
            **({"ss_zero_terminal_snr": "True"} if self.zero_terminal_snr else {}),
        }

    # ---- captions ------------------------------------------------------------------------------------------------

    def text_key(self) -> tuple:
        """What encoded captions depend on besides their text; part of the cache key."""
        text = self.config.clip_skip, self.config.max_token_length, str(self.dtype)
        return ("sd15", self.fingerprint("text_encoder"), *text, "text_encoder" in self.trained)

    @torch.no_grad()
    def encode_text(self, caption: str) -> dict[str, torch.Tensor]:
        """One caption: `ids` int64 [chunks, 77] for a trained text encoder, else `hidden` [77 x chunks, width]."""
        ids = _clip.token_ids(self.tokenizer, [caption], self.config.max_token_length)
        return {"ids": ids[0]} if "text_encoder" in self.trained else {"hidden": self._hidden(ids)[0]}

    @torch.no_grad()
    def encode_prompt(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        """A prompt as `encode_text` gives it; one with weights or BREAK with `weights` float32 [77 x chunks]."""
        if prompt.is_plain:
            return self.encode_text(prompt.text)
        ids, weights = _clip.prompt_ids(self.tokenizer, prompt, self.config.max_token_length)
        encoded = {"ids": ids} if "text_encoder" in self.trained else {"hidden": self._hidden(ids[None])[0]}
        return {**encoded, "weights": weights}

    def condition(self, texts: list[dict[str, torch.Tensor]], sizes: list[Size]) -> dict[str, torch.Tensor]:
        """Conditioning of a batch: `hidden` [B, 77 x chunks, width] in the model's precision."""
        stacked = {name: torch.stack([text[name] for text in texts]) for name in texts[0]}
        hidden = self._hidden(stacked["ids"]) if "ids" in stacked else to_device(stacked["hidden"], self.device)
        return {"hidden": _clip.weighted(hidden, stacked["weights"]) if "weights" in stacked else hidden}

    def _hidden(self, ids: torch.Tensor) -> torch.Tensor:
        return _clip.hidden_states(self.load("text_encoder"), to_device(ids, self.device), self.config.clip_skip)

    # ---- training and sampling -----------------------------------------------------------------------------------

    def predict(self, xt: torch.Tensor, t: torch.Tensor, text: dict[str, torch.Tensor]) -> torch.Tensor:
        """The UNet's prediction for xt [B, 4, h, w] at t int64 [B]."""
        return self.load("unet")(xt, t, text["hidden"], return_dict=False)[0]

    @torch.no_grad()
    def sample(
        self, text: dict[str, torch.Tensor], negative: dict[str, torch.Tensor], sampling: Any, seed: int
    ) -> Image.Image:
        """One image with the current weights; the conditionings are of a batch of 1, `sampling` is a SamplingConfig."""
        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline(
            # not in memory while the UNet works
            vae=None,
            unet=self.load("unet"),
            text_encoder=None,
            tokenizer=None,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            scheduler=ddpm.scheduler(sampling.sampler, self.scheduler_config),
        )
        embeddings = {"prompt_embeds": text["hidden"], "negative_prompt_embeds": negative["hidden"]}
        return _unet.run_pipeline(self, pipeline, embeddings, sampling, seed)
