"""Sentences about images: from models of transformers, and from a server whose key is told to nobody else."""

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
from tiny_taggers import chatting, said, save_blip, save_florence, save_llava, save_qwen

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
    """A tiny model's folder: one that goes on with a beginning, one with tasks, two that answer in a chat."""
    if request.param is save_qwen:
        pytest.importorskip("torchvision")
    return request.param(tmp_path_factory.mktemp("vlm") / request.param.__name__)


def asked(folder, **settings):
    return taggers.load("vlm", {"source": str(folder), "max_new_tokens": 8, **settings})


def test_what_is_asked_is_the_prompt_or_what_suits_the_model(model):
    usual = asked(model)
    assert usual.prompt == {"save_blip": "", "save_florence": "<MORE_DETAILED_CAPTION>"}.get(model.name, vlm.PROMPT)
    mine = asked(model, prompt="a girl with ")
    assert mine.prompt == "a girl with"
    assert mine.read([RED]) != usual.read([RED])
    if "blip" in model.name:
        assert mine.read([RED])[0].startswith("a girl with ")


def test_a_sentence_is_what_a_plain_call_of_transformers_says_after_the_question(model):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor, plain = (c.from_pretrained(model) for c in (AutoProcessor, AutoModelForImageTextToText))
    is_chat = model.name in IMAGE
    text = f"user {IMAGE[model.name]} describe this image assistant" if is_chat else "describe this image"
    inputs = processor(images=[RED], text=[text], return_tensors="pt")
    tokens = plain.generate(**inputs, max_new_tokens=8, do_sample=False)[0]
    answer = processor.decode(tokens[inputs.input_ids.shape[1] if is_chat else 0 :], skip_special_tokens=True)
    assert answer and asked(model, prompt="describe this image").read([RED]) == [answer]


def test_sentences_are_no_longer_than_they_may_be(model):
    assert all(len(text.split()) <= 3 for text in asked(model, prompt="a", max_new_tokens=2).read([RED, BLUE]))


def test_a_batch_says_what_images_alone_would(model):
    mine = [RED, BLUE, RED.convert("L"), BLUE.convert("RGBA")]
    assert asked(model, batch_size=3).read(mine) == [asked(model).read([image])[0] for image in mine]


