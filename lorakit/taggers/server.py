"""Sentences from a server that speaks OpenAI's chat protocol: Ollama, LM Studio, vLLM, or one on the internet."""

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
from lorakit.taggers import Refused, TaggerError
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
WAITS = (1.0, 2.0, 4.0, 8.0)  # s before each further try
LONGEST_WAIT = 60.0  # s that a server may ask for
REFUSED = (400, 413, 422)  # by some servers for what they see in an image, or its size
BUSY = (408, 429, 500, 502, 503, 504)
LARGEST = 300_000  # bytes of an answer
THOUGHTS = r"(?s)^\s*<think>.*?(</think>|\Z)"  # of models that think aloud first


@dataclass(frozen=True, kw_only=True)
class Config(Config):
    """Which server, which of its models, and what it is asked."""

    address: str = setting(
        ADDRESSES[0],
        help="where the server answers, up to /v1; images are sent there",
        ui=Field(basic=True, suggestions=ADDRESSES),
    )
    model: str = setting(
        help="a model of that server that sees images, as the server names it", ui=Field(basic=True, suggestions=MODELS)
    )
    key_variable: str = setting(
        "",
        help="NAME of the environment variable that holds the key, such as OPENAI_API_KEY; empty: none is sent; the "
        "key itself is never kept",
        ui=Field(label="key's variable", basic=True, suggestions=KEYS),
    )
    prompt: str = setting(PROMPT, help="what is asked about each image", ui=Field(basic=True, lines=5))
    longest_side: int = setting(
        1024, help="larger images are made smaller before they are sent", unit="px", range=(64, 8192)
    )
    timeout: float = setting(120.0, help="how long an answer may take", unit="s", range=(1, 3600))
    request: dict = setting(
        {"temperature": 0, "max_tokens": 300},
        help="further fields of each request; remove those that the server refuses",
        ui=Field(label="request fields"),
    )

    def conflicts(self) -> list[str]:
        """An address that is none, a key in the place of its variable's name (which is not repeated), no question."""
        problems = []
        if not _is_address(self.address):
            problems.append("address must be like https://host/v1 or http://127.0.0.1:11434/v1, without name or key.")
        if self.key_variable and not re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", self.key_variable):
            problems.append(
                "key_variable is the name of an environment variable (capital letters, digits and _), such as "
                "OPENAI_API_KEY, and not the key itself: run os.environ['OPENAI_API_KEY'] = ... in a cell that you do "
                "not save."
            )
        if not self.model.strip():
            problems.append("model is empty: name a model of the server that sees images.")
        if not self.prompt.strip():
            problems.append("prompt is empty: write what the server is asked about each image.")
        return problems


