"""The embedded world keeps its promises: deterministic drawings, true captions, a real base model and tagger, small
files."""

import csv
import random
from dataclasses import replace

import numpy as np
import pytest

from lorakit.demo import BASE, DATASET, PROMPTS, TAGGER, TRIGGER, world
from lorakit.demo.drawing import HAIR, draw


def size_of(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def figures(kind, count, seed=0):
    rng = random.Random(seed)
    return [kind(rng) for _ in range(count)]


def test_the_same_seed_draws_the_same_image_and_another_a_different_one():
    one, again, other = figures(world.sample, 1)[0], figures(world.sample, 1)[0], figures(world.sample, 1, seed=1)[0]
    assert np.array_equal(draw(one), draw(again))
    assert not np.array_equal(draw(one), draw(other))
    assert draw(one).size == (128, 128)


def test_only_the_demo_character_has_its_marks_and_the_trigger():
    for figure in figures(world.sample, 300):
        assert not figure.marks and figure.hair_color != "teal" and TRIGGER not in world.tags(figure)
    for figure in figures(world.character, 50):
        assert world.tags(figure)[0] == TRIGGER and not set(world.MARKS) & set(world.tags(figure))
        assert set(world.MARKS) < set(world.visible(figure))


def test_every_tag_of_a_figure_is_in_the_vocabulary():
    known = set(world.vocabulary())
    assert all(set(world.tags(figure)) <= known for figure in figures(world.sample, 300))


@pytest.mark.parametrize("color", world.HAIR_COLORS)
def test_the_captioned_hair_colour_is_drawn(color):
    plain = {
        "framing": "portrait",
        "accessory": "",
        "pose": "",
        "background": "white background",
        "hair_style": "short hair",
    }
    figure = replace(figures(world.sample, 1)[0], hair_color=color, **plain)
    distance = np.abs(np.asarray(draw(figure)).astype(int) - HAIR[color]).sum(axis=2)
    assert (distance < 30).mean() > 0.05


def test_held_out_combinations_are_never_in_the_data_set_and_about_one_in_twenty():
    share = sum(world.held_out(figure) for figure in figures(world.sample, 2000)) / 2000
    assert 0.03 < share < 0.07
    captions = {file.read_text(encoding="utf-8").strip() for file in DATASET.rglob("*.txt")}
    held_out = {", ".join(world.tags(f)) for f in world.held_out_figures(200, kind=world.character)}
    assert not captions & held_out and not captions & set(PROMPTS)


def test_the_data_set_is_in_kohyas_layout_with_the_trigger_first():
    folders = [folder for folder in DATASET.iterdir() if folder.is_dir()]
    assert len(folders) == 1
    repeats, name = folders[0].name.split("_", 1)
    assert int(repeats) > 0 and name == TRIGGER
    made = sorted(folders[0].glob("*.png"))
    assert len(made) >= 24
    for image in made:
        caption = image.with_suffix(".txt").read_text(encoding="utf-8")
        assert caption.startswith(f"{TRIGGER}, 1girl, ") and not any(mark in caption for mark in world.MARKS)


def test_the_artefacts_stay_under_their_limits():
    assert size_of(BASE) <= 20_000_000
    assert size_of(TAGGER) <= 5_000_000
    assert size_of(DATASET) <= 2_000_000


def test_every_word_of_the_world_is_one_token_and_any_text_tokenizes():
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(BASE / "tokenizer")
    words = {word for tag in world.vocabulary() for word in tag.split()} - {"1girl"}
    assert all(len(tokenizer.tokenize(word)) == 1 for word in words)
    assert len(tokenizer.tokenize(TRIGGER)) > 1
    assert tokenizer.model_max_length == 77
    assert tokenizer.unk_token_id not in tokenizer("Zażółć 猫 @#%, unknown", add_special_tokens=False).input_ids


def test_a_plain_pipeline_loads_the_base_and_generates_what_the_prompt_says():
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    from lorakit import taggers

    pipeline = StableDiffusionPipeline.from_pretrained(BASE)
    pipeline.set_progress_bar_config(disable=True)
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    assert [type(part) for part in parts] == [UNet2DConditionModel, AutoencoderKL, CLIPTextModel]
    prompts = [
        "1girl, portrait, red hair, twintails, blue eyes, smile, white dress, night sky",
        "1girl, full body, blonde hair, long hair, green eyes, open mouth, black hoodie, forest",
    ]
    made = pipeline(
        prompts, num_inference_steps=12, guidance_scale=4.0, generator=torch.Generator().manual_seed(0)
    ).images
    assert made[0].size == (128, 128)
    for prompt, score in zip(prompts, taggers.load("wd14", {"source": "demo"}).run(made), strict=True):
        tags = prompt.split(", ")
        assert sum(score[tag.replace(" ", "_")] >= 0.35 for tag in tags) >= len(tags) - 2


def test_the_tagger_finds_what_is_drawn_and_not_what_is_not():
    from lorakit import taggers

    tagger = taggers.load("wd14", {"source": "demo"})
    drawn = figures(world.sample, 25, seed=5) + figures(world.character, 5, seed=6)
    truths = [{tag.replace(" ", "_") for tag in world.visible(figure)} for figure in drawn]
    scores = tagger.run([draw(figure) for figure in drawn])
    right = [score[tag] >= 0.35 for score, truth in zip(scores, truths, strict=True) for tag in truth]
    wrong = [
        value >= 0.35
        for score, truth in zip(scores, truths, strict=True)
        for tag, value in score.items()
        if tag not in truth and tagger.categories[tag] != "rating"
    ]
    assert np.mean(right) > 0.97 and np.mean(wrong) < 0.01


def test_the_tagger_files_are_of_the_wd_format():
    import onnxruntime

    with (TAGGER / "selected_tags.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["tag_id", "name", "category", "count"]
    assert {row["category"] for row in rows} == {"0", "4", "9"}
    assert [row["name"] for row in rows if row["category"] == "4"] == [TRIGGER]
    session = onnxruntime.InferenceSession(str(TAGGER / "model.onnx"), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert given.shape[1:] == [128, 128, 3] and given.type == "tensor(float)"
    assert session.get_outputs()[0].shape[-1] == len(rows)
