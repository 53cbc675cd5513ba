"""Model families: one file of this folder each. The folder is the registry; this says what a family answers."""

from __future__ import annotations

import importlib
import logging
import os
import pkgutil
from types import ModuleType

from lorakit.config import Config, ConfigError


def names() -> tuple[str, ...]:
    """All families: the files of this folder without a leading underscore."""
    return tuple(
        sorted(
            found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_") and not found.ispkg
        )
    )


def family(name: str) -> ModuleType:
    """The module of a family. It has `Config` (its settings) and `Model`, which answers:

    denoiser, text_encoders     names of the parts that adapters may go on, and `targets(part)` -> module names
    load(part), release(*parts) parts are read from disk when first asked for and can be let go
    fingerprint(part)           text that changes whenever what the part computes changes
    encode_image, latents       pixels -> what is cached, what is cached -> x0 of a step
    encode_text                 caption -> conditioning
    draw, loss                  noise and time of a step; loss per sample of a batch
    paint                       a picture with the current weights
    export_name(part, module)   the module's name in LoRA files
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