@pytest.mark.parametrize("missing", ["config.json", "rocessor_config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_of_a_model_is_explained(model, missing, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    for file in folder.glob(f"*{missing}"):  # processor_config.json is preprocessor_config.json in some
        file.unlink()
    with pytest.raises(TaggerError, match=re.escape(str(folder))):
        asked(folder)


def test_torn_weights_and_a_foreign_model_are_explained(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(TaggerError, match=f"{re.escape(str(folder))} is torn"):
        asked(folder)
    shutil.copy(model / "model.safetensors", weights)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(TaggerError, match="no vision-language model"):
        asked(folder)


def test_code_that_a_model_brings_is_not_run(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    told = json.loads((folder / "config.json").read_text())
    told |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForImageTextToText": "mine.M"}}
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(TaggerError, match="not run"):
        asked(folder)
    assert not (tmp_path / "ran").exists()


# ---- a server --------------------------------------------------------------------------------------------------------


@pytest.fixture
def chat(monkeypatch):
    """A server, asked again without a wait."""
    monkeypatch.setattr(server, "WAITS", (0.01, 0.01, 0.01))
    monkeypatch.setenv("MY_KEY", KEY)
    with chatting() as found:
        yield found


def remote(chat, **settings) -> server.Tagger:
    return taggers.load("server", {"address": chat.address, "model": "org/seer", **settings})


def refusal(chat, **settings) -> str:
    """The sentence that one image ends with; the key is neither in it nor in what is printed with it."""
    with pytest.raises(TaggerError) as refused:
        remote(chat, **settings).read([RED])
    printed = "".join(traceback.format_exception(refused.value))
    assert KEY not in printed and len(str(refused.value).splitlines()) == 1
    return str(refused.value)


def test_an_image_is_sent_with_the_prompt_as_the_protocol_has_it(chat):
    tagger = remote(chat, prompt="Who is it?", request={"temperature": 0, "seed": 7}, longest_side=64)
    assert tagger.read([Image.new("RGBA", (200, 100), "red")]) == ["a girl"]
    ((path, headers, body),) = chat.asked
    assert path == "/v1/chat/completions" and "Authorization" not in headers
    assert (body["model"], body["temperature"], body["seed"]) == ("org/seer", 0, 7)
    (message,) = body["messages"]
    text, image = message["content"]
    assert message["role"] == "user" and text == {"type": "text", "text": "Who is it?"}
    kind, data = image["image_url"]["url"].split(";base64,")
    sent = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == "data:image/jpeg" and sent.size == (64, 32) and sent.getpixel((5, 5))[0] > 240


def test_an_answer_becomes_one_line(chat):
    chat.answer = lambda number, body: said("  A girl,\n\nin a forest. ")
    assert remote(chat).read([RED, BLUE]) == ["A girl, in a forest."] * 2


def test_the_key_is_read_from_the_environment_and_told_to_the_server_alone(chat, monkeypatch, tmp_path, capfd):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    tagger = remote(chat, key_variable="MY_KEY")
    tagger.read([RED])
    assert chat.asked[0][1]["Authorization"] == f"Bearer {KEY}"
    told = f"{vars(tagger)} {tagger.config} {to_yaml(tagger.config)} {''.join(capfd.readouterr())}"
    assert KEY not in told
    monkeypatch.setenv("MY_KEY", f"{KEY}\n")  # as files end
    tagger.read([RED])
    assert chat.asked[1][1]["Authorization"] == f"Bearer {KEY}"
    remote(chat).read([RED])
    assert "Authorization" not in chat.asked[2][1], "neither a key nor a password of .netrc"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(chat, status):
    chat.answer = lambda number, body: said("late") if number == 3 else (status, {"Retry-After": "0"}, b"wait")
    assert remote(chat).read([RED]) == ["late"] and len(chat.asked) == 3


def test_a_server_that_stays_busy_is_told_with_what_it_says(chat):
    chat.answer = lambda number, body: (429, {}, f"slow down, {KEY}".encode())
    told = refusal(chat, key_variable="MY_KEY")
    assert "HTTP 429, slow down, …" in told and "Tried 4 times" in told and len(chat.asked) == 4


def test_a_server_that_is_not_there_is_told(chat):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    assert re.search(r"does not answer \(ConnectionError\): is it running", refusal(chat, address=address))


def test_a_server_that_is_silent_is_not_waited_for_without_end(chat):
    go = threading.Event()
    chat.answer = lambda number, body: (go.wait(20), said("late"))[1]
    tagger = remote(chat, timeout=1)
    try:
        server.WAITS = ()
        with pytest.raises(TaggerError, match=r"does not answer \(ReadTimeout\)"):
            tagger.read([RED])
    finally:
        go.set()


def test_an_answer_that_drips_without_end_is_not_waited_for(chat):
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


def test_an_answer_without_end_is_not_read_to_its_end(chat, monkeypatch):
    monkeypatch.setattr(server, "LARGEST", 20_000)
    megabytes = (b"x" * 1_000_000 for _ in range(2000))
    chat.answer = lambda number, body: (200, {"Content-Length": str(2_000_000_000)}, megabytes)
    assert "more than 20 KB" in refusal(chat) and next(megabytes, b"") != b"", "most was never sent"


def test_an_answer_that_breaks_off_is_asked_for_again(chat):
    cut = 200, {"Content-Length": "99"}, b'{"choices"'
    chat.answer = lambda number, body: cut if number == 1 else said("whole")
    assert remote(chat).read([RED]) == ["whole"] and len(chat.asked) == 2


def test_a_sentence_holds_no_thoughts_no_key_and_no_half_characters(chat):
    chat.answer = lambda number, body: said(f"<think>\nwhat is it?\n</think>\n\nA girl\ud800 with {KEY}.")
    assert remote(chat, key_variable="MY_KEY").read([RED]) == ["A girl? with …."]


ANSWERS = {
    "no access": ((401, {}, f"bad key {KEY}".encode()), "refuses the key in MY_KEY: HTTP 401, bad key …"),
    "nothing there": ((404, {}, b"no such model"), "is not there, or has no model 'org/seer'.*HTTP 404, no such model"),
    "a bad request": ((400, {}, b"max_tokens is unknown"), "refuses the request: HTTP 400, max_tokens is unknown"),
    "moved": ((301, {"Location": f"http://elsewhere.invalid/?{KEY}"}, b""), "HTTP 301.* to http://elsewhere.invalid/$"),
    "too deep": ((200, {}, b"[" * 100_000), "something else than a chat completion"),
    "thoughts alone": (said("<think> what is it?"), "empty answer"),
    "a web page": ((200, {}, b"<html>hello</html>"), "something else than a chat completion.*<html>hello"),
    "another form": ((200, {}, b'{"choices": []}'), "something else than a chat completion"),
    "a list": ((200, {}, b"[1]"), "something else than a chat completion"),
    "bytes": ((200, {}, bytes(range(256))), "something else than a chat completion"),
    "nothing": (said(""), "empty answer"),
    "blank": (said(" \n"), "empty answer"),
    "null": (said(None), "empty answer"),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_that_is_none_is_explained_and_not_asked_for_again(chat, kind):
    answer, told = ANSWERS[kind]
    chat.answer = lambda number, body: answer
    assert re.search(told, refusal(chat, key_variable="MY_KEY")) and len(chat.asked) == 1


def test_a_key_that_is_not_set_or_none_is_told_before_anything_is_sent(chat, monkeypatch):
    assert "variable OTHER_KEY is not set" in refusal(chat, key_variable="OTHER_KEY")
    monkeypatch.setenv("MY_KEY", f"{KEY}\n{KEY}")
    assert "MY_KEY holds what is no key" in refusal(chat, key_variable="MY_KEY")
    assert not chat.asked


@pytest.mark.parametrize("typed", [KEY, "hf_abcDEF", "lower_case", "A-B"])
def test_a_key_typed_in_the_place_of_its_name_is_refused_and_not_repeated(typed):
    with pytest.raises(ConfigError, match="name of an environment variable") as refused:
        taggers.load("server", {"model": "m", "key_variable": typed})
    assert typed not in str(refused.value)


@pytest.mark.parametrize(
    "address",
    ["ftp://x/v1", "api.openai.com/v1", "https://me:word@host/v1", "https://h/v1?k=1", "http://me:word", "http://["],
)
def test_an_address_that_is_none_or_holds_a_password_is_refused(address):
    with pytest.raises(ConfigError, match="address must be like") as refused:
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
def test_a_key_is_not_sent_in_the_clear_to_a_public_host(address, is_refused, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    settings = {"address": address, "model": "m"}
    taggers.load("server", settings)  # without a key everything goes
    if is_refused:
        with pytest.raises(TaggerError, match="plain http to a public host"):
            taggers.load("server", {**settings, "key_variable": "MY_KEY"})
    else:
        taggers.load("server", {**settings, "key_variable": "MY_KEY"})
