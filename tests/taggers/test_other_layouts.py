"""PixAI, cl_tagger and CamieTagger: their input, output and lists of tags, against a plain call of each."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from test_taggers import images
from tiny_taggers import SIDE, save_camie, save_cl, save_pixai, save_wd

from lorakit import taggers
from lorakit.taggers import TaggerError
from lorakit.taggers._layouts import CAMIE, CL, KNOWN, PIXAI, WD, layout_of

onnxruntime = pytest.importorskip("onnxruntime")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def normal(image: Image.Image, mean=(0.5,) * 3, std=(0.5,) * 3) -> np.ndarray:
    pixels = (np.asarray(image, np.float32) / 255 - np.float32(mean)) / np.float32(std)
    return pixels.transpose(2, 0, 1)[None].astype(np.float32)


def pixai(image: Image.Image) -> np.ndarray:
    """As pixai-labs' handler: any shape becomes a square."""
    return normal(white(image).resize((SIDE, SIDE), Image.BILINEAR))


def cl(image: Image.Image) -> np.ndarray:
    """As cl_tagger's own code: padded to a square in white, bicubic, blue first."""
    image = white(image)
    longest = max(image.size)
    square = Image.new("RGB", (longest, longest), "white")
    square.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
    return normal(square.resize((SIDE, SIDE), Image.BICUBIC))[:, ::-1]


def camie(image: Image.Image) -> np.ndarray:
    """As CamieTagger's own code: resized into the square, the rest in ImageNet's mean colour."""
    image = white(image)
    scale = SIDE / max(image.size)
    small = image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))), Image.LANCZOS)
    square = Image.new("RGB", (SIDE, SIDE), (124, 116, 104))
    square.paste(small, ((SIDE - small.width) // 2, (SIDE - small.height) // 2))
    return normal(square, *IMAGENET)


CASES = {
    "pixai": (save_pixai, pixai, "model.onnx", 0, False, ["general", "general", "general", "character", "rating"]),
    "cl": (save_cl, cl, "model.onnx", 0, True, ["general", "character", "rating", "quality", "meta"]),
    "camie": (save_camie, camie, "camie-tagger-v2.onnx", 1, True, ["general", "character", "rating", "meta"]),
}


@pytest.mark.parametrize("name", CASES)
def test_scores_are_those_of_a_plain_call_with_the_published_preprocessing(name, tmp_path):
    save, prepare, file, output, is_logits, categories = CASES[name]
    tagger = taggers.load("wd14", {"source": str(save(tmp_path)), "batch_size": 3})
    assert list(tagger.categories.values()) == categories
    session = onnxruntime.InferenceSession(str(tmp_path / file), providers=["CPUExecutionProvider"])
    for (kind, image), scores in zip(images().items(), tagger.run(list(images().values())), strict=True):
        (plain,) = session.run(None, {"x": np.ascontiguousarray(prepare(image))})[output]
        plain = 1 / (1 + np.exp(-plain)) if is_logits else plain
        assert np.abs(np.array(list(scores.values())) - plain).max() < 1e-5, kind


def test_tags_keep_their_names_and_two_of_one_name_are_told_apart(tmp_path):
    cl_tags = taggers.load("wd14", {"source": str(save_cl(tmp_path / "cl"))}).categories
    assert list(cl_tags) == ["1girl", "hatsune_miku", "safe", "safe_(quality)", "x"]
    camie_tags = taggers.load("wd14", {"source": str(save_camie(tmp_path / "camie"))}).categories
    assert list(camie_tags) == ["1girl", "hatsune_miku", "general", "year_2023"]


def test_models_of_the_hub_are_known_by_their_ids():
    assert [layout_of(source) for source in KNOWN] == [(PIXAI, ""), (CL, "cl_tagger_1_02"), (CAMIE, "")]
    assert layout_of("Camais03/camie-tagger-v2@main") == (CAMIE, "") and layout_of("someone/else") == (WD, "")
    with pytest.raises(TaggerError, match=r"Taggers that can be had: SmilingWolf/.*cella110n/cl_tagger"):
        taggers.load("wd14", {"source": "no such folder"})
    with pytest.raises(TaggerError, match="is an ONNX model: set “runs on”"):
        taggers.load("wd14", {"source": "cella110n/cl_tagger", "runs_on": "torch"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "not the list of tags"),
        ("{", "cannot be read"),
        (json.dumps({"0": {"tag": "a", "category": "General"}, "2": {"tag": "b", "category": "General"}}), "number 1"),
        (json.dumps({"0": {"tag": "a", "category": "Colour"}}), "'a', 'colour'"),
        (json.dumps({"0": {"tag": "a", "category": "General"}}), "lists 1 tags"),
    ],
)
def test_a_wrong_list_of_tags_is_explained(content, message, tmp_path):
    (save_cl(tmp_path) / "tag_mapping.json").write_text(content)
    with pytest.raises(TaggerError, match=message):
        taggers.load("wd14", {"source": str(tmp_path)})


def test_a_camie_list_without_its_tables_and_a_missing_model_are_explained(tmp_path):
    (save_camie(tmp_path) / "camie-tagger-v2-metadata.json").write_text('{"dataset_info": {}}')
    with pytest.raises(TaggerError, match="idx_to_tag"):
        taggers.load("wd14", {"source": str(tmp_path)})
    (save_wd(tmp_path / "wd") / "model.onnx").unlink()
    with pytest.raises(TaggerError, match=r"model\.onnx"):
        taggers.load("wd14", {"source": str(tmp_path / "wd")})
