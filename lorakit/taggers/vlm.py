"""Sentences from a vision-language model on this machine: Florence-2, Qwen-VL, BLIP or others of transformers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lorakit.config import Config, Field, setting
from lorakit.errors import UserError
from lorakit.hub import fetch
from lorakit.machine.device import PRECISIONS, choose_precision
from lorakit.taggers import TaggerError
from lorakit.taggers._sentences import PROMPT, in_one_line, reduced

# Weights; *.json, *.txt and *.jinja.
FILES = ("*.safetensors", "*.[jt]*")
# Files with the words of a tokenizer; without one, transformers loads an empty tokenizer and does not complain.
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json")
# model_type -> default prompt, of models that take no instructions: BLIP completes a text, Florence-2 has task tokens.
DEFAULT_PROMPTS = {
    "blip": "",
    "blip-2": "",
    "git": "",
    "florence2": "<MORE_DETAILED_CAPTION>",
    "paligemma": "caption en",
}
SOURCES = (
    "Qwen/Qwen2.5-VL-3B-Instruct",
    "Qwen/Qwen2.5-VL-7B-Instruct",
    "Qwen/Qwen3-VL-4B-Instruct",
    "florence-community/Florence-2-large",
    "Salesforce/blip-image-captioning-large",
)
PROMPTS = (PROMPT, "an image of", "<MORE_DETAILED_CAPTION>", "<DETAILED_CAPTION>")


@dataclass(frozen=True, kw_only=True)
class Config(Config):
    """Which model, and the question to it."""

    source: str = setting(
        "florence-community/Florence-2-large",
        help="Hugging Face id (owner/name) or folder of a model for transformers; Qwen-VL also needs torchvision",
        ui=Field(basic=True, suggestions=SOURCES),
    )
    prompt: str = setting(
        "",
        help="question about each image; empty = the model's default (a description; Florence-2: "
        "<MORE_DETAILED_CAPTION>; BLIP continues the text written here)",
        ui=Field(basic=True, suggestions=PROMPTS, lines=3),
    )
    max_new_tokens: int = setting(200, help="longer answers are cut; a word takes one to two tokens", range=(1, 4096))
    longest_side: int = setting(1024, help="larger images are scaled down for the model", unit="px", range=(32, 8192))
    batch_size: int = setting(1, help="images at once; more are faster on a GPU", range=(1, 64))
    precision: str = setting(
        "auto", help="number format of the model; automatic = bf16 or fp16 on a GPU, fp32 on a CPU", choices=PRECISIONS
    )


class Tagger:
    """See `lorakit.taggers.Tagger`. Decoding is greedy: the same image always gets the same sentence."""

    output = "sentence"
    categories: dict[str, str] = {}

    def __init__(self, config: Config):
        self.config = config
        self.name = Path(config.source).name or "vlm"
        self.batch_size = config.batch_size
        try:
            folder = fetch(config.source, patterns=FILES)
            self._precision = choose_precision(config.precision)
        except UserError as error:
            raise TaggerError(str(error)) from error
        self._processor, self._model = _load(folder, self._precision.dtype)
        self._model.to(self._precision.device).eval()
        self.runs_on = f"torch, {'GPU' if self._precision.device.type == 'cuda' else 'CPU'}, {self._precision.name}"
        self.prompt = config.prompt.strip() or DEFAULT_PROMPTS.get(self._model.config.model_type, PROMPT)

    def run(self, images: list[Image.Image]) -> list[str]:
        """A sentence for each image, in one line; "" when the model gives none. Raises TaggerError."""
        small = [reduced(image, self.config.longest_side) for image in images]
        batches = [small[i : i + self.batch_size] for i in range(0, len(small), self.batch_size)]
        return [sentence for batch in batches for sentence in self._sentences(batch)]

    def _sentences(self, images: list[Image.Image]) -> list[str]:
        import torch

        try:
            inputs = self._inputs(images).to(self._precision.device, self._precision.dtype)
            with torch.inference_mode():
                tokens = self._model.generate(
                    **inputs, max_new_tokens=self.config.max_new_tokens, do_sample=False, num_beams=1
                )
        except torch.OutOfMemoryError as error:
            raise TaggerError(
                f"{self.name} ran out of memory with {len(images)} images: lower batch_size or longest_side, or "
                "select a smaller model."
            ) from error
        # For example a prompt that Florence-2 refuses.
        except (ValueError, TypeError, RuntimeError, IndexError) as error:
            raise TaggerError(
                f"{self.name} cannot answer {self.prompt!r} ({type(error).__name__}: {str(error)[:200]}); write a "
                "prompt for this model, or leave it empty."
            ) from error
        texts = self._processor.batch_decode(_answers(inputs, tokens), skip_special_tokens=True)
        return [in_one_line(text) for text in texts]

    def _inputs(self, images: list[Image.Image]) -> Any:
        """Images and prompt as the model takes them: as a chat, if it has a chat template."""
        tokenizer = self._processor.tokenizer
        # the answer continues the prompt, so padding must not stand between them
        tokenizer.padding_side = "left"
        if getattr(self._processor, "chat_template", None) or getattr(tokenizer, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": self.prompt}]
            chat = [{"role": "user", "content": content}]
            text = self._processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            # a list for each chat, as a chat may hold several images
            images = [[image] for image in images]
        else:
            text = self.prompt
        words = {"text": [text] * len(images), "padding": True} if text else {}
        return self._processor(images=images, return_tensors="pt", **words)


def _answers(inputs: Any, tokens: Any) -> Any:
    """The generated tokens (n, length) without the prompt, which some models repeat before their answer."""
    prompt = inputs.get("input_ids")
    if prompt is None:
        return tokens
    length = prompt.shape[1]
    is_repeated = tokens.shape[1] >= length and bool((tokens[:, :length] == prompt).all())
    return tokens[:, length:] if is_repeated else tokens


def _load(folder: Path, dtype: Any) -> tuple[Any, Any]:
    """Processor and model of a folder; code in the folder is never run. Raises TaggerError."""
    # Problems are reported by the errors below.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText, AutoProcessor

    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor = AutoProcessor.from_pretrained(folder, **options)
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, use_safetensors=True, **options)
    except ImportError as error:
        missing = "torchvision" if "torchvision" in str(error).lower() else "a package"
        raise TaggerError(
            f"{folder}: this model needs {missing}, which is not installed (`pip install torchvision` in the version "
            f"that fits your torch): {in_one_line(str(error))[:200]}"
        ) from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise TaggerError(
            f"{folder} is damaged, or no vision-language model that transformers loads: "
            f"{in_one_line(str(error))[:300]} Code that comes with a model is not run; select one for transformers."
        ) from error
    # without these files transformers returns a tokenizer or an image processor alone
    if not hasattr(processor, "tokenizer") or not any((folder / name).is_file() for name in VOCABULARIES):
        raise TaggerError(f"{folder} has no processor for images and text (processor_config.json, tokenizer.json).")
    return processor, model
