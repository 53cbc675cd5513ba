"""Downloads one file over HTTP: streamed, resumed after an interruption, checked."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from lorakit.errors import UserError
from lorakit.secrets import VARIABLE, without_secret

# Bytes; the most that is lost when a connection drops.
CHUNK = 1 << 16
# In a row, without a single new byte.
TRIES = 5
# s to connect, s without data.
TIMEOUT = (15, 60)
LOGIN = "log in with `hf auth login` or HF_TOKEN"
# Whether downloads are allowed. A context variable, so that other threads are not affected.
DOWNLOADS = ContextVar("downloads", default=True)


class SourceError(UserError):
    """A model is not available: wrong name, no access, no connection."""


@contextmanager
def downloading_nothing() -> Iterator[None]:
    """Within, `fetch` raises SourceError instead of downloading."""
    token = DOWNLOADS.set(False)
    try:
        yield
    finally:
        DOWNLOADS.reset(token)


def check_downloads_allowed(what: object) -> None:
    """Raise SourceError within `downloading_nothing`."""
    if not DOWNLOADS.get():
        raise SourceError(f"{what} is not on this machine yet; it is downloaded when it is needed.")


def download_folder() -> Path:
    """Where downloads are stored that are not in the cache of Hugging Face."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "lorakit" / "models"


def download(url: str, target: Path, *, headers: dict[str, str], size: int | None, sha256: str | None) -> Path:
    """Download to `target` by way of `<target>.part`, which a later call resumes.

    size [bytes] and sha256 [hexadecimal] are checked if known. Raises SourceError if they differ, and an error of
    requests when the connection failed TRIES times in a row without a new byte.
    """
    import requests

    if target.is_file() and size in (None, target.stat().st_size):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    if size is None or _size(part) > size:
        # without a size a complete file looks like an incomplete one; a longer part is of another file
        part.unlink(missing_ok=True)
    # counts only tries that brought nothing, so that a slow connection may take as many as it needs
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
        # waits longer after each try that brought nothing
        time.sleep(tries)
    _check(part, url, size, sha256)
    # A file under its final name is always whole and checked.
    os.replace(part, target)
    return target


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _stream(url: str, part: Path, headers: dict[str, str], size: int | None) -> None:
    import requests
    from huggingface_hub.utils import tqdm

    have = _size(part)
    # identity: uncompressed, as ranges and sizes count the bytes of the file itself.
    request_headers = {**headers, "Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with requests.get(url, stream=True, timeout=TIMEOUT, headers=request_headers) as reply:
        refuse(reply, url)
        # 206 is partial content; otherwise the server sends the whole file again
        resumed = reply.status_code == 206
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
    """Raise SourceError for a download of another size or hash; it is removed, so that the next call starts again."""
    received = _size(part)
    if size is not None and received != size:
        part.unlink()
        raise SourceError(f"{bare(url)} gave {received} bytes instead of {size}: try again.")
    if sha256:
        digest = hashlib.sha256()
        with open(part, "rb") as file:
            while block := file.read(CHUNK):
                digest.update(block)
        if digest.hexdigest() != sha256:
            part.unlink()
            raise SourceError(f"{bare(url)} arrived damaged (its SHA-256 is not the announced one): try again.")


def bare(url: str) -> str:
    """An address without its query, which may contain a token, and without user name and password."""
    return without_secret(url).partition("?")[0]


def refuse(reply, url: str) -> None:
    """Raise SourceError for a reply that is not a file, HTTPError of requests for other failures."""
    if reply.headers.get("X-Error-Code") == "GatedRepo":
        raise SourceError(f"{bare(url)} is gated: accept the terms on the model's page, then {LOGIN}.")
    if reply.status_code in (401, 403):
        raise SourceError(
            f"{bare(url)} needs a login (HTTP {reply.status_code}); download it in a browser and give its "
            f"path, or use the address with the API key of the site. Keys are not stored: give the address again, or "
            f"set the environment variable {VARIABLE} to it."
        )
    if reply.status_code == 404:
        raise SourceError(f"{bare(url)} does not exist (HTTP 404): check the address.")
    reply.raise_for_status()
    if reply.headers.get("Content-Type", "").startswith("text/html"):
        raise SourceError(f"{bare(url)} is a web page, not a file: give the address of its download button.")
