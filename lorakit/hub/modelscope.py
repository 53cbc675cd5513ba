"""Models from ModelScope (modelscope.cn) over HTTP: the list of a repository's files, then each file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urlsplit

from lorakit.hub.download import TIMEOUT, SourceError, download

SITE = "https://modelscope.cn"
HOSTS = ("modelscope.cn", "www.modelscope.cn", "modelscope.ai", "www.modelscope.ai")
# Before owner/name; without it an id is one on Hugging Face.
PREFIX = "modelscope:"
PAGE = re.compile(
    r"/models/(?P<repo>[\w.-]+/[\w.-]+)"
    r"(/(resolve|file/view)/(?P<revision>[\w.-]+)/(?P<file>.+)|/(summary|files|feedback)|/)?"
)
BRANCH = "master"


def endpoint() -> str:
    """The address of ModelScope: MODELSCOPE_ENDPOINT, or MODELSCOPE_DOMAIN as in its older clients."""
    address = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN") or SITE
    return (address if "://" in address else f"https://{address}").rstrip("/")


def model_id(source: str) -> str | None:
    """`owner/name`, perhaps with @revision and /file, of a source on ModelScope; None for any other source.

    Sources on ModelScope are `modelscope:owner/name` and the addresses of models and files there.
    """
    if source.startswith(PREFIX):
        return source.removeprefix(PREFIX)
    url = urlsplit(source)
    page = PAGE.fullmatch(unquote(url.path)) if url.netloc in (*HOSTS, urlsplit(endpoint()).netloc) else None
    if page is None:
        return None
    revision = f"@{page['revision']}" if page["revision"] else ""
    return page["repo"] + revision + (f"/{page['file']}" if page["file"] else "")


def model_folder(folder: Path, repo: str, revision: str | None) -> Path:
    """Where the files of a repository are stored below `folder`."""
    return folder / "modelscope" / f"{repo.replace('/', '--')}@{revision or BRANCH}"


def download_files(repo: str, revision: str | None, target: Path, choose: Callable[[list[str]], list[str]]) -> None:
    """Download the files of a repository that `choose` picks from all file names.

    Each is checked by size and SHA-256; interrupted downloads resume. Raises SourceError.
    """
    try:
        files = _listed(repo, revision or BRANCH)
        for name in choose(list(files)):
            url = f"{endpoint()}/models/{repo}/resolve/{quote(revision or BRANCH)}/{quote(name)}"
            size, sha256 = files[name]
            download(url, target / name, headers={}, size=size, sha256=sha256)
    except OSError as error:
        # the errors of requests are OSErrors
        raise SourceError(
            f"Could not download {repo} from {endpoint()} ({type(error).__name__}); the finished part is kept, run "
            "it again to resume, or give a local path."
        ) from error


def _listed(repo: str, revision: str) -> dict[str, tuple[int | None, str | None]]:
    """Name -> (bytes, SHA-256) of each file of a repository, None where the site does not give them."""
    import requests

    parameters = {"Revision": revision, "Recursive": "True"}
    reply = requests.get(f"{endpoint()}/api/v1/models/{repo}/repo/files", params=parameters, timeout=TIMEOUT)
    if reply.status_code in (400, 401, 403, 404):
        raise SourceError(
            f"There is no model {repo} with a revision {revision} at {endpoint()} (HTTP {reply.status_code}), or it is "
            "not public: check the spelling; if it needs a login, download it yourself and give its path."
        )
    reply.raise_for_status()
    try:
        entries = reply.json()["Data"]["Files"]
        return {
            entry["Path"]: (int(entry["Size"]) if "Size" in entry else None, entry.get("Sha256") or None)
            for entry in entries
            # A tree is a folder. Names come from the network: one with ../ in it must not be written to.
            if entry.get("Type") != "tree" and _stays_inside(entry["Path"])
        }
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{endpoint()} does not answer like ModelScope for {repo}: check MODELSCOPE_ENDPOINT."
        ) from error


def _stays_inside(name: str) -> bool:
    """Whether a file's path stays inside the folder of its repository."""
    path = PurePosixPath(name)
    return name.isprintable() and not path.is_absolute() and ".." not in path.parts and "\\" not in name
