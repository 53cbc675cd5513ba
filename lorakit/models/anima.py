"""Anima: Cosmos-Predict2's transformer, Qwen3 with an LLM adapter, the Qwen-Image VAE, rectified flow."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image

from lorakit import config as configs
from lorakit.config import Field, setting
from lorakit.diffusion import flow
from lorakit.diffusion.prompts import Prompt
from lorakit.diffusion.weightings import LossConfig
from lorakit.errors import UserError
from lorakit.hub import downloading_nothing, fetch
from lorakit.layers.frozen import slim
from lorakit.machine.device import to_device
from lorakit.models import Size, _cosmos, _qwen_vae
from lorakit.models._base import Parts, decode
from lorakit.models.files.anima import ANIMA_CONFIG, bundled_anima, open_anima, tokenizers_at
from lorakit.models.files.anima_names import MARKS


@dataclass(frozen=True, kw_only=True)
class Config(configs.Config):
    """The base model, the files of its parts, and how it is used."""

    family: str = setting("anima", help="model family", choices=("anima",))
    source: str = setting(
        help="the DiT as a file, a diffusers folder, an id on Hugging Face or ModelScope (owner/name, "
        "modelscope:owner/name), or a URL",
        ui=Field(label="base model"),
    )
    text_encoder: str = setting(
        "", help="with a DiT file: Qwen3 0.6B (qwen_3_06b_base.safetensors); empty = the one in the base model's folder"
    )
    vae: str = setting(
        "", help="with a DiT file: the VAE (qwen_image_vae.safetensors); empty = the one in the base model's folder"
    )
    text_conditioner: str = setting(
        "",
        help="the LLM adapter (text conditioner), when the DiT file does not contain it; empty = the base model's own",
    )
    max_token_length: int = setting(
        512,
        help="longer captions are cut; above 512 they are kept whole, but training is slower",
        unit="tokens",
        range=(16, 4096),
    )

    defaults: ClassVar[dict] = {
        "data": {
            "resolution": 1024,
            "min_bucket_reso": 512,
            "max_bucket_reso": 1536,
            "caption_dropout_rate": 0.05,
        },
        "adapter": {"rank": 16, "alpha": 16.0},
        "optimizer": {"learning_rate": 5e-5},
        "loss": {"timestep_sampling": "sigmoid"},
        # without it the blocks keep 14 GB of activations at 1024 px
        "memory": {"gradient_checkpointing": True},
        "sample": {"width": 1024, "height": 1024, "steps": 30, "guidance_scale": 4.0, "sampler": "euler"},
    }
    # Four images per optimizer step on every GPU: a smaller one costs speed and little else. Each is the first rung
    # of the memory ladder that fits, with the largest batch that it has room for, as computed by run/fits.py.
    gpu_presets: ClassVar[dict] = {
        "6 GB": {
            "loop": {"batch_size": 1, "gradient_accumulation_steps": 4},
            "memory": {"gradient_checkpointing": True, "offload": 0.5},
        },
        "8 GB": {
            "loop": {"batch_size": 1, "gradient_accumulation_steps": 4},
            "memory": {"gradient_checkpointing": True},
        },
        "12 GB": {"loop": {"batch_size": 4}, "memory": {"gradient_checkpointing": True}},
        "16 GB": {"loop": {"batch_size": 4}, "memory": {"gradient_checkpointing": True}},
        "24 GB": {"loop": {"batch_size": 4}, "memory": {"gradient_checkpointing": True}},
        "32 GB": {"loop": {"batch_size": 4}, "memory": {"gradient_checkpointing": True}},
        "40 GB": {"loop": {"batch_size": 4}, "memory": {"gradient_checkpointing": True}},
    }
    unsupported: ClassVar[dict] = {
        "clip_skip": "the text encoder of Anima is Qwen3, whose last layer is used; remove this setting.",
        "prediction_type": "Anima always predicts velocities (rectified flow); remove this setting.",
        "zero_terminal_snr": "the noise of a flow model always ends with pure noise; remove this setting.",
        "optimizer.text_encoder_lr": "the text encoder of Anima stays frozen; optimizer.text_conditioner_lr trains the "
        "LLM adapter after it.",
        "loss.weighting": "SNR weights are for SD 1.5 and SDXL; use loss.timestep_sampling to choose the times "
        "that are trained most.",
        "loss.noise_offset": "a flow model starts at pure noise, so dark and bright images need no offset.",
    }
    rates: ClassVar[dict] = {"transformer": "learning_rate", "text_conditioner": "text_conditioner_lr"}
    samplers: ClassVar[tuple] = ("euler", "dpmpp_2m")
    key_layouts: ClassVar[tuple] = MARKS.key_layouts
    resolution_multiple: ClassVar[int] = 16  # px of one patch: 8 of a latent, 2 latents


# diffusers' names -> those of the original files, which ComfyUI and kohya use. Those of the text
# conditioner are the same in both.
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
    # not trained here, but LoRA files of other tools may have these
    "norm1.linear_": "adaln_modulation_self_attn.",
    "norm2.linear_": "adaln_modulation_cross_attn.",
    "norm3.linear_": "adaln_modulation_mlp.",
    "norm_out.linear_": "final_layer.adaln_modulation.",
    "proj_out": "final_layer.linear",
    "patch_embed.proj": "x_embedder.proj.1",
    "time_embed.t_embedder": "t_embedder.1",
}


def fetch_part(source: str) -> Path:
    """The local file or folder of one part: a folder with config.json and weights, or what `hub.fetch` accepts."""
    folder = Path(source).expanduser()
    return folder if folder.is_dir() else fetch(source, patterns=("config.json", "*.safetensors"))


def excess(config: Config) -> Callable[[str], str]:
    """A function caption -> its end that either tokenizer cuts ("" when all fits).

    Loads only the tokenizers, downloads nothing.
    """
    try:
        with downloading_nothing():
            source = fetch(config.source)
    except UserError:
        # not downloaded yet, or unusable, which loading the model reports
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


def pixels_of(model: Model, latents: torch.Tensor, in_tiles: bool = False) -> torch.Tensor:
    """An image, float32 [1, 3, H, W] in -1..1, from latents [1, 16, h, w]; tiles take less memory."""
    centre, width = _qwen_vae.channels(model.files.vae_config(), latents)
    return _qwen_vae.decode(model.load("vae"), latents * width + centre, in_tiles)


class Model(Parts):
    """An Anima model; see `models.family`."""

    bundled = staticmethod(bundled_anima)
    pixels = pixels_of
    denoiser = "transformer"
    text_parts = ("text_encoder", "text_conditioner")
    # in a full-size model 280 modules of the transformer and 60 of the text conditioner
    TARGETS = {
        "transformer": r"transformer_blocks\.\d+\.(attn[12]\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2))",
        "text_conditioner": r"blocks\.\d+\.((self|cross)_attn\.(q|k|v|o)_proj|mlp\.[02])",
    }

    def __init__(self, config: Config, device: torch.device, dtype: torch.dtype, trained: Collection[str] = ()):
        sources = {name: getattr(config, name) for name in ("text_encoder", "vae", "text_conditioner")}
        parts = {name: fetch_part(source) if source else None for name, source in sources.items()}
        files = open_anima(fetch(config.source), **parts)
        super().__init__(config, files, device, dtype, trained)

    def settings(self, part: str) -> list[Path]:
        """The configuration of a part, and the files of the tokenizer before it."""
        return self.files.settings(part)

    def part_dtype(self, part: str) -> torch.dtype:
        """float32 for the VAE, and for the text parts in place of float16, in which they overflow."""
        if part == "vae":
            return torch.float32
        return self.dtype if part == self.denoiser else _cosmos.stream_dtype(self.dtype)

    def prepared(self, part: str, module: torch.nn.Module) -> torch.nn.Module:
        """The transformer with our forward passes, the VAE for single images; text parts unchanged."""
        if part == self.denoiser:
            return _cosmos.prepare(slim(module), self.dtype)
        # text parts keep little for a backward pass, and unchanged their output is bit for bit that of diffusers
        return _qwen_vae.for_images(module) if part == "vae" else module

    def names(self, part: str, module: str) -> dict[str, str]:
        """Form of LoRA files -> the module's name in them, without the names of its tensors."""
        if part == "text_encoder":
            # never trained here; sd-scripts writes such modules, ComfyUI's name is that of its own text encoder
            return {
                "kohya": f"lora_te_{module}".replace(".", "_"),
                "comfy": f"text_encoders.qwen3_06b.transformer.model.{module}",
                "diffusers": f"{part}.{module}",
                "with its head": f"lora_te_model_{module}".replace(".", "_"),
            }
        original = f"llm_adapter.{module}"
        if part == self.denoiser:
            original = module
            for own, other in ORIGINAL.items():
                original = original.replace(own, other)
        return {
            "comfy": f"diffusion_model.{original}",
            "kohya": f"lora_unet_{original}".replace(".", "_"),
            "diffusers": f"{part}.{module}",
        }

    def metadata(self) -> dict[str, str]:
        """Metadata about the base model, for the LoRA files (keys of sd-scripts and of modelspec)."""
        return {
            "ss_base_model_version": "anima",
            # sd-scripts' name of the architecture, which it uses for V1, too
            "modelspec.architecture": "anima-preview/lora",
            "ss_max_token_length": str(self.config.max_token_length),
        }

    # ---- images ------------------------------------------------------------------------------------------------

    def image_key(self) -> tuple[str, ...]:
        """What encoded images depend on besides the pixels; part of the cache key."""
        return ("anima posterior", self.fingerprint("vae"))

    @torch.no_grad()
    def encode_image(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Posterior of one image [3, H, W] in -1..1: `mean` and `std`, float32 [16, H/8, W/8], not normalised."""
        mean, std = _qwen_vae.encode(self.load("vae"), to_device(pixels[None], self.device))
        return {"mean": mean[0], "std": std[0]}

    def latents(self, encoded: list[dict[str, torch.Tensor]], generator: torch.Generator) -> torch.Tensor:
        """x0 of a batch, float32 [B, 16, H/8, W/8] on the device: a sample of each posterior, normalised by channel."""
        # Each epoch draws anew from the posterior, therefore mean and std are cached in place of a latent.
        stacked = (torch.stack([item[name] for item in encoded]) for name in ("mean", "std"))
        mean, std = (to_device(tensor, self.device) for tensor in stacked)
        x0 = mean + std * to_device(torch.randn(mean.shape, generator=generator), self.device)
        centre, width = _qwen_vae.channels(self.files.vae_config(), x0)
        return (x0 - centre) / width

    # ---- captions ------------------------------------------------------------------------------------------------

    def text_key(self) -> tuple:
        """What encoded captions depend on besides their text; part of the cache key."""
        parts = (self.fingerprint(part) for part in self.text_parts)
        # The precision is part of it: a caption encoded in bf16 has other numbers than in fp32.
        return ("anima", *parts, self.config.max_token_length, str(self.dtype), "text_conditioner" in self.trained)

    def token_count(self, caption: str) -> int:
        """Tokens of a caption, the greater number of both tokenizers; above `max_token_length` its end is cut."""
        return max(len(tokenizer(caption)["input_ids"]) for tokenizer in self.files.tokenizers)

    @torch.no_grad()
    def encode_text(self, caption: str) -> dict[str, torch.Tensor]:
        """One caption: `hidden` [T5 tokens, width], the output of the frozen text conditioner.

        If the conditioner is trained: its inputs, `states` [Qwen3 tokens, width] and `ids` int64 [T5 tokens].
        """
        ids, t5_ids = (
            tokenizer(caption, truncation=True, max_length=self.config.max_token_length)["input_ids"]
            for tokenizer in self.files.tokenizers
        )
        return _encoded(self, ids, t5_ids)

    @torch.no_grad()
    def encode_prompt(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        """A prompt as `encode_text` gives it; where the conditioner is trained, one with weights has `weights` [T5
        tokens] too.

        As in ComfyUI (comfy/text_encoders/anima.py, comfy/ldm/anima/model.py) parts of another weight are tokenised by
        themselves, Qwen3 knows no weights, and the conditioner's output is multiplied by those of T5's tokens. BREAK
        is a space.
        """
        if prompt.is_plain:
            return self.encode_text(prompt.text)
        qwen, t5 = self.files.tokenizers
        parts = [part for window in prompt.windows for part in (*window, (" ", 1.0))][:-1]
        limit = self.config.max_token_length
        ids = [token for text, _ in parts for token in qwen(text, add_special_tokens=False)["input_ids"]]
        tokens = [(token, w) for text, w in parts for token in t5(text, add_special_tokens=False)["input_ids"]]
        # T5's end token, which every text has
        ends = [(token, 1.0) for token in t5("")["input_ids"]]
        tokens = [*tokens[: limit - len(ends)], *ends]
        encoded = _encoded(self, ids[:limit], [token for token, _ in tokens])
        weights = torch.tensor([weight for _, weight in tokens])
        if "hidden" not in encoded:
            return {**encoded, "weights": weights}
        return {"hidden": encoded["hidden"] * weights.to(encoded["hidden"])[:, None]}

    def condition(self, texts: list[dict[str, torch.Tensor]], sizes: list[Size]) -> dict[str, torch.Tensor]:
        """Conditioning of a batch: `hidden` [B, tokens, width] in the transformer's precision.

        Captions are padded with zeros to the longest of the batch, and to 512 at least: the transformer has no text
        mask and was trained with that padding.
        """
        hidden = [text["hidden"] if "hidden" in text else conditioned(self, **text) for text in texts]
        tokens = max(self.files.text_conditioner_config()["min_sequence_length"], *map(len, hidden))
        padded = [F.pad(item, (0, 0, 0, tokens - len(item))) for item in hidden]
        return {"hidden": to_device(torch.stack(padded), self.device)}

    # ---- training ------------------------------------------------------------------------------------------------

    # noise and times for a batch
    sample_noise = staticmethod(flow.sample_noise)

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
        [B, 1, h, w], see `weightings.masked`.
        """
        return flow.loss(velocity_of(self, flow.add_noise(x0, eps, t), t, text), x0, eps, mask)

    # ---- images out --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self, text: dict[str, torch.Tensor], negative: dict[str, torch.Tensor], sampling: Any, seed: int
    ) -> Image.Image:
        """One image with the current weights; the conditionings are of a batch of 1, `sampling` is a SamplingConfig."""
        from diffusers.utils.torch_utils import randn_tensor

        scheduler = flow.scheduler(sampling.sampler, self.files.scheduler_config(), sampling.shift, sampling.steps)
        # One latent stands for 8 x 8 px.
        shape = (1, self.files.transformer_config()["in_channels"], sampling.height // 8, sampling.width // 8)
        latents = randn_tensor(shape, torch.Generator("cpu").manual_seed(seed), self.device, torch.float32)
        # The last sigma is 0, the finished image, where nothing is left to predict.
        for step, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
            t = sigma.to(self.device)[None]
            velocity = velocity_of(self, latents, t, text)  # [1, 16, h, w]
            # classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598); a scale of 1 leaves it out
            if sampling.guidance_scale != 1:
                unconditional = velocity_of(self, latents, t, negative)
                velocity = unconditional + sampling.guidance_scale * (velocity - unconditional)
            latents = scheduler.step(velocity, step, latents, return_dict=False)[0]
        return decode(self, latents)


def _encoded(model: Model, ids: list[int], t5_ids: list[int]) -> dict[str, torch.Tensor]:
    """What is cached of one caption, from its token ids for Qwen3 and for T5."""
    if ids:
        encoder = model.load("text_encoder")
        # a single caption has no padding, so no mask is needed: said for each type of layer, as transformers would read
        # the positions back from the GPU to find that out
        no_mask = dict.fromkeys(encoder.config.layer_types)
        tokens = to_device(torch.tensor([ids]), model.device)
        states = encoder(input_ids=tokens, attention_mask=no_mask).last_hidden_state[0]  # [tokens, width]
    else:
        # an empty caption: one state of zeros, as in diffusers
        width = model.files.text_conditioner_config()["source_dim"]
        states = torch.zeros(1, width, dtype=model.part_dtype("text_encoder"))
    inputs = {"states": states, "ids": torch.tensor(t5_ids)}
    return inputs if "text_conditioner" in model.trained else {"hidden": conditioned(model, **inputs)}


def conditioned(
    model: Model, states: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """The output of the text conditioner for one caption, without padding: [T5 tokens, width], times `weights`."""
    conditioner = model.load("text_conditioner")
    states, ids = to_device(states[None], model.device), to_device(ids[None], model.device)
    # One caption at a time has no padding, so both masks are all ones.
    mask = torch.ones(states.shape[:2], dtype=torch.int64, device=model.device)
    hidden = conditioner(states, ids, target_attention_mask=torch.ones_like(ids), source_attention_mask=mask)
    # diffusers' conditioner pads its output to 512 tokens; `condition` pads whole batches instead
    hidden = hidden[0, : ids.shape[1]].to(model.dtype)
    return hidden if weights is None else hidden * weights.to(hidden)[:, None]


def velocity_of(model: Model, xt: torch.Tensor, t: torch.Tensor, text: dict[str, torch.Tensor]) -> torch.Tensor:
    """The transformer's velocity, float32 like xt [B, 16, h, w]; t is [B]."""
    xt = xt.to(_cosmos.stream_dtype(model.dtype))
    return _cosmos.velocity(model.load("transformer"), xt, t, text["hidden"]).float()
