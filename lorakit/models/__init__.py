"""Model families, a file of this folder each; the folder is the registry, and here is their contract."""

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
    """How a training image was resized and cropped, in px; SDXL is conditioned on it (arXiv:2307.01952, section 2.2).

    original    (width, height) of the file
    crop        (left, top) of the crop, in the resized image
    target      (width, height) that is trained on
    """

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]

    @classmethod
    def whole(cls, width: int, height: int) -> Size:
        """An image that is neither resized nor cropped."""
        return cls((width, height), (0, 0), (width, height))


def names() -> tuple[str, ...]:
    """All families: the files of this folder without a leading underscore."""
    return tuple(
        sorted(
            module.name
            for module in pkgutil.iter_modules(__path__)
            if not module.name.startswith("_") and not module.ispkg
        )
    )


def family(name: str) -> ModuleType:
    """The module of a family, with `Config` and `Model`.

    `Config` holds its settings. Class variables of it are readable without loading weights:

    defaults                    part of a run -> settings that this family changes from the general defaults
    gpu_presets                 memory of a GPU ("8 GB") -> settings by part of a run, over the defaults
    unsupported                 setting -> why it cannot be used: own names, and `part.name` of other parts
    rates                       part that can have an adapter -> the setting of `optimizer` with its learning rate
    samplers, key_layouts       samplers, and key layouts of LoRA files, the usual one first
    resolution_multiple         px that the sides of images are multiples of

    `excess(config)` returns a function caption -> its end that is cut ("" when all fits); it loads only the tokenizer.
    How files of the family look is in `files/<name>_names.py`, see `files.marks.Marks`.

    `Model(config, device, dtype, trained)` with `trained`, the parts whose adapters learn, has:

    denoiser, text_parts        names of its parts besides "vae"; `parts` are all, `targets(part)` -> module names
    load(part), release(*parts) a part is read from disk when first used, and can be freed
    fingerprint(part)           text that changes whenever the output of the part would change
    encode_image, latents       pixels -> what is cached (each [channels, h, w]); what is cached -> x0 of a step
    token_count(caption)        how much of `max_token_length` a caption takes
    encode_text, condition      caption -> what is cached (up to the first trained part); a batch of these and sizes ->
                                conditioning, through trained text parts
    encode_prompt               a `diffusion.prompts.Prompt` with its weights -> what is cached, as of a caption
    sample_noise                noise and timesteps of a batch
    loss                        loss of each sample of a batch, each latent weighted by the mask
    prediction_type             what the denoiser predicts: epsilon, v_prediction or flow
    measured_prediction_type    the same by the denoiser's own output, "" where that shows none
    sample                      an image with the current weights
    pixels                      latents -> the pixels of an image, whole or in tiles, which take less memory
    bundled                     the files of the family's usual base without weights
    names(part, module)         key layout -> the module's name in LoRA files of that layout
    """
    if name not in names():
        raise ConfigError(f"model.family is {name!r}; known families are {', '.join(names())}.")
    # warnings of these, about packages that are not needed here, would only confuse
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    return importlib.import_module(f"{__name__}.{name}")


def config_class(name: str) -> type[Config]:
    """The Config of a family, for reading a run's `model` settings."""
    return family(name).Config
