"""Captioners: sentences from models of transformers, and from a server, to which alone the API key is sent."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import socket
import threading
import time
import traceback

import pytest
from PIL import Image
from tiny_taggers import chat_server, completion, save_blip, save_florence, save_llava, save_qwen

from lorakit import taggers
from lorakit.config import ConfigError, to_yaml
from lorakit.taggers import TaggerError, server, vlm

RED, BLUE = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (30, 90), "blue")
KEY = "sk-verysecret123"

# ---- models of transformers ------------------------------------------------------------------------------------------


MODELS = {save_blip: "BLIP", save_florence: "Florence-2", save_llava: "LLaVA", save_qwen: "Qwen2-VL"}
IMAGE = {"save_llava": "<image>", "save_qwen": "<|image_pad|>"}  # what stands for an image in a chat


@pytest.fixture(scope="module", params=MODELS, ids=MODELS.values())
def model(request, tmp_path_factory):
    """A tiny model's folder: one that completes a beginning, one with tasks, two that answer in a chat."""
    if request.param is save_qwen:
        pytest.importorskip("torchvision")
    return request.param(tmp_path_factory.mktemp("vlm") / request.param.__name__)


def captioner(folder, **settings):
    return taggers.load("vlm", {"source": str(folder), "max_new_tokens": 8, **settings})


def test_the_prompt_is_the_users_or_the_models_default(model):
    default = captioner(model)
    assert default.prompt == {"save_blip": "", "save_florence": "<MORE_DETAILED_CAPTION>"}.get(model.name, vlm.PROMPT)
    custom = captioner(model, prompt="a girl with ")
    assert custom.prompt == "a girl with"
    assert custom.run([RED]) != default.run([RED])
    if "blip" in model.name:
        assert custom.run([RED])[0].startswith("a girl with ")


def test_a_sentence_equals_that_of_a_plain_call_of_transformers(model):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor, plain = (c.from_pretrained(model) for c in (AutoProcessor, AutoModelForImageTextToText))
    is_chat = model.name in IMAGE
    text = f"user {IMAGE[model.name]} describe this image assistant" if is_chat else "describe this image"
    inputs = processor(images=[RED], text=[text], return_tensors="pt")
    tokens = plain.generate(**inputs, max_new_tokens=8, do_sample=False)[0]
    answer = processor.decode(tokens[inputs.input_ids.shape[1] if is_chat else 0 :], skip_special_tokens=True)
    assert answer and captioner(model, prompt="describe this image").run([RED]) == [answer]


def test_max_new_tokens_limits_the_sentence(model):
    assert all(len(text.split()) <= 3 for text in captioner(model, prompt="a", max_new_tokens=2).run([RED, BLUE]))


def test_a_batch_gives_the_sentences_of_single_images(model):
    images = [RED, BLUE, RED.convert("L"), BLUE.convert("RGBA")]
    assert captioner(model, batch_size=3).run(images) == [captioner(model).run([image])[0] for image in images]


