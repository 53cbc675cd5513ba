"""Taggers: images in, scores of tags or sentences out. Every file of this folder without an underscore is a tagger."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Any, Protocol

from PIL import Image

from lorakit.config import Config, from_dict
from lorakit.errors import UserError

CATEGORIES = ("general", "character", "copyright", "artist", "rating", "meta", "quality")


class TaggerError(UserError):
    """A tagger cannot be loaded or run; the message says why and what to do."""


class ImagesRefused(TaggerError):
    """The tagger gives no result for these images; it may for others."""


class Tagger(Protocol):
    """The contract: `Tagger(config)` of each file has these attributes and methods.

    name         short, stored as the author of the tags that it writes: "wd-vit-tagger-v3"
    output       "tags" or "sentence"
    batch_size   images that it takes at once
    runs_on      library and device, to be shown: "onnxruntime, CPU"
    prompt       the question to a captioner, "" for taggers that give tags
    categories   tag -> one of CATEGORIES, in the tagger's order; empty for captioners
    """

    name: str
    output: str
    batch_size: int
    runs_on: str
    prompt: str
    categories: dict[str, str]

    def run(self, images: list[Image.Image]) -> list[dict[str, float]] | list[str]:
        """The result for each image (8 bits a channel, any size).

        Either tag -> score (0 to 1) of all tags, in the tagger's spelling (underscores), or a sentence.
        Raises TaggerError; ImagesRefused if it may work for other images.
        """


def names() -> tuple[str, ...]:
    """The names of all taggers: the files of this folder without a leading underscore."""
    # Listed without importing them: the libraries of a tagger may be missing.
    return tuple(sorted(file.name for file in pkgutil.iter_modules(__path__) if not file.name.startswith("_")))


def config_class(name: str) -> type[Config]:
    """The class of a tagger's settings. Raises TaggerError for an unknown tagger."""
    return _module(name).Config


def about(name: str) -> str:
    """What a tagger does, in one sentence to be shown. Raises TaggerError for an unknown tagger."""
    return _module(name).__doc__.partition("\n")[0]


def output(name: str) -> str:
    """The output of a tagger, "tags" or "sentence". Raises TaggerError for an unknown tagger."""
    return _module(name).Tagger.output


def load(name: str, settings: dict[str, Any]) -> Tagger:
    """A tagger that is ready to run; its files are downloaded if they are missing.

    Raises ConfigError for wrong settings, TaggerError when it cannot be loaded.
    """
    module = _module(name)
    return module.Tagger(from_dict(module.Config, settings))


def _module(name: str) -> ModuleType:
    if name not in names():
        raise TaggerError(f"There is no tagger {name!r}; there are {', '.join(names())}.")
    return importlib.import_module(f"{__name__}.{name}")
