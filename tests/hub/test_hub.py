"""Promise: what people type becomes a whole local file or folder, also over bad lines, or one sentence says why not."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hub_server import COMMIT, running
from safetensors.torch import save
from tiny import save_sd15

from lorakit.hub import fetch
from lorakit.hub.download import CHUNK, SourceError, download
from lorakit.hub.files import ModelFileError, folder_files, weight_files

WEIGHTS = f"/someone/tiny/resolve/{COMMIT}/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> dict[str, bytes]:
    """The files of a tiny diffusers repository, with much that nobody needs."""
    folder = save_sd15(tmp_path_factory.mktemp("model"))
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files["unet/diffusion_pytorch_model.fp16.safetensors"] = b"another precision"
    files |= {"safety_checker/config.json": b"{}", "safety_checker/model.safetensors": b"not needed", "README.md": b"#"}
    return files | {"single.safetensors": files["unet/diffusion_pytorch_model.safetensors"]}


@pytest.fixture
def hub(model, monkeypatch, tmp_path):
    """A hub of our own, named by HF_ENDPOINT, with one model; nothing of the user's own cache or login is seen."""
    with running() as server:
        server.repos["someone/tiny"] = dict(model)
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield server


def names(folder: Path) -> set[str]:
    """All files below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def refusal(source: str, tmp_path: Path, kind: type[Exception] = SourceError) -> str:
    """The sentence that a source is refused with."""
    with pytest.raises(kind) as refused:
        fetch(source, tmp_path / "hub")
    shown = str(refused.value)
    assert len(shown.splitlines()) == 1 and "hf_secret" not in shown
    return shown


def test_a_diffusers_repository_is_downloaded_without_unneeded_files(hub, model, tmp_path):
    folder = fetch("someone/tiny", tmp_path / "hub")
    unwanted = {"README.md", "single.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"}
    assert names(folder) == {name for name in model if not name.startswith("safety")} - unwanted
    assert all((folder / name).read_bytes() == model[name] for name in names(folder))
    from diffusers import StableDiffusionPipeline

    assert StableDiffusionPipeline.from_pretrained(folder, safety_checker=None).unet


def test_a_cached_model_is_used_without_the_network(hub, tmp_path):
    first = fetch("someone/tiny", tmp_path / "hub")
    single = fetch("someone/tiny/single.safetensors", tmp_path / "hub")
    hub.asked.clear()
    assert fetch("someone/tiny", tmp_path / "hub") == first
    assert fetch(f"{hub.address}/someone/tiny/blob/main/single.safetensors", tmp_path / "hub") == single
    assert hub.asked == []


def test_a_snapshot_that_lacks_a_file_is_completed(hub, model, tmp_path):
    folder = fetch("someone/tiny", tmp_path / "hub")
    for name in ("vae/config.json", "text_encoder/model.safetensors"):
        (folder / name).unlink()
        assert fetch("someone/tiny", tmp_path / "hub") == folder
        assert (folder / name).read_bytes() == model[name]


def test_a_dropped_download_is_resumed(hub, model, tmp_path):
    hub.cut[WEIGHTS] = 2 * CHUNK + 1000
    folder = fetch("someone/tiny", tmp_path / "hub")
    assert hub.ranges(WEIGHTS) == [None, f"bytes={2 * CHUNK}-"]
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (folder / name).read_bytes() == model[name]


def test_a_killed_download_is_taken_up_by_the_next_process(hub, tmp_path):
    """The real client in a process of its own, with its default cache, killed while a large file arrives."""
    big = save({"weight": torch.zeros(CHUNK)})
    hub.repos["someone/tiny"]["big.safetensors"] = big
    path = f"/someone/tiny/resolve/{COMMIT}/big.safetensors"
    hub.hang[path] = 2 * CHUNK
    command = [sys.executable, "-c", "from lorakit.hub import fetch; print(fetch('someone/tiny/big.safetensors'))"]
    first = subprocess.Popen(command, env=os.environ, stderr=subprocess.DEVNULL)
    cache = tmp_path / "hf" / "hub"
    deadline = time.monotonic() + 60
    while not any(part.stat().st_size for part in cache.rglob("*.part")) and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = max(part.stat().st_size for part in cache.rglob("*.part"))
    second = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=True)
    assert hub.ranges(path)[-1] == f"bytes={kept}-"
    assert Path(second.stdout.strip()).read_bytes() == big


def test_a_file_that_arrives_damaged_is_refused_and_fetched_anew(hub, model, tmp_path):
    part = tmp_path / "file.safetensors.part"
    part.write_bytes(b"x" * 100)
    content, url = model["single.safetensors"], f"{hub.address}/someone/tiny/resolve/main/single.safetensors"
    sha256 = hashlib.sha256(content).hexdigest()
    for _ in range(2):
        try:
            download(url, tmp_path / "file.safetensors", headers={}, size=len(content), sha256=sha256)
        except SourceError as error:
            assert "arrived damaged" in str(error) and not part.exists()
    assert (tmp_path / "file.safetensors").read_bytes() == content


def test_files_of_other_repositories_are_chosen_by_patterns(hub, tmp_path):
    hub.repos["someone/tagger"] = {"model.onnx": b"onnx", "selected_tags.csv": b"tags", "README.md": b"#"}
    folder = fetch("someone/tagger", tmp_path / "hub", patterns=("model.onnx", "*.csv"))
    assert names(folder) == {"model.onnx", "selected_tags.csv"}
    hub.asked.clear()
    assert fetch("someone/tagger", tmp_path / "hub", patterns=("model.onnx", "*.csv")) == folder and hub.asked == []


@pytest.mark.parametrize(
    ("source", "shown"),
    (
        ("nobody/nothing", r"no model nobody/nothing at http://127.*check the spelling.*HF_TOKEN"),
        ("someone/tiny@v9", r"no revision someone/tiny@v9"),
        ("someone/tiny/other.safetensors", r"has no file other.safetensors; it has someone/tiny/single.safetensors"),
        ("someone/files", r"not a diffusers model.*name one of its files; it has someone/files/a.safetensors"),
        ("someone/gated", r"is gated: accept"),
        ("someone/gated/single.safetensors", r"is gated: accept"),
    ),
)
def test_a_wrong_name_or_missing_access_is_one_sentence(source, shown, hub, model, tmp_path):
    hub.repos["someone/files"] = {"a.safetensors": b"", "README.md": b""}
    hub.repos["someone/gated"] = dict(model)
    hub.gated.add("someone/gated")
    assert re.search(shown, refusal(source, tmp_path))


def test_when_hugging_face_is_blocked_the_mirror_is_named(hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    shown = refusal("someone/tiny", tmp_path)
    assert "http://127.0.0.1:9" in shown and "HF_ENDPOINT=https://hf-mirror.com" in shown and "local path" in shown


def test_a_damaged_file_on_hugging_face_is_refused(hub, tmp_path):
    hub.repos["someone/tiny"]["cut.safetensors"] = hub.repos["someone/tiny"]["single.safetensors"][:-8]
    assert "is truncated" in refusal("someone/tiny/cut.safetensors", tmp_path, ModelFileError)


def test_the_token_goes_to_hugging_face_alone(hub, model, tmp_path):
    fetch("someone/tiny/single.safetensors", tmp_path / "hub")
    assert "Bearer hf_secret" in hub.tokens
    hub.tokens.clear()
    hub.plain["/files/x/model.safetensors"] = (model["single.safetensors"], {})
    fetch(f"{hub.address}/files/x/model.safetensors", tmp_path)
    assert hub.tokens == {None}


# ---- URLs ------------------------------------------------------------------------------------------------------------


def test_a_file_from_an_address_is_resumed_named_by_its_server_and_kept(hub, model, tmp_path):
    content = model["single.safetensors"]
    hub.plain["/api/download/models/7"] = (
        content,
        {"Content-Disposition": 'attachment; filename="../anime.safetensors"'},
    )
    (tmp_path / "anime.safetensors.part").write_bytes(content[:500])
    url = f"{hub.address}/api/download/models/7?token=secret"
    assert fetch(url, tmp_path).read_bytes() == content
    assert hub.ranges("/7")[-1] == "bytes=500-"
    assert fetch(url, tmp_path) == tmp_path / "anime.safetensors" and len(hub.ranges("/7")) == 2


def test_the_part_of_a_larger_file_is_not_resumed(hub, tmp_path):
    (tmp_path / "x.bin.part").write_bytes(bytes(9))
    hub.plain["/x.bin"] = b"small", {}
    found = download(f"{hub.address}/x.bin", tmp_path / "x.bin", headers={}, size=5, sha256=None)
    assert found.read_bytes() == b"small"
    assert hub.ranges("/x.bin") == [None]


def test_files_of_one_name_from_several_addresses_are_not_mixed_up(hub, tmp_path):
    files = {f"/of/{i}/model.safetensors": save({"x": torch.full((200,), i)}) for i in (1, 2, 3)}
    hub.plain.update({path: (content, {}) for path, content in files.items()})
    for path, content in [*files.items()] * 2:
        assert fetch(hub.address + path, tmp_path).read_bytes() == content
    assert all(len(hub.ranges(path)) == 2 for path in files), "asked what it is and fetched, once each"


@pytest.mark.parametrize(
    ("path", "shown"),
    (("/page", "is a web page"), ("/no/such/x.safetensors", "does not exist"), ("/cut.safetensors", "is truncated")),
)
def test_an_address_without_a_model_is_one_sentence(path, shown, hub, model, tmp_path):
    hub.plain["/page"] = (b"<html>", {"Content-Type": "text/html; charset=utf-8"})
    hub.plain["/cut.safetensors"] = (model["single.safetensors"][:-5], {})
    refused = refusal(f"{hub.address}{path}?token=hf_secret", tmp_path, ValueError)
    assert shown in refused


def test_an_address_that_does_not_answer_is_one_sentence(tmp_path):
    assert "Could not download http://127.0.0.1:9/x.safetensors" in refusal(
        "http://127.0.0.1:9/x.safetensors", tmp_path
    )


# ---- local -----------------------------------------------------------------------------------------------------------


def test_local_files_and_folders_are_used_where_they_are(tmp_path):
    folder = save_sd15(tmp_path / "model")
    assert fetch(str(folder)) == folder
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    assert fetch(f" {file} ") == file


@pytest.mark.parametrize("source", ("", "nosuch.safetensors", "models/nosuch.safetensors", "./a/b", "/no/such/folder"))
def test_a_missing_path_is_one_sentence(source, tmp_path):
    assert "give" in refusal(source, tmp_path)


def test_a_folder_that_is_no_model_offers_the_files_in_it(tmp_path):
    (tmp_path / "a.safetensors").touch()
    assert "name one of its files: a.safetensors" in refusal(str(tmp_path), tmp_path, ModelFileError)


# ---- which files of a folder -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "chosen"),
    (
        ("model.bin model.fp16.safetensors model.safetensors", "model.safetensors"),
        ("diffusion_pytorch_model.non_ema.safetensors diffusion_pytorch_model.fp16.safetensors",) * 1
        + ("diffusion_pytorch_model.fp16.safetensors",),
        ("diffusion_pytorch_model.bin config.json model.onnx", "diffusion_pytorch_model.bin"),
        ("model-00001-of-00002.safetensors model-00002-of-00002.safetensors",) * 2,
        ("model.fp16-00001-of-00002.safetensors model.fp16-00002-of-00002.safetensors",) * 2,
        ("config.json flax_model.msgpack", ""),
    ),
)
def test_of_several_variants_one_is_chosen(names, chosen):
    assert weight_files(names.split()) == chosen.split()


def test_only_files_that_training_needs_are_downloaded():
    names = "model_index.json v1-5-pruned.ckpt v1-5.safetensors README.md unet/config.json unet/model.onnx".split()
    names += [f"unet/diffusion_pytorch_model{x}" for x in (".bin", ".safetensors", ".fp16.safetensors")]
    names += ["safety_checker/config.json", "safety_checker/model.safetensors", "scheduler/scheduler_config.json"]
    names += ["tokenizer/vocab.json", "tokenizer/merges.txt", "vae_decoder/model.onnx"]
    wanted = (
        "model_index.json scheduler/scheduler_config.json tokenizer/vocab.json tokenizer/merges.txt unet/config.json"
    )
    assert folder_files(names) == [*wanted.split(), "unet/diffusion_pytorch_model.safetensors"]


def test_opening_the_hub_module_loads_neither_torch_nor_the_hub_client():
    code = "import sys, lorakit.hub; print([m for m in ('torch', 'huggingface_hub', 'requests') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
