"""What a dropdown shows for a value that settings store: its name in the reader's language."""

from __future__ import annotations

from typing import Any

from widgets.i18n import say

# Stored value -> English label, where the value itself, without underscores, would not do.
LABELS = {
    # everywhere
    "none": "None",
    "auto": "Automatic",
    "enabled": "On",
    "disabled": "Off",
    "keep": "Keep",
    # training
    "lora": "LoRA",
    "loha": "LoHa",
    "lokr": "LoKr",
    "adamw": "AdamW",
    "adamw8bit": "AdamW 8-bit",
    "prodigy": "Prodigy",
    "constant": "Constant",
    "linear": "Linear",
    "cosine": "Cosine",
    "cosine_with_restarts": "Cosine with restarts",
    "min_snr": "Min-SNR",
    "uniform": "Uniform",
    "sigmoid": "Sigmoid",
    "logit_normal": "Logit-normal",
    "shift": "Shift",
    "epsilon": "Epsilon",
    "v_prediction": "V-prediction",
    "flow": "Rectified flow",
    # samples and files
    "ddim": "DDIM",
    "euler": "Euler",
    "euler_a": "Euler a",
    "dpmpp_2m": "DPM++ 2M",
    "kohya": "kohya",
    "comfy": "ComfyUI",
    "one": "One caption",
    "alternatives": "Alternatives, one per line",
    # copies of images
    "background": "Fill with the background color",
    "longest": "Longest side",
    "shortest": "Shortest side",
    "area": "Area",
    "exact": "Remove identical files",
    "near": "Remove near duplicates",
    # tagging
    "missing": "Images without a caption",
    "unlocked": "All but locked captions",
    "sd": "Stable Diffusion",
    "anima": "Anima",
    "tags, sentence": "Tags, then a sentence",
    "sentence, tags": "A sentence, then tags",
    "tags": "Tags only",
    "sentence": "A sentence only",
    "onnxruntime": "ONNX Runtime",
    "torch": "PyTorch",
}


def choice_label(value: Any) -> str:
    """A stored value as a dropdown and a sentence show it: `cosine_with_restarts` as "Cosine with restarts"."""
    if isinstance(value, bool):
        return say("yes") if value else say("no")
    if not isinstance(value, str):
        return str(value)
    if value in LABELS:
        return say(LABELS[value])
    width, _, height = value.partition("x")
    # 3x4, the shape of an image
    return f"{width}:{height}" if width.isdecimal() and height.isdecimal() else value.replace("_", " ")
