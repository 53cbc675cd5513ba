"""Passwords and tokens in addresses are used, and neither shown nor stored."""

from __future__ import annotations

import http.server
import threading
from base64 import b64encode

import pytest
import tiny

from lorakit import hub
from lorakit.cli import main
from lorakit.config import to_yaml
from lorakit.errors import UserError
from lorakit.hub import SourceError
from lorakit.project import Project
from lorakit.run.config import configure, read_config
from lorakit.secrets import VARIABLE, hidden, with_secret, without_secret

ADDRESSES = {
    "https://me:pa55word@host/a/b.safetensors": "https://host/a/b.safetensors",
    "https://me@host/a": "https://host/a",
    "https://host/a?token=pa55word": "https://host/a",
    "https://host/a?id=3&api_key=pa55word&type=Model": "https://host/a?id=3&type=Model",
    "https://host/a?X-Amz-Signature=pa55word&X-Amz-Credential=pa55word": "https://host/a",
    "https://host/a?Signature=pa55word&Expires=3&OSSAccessKeyId=pa55word": "https://host/a?Expires=3",
    "https://host/a?monkey=banana&design=7": "https://host/a?monkey=banana&design=7",
    "owner/name": "owner/name",
    "/a/path?token=x": "/a/path?token=x",
}


@pytest.mark.parametrize("full, bare", ADDRESSES.items())
def test_an_address_is_shown_and_stored_without_its_secret(monkeypatch, full, bare):
    monkeypatch.setenv(VARIABLE, "")
    assert without_secret(full) == bare and without_secret(bare) == bare
    assert "pa55word" not in hidden(f"could not get {full}, try again") + str(UserError(f"no {full}"))
    config = configure({"model": {"family": "sd15", "source": full}})
    assert config.model.source == bare and "pa55word" not in to_yaml(config)
    # this process, and those that it starts, still have the full one
    assert with_secret(bare) == full


@pytest.mark.parametrize("text", ["hf_abcdefghijklmnopqrstuvwx", "sk-abcdefghijklmnopqrst", "Bearer abcdefgh123"])
def test_keys_are_hidden_wherever_they_stand(text):
    assert hidden(f"it said {text}.").startswith("it said ***")


class Guarded(http.server.BaseHTTPRequestHandler):
    """A server that gives a file to `me` with the right password only."""

    def do_GET(self):
        right = self.headers.get("Authorization") == f"Basic {b64encode(b'me:pa55word').decode()}"
        self.send_response(200 if right else 401)
        self.send_header("Content-Length", "2" if right else "0")
        self.end_headers()
        self.wfile.write(b"hi" * right)

    def log_message(self, *_):
        pass


def test_a_run_from_a_guarded_address_stores_no_secret_and_says_how_to_give_it_again(tmp_path, monkeypatch, capsys):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Guarded)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(VARIABLE, "")
    bare = f"http://127.0.0.1:{server.server_port}/model.bin"
    full = bare.replace("//", "//me:pa55word@")
    tiny.save_images(tmp_path / "project" / "dataset", sizes=((64, 64),))
    run = Project(tmp_path / "project").run("run1")
    assert main(["train", str(run.project.folder), "--set", f"model.source={full}"]) == 2  # no model, but it came
    assert read_config(run).model.source == bare
    assert hub.fetch(bare).read_bytes() == b"hi"
    everything = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    out, err = capsys.readouterr()
    assert b"pa55word" not in everything and "pa55word" not in out + err
    # another session, on another machine, has neither file nor secret
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    monkeypatch.setenv(VARIABLE, "")
    with pytest.raises(SourceError, match=f"needs a login.*{VARIABLE}"):
        hub.fetch(bare)
    monkeypatch.setenv(VARIABLE, full)
    assert hub.fetch(bare).read_bytes() == b"hi"
    server.shutdown()
