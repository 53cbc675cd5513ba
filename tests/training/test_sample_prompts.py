"""Sample prompts of a run: weights and kohya's flags hold for each, and what is not done is named before the start."""

from __future__ import annotations

import json

import tiny
from PIL import Image

from lorakit.events import Sampled, Started, Warned
from lorakit.project import Project
from lorakit.run.config import configure
from lorakit.run.create import save_config
from lorakit.training.loop import train

PROMPTS = ["girl, hat --w 96 --h 64 --d 7 --s 1 --n boy", "girl, (hat:1.4) BREAK mofu --s 1", "girl <lora:x:1> --s 1"]


def test_each_sample_has_its_own_flags_and_the_notes_come_first(tmp_path):
    base = tiny.save_sd15(tmp_path / "base")
    run = Project(tmp_path / "p").run("r")
    tiny.save_images(run.project.dataset)
    sample = {"prompts": PROMPTS, "negative_prompt": "(boy:1.2)", "width": 64, "height": 64, "steps": 2}
    save_config(run, configure(tiny.settings(base, loop={"steps": 1}, sample=sample)))
    events = list(train(run))
    (note,) = (event.text for event in events if isinstance(event, Warned) and "sample." in event.text)
    assert note.startswith("sample.prompts has “girl <lora:x:1> --s 1”: <lora:x:1> is left out")
    kinds = [type(event) for event in events]
    assert kinds.index(Warned) < kinds.index(Started) < kinds.index(Sampled)
    images = [Image.open(run.folder / event.image) for event in events if isinstance(event, Sampled)]
    assert [image.size for image in images] == [(96, 64), (64, 64), (64, 64)]
    first, second, _ = (json.loads(image.info["parameters"]) for image in images)
    assert (first["seed"], first["steps"], first["negative_prompt"]) == (7, 1, "boy")
    assert second["negative_prompt"] == "(boy:1.2)" and second["seed"] == 42
