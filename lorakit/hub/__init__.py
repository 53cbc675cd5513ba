"""Turns the source of a model (a path, an id on Hugging Face or ModelScope, a URL) into a verified local path."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lorakit.hub import modelscope
from lorakit.hub.download import (
    LOGIN,
    TIMEOUT,
    SourceError,
    bare,
    check_downloads_allowed,
    download,
    download_folder,
    downloading_nothing,
    refuse,
)
from lorakit.hub.files import INDEXES, folder_files, is_whole, verify_folder
from lorakit.hub.header import ModelFileError, verify_safetensors
from lorakit.secrets import hidden, with_secret, without_secret

__all__ = ["SourceError", "downloading_nothing", "endpoint", "fetch"]
DEMO = Path(__file__).parents[1] / "demo" / "base"
HUB = "https://huggingface.co"
HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co", "hf-mirror.com")
# owner/name, owner/name@revision, owner/name/path/of/a/file
HUB_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w.-]+))?(/(?P<file>.+))?")
# the path of a page: of the model, of a revision (tree), of a file in it (blob, resolve)
HUB_PAGE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(/(blob|resolve|tree)/(?P<revision>[\w.-]+)(/(?P<file>.+))?)?/?")
# What ends like this is meant as a local file, not as owner/name.
MODEL_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".onnx")
MIRROR = "if Hugging Face is blocked, set HF_ENDPOINT=https://hf-mirror.com (or another mirror), or give a local path"


def fetch(source: str, folder: Path | None = None, patterns: tuple[str, ...] = ()) -> Path:
    """The local file or folder of a model, downloaded if necessary.

    source    "demo" (the model inside the package), a local file or folder, an id on Hugging Face (`owner/name`,
              `owner/name@revision`, or one file, `owner/name/path/file.safetensors`), the same on ModelScope
              (`modelscope:owner/name`), the address of a page of either, or the URL of any file
    folder    where downloads are stored; by default the cache of Hugging Face, and for other sites `lorakit/models`
              below XDG_CACHE_HOME
    patterns  globs of the required files, for a folder that is not a diffusers model, such as a tagger's

    A cached model is used without network access; name a revision to get another one. HF_ENDPOINT sets a mirror of
    Hugging Face, MODELSCOPE_ENDPOINT one of ModelScope. Raises SourceError (not available) and ModelFileError (damaged,
    or another kind of file).
    """
    source = with_secret(str(source).strip())
    if not source:
        raise SourceError("No model is given; give a path, an id such as owner/name, or a URL.")
    # a local path wins over an id of the same form
    local = DEMO if source == "demo" else Path(source).expanduser()
    if local.exists():
        return _local(local, patterns)
    on_modelscope = modelscope.model_id(source)
    if on_modelscope is not None:
        hub = HUB_ID.fullmatch(on_modelscope)
        if hub is None:
            raise SourceError(f"{source!r} is no model on ModelScope; write modelscope:owner/name.")
        request = Request(
            hub["repo"], hub["revision"], hub["file"], patterns, folder or download_folder(), "ModelScope"
        )
        return _from_modelscope(request)
    if re.match(r"https?://", source):
        url = urlsplit(source)
        hub = HUB_PAGE.fullmatch(unquote(url.path).strip("/"))
        # the page of a model on another site looks like a file: it is downloaded as one
        if not (hub and url.netloc in (*HUB_HOSTS, urlsplit(endpoint()).netloc)):
            return _verified(_from_url(source, folder or download_folder()))
    else:
        hub = HUB_ID.fullmatch(source)
        if hub is None or not hub["file"] and source.endswith(MODEL_SUFFIXES):
            raise SourceError(
                f"No file or folder {source!r} (looked in {Path.cwd()}); give the path of a local file or "
                "folder, an id on Hugging Face such as owner/name, or the URL of a file."
            )
    return _from_hub(Request(hub["repo"], hub["revision"], hub["file"], patterns, folder))


def endpoint() -> str:
    """The address of Hugging Face or of its mirror."""
    # read on every call: the client remembers the value from when it was imported
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def _local(path: Path, patterns: tuple[str, ...]) -> Path:
    if path.is_dir() and not patterns and not any((path / name).is_file() for name in INDEXES):
        files = sorted(file.name for file in path.iterdir() if file.suffix in (".safetensors", ".ckpt"))
        offer = f"name one of its files: {', '.join(files[:8])}." if files else "give a folder that has one, or a file."
        raise ModelFileError(f"{path} is not a diffusers folder (it has no model_index.json); {offer}")
    missing = [pattern for pattern in patterns if path.is_dir() and not any(path.glob(pattern))]
    if missing:
        raise ModelFileError(f"{path} holds no {', '.join(missing)}.")
    return _verified(path)


def _verified(path: Path) -> Path:
    if path.is_dir():
        verify_folder(path)
    elif path.suffix == ".safetensors":
        verify_safetensors(path)
    return path


# ---- Hugging Face ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """What to get from a repository: one file, the files that match patterns, or else a diffusers model."""

    repo: str
    revision: str | None
    file: str | None
    patterns: tuple[str, ...]
    folder: Path | None
    site: str = "Hugging Face"

    def __str__(self) -> str:
        where = modelscope.endpoint() if self.site == "ModelScope" else endpoint()
        return f"{self.repo}{'@' + self.revision if self.revision else ''} at {hidden(where)}"


def _from_hub(request: Request) -> Path:
    from huggingface_hub import errors

    try:
        return _verified(_cached(request) or _snapshot(request))
    except errors.GatedRepoError as error:
        raise SourceError(
            f"{request} is gated: accept its terms on {HUB}/{request.repo}, then {LOGIN}, or give a local path."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise SourceError(
            f"There is no model {request}, and no such local path: check the spelling; for a private model {LOGIN}."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(
            f"There is no revision {request}: remove @{request.revision}, or name a branch, tag or commit "
            f"that {HUB}/{request.repo} lists."
        ) from error
    except (errors.HTTPError, OSError) as error:
        # HTTPError: the base of all errors of the client's HTTP library
        raise SourceError(
            f"Could not download {request} ({type(error).__name__}: {' '.join(str(error).split())[:160]}); the "
            f"finished part is kept, run it again to resume; {MIRROR}."
        ) from error


def _cached(request: Request) -> Path | None:
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    # without asking the network whether there is a newer version
    if request.file:
        path = try_to_load_from_cache(request.repo, request.file, cache_dir=request.folder, revision=request.revision)
        return Path(path) if isinstance(path, str) else None
    try:
        folder = Path(
            snapshot_download(
                request.repo,
                revision=request.revision,
                cache_dir=request.folder,
                local_files_only=True,
                allow_patterns=[*INDEXES],
            )
        )
    except LocalEntryNotFoundError:
        return None
    # The client gives the folder of a snapshot even when files of it are missing.
    return folder if _holds(folder, request.patterns) else None


def _holds(folder: Path, patterns: tuple[str, ...]) -> bool:
    """Whether a folder of downloads has all files of a request with these patterns."""
    return all(any(folder.glob(pattern)) for pattern in patterns) if patterns else is_whole(folder)


def _snapshot(request: Request) -> Path:
    """Download a repository into the client's cache.

    Large files come through our `download`, which resumes (the client would start them again); the client then finds
    them in its cache and downloads the rest.
    """
    check_downloads_allowed(request)
    from huggingface_hub import HfApi, constants, hf_hub_url, snapshot_download, try_to_load_from_cache
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import build_hf_headers

    repo, cache = request.repo, Path(request.folder or constants.HF_HUB_CACHE)
    info = HfApi(endpoint=endpoint()).model_info(repo, revision=request.revision, files_metadata=True)
    # `siblings` is Hugging Face's word for the files of a repository.
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    names = _choose(request, list(siblings))
    for name in names:
        lfs = siblings[name].lfs
        # it becomes the name of a file, so nothing else may be in it
        if lfs and not re.fullmatch("[0-9a-f]{64}", lfs.sha256):
            raise SourceError(f"{request} gives an invalid SHA-256 for {name}; {MIRROR}.")
        if lfs and not isinstance(try_to_load_from_cache(repo, name, cache_dir=cache, revision=info.sha), str):
            # where the client keeps a large file: named by its hash, with links from the snapshots
            blob = cache / repo_folder_name(repo_id=repo, repo_type="model") / "blobs" / lfs.sha256
            url = hf_hub_url(repo, name, revision=info.sha, endpoint=endpoint())
            download(url, blob, headers=build_hf_headers(), size=lfs.size, sha256=lfs.sha256)
    folder = Path(
        snapshot_download(
            repo,
            revision=request.revision,
            cache_dir=cache,
            endpoint=endpoint(),
            # exact names: one may hold characters that mean something in a pattern
            allow_patterns=[glob.escape(name) for name in names],
        )
    )
    return folder / request.file if request.file else folder


def _choose(request: Request, names: list[str]) -> list[str]:
    repo = request.repo
    single = [name for name in names if name.endswith((".safetensors", ".ckpt")) and "/" not in name]
    offer = f"; it has {', '.join(f'{repo}/{name}' for name in single[:8])}" if single else ""
    if request.file:
        if request.file not in names:
            raise SourceError(f"{repo} on {request.site} has no file {request.file}{offer}.")
        return [request.file]
    if request.patterns:
        missing = [pattern for pattern in request.patterns if not any(fnmatch(name, pattern) for name in names)]
        if missing:
            raise SourceError(f"{repo} on {request.site} has no {', '.join(missing)}.")
        return [name for name in names if any(fnmatch(name, pattern) for pattern in request.patterns)]
    if not any(name in names for name in INDEXES):
        raise SourceError(
            f"{repo} on {request.site} is not a diffusers model (no model_index.json): name one of its files{offer}."
        )
    return folder_files(names)


def _from_modelscope(request: Request) -> Path:
    root = modelscope.model_folder(request.folder, request.repo, request.revision)
    path = root / request.file if request.file else root
    if not (path.is_file() if request.file else _holds(root, request.patterns)):
        check_downloads_allowed(request)
        modelscope.download_files(request.repo, request.revision, root, lambda names: _choose(request, names))
    return _verified(path)


# ---- one file over HTTP ----------------------------------------------------------------------------------------------


def _from_url(url: str, folder: Path) -> Path:
    """A file from any address, stored in `folder` under the name that the server gives it.

    Where another file has that name, a hash of the address is added.
    """
    import requests

    # the name is stored beside the file: an address like /download/123 does not show it without network access
    # without its secret, which another session may not have; earlier versions hashed the whole address
    digest, earlier = (hashlib.sha256(text.encode()).hexdigest()[:16] for text in (without_secret(url), url))
    note = folder / f".{earlier}.name"
    note = note if note.is_file() else folder / f".{digest}.name"
    name = note.read_text("utf-8") if note.is_file() else ""
    if name and (folder / name).is_file():
        return folder / name
    check_downloads_allowed(bare(url))
    try:
        # Only the headers are read here: the connection is closed before the data.
        with requests.get(url, stream=True, timeout=TIMEOUT, headers={"Accept-Encoding": "identity"}) as reply:
            refuse(reply, url)
            attachment = re.search(r'filename="?([^";]+)', reply.headers.get("Content-Disposition", ""))
            size = int(reply.headers["Content-Length"]) if "Content-Length" in reply.headers else None
        if not name:
            path = Path(attachment[1] if attachment else unquote(urlsplit(url).path))
            is_taken = (folder / path.name).exists() or path.name in {
                n.read_text("utf-8") for n in folder.glob(".*.name")
            }
            name = f"{path.stem}-{digest[:6]}{path.suffix}" if is_taken else path.name
            folder.mkdir(parents=True, exist_ok=True)
            note.write_text(name, "utf-8")
        return download(url, folder / name, headers={}, size=size, sha256=None)
    except (requests.RequestException, OSError) as error:
        raise SourceError(
            f"Could not download {bare(url)} ({type(error).__name__}); the finished part is kept, run it again to "
            "resume, or download it yourself and give its path."
        ) from error
