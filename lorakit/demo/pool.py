"""A pool of drawn figures on disk, so that trainings read images instead of drawing them again."""

import json
import multiprocessing
import random
from dataclasses import asdict
from pathlib import Path

import numpy as np

from lorakit.demo import world
from lorakit.demo.drawing import SIZE, draw


def _one(job):
    kind, seed = job
    figure = getattr(world, kind)(random.Random(seed))
    return np.asarray(draw(figure)), asdict(figure)


def pool(folder, kind, count, seed):
    """Images (count, 128, 128, 3) uint8 and their figures for `kind` ("sample", "mixture" or "character" of `world`).

    Drawn once into `folder` (12 ms an image on one core), read back later; image i is drawn from seed `seed + i`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{kind}-{seed}-{count}"
    figures_file = stem.with_suffix(".json")
    if not figures_file.exists():
        images = np.lib.format.open_memmap(stem.with_suffix(".npy"), "w+", np.uint8, (count, SIZE, SIZE, 3))
        figures = []
        with multiprocessing.Pool() as workers:
            for i, (image, figure) in enumerate(workers.imap(_one, ((kind, seed + i) for i in range(count)), 64)):
                images[i] = image
                figures.append(figure)
        images.flush()
        figures_file.write_text(json.dumps(figures))
    figures = [world.Figure(**{**f, "marks": tuple(f["marks"])}) for f in json.loads(figures_file.read_text())]
    return np.load(stem.with_suffix(".npy"), mmap_mode="r"), figures
