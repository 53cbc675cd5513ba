"""Promise: the configurations that single files lack travel with the package, and fit checkpoints of true size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from original_layout import for_sdxl, original_part

from lorakit.models.files.sd15_names import LAYOUT as SD15
from lorakit.models.files.sd_sources import SingleFile
from lorakit.models.files.sdxl_names import LAYOUT as SDXL
from lorakit.models.files.weights import fitting

SIZES = {
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sdxl": {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
}


def empty_part(part: str, config: dict) -> torch.nn.Module:
    """A part of true size without memory for its weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        if part in ("unet", "vae"):
            return {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part].from_config(config)
        kind = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}[part]
        return kind(CLIPTextConfig.from_dict(config)).half()


@pytest.mark.parametrize("family", SIZES)
def test_the_bundled_configuration_fits_a_checkpoint_of_true_size(family):
    """Every tensor of the original layout finds its place, by name and shape."""
    layout = {"sd15": SD15, "sdxl": SDXL}[family]

    class NamesAndShapes(SingleFile):
        def _named(self, part: str) -> dict[str, torch.Tensor]:
            return for_sdxl(state[part]) if family == "sdxl" else state[part]

    source, state = NamesAndShapes(Path("true-size.safetensors"), layout), {}
    for part, size in SIZES[family].items():
        model = empty_part(part, source.config(part))
        with torch.device("meta"):
            state[part] = original_part(part, source.config(part), model.state_dict())
        assert all(name.startswith(layout.prefixes[part]) for name in source._named(part))
        weights = fitting(model, source.tensors(part, model), part)
        assert sum(weight.numel() for weight in weights.values()) == size
