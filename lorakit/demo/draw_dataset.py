"""Draws the demo dataset: 30 images of the demo character with captions, in kohya's `<repeats>_<trigger>` layout."""

import random

from lorakit.demo import DATASET, TRIGGER, world
from lorakit.demo.drawing import draw

COUNT, REPEATS, SEED = 30, 10, 11


def figures():
    """The dataset's figures: framings and expressions evenly, the rest varied, none of a held-out combination."""
    rng = random.Random(SEED)
    chosen = []
    while len(chosen) < COUNT:
        figure = world.character(rng)
        expected = (
            world.FRAMINGS[len(chosen) % 3],
            world.EXPRESSIONS[len(chosen) % 5],
            world.BACKGROUNDS[len(chosen) % 6 - len(chosen) // 6],
        )
        if (figure.framing, figure.expression, figure.background) == expected and not world.held_out(figure):
            chosen.append(figure)
    return chosen


def train(work):
    """Writes the images and captions (half a second); needs nothing of `work`."""
    folder = DATASET / f"{REPEATS}_{TRIGGER}"
    folder.mkdir(parents=True, exist_ok=True)
    for i, figure in enumerate(figures(), 1):
        draw(figure).save(folder / f"{i:02}.png", optimize=True)
        (folder / f"{i:02}.txt").write_text(", ".join(world.tags(figure)) + "\n", encoding="utf-8")
