"""Masks: which parts of an image are learned, by its transparency and by a file beside it that is no image."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePath

from PIL import Image, ImageChops

from lorakit.data.images import alpha_of, open_rgb

# OneTrainer writes 01-masklabel.png; others have _mask, or a folder with files named as the images.
CERTAIN = ("-masklabel", "_masklabel", ".masklabel")
LIKELY = ("_mask", "-mask", ".mask", "_masks", "-masks")
FOLDERS = ("mask", "masks", "mask_images", "masklabel", "masklabels")
# Conditioning images of OneTrainer, which are no images to learn either.
CONDITIONS = ("-condlabel",)


def is_mask_folder(path: PurePath) -> bool:
    """Whether a folder holds masks, by its name."""
    return path.name.lower() in FOLDERS


def is_mask_name(path: PurePath) -> bool:
    """Whether a file's name says that it is a mask: `01-masklabel.png`, `01_mask.png`."""
    return bool(_ending(path, (*CERTAIN, *LIKELY)))


def masks_among(images: Iterable[Path], captioned: set[Path]) -> tuple[dict[Path, Path], list[Path]]:
    """Image -> its mask, and the files that are neither: masks without an image, second masks, conditioning images.

    images      files that are images by their endings, some of which are masks
    captioned   paths without their endings that have a caption file: `cat_mask.png` with a caption is an image
    """
    files = list(images)
    by_stem = {path.with_suffix(""): path for path in reversed(files) if not _ending(path, (*CERTAIN, *CONDITIONS))}
    masks: dict[Path, Path] = {}
    left: list[Path] = []
    for path in files:
        stem = path.with_suffix("")
        if is_mask_folder(path.parent):
            image = by_stem.get(path.parent.parent / (own.name if (own := _without_ending(path)) else stem.name))
        elif _ending(path, CERTAIN):
            image = by_stem.get(_without_ending(path))
        elif _ending(path, LIKELY) and stem not in captioned and _without_ending(path) in by_stem:
            image = by_stem[_without_ending(path)]
        elif _ending(path, CONDITIONS):
            image = None
        else:
            continue
        if image is None or image in masks:
            left.append(path)
        else:
            masks[image] = path
    return masks, left


def _ending(path: PurePath, endings: tuple[str, ...]) -> str:
    """The ending of a mask's name that this one has, "" for none."""
    stem = path.stem.lower()
    return next((ending for ending in endings if stem.endswith(ending) and stem != ending), "")


def _without_ending(path: Path) -> Path | None:
    """The path of the image without its ending whose mask this is by its name; None for other names."""
    ending = _ending(path, (*CERTAIN, *LIKELY))
    return path.with_name(path.stem[: -len(ending)]) if ending else None


def learned_parts(image: Path, mask: Path | None) -> Image.Image | None:
    """How much each pixel of an image counts (mode L, 0 to 255): its opacity, times its mask's brightness; None when
    nothing is left out. Raises ImageError.
    """
    alpha = alpha_of(image)
    if mask is None:
        return alpha
    bright = open_rgb(mask, by_profile=False).convert("L")
    size = alpha.size if alpha else open_rgb(image).size
    bright = bright if bright.size == size else bright.resize(size, Image.Resampling.BILINEAR)
    return bright if alpha is None else ImageChops.multiply(bright, alpha)
