"""Measures how well the demo tagger's tags agree with the demo dataset, and how many images a second taggers read.

`python benchmarks/tagging.py [--source OWNER/NAME] [--count 200]`: the pace is that of the embedded tagger, and of
`--source`, a WD tagger's Hugging Face id or folder, if one is given. Agreement is measured with what is drawn in the
images, and with their captions, which leave out what always belongs to the character (ears, scarf, eye colour): a
tagger that sees everything finds all tags of the captions and more.
"""

import argparse
import sys
import time

import numpy as np
from PIL import Image

from lorakit import taggers
from lorakit.demo import DATASET, world
from lorakit.demo.draw_dataset import figures
from lorakit.taggers.wd14 import squared

THRESHOLDS = (0.2, 0.35, 0.5)
SIZES = {"128 px, as the demo's": (128, 128), "1024 px": (1024, 1024), "12 megapixels": (4000, 3000)}


def truths():
    """Name -> the true tags of each image, as taggers spell them, by image in the order of their names."""
    captions = [file.read_text(encoding="utf-8").strip().split(", ") for file in sorted(DATASET.rglob("*.txt"))]
    drawn = [world.visible(figure) for figure in figures()]
    truth = {"what is drawn": drawn, "the captions": captions}
    return {name: [{tag.replace(" ", "_") for tag in tags} for tags in lists] for name, lists in truth.items()}


def agreement(tagger, truth, threshold):
    """(precision, recall, F1) over all tags of all images; ratings do not count."""
    files = sorted(DATASET.rglob("*.png"))
    right = wrong = missed = 0
    for tags, scores in zip(truth, tagger.run([Image.open(file) for file in files]), strict=True):
        predicted = {t for t, score in scores.items() if score >= threshold and tagger.categories[t] != "rating"}
        right += len(tags & predicted)
        wrong += len(predicted - tags)
        missed += len(tags - predicted)
    return right / (right + wrong), right / (right + missed), 2 * right / (2 * right + wrong + missed)


def pace(tagger, size, count):
    """Images a second, and how many the preparation alone does; images of noise that are decoded already."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    images = [Image.fromarray(noise)] * count
    tagger.run(images[: tagger.batch_size])
    begun = time.perf_counter()
    for i in range(0, count, tagger.batch_size):
        tagger.run(images[i : i + tagger.batch_size])
    read = time.perf_counter() - begun
    begun = time.perf_counter()
    for image in images[: max(1, count // 10)]:
        squared(image, 448)
    return count / read, max(1, count // 10) / (time.perf_counter() - begun)


def main():
    """Prints both tables; exit status 1 when the demo tagger's F1 with what is drawn is below 0.95 at 0.35."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default="", help="another WD tagger: Hugging Face id or folder")
    parser.add_argument("--count", type=int, default=200, help="images for the pace")
    options = parser.parse_args()
    demo = taggers.load("wd14", {"source": "demo"})
    print(f"{'agreement with':16} {'threshold':>10} {'precision':>10} {'recall':>10} {'F1':>10}")
    for name, truth in truths().items():
        for threshold in THRESHOLDS:
            shares = " ".join(f"{share:10.3f}" for share in agreement(demo, truth, threshold))
            print(f"{name:16} {threshold:10} {shares}")
    for source in filter(None, ("demo", options.source)):
        tagger = taggers.load("wd14", {"source": source})
        for name, size in SIZES.items():
            read, prepared = pace(tagger, size, options.count if size[0] < 4000 else max(1, options.count // 10))
            speeds = f"{read:8.1f} images a second; made square at 448 px alone: {prepared:8.1f}"
            print(f"{tagger.name}, {tagger.runs_on}, {name:22} {speeds}")
    sys.exit(agreement(demo, truths()["what is drawn"], 0.35)[2] < 0.95)


if __name__ == "__main__":
    main()