@pytest.mark.parametrize("missing", ["config.json", "rocessor_config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_of_a_model_is_explained(model, missing, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    for file in folder.glob(f"*{missing}"):  # processor_config.json is preprocessor_config.json in some
        file.unlink()
    with pytest.raises(TaggerError, match=re.escape(str(folder))):
        captioner(folder)


def test_damaged_weights_and_a_wrong_model_are_explained(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(TaggerError, match=f"{re.escape(str(weights))} is truncated"):
        captioner(folder)
    shutil.copy(model / "model.safetensors", weights)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(TaggerError, match="no vision-language model"):
        captioner(folder)


def test_code_that_comes_with_a_model_is_not_run(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForImageTextToText": "mine.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(TaggerError, match="not run"):
        captioner(folder)
    assert not (tmp_path / "ran").exists()


# ---- a server --------------------------------------------------------------------------------------------------------


@pytest.fixture
def chat(monkeypatch):
    """A server; retries wait 10 ms."""
    monkeypatch.setattr(server, "WAITS", (0.01, 0.01, 0.01))
    monkeypatch.setenv("MY_KEY", KEY)
    with chat_server() as chat:
        yield chat


def remote(chat, **settings) -> server.Tagger:
    return taggers.load("server", {"address": chat.address, "model": "org/seer", **settings})


def refusal(chat, **settings) -> str:
    """The error message for one image; the key is neither in it nor in its traceback."""
    with pytest.raises(TaggerError) as refused:
        remote(chat, **settings).run([RED])
    printed = "".join(traceback.format_exception(refused.value))
    assert KEY not in printed and len(str(refused.value).splitlines()) == 1
    return str(refused.value)


def test_a_request_follows_the_protocol(chat):
    tagger = remote(chat, prompt="Who is it?", request={"temperature": 0, "seed": 7}, longest_side=64)
    assert tagger.run([Image.new("RGBA", (200, 100), "red")]) == ["a girl"]
    ((path, headers, body),) = chat.requests
    assert path == "/v1/chat/completions" and "Authorization" not in headers
    assert (body["model"], body["temperature"], body["seed"]) == ("org/seer", 0, 7)
    (message,) = body["messages"]
    text, image = message["content"]
    assert message["role"] == "user" and text == {"type": "text", "text": "Who is it?"}
    kind, data = image["image_url"]["url"].split(";base64,")
    sent = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == "data:image/jpeg" and sent.size == (64, 32) and sent.getpixel((5, 5))[0] > 240


def test_an_answer_becomes_one_line(chat):
    chat.answer = lambda number, body: completion("  A girl,\n\nin a forest. ")
    assert remote(chat).run([RED, BLUE]) == ["A girl, in a forest."] * 2


def test_the_key_is_read_from_the_environment_and_sent_to_the_chatalone(chat, monkeypatch, tmp_path, capfd):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    tagger = remote(chat, key_variable="MY_KEY")
    tagger.run([RED])
    assert chat.requests[0][1]["Authorization"] == f"Bearer {KEY}"
    visible = f"{vars(tagger)} {tagger.config} {to_yaml(tagger.config)} {''.join(capfd.readouterr())}"
    assert KEY not in visible
    monkeypatch.setenv("MY_KEY", f"{KEY}\n")  # as files end
    tagger.run([RED])
    assert chat.requests[1][1]["Authorization"] == f"Bearer {KEY}"
    remote(chat).run([RED])
    assert "Authorization" not in chat.requests[2][1], "neither a key nor a password of .netrc"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_chatis_retried(chat, status):
    chat.answer = lambda number, body: completion("late") if number == 3 else (status, {"Retry-After": "0"}, b"wait")
    assert remote(chat).run([RED]) == ["late"] and len(chat.requests) == 3


def test_the_reply_of_a_chatthat_stays_busy_is_reported(chat):
    chat.answer = lambda number, body: (429, {}, f"slow down, {KEY}".encode())
    message = refusal(chat, key_variable="MY_KEY")
    assert "HTTP 429, slow down, …" in message and "Tried 4 times" in message and len(chat.requests) == 4


def test_an_unreachable_chatis_reported(chat):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    assert re.search(r"does not answer \(ConnectionError\): is it running", refusal(chat, address=address))


def test_a_silent_chattimes_out(chat):
    go = threading.Event()
    chat.answer = lambda number, body: (go.wait(20), completion("late"))[1]
    tagger = remote(chat, timeout=1)
    try:
        server.WAITS = ()
        with pytest.raises(TaggerError, match=r"does not answer \(ReadTimeout\)"):
            tagger.run([RED])
    finally:
        go.set()


def test_a_reply_that_drips_without_end_times_out(chat):
    go = threading.Event()
    drops = (b" " for _ in range(1000) if not go.wait(0.05))
    chat.answer = lambda number, body: (200, {"Content-Length": "1000"}, drops)
    server.WAITS = ()
    began = time.monotonic()
    try:
        assert "does not answer (Timeout)" in refusal(chat, timeout=1)
        assert time.monotonic() - began < 5
    finally:
        go.set()


def test_an_endless_reply_is_cut(chat, monkeypatch):
    monkeypatch.setattr(server, "MAX_BYTES", 20_000)
    megabytes = (b"x" * 1_000_000 for _ in range(2000))
    chat.answer = lambda number, body: (200, {"Content-Length": str(2_000_000_000)}, megabytes)
    assert "more than 20 KB" in refusal(chat) and next(megabytes, b"") != b"", "most was never sent"


def test_an_incomplete_reply_is_retried(chat):
    cut = 200, {"Content-Length": "99"}, b'{"choices"'
    chat.answer = lambda number, body: cut if number == 1 else completion("whole")
    assert remote(chat).run([RED]) == ["whole"] and len(chat.requests) == 2


def test_a_sentence_holds_no_reasoning_no_key_and_no_surrogates(chat):
    chat.answer = lambda number, body: completion(f"<think>\nwhat is it?\n</think>\n\nA girl\ud800 with {KEY}.")
    assert remote(chat, key_variable="MY_KEY").run([RED]) == ["A girl? with …."]


ANSWERS = {
    "no access": ((401, {}, f"bad key {KEY}".encode()), "refuses the key in MY_KEY: HTTP 401, bad key …"),
    "nothing there": (
        (404, {}, b"no such model"),
        "does not exist, or has no model 'org/seer'.*HTTP 404, no such model",
    ),
    "a bad request": ((400, {}, b"max_tokens is unknown"), "refuses the request: HTTP 400, max_tokens is unknown"),
    "moved": ((301, {"Location": f"http://elsewhere.invalid/?{KEY}"}, b""), "HTTP 301.* to http://elsewhere.invalid/$"),
    "too deep": ((200, {}, b"[" * 100_000), "did not return a chat completion"),
    "thoughts alone": (completion("<think> what is it?"), "empty answer"),
    "a web page": ((200, {}, b"<html>hello</html>"), "did not return a chat completion.*<html>hello"),
    "another form": ((200, {}, b'{"choices": []}'), "did not return a chat completion"),
    "a list": ((200, {}, b"[1]"), "did not return a chat completion"),
    "bytes": ((200, {}, bytes(range(256))), "did not return a chat completion"),
    "nothing": (completion(""), "empty answer"),
    "blank": (completion(" \n"), "empty answer"),
    "null": (completion(None), "empty answer"),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_wrong_reply_is_explained_and_not_retried(chat, kind):
    answer, message = ANSWERS[kind]
    chat.answer = lambda number, body: answer
    assert re.search(message, refusal(chat, key_variable="MY_KEY")) and len(chat.requests) == 1


def test_a_missing_or_invalid_key_is_reported_before_anything_is_sent(chat, monkeypatch):
    assert "variable OTHER_KEY is not set" in refusal(chat, key_variable="OTHER_KEY")
    monkeypatch.setenv("MY_KEY", f"{KEY}\n{KEY}")
    assert "MY_KEY holds no valid key" in refusal(chat, key_variable="MY_KEY")
    assert not chat.requests


@pytest.mark.parametrize("typed", [KEY, "hf_abcDEF", "lower_case", "A-B"])
def test_a_key_typed_instead_of_its_variables_name_is_refused_and_not_repeated(typed):
    with pytest.raises(ConfigError, match="name of an environment variable") as refused:
        taggers.load("server", {"model": "m", "key_variable": typed})
    assert typed not in str(refused.value)


@pytest.mark.parametrize(
    "address",
    ["ftp://x/v1", "api.openai.com/v1", "https://me:word@host/v1", "https://h/v1?k=1", "http://me:word", "http://["],
)
def test_a_wrong_address_or_one_with_a_password_is_refused(address):
    with pytest.raises(ConfigError, match="address must look like") as refused:
        taggers.load("server", {"address": address, "model": "m"})
    assert "word" not in str(refused.value)


@pytest.mark.parametrize(
    ("address", "is_refused"),
    [
        ("http://8.8.8.8/v1", True),
        ("http://[2001:4860:4860::8888]:80/v1", True),
        ("https://8.8.8.8/v1", False),
        ("http://127.0.0.1:9/v1", False),
        ("http://192.168.1.7:8000/v1", False),
        ("http://[::1]:9/v1", False),
        ("http://localhost:9/v1", False),
    ],
)
def test_a_key_is_not_sent_unencrypted_to_a_public_host(address, is_refused, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    settings = {"address": address, "model": "m"}
    taggers.load("server", settings)  # without a key any address is allowed
    if is_refused:
        with pytest.raises(TaggerError, match="plain http to a public host"):
            taggers.load("server", {**settings, "key_variable": "MY_KEY"})
    else:
        taggers.load("server", {**settings, "key_variable": "MY_KEY"})
