"""One file over HTTP: streamed, gone on with where it was cut, checked."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from lorakit.errors import UserError

CHUNK = 1 << 16  # bytes; what a dropped connection costs at most
TRIES = 5  # in a row without a single new byte
TIMEOUT = (15, 60)  # s to connect, s without a byte
LOGIN = "log in with `hf auth login` or HF_TOKEN"
DOWNLOADS = ContextVar("downloads", default=True)  # whether the network may be asked


class SourceError(UserError):
    """A model that was asked for cannot be had: wrong name, no access, no connection."""


@contextmanager
def downloading_nothing() -> Iterator[None]:
    """Within, `fetch` raises SourceError for what is not on this machine yet."""
    token = DOWNLOADS.set(False)
    try:
        yield
    finally:
        DOWNLOADS.reset(token)


def may_download(what: object) -> None:
    """Raise SourceError within `downloading_nothing`."""
    if not DOWNLOADS.get():
        raise SourceError(f"{what} is not on this machine yet; it is downloaded when it is needed.")


def kept() -> Path:
    """Where downloads are that no client of a hub keeps."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "lorakit" / "models"


def download(url: str, target: Path, *, headers: dict[str, str], size: int | None, sha256: str | None) -> Path:
    """`target`, streamed through `<target>.part`, which a later call goes on with.

    size [bytes] and sha256 [hexadecimal] are checked if known. Raises SourceError for what does not fit them, requests'
    errors when the connection failed TRIES times in a row without a new byte.
    """
    import requests

    if target.is_file() and size in (None, target.stat().st_size):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    if size is None or _size(part) > size:
        part.unlink(missing_ok=True)  # nothing would tell a whole file from a part of it, or it was another file's
    tries = 0
    while (have := _size(part)) != size:
        try:
            _stream(url, part, headers, size)
            if size is None or _size(part) > size or tries == TRIES:
                break
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
            if tries == TRIES:
                raise
        tries = tries + 1 if _size(part) <= have else 0
        time.sleep(tries)
    _check(part, url, size, sha256)
    os.replace(part, target)
    return target


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _stream(url: str, part: Path, headers: dict[str, str], size: int | None) -> None:
    import requests
    from huggingface_hub.utils import tqdm

    have = _size(part)
    asked = {**headers, "Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with requests.get(url, stream=True, timeout=TIMEOUT, headers=asked) as reply:
        refuse(reply, url)
        resumed = reply.status_code == 206  # else the server sends all of it again
        with (
            open(part, "ab" if resumed else "wb") as file,
            tqdm(
                total=size,
                initial=have if resumed else 0,
                unit="B",
                unit_scale=True,
                desc=bare(url).rpartition("/")[2][-40:],
            ) as bar,
        ):
            for block in reply.iter_content(CHUNK):
                file.write(block)
                bar.update(len(block))


def _check(part: Path, url: str, size: int | None, sha256: str | None) -> None:
    """Refuses and removes a download that is not what was announced, so that the next call begins anew."""
    found = _size(part)
    if size is not None and found != size:
        part.unlink()
        raise SourceError(f"{bare(url)} gave {found} bytes instead of {size}: try again.")
    if sha256:
        digest = hashlib.sha256()
        with open(part, "rb") as file:
            while block := file.read(CHUNK):
                digest.update(block)
        if digest.hexdigest() != sha256:
            part.unlink()
            raise SourceError(f"{bare(url)} arrived damaged (its SHA-256 is not the announced one): try again.")


def bare(url: str) -> str:
    """An address without its query, which may hold a token."""
    return url.partition("?")[0]


def refuse(reply, url: str) -> None:
    """Raise SourceError for a reply that is no file, requests' HTTPError for other failures."""
    if reply.headers.get("X-Error-Code") == "GatedRepo":
        raise SourceError(f"{bare(url)} is gated: accept the terms on the model's page, then {LOGIN}.")
    if reply.status_code in (401, 403):
        raise SourceError(
            f"{bare(url)} needs a login (HTTP {reply.status_code}); download it in a browser and give its "
            "path, or use the address with the key that the site offers."
        )
    if reply.status_code == 404:
        raise SourceError(f"{bare(url)} does not exist (HTTP 404): check the address.")
    reply.raise_for_status()
    if reply.headers.get("Content-Type", "").startswith("text/html"):
        raise SourceError(f"{bare(url)} is a web page, not a file: give the address of its download button.")
