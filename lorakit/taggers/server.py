"""Sentences from a server with OpenAI's chat API: Ollama, LM Studio, vLLM, or a service on the internet."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import socket
import time
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from lorakit.config import Config, Field, setting
from lorakit.secrets import with_secret
from lorakit.taggers import ImagesRefused, TaggerError
from lorakit.taggers._sentences import PROMPT, in_one_line, reduced

ADDRESSES = (
    "http://127.0.0.1:11434/v1",  # Ollama
    "http://127.0.0.1:1234/v1",  # LM Studio
    "http://127.0.0.1:8000/v1",  # vLLM
    "http://127.0.0.1:8080/v1",  # llama.cpp
    "https://api.openai.com/v1",
    "https://openrouter.ai/api/v1",
    "https://dashscope.aliyuncs.com/compatible-mode/v1",
)
MODELS = ("qwen2.5vl:7b", "gemma3:12b", "Qwen/Qwen2.5-VL-7B-Instruct", "qwen-vl-max", "gpt-4o")
KEYS = ("OPENAI_API_KEY", "OPENROUTER_API_KEY", "DASHSCOPE_API_KEY")
CONNECT_TIMEOUT = 15  # s
# s before each retry.
WAITS = (1.0, 2.0, 4.0, 8.0)
# s; a server that asks for a longer wait is retried after this.
MAX_WAIT = 60.0
# HTTP status that some servers give for single images, because of their content or size.
REFUSED = (400, 413, 422)
# HTTP status that is retried.
BUSY = (408, 429, 500, 502, 503, 504)
# Of a reply. A caption is far shorter: more than this is a web page or an endless stream.
MAX_BYTES = 300_000
# Reasoning models put their thoughts before their answer; without the end mark the answer is missing.
THOUGHTS = r"(?s)^\s*<think>.*?(</think>|\Z)"


@dataclass(frozen=True, kw_only=True)
class Config(Config):
    """Which server, which of its models, and the question to it."""

    address: str = setting(
        ADDRESSES[0],
        help="the server's URL up to /v1; your images are sent there",
        ui=Field(basic=True, suggestions=ADDRESSES),
    )
    model: str = setting(
        help="a vision model of this server, by the server's name for it", ui=Field(basic=True, suggestions=MODELS)
    )
    key_variable: str = setting(
        "",
        help="NAME of the environment variable that holds the API key, such as OPENAI_API_KEY; empty = no key; the key "
        "itself is never stored",
        ui=Field(label="API key variable", basic=True, suggestions=KEYS),
    )
    prompt: str = setting(PROMPT, help="question about each image", ui=Field(basic=True, lines=5))
    longest_side: int = setting(
        1024, help="larger images are scaled down before they are sent", unit="px", range=(64, 8192)
    )
    timeout: float = setting(120.0, help="maximum time for a reply", unit="s", range=(1, 3600))
    request: dict = setting(
        {"temperature": 0, "max_tokens": 300},
        help="more fields of each request; remove those that the server refuses",
        ui=Field(label="request fields"),
    )

    def conflicts(self) -> list[str]:
        """A wrong address, a key instead of the name of its variable (the key is not repeated), empty fields."""
        problems = []
        # with a login that was taken off when the settings were read
        if not _is_address(with_secret(self.address)):
            problems.append(
                "address must look like https://host/v1 or http://127.0.0.1:11434/v1, without user name or key."
            )
        if self.key_variable and not re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", self.key_variable):
            problems.append(
                "key_variable is the name of an environment variable (capital letters, digits and _), such as "
                "OPENAI_API_KEY, and not the key itself: run os.environ['OPENAI_API_KEY'] = ... in a cell that you do "
                "not save."
            )
        if not self.model.strip():
            problems.append("model is empty: enter a vision model of the server.")
        if not self.prompt.strip():
            problems.append("prompt is empty: write the question about each image.")
        return problems


class Tagger:
    """See `lorakit.taggers.Tagger`. Source of the protocol: OpenAI's API reference, chat completions with images."""

    output, batch_size = "sentence", 1
    categories: dict[str, str] = {}

    def __init__(self, config: Config):
        self.config = config
        # the model's name is the author of its sentences, and part of a file name
        self.name = re.sub(r"[^\w.-]+", "-", config.model.strip().rpartition("/")[2]) or "server"
        self.prompt = config.prompt
        self._url = config.address.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self.runs_on = urlsplit(self._url).netloc
        _check_encryption(self._url, has_key=bool(self._key()))

    def run(self, images: list[Image.Image]) -> list[str]:
        """A sentence for each image. Raises TaggerError; ImagesRefused if the image may be the reason."""
        return [self._sentence(*self._reply(image)) for image in images]

    def _reply(self, image: Image.Image) -> tuple[int, str]:
        """Status and text of the server's reply; retried while the server is busy or unreachable."""
        import requests

        body, timeouts = self._request(image), (CONNECT_TIMEOUT, self.config.timeout)
        # a redirect could send image and key to another server
        options = {"auth": self._add_key, "allow_redirects": False, "stream": True}
        for wait in (*WAITS, None):
            # requests' own timeout is one for each packet, so that a slow reply could take forever
            deadline = time.monotonic() + self.config.timeout
            try:
                with requests.post(self._url, json=body, timeout=timeouts, **options) as reply:
                    text = self._text(reply, deadline)
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                problem = f"does not answer ({type(error).__name__}): is it running, and is the address right?"
            except requests.RequestException as error:
                # `from None`: the original exception holds the request, and with it the key
                raise TaggerError(f"The request to {self._url} failed ({type(error).__name__}).") from None
            else:
                # every other status is final, a wrong key for example: _sentence explains it
                if reply.status_code not in BUSY:
                    return reply.status_code, text
                problem = f"is busy or failing: {_excerpt(reply.status_code, text)}"
                wait = wait and max(wait, _retry_after(reply.headers.get("Retry-After", "")))
            if wait is not None:
                time.sleep(wait)
        raise TaggerError(f"{self._url} {problem} Tried {len(WAITS) + 1} times; run it again later to continue.")

    def _text(self, reply: Any, deadline: float) -> str:
        """The text of a reply, or where it redirects to. Stops after MAX_BYTES, and at `deadline` (monotonic s)."""
        import requests

        if reply.is_redirect:
            return f"it redirects to {reply.headers['Location'].partition('?')[0]}"
        data = bytearray()
        # byte by byte: larger pieces would be waited for, past the deadline, while the server drips
        for part in reply.iter_content(1):
            data += part
            if len(data) > MAX_BYTES:
                raise TaggerError(
                    f"{self._url} did not return a chat completion, but more than {MAX_BYTES // 1000} KB. Does the "
                    "address end in /v1?"
                )
            if time.monotonic() > deadline:
                raise requests.Timeout
        return self._without_key(data.decode("utf-8", "replace"))

    def _request(self, image: Image.Image) -> dict[str, Any]:
        """The JSON of a request: the settings' fields, the model, and the prompt with the image as JPEG."""
        data = io.BytesIO()
        reduced(image, self.config.longest_side).save(data, "JPEG", quality=95)
        url = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
        content = [{"type": "text", "text": self.prompt}, {"type": "image_url", "image_url": {"url": url}}]
        return {**self.config.request, "model": self.config.model, "messages": [{"role": "user", "content": content}]}

    def _add_key(self, request: Any) -> Any:
        """Add the key to a request. With an auth function, requests also sends no password of a .netrc file."""
        if key := self._key():
            request.headers["Authorization"] = f"Bearer {key}"
        return request

    def _key(self) -> str:
        """The key, read from the environment each time: it is stored nowhere, so that no message can contain it."""
        name = self.config.key_variable
        key = os.environ.get(name, "").strip() if name else ""
        if name and not re.fullmatch(r"[!-~]+", key):
            raise TaggerError(
                f"The environment variable {name} {'holds no valid key' if key else 'is not set'}: run "
                f"os.environ[{name!r}] = ... in a cell that you do not save, or clear key_variable if none is needed."
            )
        return key

    def _sentence(self, status: int, reply: str) -> str:
        """The sentence in a reply. Raises TaggerError with the reason for any other reply."""
        excerpt = _excerpt(status, reply)
        if status in (401, 403):
            refused = f"the key in {self.config.key_variable}" if self.config.key_variable else "requests without a key"
            raise TaggerError(f"{self._url} refuses {refused}: {excerpt}")
        if status == 404:
            raise TaggerError(
                f"{self._url} does not exist, or has no model {self.config.model!r}: {excerpt} The address usually "
                "ends in /v1."
            )
        if status != 200:
            raise (ImagesRefused if status in REFUSED else TaggerError)(f"{self._url} refuses the request: {excerpt}")
        try:
            text = json.loads(reply)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise TaggerError(
                f"{self._url} did not return a chat completion: {excerpt} Does the address end in /v1?"
            ) from None
        sentence = in_one_line(re.sub(THOUGHTS, "", text)) if isinstance(text, str) else ""
        if not sentence:
            raise ImagesRefused(
                f"{self._url} gave an empty answer: does {self.config.model!r} see images? A reasoning model needs a "
                "larger max_tokens in request."
            )
        return self._without_key(sentence)

    def _without_key(self, text: str) -> str:
        """A server's text with the key replaced, should the server repeat it."""
        return text.replace(self._key(), "…") if self._key() else text


