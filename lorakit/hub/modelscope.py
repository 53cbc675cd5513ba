"""Models from ModelScope (modelscope.cn), over its plain HTTP: the list of a repository's files, then each file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urlsplit

from lorakit.hub.download import TIMEOUT, SourceError, download

SITE = "https://modelscope.cn"
HOSTS = ("modelscope.cn", "www.modelscope.cn", "modelscope.ai", "www.modelscope.ai")
PREFIX = "modelscope:"  # before owner/name, to tell it from the other hub's
PAGE = re.compile(
    r"/models/(?P<repo>[\w.-]+/[\w.-]+)"
    r"(/(resolve|file/view)/(?P<revision>[\w.-]+)/(?P<file>.+)|/(summary|files|feedback)|/)?"
)
BRANCH = "master"


def endpoint() -> str:
    """ModelScope's address: MODELSCOPE_ENDPOINT, or MODELSCOPE_DOMAIN, as its older clients have it."""
    told = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN") or SITE
    return (told if "://" in told else f"https://{told}").rstrip("/")


def named(source: str) -> str | None:
    """`owner/name`, perhaps with @revision and /file, of a source that means ModelScope; None for any other source.

    Such are `modelscope:owner/name` and the addresses of models and of their files there.
    """
    if source.startswith(PREFIX):
        return source.removeprefix(PREFIX)
    url = urlsplit(source)
    page = PAGE.fullmatch(unquote(url.path)) if url.netloc in (*HOSTS, urlsplit(endpoint()).netloc) else None
    if page is None:
        return None
    revision = f"@{page['revision']}" if page["revision"] else ""
    return page["repo"] + revision + (f"/{page['file']}" if page["file"] else "")


def place(folder: Path, repo: str, revision: str | None) -> Path:
    """Where the files of a repository are kept below `folder`."""
    return folder / "modelscope" / f"{repo.replace('/', '--')}@{revision or BRANCH}"


def bring(repo: str, revision: str | None, target: Path, choose: Callable[[list[str]], list[str]]) -> None:
    """Download those files of a repository that `choose` takes of its files' names, each checked by its size and
    SHA-256; what was cut goes on. Raises SourceError.
    """
    try:
        files = _listed(repo, revision or BRANCH)
        for name in choose(list(files)):
            url = f"{endpoint()}/models/{repo}/resolve/{quote(revision or BRANCH)}/{quote(name)}"
            size, sha256 = files[name]
            download(url, target / name, headers={}, size=size, sha256=sha256)
    except OSError as error:  # requests' errors are such
        raise SourceError(
            f"Could not download {repo} from {endpoint()} ({type(error).__name__}); what arrived is kept, run it again "
            "to go on, or give a local path."
        ) from error


def _listed(repo: str, revision: str) -> dict[str, tuple[int | None, str | None]]:
    """Name -> (bytes, SHA-256) of each file of a repository, as far as they are told."""
    import requests

    asked = {"Revision": revision, "Recursive": "True"}
    reply = requests.get(f"{endpoint()}/api/v1/models/{repo}/repo/files", params=asked, timeout=TIMEOUT)
    if reply.status_code in (400, 401, 403, 404):
        raise SourceError(
            f"There is no model {repo} with a revision {revision} at {endpoint()} (HTTP {reply.status_code}), or it is "
            "not public: check the spelling; what needs a login, download it yourself and give its path."
        )
    reply.raise_for_status()
    try:
        entries = reply.json()["Data"]["Files"]
        return {
            entry["Path"]: (int(entry["Size"]) if "Size" in entry else None, entry.get("Sha256") or None)
            for entry in entries
            if entry.get("Type") != "tree" and _stays_inside(entry["Path"])
        }
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise SourceError(f"{endpoint()} does not answer as ModelScope does when it is asked for {repo}.") from error


def _stays_inside(name: str) -> bool:
    """Whether a file can be kept below its repository's folder."""
    path = PurePosixPath(name)
    return name.isprintable() and not path.is_absolute() and ".." not in path.parts and "\\" not in name
