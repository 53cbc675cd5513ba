"""Every tagger gives an image the same result, alone or in a batch; WD scores equal those of a plain call."""

from __future__ import annotations

import csv
import dataclasses
import sys

import numpy as np
import pytest
from hub_server import running
from PIL import Image
from tiny_taggers import SIDE, TAGS, chat_server, save_blip, save_wd

from lorakit import taggers
from lorakit.config import ConfigError, from_dict
from lorakit.taggers import TaggerError
from lorakit.taggers._layouts import read_tags, squared


def make_image(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Noise, in any mode of 8 bits."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    image = Image.fromarray(noise, "RGBA")
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


def images() -> dict[str, Image.Image]:
    """One of each kind that taggers meet."""
    palette = make_image(20, 30, "P")
    palette.info["transparency"] = 3
    return {
        "square": make_image(16, 16),
        "wide": make_image(300, 7),
        "tall": make_image(9, 700),
        "one pixel": make_image(1, 1),
        "transparent": make_image(31, 17, "RGBA"),
        "gray": make_image(13, 21, "L"),
        "gray with alpha": make_image(40, 41, "RGBA").convert("LA"),
        "palette": palette,
        "black and white": make_image(12, 12, "1"),
        "CMYK": make_image(12, 24, "CMYK"),
    }


@pytest.fixture(scope="module")
def server():
    with chat_server() as chat:
        yield chat


@pytest.fixture(scope="module", params=taggers.names())
def tagger(request, tmp_path_factory, server):
    """Every tagger of the registry, on something tiny and real."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "wd14":
        pytest.importorskip("onnxruntime")
        save_wd(folder)
    settings = {
        "wd14": {"source": str(folder), "runs_on": "onnxruntime"},
        "vlm": {"source": str(folder), "max_new_tokens": 6, "batch_size": 2},
        "server": {"address": server.address, "model": "tiny/seer:7b"},
    }
    if request.param == "vlm":
        save_blip(folder)
    return taggers.load(request.param, settings[request.param])


# ---- the registry ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", taggers.names())
def test_every_tagger_has_settings_with_help_and_suggestions_that_fit_them(name):
    config_class = taggers.config_class(name)
    fields = {f.name: f for f in dataclasses.fields(config_class)}
    assert all(f.metadata["help"] for f in fields.values())
    needed = {n: "x" for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
    for field, f in fields.items():
        for value in f.metadata["ui"].suggestions:
            from_dict(config_class, {**needed, field: value})


@pytest.mark.parametrize("name", taggers.names())
def test_an_unknown_setting_is_refused(name):
    with pytest.raises(ConfigError, match="colour is not a setting"):
        taggers.load(name, {"colour": 1})


def test_an_unknown_tagger_is_refused_and_the_others_are_named():
    with pytest.raises(TaggerError, match="no tagger 'blip'; there are server, vlm, wd14"):
        taggers.load("blip", {})


# ---- results ---------------------------------------------------------------------------------------------------------


def test_a_tagger_has_a_name_a_device_and_an_output(tagger):
    assert tagger.name and "/" not in tagger.name and ":" not in tagger.name
    assert tagger.output in ("tags", "sentence") and tagger.batch_size >= 1 and tagger.runs_on
    assert set(tagger.categories.values()) <= set(taggers.CATEGORIES)
    assert bool(tagger.categories) == (tagger.output == "tags")


def test_images_of_every_size_and_mode_get_a_result(tagger):
    answers = tagger.run(list(images().values()))
    assert len(answers) == len(images())
    for answer in answers:
        if tagger.output == "tags":
            assert list(answer) == list(tagger.categories) and all(0 <= score <= 1 for score in answer.values())
        else:
            assert isinstance(answer, str) and "\n" not in answer
    assert tagger.run([]) == []


def test_results_are_repeatable_and_independent_of_the_batch(tagger):
    image, other = make_image(33, 20), make_image(15, 50, seed=1)
    (alone,) = tagger.run([image])
    beside = tagger.run([other, image, other])[1]
    if tagger.output == "tags":
        assert beside == pytest.approx(alone, abs=1e-6)
    else:
        assert beside == alone
    assert tagger.run([image]) == [alone]


def test_taggers_do_not_change_the_images(tagger):
    for name, image in images().items():
        before = image.copy()
        tagger.run([image])
        assert image.size == before.size and image.tobytes() == before.tobytes(), name


# ---- WD files against a plain call -----------------------------------------------------------------------------------


def published(image: Image.Image, side: int) -> np.ndarray:
    """What the taggers' authors give to the model, (1, side, side, 3) float32 BGR, in the plainest code."""
    image = image.convert("RGBA")
    canvas = Image.new("RGBA", image.size, (255, 255, 255))
    canvas.alpha_composite(image)
    image = canvas.convert("RGB")
    longest = max(image.size)
    padded = Image.new("RGB", (longest, longest), (255, 255, 255))
    padded.paste(image, ((longest - image.size[0]) // 2, (longest - image.size[1]) // 2))
    if longest != side:
        padded = padded.resize((side, side), Image.BICUBIC)
    return np.asarray(padded, dtype=np.float32)[None, :, :, ::-1]


@pytest.mark.parametrize("batch", ["n", 1, 3, "demo"])
def test_scores_are_those_of_a_plain_call_with_the_published_preprocessing(batch, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    source = "demo" if batch == "demo" else str(save_wd(tmp_path / "tiny", batch))
    tagger = taggers.load("wd14", {"source": source, "batch_size": 4})
    folder = taggers.wd14.DEMO if batch == "demo" else tmp_path / "tiny"
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    model_input = session.get_inputs()[0]
    with open(folder / "selected_tags.csv", encoding="utf-8") as file:
        names = [row["name"] for row in csv.DictReader(file)]
    for (kind, image), scores in zip(images().items(), tagger.run(list(images().values())), strict=True):
        x = np.repeat(published(image, model_input.shape[1]), batch if batch == 3 else 1, axis=0)
        plain = session.run(None, {model_input.name: x})[0][0]
        assert list(scores) == names
        assert np.abs(np.array(list(scores.values())) - plain).max() < 1e-5, kind


@pytest.mark.parametrize("kind", images())
def test_preprocessing_equals_the_published_one_bit_for_bit(kind):
    image = images()[kind]
    for side in (8, 448):
        assert (squared(image, side)[None, :, :, ::-1] == published(image, side)).all()


def test_a_very_long_image_needs_no_square_of_its_length_in_memory():
    long = squared(Image.new("RGB", (60_000, 2), "black"), 64)  # as a square 11 GB
    assert long.shape == (64, 64, 3) and (long == 255).mean() > 0.9


# ---- a WD tagger's files ---------------------------------------------------------------------------------------------


def test_tags_keep_their_names_and_every_category_of_the_format_is_known(tmp_path):
    rows = (("1girl", 0), ("some_artist", 1), ("vocaloid", 3), ("hatsune_miku", 4), ("highres", 5), ("^_^", 9))
    categories = read_tags(save_wd(tmp_path, tags=rows) / "selected_tags.csv")
    kinds = ["general", "artist", "copyright", "character", "meta", "rating"]
    assert categories == dict(zip([name for name, _ in rows], kinds, strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tag_id,name,category,count\n0,a,7,1\n", "category '7'.*0 general"),
        ("tag_id,name,category,count\n0,a,0,1\n1,a,0,1\n", "line 3: the tag 'a' is listed twice"),
        ("tag_id,name,category,count\n0,a\n", "line 2: name 'a', category None"),
        ("id;tag\n0;a\n", "line 2: name None"),
        ("tag_id,name,category,count\n0,a,0,1\n", "lists 1 tags; the files are not of the same tagger"),
        ("", "lists 0 tags"),
        (b"\xff\xfe\x00\x00\n\x80", "cannot be read"),
    ],
)
def test_a_wrong_selected_tags_csv_is_explained(text, message, tmp_path):
    pytest.importorskip("onnxruntime")
    save_wd(tmp_path)
    (tmp_path / "selected_tags.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(TaggerError, match=message):
        taggers.load("wd14", {"source": str(tmp_path)})


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.99])
def test_a_damaged_model_is_explained(share, tmp_path):
    pytest.importorskip("onnxruntime")
    file = save_wd(tmp_path) / "model.onnx"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(TaggerError, match=r"model\.onnx"):
        taggers.load("wd14", {"source": str(tmp_path)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (5, SIDE, SIDE)}, r"a WD tagger takes \(images, side, side, 3\)"),
        ({"shape": (SIDE, SIDE, 4)}, r"takes \['n', 8, 8, 4\]"),
        ({"last": "Neg"}, "no probabilities"),
    ],
)
def test_a_model_that_is_no_wd_tagger_is_refused(changes, message, tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(TaggerError, match=message):
        taggers.load("wd14", {"source": str(save_wd(tmp_path, **changes))})


@pytest.mark.parametrize("missing", ["model.onnx", "selected_tags.csv", "folder"])
def test_a_missing_file_is_named(missing, tmp_path):
    source = tmp_path / "folder"
    if missing != "folder":
        (save_wd(source) / missing).unlink()
    with pytest.raises(TaggerError, match=missing):
        taggers.load("wd14", {"source": str(source)})


def test_a_file_given_instead_of_its_folder_is_explained(tmp_path):
    with pytest.raises(TaggerError, match="is a file; give the folder"):
        taggers.load("wd14", {"source": str(save_wd(tmp_path) / "model.onnx")})


def test_only_a_taggers_own_files_are_downloaded(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    files = {path.name: path.read_bytes() for path in save_wd(tmp_path / "made").iterdir()}
    with running() as hub:
        hub.repos["SmilingWolf/tiny"] = files | {"model.msgpack": b"not needed"}
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        tagger = taggers.load("wd14", {"source": "SmilingWolf/tiny"})
        with pytest.raises(TaggerError, match="There is no model nobody/has-this"):
            taggers.load("wd14", {"source": "nobody/has-this"})
    assert tagger.name == "tiny" and list(tagger.categories) == [name for name, _ in TAGS]
    assert not [path for _, path, _ in hub.asked if path.endswith("msgpack")]


# ---- what runs it ----------------------------------------------------------------------------------------------------


def test_the_device_is_shown():
    pytest.importorskip("onnxruntime")
    assert taggers.load("wd14", {"source": "demo"}).runs_on == "onnxruntime, CPU"


def test_a_missing_onnxruntime_is_named_with_its_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(TaggerError, match="pip install onnxruntime"):
        taggers.load("wd14", {"source": "demo", "runs_on": "onnxruntime"})
    with pytest.raises(TaggerError, match="v3 taggers have and v1-4 .* have not.*pip install onnxruntime"):
        taggers.load("wd14", {"source": "demo"})


def test_a_missing_timm_is_named_with_its_install_line(monkeypatch, tmp_path):
    save_timm(tmp_path)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(TaggerError, match="pip install timm"):
        taggers.load("wd14", {"source": str(tmp_path), "runs_on": "torch"})


def save_timm(folder) -> dict:
    """The files of a v3 tagger beside model.onnx, but for right weights; returns the content of config.json."""
    import json

    import torch
    from safetensors.torch import save_file

    save_wd(folder)
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2, "class_token": False}
    published = {"input_size": [3, 32, 32], "interpolation": "bicubic", "crop_pct": 1.0, "mean": [0.5] * 3}
    config = {
        "architecture": "vit_base_patch16_224",
        "num_classes": len(TAGS),
        "global_pool": "avg",
        "model_args": sizes,
    }
    config["pretrained_cfg"] = {**published, "std": [0.5] * 3}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    return config


def test_scores_of_torch_are_those_of_timms_own_preprocessing(tmp_path):
    timm = pytest.importorskip("timm")
    import torch
    from safetensors.torch import save_file
    from timm.data import create_transform, resolve_data_config

    config = save_timm(tmp_path)
    with pytest.raises(TaggerError, match="cannot load model.safetensors"):
        taggers.load("wd14", {"source": str(tmp_path), "runs_on": "torch"})
    torch.manual_seed(0)
    model = timm.create_model(config["architecture"], num_classes=len(TAGS), global_pool="avg", **config["model_args"])
    save_file(model.eval().state_dict(), tmp_path / "model.safetensors")
    tagger = taggers.load("wd14", {"source": str(tmp_path), "runs_on": "torch", "batch_size": 3})
    assert tagger.runs_on.startswith("torch, ")
    transform = create_transform(**resolve_data_config(config["pretrained_cfg"], model=model))
    for (kind, image), scores in zip(images().items(), tagger.run(list(images().values())), strict=True):
        side = max(image.size)
        square = Image.fromarray(published(image, side)[0, :, :, ::-1].astype(np.uint8))
        with torch.inference_mode():
            plain = model(transform(square)[None, [2, 1, 0]]).sigmoid()[0].numpy()
        assert np.abs(np.array(list(scores.values())) - plain).max() < 1e-5, kind