def _excerpt(status: int, text: str) -> str:
    """The status and the beginning of a reply, for messages."""
    return f"HTTP {status}, {in_one_line(text)[:300] or 'no text'}"


def _is_address(text: str) -> bool:
    """Whether a text is the URL of a server, without user name, password or key."""
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0 and not {"@", "?"} & {*text}
    # A port that is no number, or an incomplete IPv6 address.
    except ValueError:
        return False


def _check_encryption(url: str, has_key: bool) -> None:
    """Raise TaggerError if a key would be sent unencrypted over the public internet."""
    host = urlsplit(url)
    if host.scheme == "https" or not has_key:
        return
    try:
        addresses = socket.getaddrinfo(host.hostname, None)
    except (OSError, UnicodeError) as error:
        raise TaggerError(f"There is no server {host.hostname!r} ({error}): check the address.") from error
    # "%" begins the interface of a local IPv6 address, which ip_address does not accept
    if not all(ip_address(address[4][0].partition("%")[0]).is_private for address in addresses):
        raise TaggerError(
            f"{url} is plain http to a public host: the key could be read on the way. Use https, a server on this "
            "machine or in its network, or no key."
        )


def _retry_after(header: str) -> float:
    """The seconds of a Retry-After header, at most MAX_WAIT; 0 without one."""
    return min(float(header), MAX_WAIT) if re.fullmatch(r"\d+(\.\d+)?", header) else 0.0
