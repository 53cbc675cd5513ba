"""Models are downloaded from ModelScope as from Hugging Face: resumed, checked, or refused with the reason."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from hub_server import running
from safetensors.torch import save
from tiny import save_sd15

from lorakit.hub import fetch, modelscope
from lorakit.hub.download import CHUNK, SourceError, downloading_nothing

REPO = "someone/tiny"
ODD_SIZE = b'{"Path": "a.safetensors", "Size": "much"}'


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> dict[str, bytes]:
    """The files of a tiny diffusers repository, with some that nobody needs."""
    folder = save_sd15(tmp_path_factory.mktemp("model"))
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return files | {"README.md": b"#", "sub/big 1.safetensors": save({"x": torch.zeros(60_000)})}


def publish(server, files: dict[str, bytes], revision: str = "master", **damaged: str) -> None:
    """Answer as ModelScope does: the list of files, and each of them."""
    entries = [{"Path": "unet", "Type": "tree", "Size": 0, "Sha256": ""}]
    for name, content in files.items():
        sha256 = damaged.get("sha256") or hashlib.sha256(content).hexdigest()
        entries.append({"Path": name, "Type": "blob", "Size": len(content), "Sha256": sha256})
        address = f"/models/{REPO}/resolve/{revision}/{name}".replace(" ", "%20")
        server.plain[address] = content, {"Content-Type": "application/octet-stream"}
    shown = json.dumps({"Code": 200, "Success": True, "Data": {"Files": entries}}).encode()
    server.plain[f"/api/v1/models/{REPO}/repo/files"] = shown, {"Content-Type": "application/json"}


@pytest.fixture
def site(model, monkeypatch, tmp_path):
    with running() as server:
        publish(server, model)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.address)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield server


def test_a_diffusers_model_is_downloaded_once_without_unneeded_files(site, model, tmp_path):
    folder = fetch(f"modelscope:{REPO}")
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {name: data for name, data in model.items() if name not in ("README.md", "sub/big 1.safetensors")}
    from diffusers import StableDiffusionPipeline

    assert StableDiffusionPipeline.from_pretrained(folder, safety_checker=None).unet
    site.asked.clear()
    with downloading_nothing():
        assert fetch(f"modelscope:{REPO}") == folder and not site.asked


@pytest.mark.parametrize("form", ["modelscope:{repo}/{file}", "{site}/models/{repo}/resolve/master/{file}"])
def test_an_interrupted_download_is_resumed(form, site, model, tmp_path):
    name = "sub/big 1.safetensors"
    path = f"/models/{REPO}/resolve/master/sub/big%201.safetensors"
    site.cut[path] = CHUNK + 100
    source = form.format(site=site.address, repo=REPO, file=name)
    assert fetch(source, tmp_path / "models").read_bytes() == model[name]
    assert site.ranges(path)[0] is None and site.ranges(path)[1].startswith("bytes=")


def test_files_of_a_tagger_and_of_a_revision(site, tmp_path):
    publish(site, {"model.onnx": b"onnx", "tags.csv": b"a"}, revision="v2")
    folder = fetch(f"modelscope:{REPO}@v2", tmp_path, ("*.onnx", "tags.csv"))
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "tags.csv"]
    with pytest.raises(SourceError, match=r"someone/tiny on ModelScope has no \*\.gguf"):
        fetch(f"modelscope:{REPO}@v2", tmp_path, ("*.gguf",))


@pytest.mark.parametrize(
    "source, shown",
    [
        (
            "modelscope:nobody/nothing",
            r"There is no model nobody/nothing with a revision master at http.* \(HTTP 404\)",
        ),
        (f"modelscope:{REPO}/none.safetensors", "someone/tiny on ModelScope has no file none.safetensors"),
        ("modelscope:single", "is no model on ModelScope; write modelscope:owner/name"),
        ("modelscope:", "is no model on ModelScope"),
    ],
)
def test_an_unavailable_model_is_one_sentence(site, source, shown):
    with pytest.raises(SourceError, match=shown) as refused:
        fetch(source)
    assert len(str(refused.value).splitlines()) == 1


def test_damage_and_paths_that_lead_out_are_refused(site, tmp_path):
    publish(site, {"a.safetensors": b"abc"}, sha256="0" * 64)
    with pytest.raises(SourceError, match="arrived damaged"):
        fetch(f"modelscope:{REPO}/a.safetensors", tmp_path)
    for name in ("../a.safetensors", "/a.safetensors", "..\\a.safetensors", "\ud800.safetensors"):
        publish(site, {name: b"abc"})
        with pytest.raises(SourceError, match="has no file"):
            fetch(f"modelscope:{REPO}/{name}", tmp_path)
    for odd in (b"<html>", b"5", b'{"Data": null}', *(b'{"Data": {"Files": [%s]}}' % one for one in (b"5", ODD_SIZE))):
        site.plain[f"/api/v1/models/{REPO}/repo/files"] = odd, {"Content-Type": "application/json"}
        with pytest.raises(SourceError, match="does not answer like ModelScope"):
            fetch(f"modelscope:{REPO}", tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_site_that_does_not_answer_is_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match="Could not download someone/tiny from http://127.0.0.1:9 .ConnectionError"):
        fetch(f"modelscope:{REPO}", tmp_path)


@pytest.mark.parametrize(
    "source, meant",
    [
        ("modelscope:a/b", "a/b"),
        ("https://modelscope.cn/models/a/b", "a/b"),
        ("https://www.modelscope.cn/models/a/b/files", "a/b"),
        ("https://www.modelscope.cn/models/a/b/summary?tab=x", "a/b"),
        ("https://modelscope.cn/models/a/b/file/view/master/x%2Fy.safetensors?status=2", "a/b@master/x/y.safetensors"),
        ("https://modelscope.cn/models/a/b/resolve/v1/y.safetensors", "a/b@v1/y.safetensors"),
        ("https://huggingface.co/a/b", None),
        ("https://modelscope.cn/datasets/a/b", None),
        ("a/b", None),
        ("/models/a/b", None),
    ],
)
def test_which_sources_mean_modelscope(source, meant, monkeypatch):
    for name in ("MODELSCOPE_ENDPOINT", "MODELSCOPE_DOMAIN"):
        monkeypatch.delenv(name, raising=False)
    assert modelscope.model_id(source) == meant
    monkeypatch.setenv("MODELSCOPE_DOMAIN", "www.modelscope.ai")
    assert modelscope.endpoint() == "https://www.modelscope.ai"
