"""Taggers: images in, scores of tags or sentences out; a file of this folder each, and the folder is the registry."""

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
    """A tagger cannot be had or does not answer; the message says what to do."""


class Refused(TaggerError):
    """These images get no answer; others may."""


class Tagger(Protocol):
    """What `Tagger(config)` of each file answers.

    name         short, for telling later who wrote a tag: "wd-vit-tagger-v3"
    output       "tags" or "sentence"
    batch        images that it reads at once
    runs_on      where it computes, for people: "onnxruntime, CPU"
    prompt       what a writer of sentences is asked, "" for others
    categories   of those with tags: tag -> one of CATEGORIES, in the tagger's own order
    """

    name: str
    output: str
    batch: int
    runs_on: str
    prompt: str
    categories: dict[str, str]

    def read(self, images: list[Image.Image]) -> list[dict[str, float]] | list[str]:
        """For each image (8 bits a channel, any size): tag -> score (0 to 1) of every tag, as the tagger spells it
        (underscores), or a sentence. Raises TaggerError, Refused when others may be answered.
        """


def names() -> tuple[str, ...]:
    """All taggers: the files of this folder without a leading underscore."""
    return tuple(sorted(found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_")))


def config_class(name: str) -> type[Config]:
    """The settings of a tagger. Raises TaggerError for an unknown one."""
    return _module(name).Config


def about(name: str) -> str:
    """What a tagger does, in a sentence for people. Raises TaggerError as above."""
    return _module(name).__doc__.partition("\n")[0]


def output(name: str) -> str:
    """What a tagger gives, "tags" or "sentence". Raises TaggerError as above."""
    return _module(name).Tagger.output


def load(name: str, settings: dict[str, Any]) -> Tagger:
    """A tagger, ready to read images; its files are downloaded if need be.

    Raises ConfigError for wrong settings, TaggerError for what cannot be had, with what to do.
    """
    module = _module(name)
    return module.Tagger(from_dict(module.Config, settings))


def _module(name: str) -> ModuleType:
    if name not in names():
        raise TaggerError(f"There is no tagger {name!r}; there are {', '.join(names())}.")
    return importlib.import_module(f"{__name__}.{name}")
