"""Promise: a family that is known by its marks alone is recognised everywhere, and marks are read without torch."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from lorakit import models
from lorakit.config import choices_of
from lorakit.models.files import kinds, marks
from lorakit.models.files.check import check, missing
from lorakit.optimizers import RATES
from lorakit.run.checkpoint import SaveConfig
from lorakit.tags import vocabulary

TOY = marks.Marks(
    title="Toy",
    parts={"net": "someone/toy/net.safetensors", "reader": "someone/toy/reader.safetensors"},
    kinds=(
        marks.FileKind(name="a Toy net", has=(("toy.in.weight",),), holds={"net": ""}, is_base=True),
        marks.FileKind(name="a Toy reader", starts=("toy_reader.",), holds={"reader": ""}),
    ),
    folder="ToyPipeline",
    lora_keys=r"toy_",
    load_gb=1,
    key_layouts=("toy_form",),
    captions=marks.CaptionProfile(name="toy", order=("artist",)),
)


@pytest.fixture
def toy(monkeypatch) -> str:
    """A family of which there is nothing but its marks."""
    module = ModuleType("lorakit.models.files.toy_names")
    module.MARKS = TOY
    monkeypatch.setitem(sys.modules, module.__name__, module)
    known = models.names()
    monkeypatch.setattr(models, "names", lambda: (*known, "toy"))
    return "toy"


def test_the_check_knows_its_files_and_what_is_missing(toy, tmp_path):
    save_file({"model.diffusion_model.toy.in.weight": torch.zeros(2)}, tmp_path / "net.safetensors")
    (net,) = check([tmp_path])
    assert net.kind == "a Toy net" and net.holds == {"Toy": ("net",)}
    assert missing([net]) == ["Toy: net found, reader missing: someone/toy/reader.safetensors"]
    save_file({"toy_reader.x": torch.zeros(2)}, tmp_path / "reader.safetensors")
    assert missing(check([tmp_path])) == []
    assert kinds.hint("a Toy net") == kinds.hint("ToyPipeline") == " To train on it set model.family=toy."
    assert not kinds.hint("a Toy reader")


def test_its_lora_files_are_recognised(toy, tmp_path):
    pair = {
        "lora_unet_toy_in.lora_down.weight": torch.zeros(4, 8),
        "lora_unet_toy_in.lora_up.weight": torch.zeros(8, 4),
    }
    save_file(pair, tmp_path / "lora.safetensors")
    assert kinds.lora_family({"toy_in": {}}) == toy
    assert check([tmp_path])[0].kind == "a LoRA for Toy (lora, rank 4, 1 modules, kohya key layout)"


def test_its_form_and_captions_can_be_chosen(toy):
    assert "toy_form" in choices_of(SaveConfig.__dataclass_fields__["key_layout"])
    assert SaveConfig(key_layout="toy_form").key_layout == "toy_form"
    assert marks.caption_profiles()["toy"] is TOY.captions


def test_each_kind_of_file_is_of_one_family_and_says_parts_that_it_has():
    for family in models.names():
        own = marks.marks(family)
        others = [marks.marks(name) for name in models.names() if name != family]
        assert own.key_layouts and own.title not in [other.title for other in others]
        for kind in own.kinds:
            assert set(kind.holds) <= set(own.parts)
            assert kind.name not in [row.name for other in others for row in other.kinds]
        assert set(own.shared.values()) <= set(own.parts)
        assert any(kind.is_base for kind in own.kinds)
        assert set(own.captions.order) <= set(vocabulary.KINDS)
        assert set(models.config_class(family).rates.values()) <= set(RATES)


def test_marks_are_read_without_loading_torch():
    code = (
        "import sys; from lorakit.models.files import kinds; "
        "print(kinds.kind_of(['conditioner.embedders.0.x']), kinds.lora_family({'toy': {}}), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == "a Stable Diffusion XL checkpoint unknown False".split()
