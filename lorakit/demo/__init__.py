"""Where the embedded world lies: a tiny base model, its tagger and the dataset of one character."""

from pathlib import Path

HERE = Path(__file__).parent
BASE = HERE / "base"
TAGGER = HERE / "tagger"
DATASET = HERE / "dataset"
TRIGGER = "mofurin"
PROMPTS = (
    f"{TRIGGER}, 1girl, portrait, smile, blue hoodie, night sky",
    f"{TRIGGER}, 1girl, upper body, open mouth, white dress, waving, cherry blossoms",
    f"{TRIGGER}, 1girl, full body, closed eyes, black shirt, arms up, blue sky",
    f"{TRIGGER}, 1girl, upper body, angry, red serafuku, glasses, forest",
)
"""Prompts for the demo character whose combinations are not in the dataset."""
