"""Sentences from a vision-language model on this machine, any that transformers loads: Florence-2, Qwen-VL, BLIP."""

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

FILES = ("*.safetensors", "*.[jt]*")  # weights; *.json, *.txt and *.jinja
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json")  # without one transformers makes an empty tokenizer
# What models are asked that take no instructions in plain words: BLIP goes on with a beginning, Florence-2 has tasks.
USUAL = {"blip": "", "blip-2": "", "git": "", "florence2": "<MORE_DETAILED_CAPTION>", "paligemma": "caption en"}
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
    """Which model, and what it is asked."""

    source: str = setting(
        "florence-community/Florence-2-large",
        help="hub id (owner/name) or folder of a model in the format of transformers; Qwen-VL needs torchvision too",
        ui=Field(basic=True, suggestions=SOURCES),
    )
    prompt: str = setting(
        "",
        help="what is asked about each image; empty: what suits the model (a description; Florence-2: "
        "<MORE_DETAILED_CAPTION>; BLIP goes on with what is written here)",
        ui=Field(basic=True, suggestions=PROMPTS, lines=3),
    )
    max_new_tokens: int = setting(200, help="longer answers are cut; a word has one to two tokens", range=(1, 4096))
    longest_side: int = setting(1024, help="larger images are made smaller for the model", unit="px", range=(32, 8192))
    batch_size: int = setting(1, help="images read at once; more are faster on a GPU", range=(1, 64))
    precision: str = setting(
        "auto", help="number format of the model; auto: bf16 or fp16 on a GPU, fp32 on a CPU", choices=PRECISIONS
    )


class Tagger:
    """See `lorakit.taggers.Tagger`. The same image gets the same sentence: nothing is drawn by chance."""

    output = "sentence"
    categories: dict[str, str] = {}

    def __init__(self, config: Config):
        self.config = config
        self.name = Path(config.source).name or "vlm"
        self.batch = config.batch_size
        try:
            folder = fetch(config.source, patterns=FILES)
            self._precision = choose_precision(config.precision)
        except UserError as error:
            raise TaggerError(str(error)) from error
        self._processor, self._model = _loaded(folder, self._precision.dtype)
        self._model.to(self._precision.device).eval()
        self.runs_on = f"torch, {'GPU' if self._precision.device.type == 'cuda' else 'CPU'}, {self._precision.name}"
        self.prompt = config.prompt.strip() or USUAL.get(self._model.config.model_type, PROMPT)

    def read(self, images: list[Image.Image]) -> list[str]:
        """A sentence for each image, in one line; "" when the model says nothing. Raises TaggerError."""
        small = [reduced(image, self.config.longest_side) for image in images]
        parts = [small[i : i + self.batch] for i in range(0, len(small), self.batch)]
        return [sentence for part in parts for sentence in self._sentences(part)]

    def _sentences(self, images: list[Image.Image]) -> list[str]:
        import torch

        try:
            asked = self._asked(images).to(self._precision.device, self._precision.dtype)
            with torch.inference_mode():
                found = self._model.generate(
                    **asked, max_new_tokens=self.config.max_new_tokens, do_sample=False, num_beams=1
                )
        except torch.OutOfMemoryError as error:
            raise TaggerError(
                f"{self.name} ran out of memory with {len(images)} images: lower batch_size or longest_side, or take "
                "a smaller model."
            ) from error
        except (ValueError, TypeError, RuntimeError, IndexError) as error:  # e.g. a prompt that Florence-2 refuses
            raise TaggerError(
                f"{self.name} cannot answer {self.prompt!r} ({type(error).__name__}: {str(error)[:200]}); take a "
                "prompt that suits it, or leave that empty."
            ) from error
        texts = self._processor.batch_decode(_answers(asked, found), skip_special_tokens=True)
        return [in_one_line(text) for text in texts]

    def _asked(self, images: list[Image.Image]) -> Any:
        """Images and question as the model takes them: a chat if it has a form for one."""
        tokenizer = self._processor.tokenizer
        tokenizer.padding_side = "left"  # answers begin where questions end
        if getattr(self._processor, "chat_template", None) or getattr(tokenizer, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": self.prompt}]
            chat = [{"role": "user", "content": content}]
            text = self._processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            images = [[image] for image in images]
        else:
            text = self.prompt
        words = {"text": [text] * len(images), "padding": True} if text else {}
        return self._processor(images=images, return_tensors="pt", **words)


def _answers(asked: Any, found: Any) -> Any:
    """Tokens (n, answer) of what a model gave, without the question where that stands before it."""
    question = asked.get("input_ids")
    if question is None:
        return found
    length = question.shape[1]
    is_repeated = found.shape[1] >= length and bool((found[:, :length] == question).all())
    return found[:, length:] if is_repeated else found


def _loaded(folder: Path, dtype: Any) -> tuple[Any, Any]:
    """Processor and model of a folder; code that lies in it is never run. Raises TaggerError."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # what is amiss is told by the errors below
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText, AutoProcessor

    here = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor = AutoProcessor.from_pretrained(folder, **here)
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, use_safetensors=True, **here)
    except ImportError as error:
        missing = "torchvision" if "torchvision" in str(error).lower() else "a package"
        raise TaggerError(
            f"{folder}: this model needs {missing}, which is not installed (`pip install torchvision` in the version "
            f"that fits your torch): {in_one_line(str(error))[:200]}"
        ) from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise TaggerError(
            f"{folder} is torn or no vision-language model that transformers loads: {in_one_line(str(error))[:300]} "
            "What a model brings as code is not run; take one in the format of transformers."
        ) from error
    if not hasattr(processor, "tokenizer") or not any((folder / name).is_file() for name in VOCABULARIES):
        raise TaggerError(f"{folder} has no processor for images and text (processor_config.json, tokenizer.json).")
    return processor, model
