"""From samples to what a step needs: encoded images and captions, through the caches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.data import DataConfig, buckets, captions
from lorakit.data.cache import Cache, Tensors
from lorakit.data.images import open_rgb, to_tensor
from lorakit.data.masks import learned_parts
from lorakit.data.scan import DataError, Sample
from lorakit.diffusion.prompts import Prompt, literal
from lorakit.events import Progress
from lorakit.models import Size
from lorakit.randomness import rng

if TYPE_CHECKING:
    import torch
    from PIL import Image


# Key of the loss mask beside a family's tensors of an image that is partly transparent.
MASK = "mask"


@dataclass(frozen=True)
class Batch:
    """One micro-batch: encoded images, where each comes from, captions, and how much each sample counts.

    masks    float32 [B, 1, h, w], 0..1: how much each latent of a sample counts; None when all count alike
    """

    images: list[Tensors]
    sizes: list[Size]
    captions: list[str]
    weights: list[float]
    masks: torch.Tensor | None


class Feed:
    """The samples of a run as a model sees them.

    Each image is encoded alone, whether it is cached or not, so that caches change no bit of a step.
    """

    def __init__(
        self,
        samples: tuple[Sample, ...],
        config: DataConfig,
        model: Any,
        cache: Path,
        *,
        seed: int,
        prior_loss_weight: float,
    ):
        self.samples, self.config, self.model, self.seed = samples, config, model, seed
        self.prior_loss_weight = prior_loss_weight
        self.latents, self.text = Cache(cache / "latents"), Cache(cache / "text")

    def fill_caches(self, prompts: Iterable[Prompt]) -> Iterator[Progress]:
        """Encode what the caches lack: images (flipped too), every caption that training can use, `prompts`."""
        yield from self._fill("images", self.cached_images(), self.latents, lambda item: self._encode_image(*item))
        yield from self._fill("captions", self.cached_texts(prompts), self.text, self.model.encode_prompt)

    def cached_images(self) -> dict[Path, tuple[Sample, bool]]:
        """Cache file -> (sample, flipped) of every image to be cached; empty without `cache_latents`."""
        # Multiplying by False gives an empty list.
        items = [(sample, flip) for sample in self.samples for flip in self._flips()] * self.config.cache_latents
        return {self._image_path(*item): item for item in items}

    def cached_texts(self, prompts: Iterable[Prompt]) -> dict[Path, Prompt]:
        """Cache file -> what it encodes, of every caption and of `prompts`; empty without `cache_text`."""
        if not self.config.cache_text:
            return {}
        texts = [
            text
            for sample in self.samples
            for text in captions.possible_captions(sample.caption, self.config, self.seed)
        ]
        return {self._text_path(prompt): prompt for prompt in [*map(literal, texts), *prompts]}

    def _fill(self, what: str, items: dict[Path, Any], cache: Cache, encode) -> Iterator[Progress]:
        missing = cache.missing(items)
        for done, path in enumerate(missing, 1):
            cache.write(path, encode(items[path]))
            # At most 20 progress lines in the log.
            if done * 20 // len(missing) > (done - 1) * 20 // len(missing):
                yield Progress(what=what, done=done, total=len(missing))

    def batch(self, indexes: list[int], step: int, first_place: int) -> Batch:
        """The micro-batch of these samples; `first_place` is the number of samples of the step before it."""
        # Place in the step, not in the micro-batch: draws differ between the micro-batches of a step.
        chosen = [(self.samples[index], first_place + place) for place, index in enumerate(indexes)]
        flips = [self._drawn_flip(step, place) for _, place in chosen]
        images = [self.image(sample, flip) for (sample, _), flip in zip(chosen, flips, strict=True)]
        return Batch(
            images,
            [self._size(sample, flip) for (sample, _), flip in zip(chosen, flips, strict=True)],
            [
                captions.training_caption(sample.caption, self.config, self.seed, step, place)
                for sample, place in chosen
            ],
            [self.prior_loss_weight if sample.is_reg else 1.0 for sample, _ in chosen],
            _masks(images),
        )

    def check_images(self, indexes: list[int]) -> None:
        """Raise DataError when the VAE makes one of these samples not finite.

        What is cached was checked before it was stored. Other images are checked only after their loss was not finite,
        as the host has to wait for the GPU to know.
        """
        if not self.config.cache_latents:
            for sample, flip in product([self.samples[index] for index in indexes], self._flips()):
                self._encode_image(sample, flip)

    def encode_texts(self, texts: list[str]) -> list[Tensors]:
        """Text features of each caption (token ids where the text encoder is trained)."""
        return [self.encode_prompt(literal(text)) for text in texts]

    def encode_prompt(self, prompt: Prompt) -> Tensors:
        """Text features of a prompt, as of a caption."""
        if not self.config.cache_text:
            return self.model.encode_prompt(prompt)
        return self.text.get(self._text_path(prompt), lambda: self.model.encode_prompt(prompt))

    # ---- images ------------------------------------------------------------------------------------------------

    def _flips(self) -> tuple[bool, ...]:
        return (False, True) if self.config.flip_aug else (False,)

    def _drawn_flip(self, step: int, place: int) -> bool:
        return self.config.flip_aug and rng(self.seed, step, place, "flip").random() < 0.5

    def _size(self, sample: Sample, flip: bool) -> Size:
        how = buckets.fit(sample.width, sample.height, self.config)
        # flipping comes after cropping: the plain image's right margin is the flipped one's left margin
        left = how.resized[0] - how.size[0] - how.crop[0] if flip else how.crop[0]
        return Size((sample.width, sample.height), (left, how.crop[1]), how.size)

    def image(self, sample: Sample, flip: bool) -> Tensors:
        """One image as encoded by the model; on the CPU from the cache if latents are cached, else on the device."""
        if self.config.cache_latents:
            return self.latents.get(self._image_path(sample, flip), lambda: self._encode_image(sample, flip))
        return self._encode_image(sample, flip, check=False)

    def _image_path(self, sample: Sample, flip: bool) -> Path:
        how = buckets.fit(sample.width, sample.height, self.config)
        # white without masks adds nothing to the key: caches of before there were backgrounds stay valid
        of_alpha = [self.config.background] * (self.config.background != "white") + [MASK] * self.config.alpha_mask
        # other readings of the same bytes
        of_alpha += [sample.mask_digest] * bool(sample.mask) + ["sRGB"] * bool(sample.profile)
        made_from = (sample.digest, how.size, how.resized, how.crop, flip, *of_alpha)
        return self.latents.path(*self.model.image_key(), *made_from)

    def _encode_image(self, sample: Sample, flip: bool, check: bool = True) -> Tensors:
        how = buckets.fit(sample.width, sample.height, self.config)
        rgb = open_rgb(sample.path, self.config.background, by_profile=self.config.reading > 1)
        image = buckets.resize_and_crop(rgb, how, flip=flip)
        encoded: Tensors = self.model.encode_image(to_tensor(image))
        # SDXL's original VAE overflows in fp16. To look at the numbers is to wait for the GPU.
        if check and not all(tensor.isfinite().all() for tensor in encoded.values()):
            raise DataError(
                f"{sample.name} becomes not-a-number in the VAE, which is broken or overflows in its precision."
            )
        alpha = learned_parts(sample.path, sample.mask) if self.config.alpha_mask else None
        if alpha is None:
            return encoded
        # (h, w) of the latents: the mask has one value per latent.
        grid = next(iter(encoded.values())).shape[-2:]
        return {**encoded, MASK: _mask(buckets.resize_and_crop(alpha, how, flip=flip), grid, sample)}

    # ---- captions ------------------------------------------------------------------------------------------------

    def _text_path(self, prompt: Prompt) -> Path:
        return self.text.path(*self.model.text_key(), *prompt.key)


def _mask(alpha: Image.Image, grid: tuple[int, int], sample: Sample) -> torch.Tensor:
    """float32 [1, h, w] in 0..1, a training image's opacity (mode L) as the mean over each latent's pixels, which is
    how kohya's scripts resize their alpha_mask. Raises DataError when nothing would be learned from the image.
    """
    import numpy as np
    import torch

    # [1, 1, H, W], as interpolate expects
    opacity = torch.from_numpy(np.asarray(alpha, dtype=np.float32) / 255)[None, None]
    mask = torch.nn.functional.interpolate(opacity, size=grid, mode="area")[0]
    if not mask.any():
        raise DataError(
            f"{sample.name} is transparent wherever it is trained on, or its mask is black there, so that with "
            "data.alpha_mask nothing would be learned from it: take it out of the dataset, or turn alpha_mask off."
        )
    return mask


def _masks(images: list[Tensors]) -> torch.Tensor | None:
    """The masks of a batch, whose images have one size; ones for an image without."""
    import torch

    like = next((image[MASK] for image in images if MASK in image), None)
    if like is None:
        return None
    return torch.stack([image[MASK] if MASK in image else torch.ones_like(like) for image in images])
