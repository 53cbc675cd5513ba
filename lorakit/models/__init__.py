"""Model families: one file of this folder each. The folder is the registry; this says what a family answers."""

from __future__ import annotations

import importlib
import logging
import os
import pkgutil
from dataclasses import dataclass
from types import ModuleType

from lorakit.config import Config, ConfigError


@dataclass(frozen=True)
class Size:
    """Where a training image comes from, in px: `original` (width, height), `crop` (left, top) of the resized
    image, `target` (width, height). SDXL is told so.
    """

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]

    @classmethod
    def whole(cls, width: int, height: int) -> Size:
        """An image as it is."""
        return cls((width, height), (0, 0), (width, height))


def names() -> tuple[str, ...]:
    """All families: the files of this folder without a leading underscore."""
    return tuple(
        sorted(
            found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_") and not found.ispkg
        )
    )


def family(name: str) -> ModuleType:
    """The module of a family, with `Config` and `Model`.

    `Config` holds its settings. What a run is checked by before anything is loaded are class variables of it:

    defaults                    part of a run -> settings that this family starts from
    gpu_presets                       how much memory a GPU has -> settings by part that suit it, over the defaults
    unsupported                 setting -> why it cannot be used: own names, and `part.name` of other parts
    rates                       part that adapters may go on -> the setting of `optimizer` with its learning rate
    samplers, forms             which of the samplers and forms of LoRA files there are, the usual one first
    resolution_multiple         px that sides of images are multiples of

    `excess(config)` gives a function caption -> its end that is cut ("" when all fits); it loads the tokenizer alone.

    `Model(config, device, dtype, trained)` answers; `trained` are the parts whose adapters learn:

    denoiser, text_parts        names of its parts beside "vae"; `parts` are all, `targets(part)` -> module names
    load(part), release(*parts) parts are read from disk when first asked for and can be let go
    fingerprint(part)           text that changes whenever what the part computes changes
    encode_image, latents       pixels -> what is cached (each [channels, h, w]), what is cached -> x0 of a step
    token_count(caption)        how much of `max_token_length` a caption takes
    encode_text, condition      caption -> what is cached (as far as frozen parts bring it), and a batch of these with
                                sizes -> conditioning, through trained text parts
    draw, loss                  noise and time of a step; loss per sample of a batch, each latent as its mask says
    paint                       an image with the current weights
    names(part, module)         form -> the module's name in LoRA files of that form
    """
    if name not in names():
        raise ConfigError(f"model.family is {name!r}; known families are {', '.join(names())}.")
    # what these say while they load, of packages that are not needed here, is not for users
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    return importlib.import_module(f"{__name__}.{name}")


def config_class(name: str) -> type[Config]:
    """The Config of a family, for reading a run's `model` settings."""
    return family(name).Config
