"""Measures with the demo tagger how well the demo base follows prompts, and what a LoRA of the demo character adds.

`python benchmarks/demo_bars.py [--lora FILE.safetensors] [--count 200] [--sheet PNG]`: without a LoRA, the share of
prompted tags in the base's images for held-out prompts, and of the character's marks that appear for the trigger by
chance; with one (kohya's names), the share of marks, and of the other prompted tags that are kept.
"""

import argparse
import sys
from collections import defaultdict

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from lorakit import taggers
from lorakit.demo import BASE, TRIGGER, world

# Sampling steps, CFG, images per batch, score from which on a tag counts.
STEPS, GUIDANCE, BATCH, THRESHOLD = 20, 3.0, 20, 0.35
CLASSES = {
    "framing": world.FRAMINGS,
    "hair colour": [f"{c} hair" for c in world.HAIR_COLORS],
    "hair style": world.HAIR_STYLES,
    "eye colour": [f"{c} eyes" for c in world.EYE_COLORS],
    "expression": world.EXPRESSIONS,
    "accessory": world.ACCESSORIES,
    "pose": world.POSES,
    "background": world.BACKGROUNDS,
}


def generate(pipeline, prompts):
    """One image for each prompt; image i starts from the noise of seed i."""
    images = []
    for i in range(0, len(prompts), BATCH):
        part = prompts[i : i + BATCH]
        noise = [torch.Generator().manual_seed(i + j) for j in range(len(part))]
        images += pipeline(part, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=noise).images
        print(f"\r{len(images)}/{len(prompts)} images", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return images


def kind_of(tag):
    """The class of a tag: "hair colour", "pose", ...; clothes are the rest."""
    return next((kind for kind, tags in CLASSES.items() if tag in tags), "clothes")


def hit_rates(tags_of_images, scores):
    """Share (0..1) of the tags (a list for each image) that the tagger scores above THRESHOLD, in all and by class."""
    hits = defaultdict(list)
    for tags, score in zip(tags_of_images, scores, strict=True):
        for tag in tags:
            is_hit = score[tag.replace(" ", "_")] >= THRESHOLD
            hits["all"].append(is_hit)
            hits[kind_of(tag)].append(is_hit)
    return {kind: sum(h) / len(h) for kind, h in hits.items()}


def bar(name, value, limit, at_least=True):
    """Prints a measured share beside its bar; True when it is met."""
    met = value >= limit if at_least else value <= limit
    print(f"{name:54} {value:7.1%}   bar {'>=' if at_least else '<='} {limit:4.0%}   {'met' if met else 'MISSED'}")
    return met


def sheet(images, file, columns=10):
    """Saves `images` side by side."""
    rows = -(-len(images) // columns)
    whole = Image.new("RGB", (columns * 128, rows * 128), "white")
    for i, image in enumerate(images):
        whole.paste(image, (i % columns * 128, i // columns * 128))
    whole.save(file)


def main():
    """Prints the table; exit status 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lora", help="a .safetensors with kohya's names; without it the base alone is measured")
    parser.add_argument("--count", type=int, default=200, help="prompts")
    parser.add_argument("--sheet", help="PNG for the first images")
    options = parser.parse_args()
    pipeline = StableDiffusionPipeline.from_pretrained(BASE, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    if options.lora:
        pipeline.load_lora_weights(options.lora)
    tagger = taggers.load("wd14", {"source": "demo"})
    characters = [
        world.tags(f)
        for f in world.held_out_figures(options.count if options.lora else min(options.count, 60), kind=world.character)
    ]
    images = generate(pipeline, [", ".join(tags) for tags in characters])
    scores = tagger.run(images)
    marks = hit_rates([world.MARKS] * len(scores), scores)["all"]
    for mark in world.MARKS:
        print(f"  {mark:20} {hit_rates([[mark]] * len(scores), scores)['all']:7.1%}")
    if options.lora:
        kept = hit_rates([[tag for tag in tags if tag not in (TRIGGER, "1girl")] for tags in characters], scores)
        met = [
            bar("marks found with the LoRA, trigger prompts", marks, 0.85),
            bar("other prompted tags kept with the LoRA", kept["all"], 0.80),
        ]
    else:
        prompts = [world.tags(figure) for figure in world.held_out_figures(options.count)]
        images = generate(pipeline, [", ".join(tags) for tags in prompts])
        kept = hit_rates([tags[1:] for tags in prompts], tagger.run(images))
        met = [
            bar("marks found in the base's images, trigger prompts", marks, 0.20, at_least=False),
            bar("prompted tags found in the base's images", kept["all"], 0.90),
        ]
    for kind, share in kept.items():
        print(f"  {kind:20} {share:7.1%}")
    if options.sheet:
        sheet(images[:60], options.sheet)
    sys.exit(not all(met))


if __name__ == "__main__":
    main()