class Tagger:
    """See `lorakit.taggers.Tagger`. Source of the protocol: OpenAI's reference of chat completions with images."""

    output, batch = "sentence", 1
    categories: dict[str, str] = {}

    def __init__(self, config: Config):
        self.config = config
        self.name = re.sub(r"[^\w.-]+", "-", config.model.strip().rpartition("/")[2]) or "server"
        self.prompt = config.prompt
        self._url = config.address.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self.runs_on = urlsplit(self._url).netloc
        _check_way(self._url, has_key=bool(self._key()))

    def read(self, images: list[Image.Image]) -> list[str]:
        """A sentence for each image. Raises TaggerError for whatever is not an answer, Refused where it may be for
        the image's sake."""
        return [self._sentence(*self._answered(image)) for image in images]

    def _answered(self, image: Image.Image) -> tuple[int, str]:
        """Status and text of the server's reply, asked again while it is busy or out of reach."""
        import requests

        told = self._request(image)
        for wait in (*WAITS, None):
            end = time.monotonic() + self.config.timeout
            more = {"auth": self._signed, "allow_redirects": False, "stream": True}
            try:
                with requests.post(self._url, json=told, timeout=(15, self.config.timeout), **more) as reply:
                    text = self._text(reply, end)
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                trouble = f"does not answer ({type(error).__name__}): is it running, and is the address right?"
            except requests.RequestException as error:
                # `from None`: what lies behind holds the request, and with it the key
                raise TaggerError(f"{self._url} cannot be asked ({type(error).__name__}).") from None
            else:
                if reply.status_code not in BUSY:
                    return reply.status_code, text
                trouble = f"is busy or in trouble: {self._said(reply.status_code, text)}"
                wait = wait and max(wait, _asked_wait(reply.headers.get("Retry-After", "")))
            if wait is not None:
                time.sleep(wait)
        raise TaggerError(f"{self._url} {trouble} Tried {len(WAITS) + 1} times; run it again later to go on.")

    def _text(self, reply: Any, end: float) -> str:
        """All that a reply says, or where it sends one; neither more than LARGEST nor after the time `end`."""
        import requests

        if reply.is_redirect:
            return f"it sends on to {reply.headers['Location'].partition('?')[0]}"
        data = bytearray()
        for part in reply.iter_content(1):  # more at once would be waited for as long as any comes
            data += part
            if len(data) > LARGEST:
                raise TaggerError(
                    f"{self._url} answers something else than a chat completion: more than {LARGEST // 1000} KB. "
                    "Does the address end in /v1?"
                )
            if time.monotonic() > end:
                raise requests.Timeout
        return self._without_key(data.decode("utf-8", "replace"))

    def _request(self, image: Image.Image) -> dict[str, Any]:
        data = io.BytesIO()
        reduced(image, self.config.longest_side).save(data, "JPEG", quality=95)
        url = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
        content = [{"type": "text", "text": self.prompt}, {"type": "image_url", "image_url": {"url": url}}]
        return {**self.config.request, "model": self.config.model, "messages": [{"role": "user", "content": content}]}

    def _signed(self, request: Any) -> Any:
        """Puts the key on a request; that there is such a function also keeps other passwords (.netrc) at home."""
        if key := self._key():
            request.headers["Authorization"] = f"Bearer {key}"
        return request

    def _key(self) -> str:
        """The key, read anew each time: it is kept nowhere."""
        name = self.config.key_variable
        key = os.environ.get(name, "").strip() if name else ""
        if name and not re.fullmatch(r"[!-~]+", key):
            raise TaggerError(
                f"The environment variable {name} {'holds what is no key' if key else 'is not set'}: run "
                f"os.environ[{name!r}] = ... in a cell that you do not save, or clear key_variable if none is needed."
            )
        return key

    def _sentence(self, status: int, said: str) -> str:
        """What a reply with this status and text says of the image."""
        told = self._said(status, said)
        if status in (401, 403):
            asked = f"the key in {self.config.key_variable}" if self.config.key_variable else "requests without a key"
            raise TaggerError(f"{self._url} refuses {asked}: {told}")
        if status == 404:
            raise TaggerError(
                f"{self._url} is not there, or has no model {self.config.model!r}: {told} The address usually ends in "
                "/v1."
            )
        if status != 200:
            raise (Refused if status in REFUSED else TaggerError)(f"{self._url} refuses the request: {told}")
        try:
            text = json.loads(said)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise TaggerError(
                f"{self._url} answers something else than a chat completion: {told} Does the address end in /v1?"
            ) from None
        sentence = in_one_line(re.sub(THOUGHTS, "", text)) if isinstance(text, str) else ""
        if not sentence:
            raise Refused(
                f"{self._url} gave an empty answer: does {self.config.model!r} see images? A model that thinks first "
                "needs a larger max_tokens in request."
            )
        return self._without_key(sentence)

    def _said(self, status: int, text: str) -> str:
        """Status and the beginning of what the server says."""
        return f"HTTP {status}, {in_one_line(text)[:300] or 'nothing more'}"

    def _without_key(self, text: str) -> str:
        """What a server says, should it repeat the key."""
        return text.replace(self._key(), "…") if self._key() else text


def _is_address(text: str) -> bool:
    """Whether it is the address of a server, with no name, password or key in it."""
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0 and not {"@", "?"} & {*text}
    except ValueError:  # a port that is no number, half of an IPv6 address
        return False


def _check_way(url: str, has_key: bool) -> None:
    """Refuse to send a key in the clear to the public internet."""
    host = urlsplit(url)
    if host.scheme == "https" or not has_key:
        return
    try:
        found = socket.getaddrinfo(host.hostname, None)
    except (OSError, UnicodeError) as error:
        raise TaggerError(f"There is no server {host.hostname!r} ({error}): check the address.") from error
    if not all(ip_address(address[4][0].partition("%")[0]).is_private for address in found):
        raise TaggerError(
            f"{url} is plain http to a public host: everyone on the way could read the key. Use https, or a server on "
            "this machine or in its network, or no key."
        )


def _asked_wait(header: str) -> float:
    """Seconds that a server asks to wait, at most LONGEST_WAIT; 0 when it does not say."""
    return min(float(header), LONGEST_WAIT) if re.fullmatch(r"\d+(\.\d+)?", header) else 0.0
