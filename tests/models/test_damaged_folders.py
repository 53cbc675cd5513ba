"""Promise: odd settings and damaged files of a base's folder get one sentence, the same everywhere, and no request."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch

from lorakit import models
from lorakit.hub import fetch
from lorakit.hub.header import ModelFileError
from lorakit.hub.settings import DEPTH, MOST
from lorakit.models.files.check import check

CPU = torch.device("cpu")
DENOISER = {"anima": "transformer"}


@pytest.fixture
def no_request(monkeypatch):
    """Any connection that is tried fails the test, also one whose error somebody swallows."""
    tried = []

    def refuse(*args, **options):
        tried.append(args)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    yield
    assert not tried


@pytest.fixture
def copy(base, tmp_path) -> Path:
    """A base of a family, in which files may be replaced; weights are links."""
    return Path(shutil.copytree(base, tmp_path / "model", copy_function=os.link))


def put(path: Path, content: str | None) -> None:
    """Replace a file (by another, as links to it must stay as they are); None: remove it."""
    path.unlink()
    if content is not None:
        path.write_text(content)


def answers(folder: Path, family: str) -> tuple[str, str]:
    """What `model check` and the whole way to a loaded model say about a folder; "" where they find nothing wrong."""
    checked = next(found.problem for found in check([folder]) if found.path == folder)
    try:
        fetch(str(folder))
        module = models.family(family)
        model = module.Model(module.Config(source=str(folder)), CPU, torch.float32)
        module.excess(model.config)("a caption")
        model.encode_text("a caption")
        for part in model.parts:
            model.load(part)
        if family != "anima":
            _ = model.scheduler_config
    except ModelFileError as error:
        return checked, str(error)
    return checked, ""


def deep(levels: int) -> str:
    return '{"x": ' + "[" * levels + "]" * levels + "}"


# What a settings file may hold instead, and a word of the sentence about it.
CONTENTS = {
    "a text": ('"stabilityai/sd-vae-ft-mse"', "holds a text"),
    "a list": ("[1, 2]", "holds a list"),
    "a number": ("5", "holds a number"),
    "nothing": ("null", "holds null"),
    "half of it": ('{"in_channels": ', "not readable JSON"),
    "a name twice": ('{"in_channels": 4, "in_channels": 5}', "occurs twice"),
    "deep nesting": (deep(DEPTH + 1), "nested deeper"),
    "very deep nesting": (deep(100_000), ""),
    "too much": ('{"x": "' + "x" * MOST + '"}', "more than any such file"),
}
# Settings that are odd wherever they stand, and a word of the sentence.
SETTINGS = {
    "hidden_size": (10**9, "hidden_size"),
    "num_hidden_layers": (10**9, "num_hidden_layers"),
    "num_layers": (-1, "num_layers"),
    "max_position_embeddings": (10**12, "max_position_embeddings"),
    "block_out_channels": ([8] * 1000, "block_out_channels"),
    "down_block_types": ("DownBlock2D", "down_block_types"),
    "in_channels": (True, "in_channels"),
    "layers_per_block": ("2", "layers_per_block"),
    "attention_head_dim": ([2, [10**9]], "attention_head_dim"),
    "scaling_factor": ("0.18", "scaling_factor"),
    "num_train_timesteps": (10**10, "num_train_timesteps"),
    "latents_mean": ([float("inf")], "not finite"),
    "prediction_type": (["v_prediction"], "prediction_type"),
    "rescale_betas_zero_snr": ("no", "rescale_betas_zero_snr"),
}


def settings_files(folder: Path) -> list[Path]:
    """The settings of all parts, also of the tokenizer and of the noise schedule."""
    return sorted(file for file in folder.glob("*/*.json") if file.name != "model.safetensors.index.json")


def test_every_settings_file_of_a_base_is_checked_and_all_say_the_same(copy, family, no_request):
    assert answers(copy, family) == ("", "")
    for file in settings_files(copy):
        before = file.read_text()
        for content, what in (CONTENTS[name] for name in ("a text", "a list", "half of it")):
            put(file, content)
            checked, loaded = answers(copy, family)
            assert checked == loaded and what in checked and file.name in checked, (file, checked, loaded)
            assert len(checked.splitlines()) == 1
        put(file, before)


@pytest.mark.parametrize("how", CONTENTS)
def test_whatever_settings_hold_instead_is_refused_by_name(how, copy, family, no_request):
    file = copy / "vae" / "config.json"
    content, what = CONTENTS[how]
    put(file, content)
    checked, loaded = answers(copy, family)
    assert checked == loaded and what in checked and str(file) in checked and len(checked.splitlines()) == 1


def test_sizes_that_no_model_has_and_other_types_are_refused_by_name(copy, family, no_request):
    file = copy / DENOISER.get(family, "unet") / "config.json"
    before = json.loads(file.read_text())
    for name, (value, what) in SETTINGS.items():
        put(file, json.dumps(before | {name: value}))
        checked, loaded = answers(copy, family)
        assert checked == loaded and what in checked and str(file) in checked, name
    # each is possible, but they make no model together
    for changes in (
        {"num_attention_heads": 7, "attention_head_dim": 5},
        {"act_fn": "x", "down_block_types": ["X", "Y"]},
    ):
        put(file, json.dumps(before | changes))
        loaded = answers(copy, family)[1]
        assert "does not fit" in loaded or "no model follows" in loaded or family == "anima" and not loaded, changes


def test_settings_without_what_they_must_have_are_refused_or_have_their_usual_values(copy, family, no_request):
    # a UNet and a CLIP of the usual values are of true size, and take seconds
    slow = () if family == "anima" else ("unet", "text_encoder", "text_encoder_2", "tokenizer_2")
    for file in (file for file in settings_files(copy) if file.parent.name not in slow):
        before = file.read_text()
        kept = {name: value for name, value in json.loads(before).items() if name in ("_class_name", "architectures")}
        for content in {"{}", json.dumps(kept)}:
            put(file, content)
            loaded = answers(copy, family)[1]
            assert not loaded or str(file.parent) in loaded and len(loaded.splitlines()) == 1, file
        put(file, before)


def test_a_pipe_a_folder_and_nothing_in_place_of_a_file_are_refused_without_waiting(copy, family, no_request):
    for name in ("vae/config.json", *(str(file.relative_to(copy)) for file in copy.glob("tokenizer/*"))):
        file = copy / name
        before = file.read_bytes()
        for make, what in ((os.mkfifo, "a pipe"), (os.mkdir, "a folder")):
            file.unlink()
            make(file)
            checked, loaded = answers(copy, family)
            assert checked == loaded and what in checked and str(file) in checked
            file.rmdir() if file.is_dir() else file.unlink()
            file.write_bytes(before)
        file.unlink()
        _, loaded = answers(copy, family)
        # one of a tokenizer's files may be spare
        assert len(loaded.splitlines()) == 1 or "tokenizer" in name
        file.write_bytes(before)


def test_names_of_other_models_and_of_code_in_a_folder_cause_nothing(copy, family, no_request):
    odd = {"_name_or_path": "someone/else", "auto_map": {"AutoModel": "someone/else--code.Model"}}
    for file in settings_files(copy):
        content = json.loads(file.read_text())
        if file.name not in ("vocab.json", "tokenizer.json", "added_tokens.json", "special_tokens_map.json"):
            put(file, json.dumps(content | odd))
    (copy / "vae" / "code.py").write_text("raise SystemExit")
    assert answers(copy, family) == ("", "")
    index = next(copy.glob("*model_index.json"))
    put(index, json.dumps(json.loads(index.read_text()) | odd))
    assert answers(copy, family) == ("", "")


def test_an_index_that_leads_out_of_its_folder_is_refused(copy, family, no_request):
    index = next(copy.glob("*model_index.json"))
    for inner in ("../elsewhere", "/etc"):
        content = json.loads(index.read_text())
        content["vae"] = ["diffusers", "X", {"subfolder": inner}]
        put(index, json.dumps(content))
        checked, loaded = answers(copy, family)
        assert checked == loaded and "is no index" in checked
