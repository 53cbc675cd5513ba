"""Turns what people type for a model (a path, a hub id, an URL) into a verified local file or folder."""

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
    download,
    downloading_nothing,
    kept,
    may_download,
    refuse,
)
from lorakit.hub.files import INDEXES, ModelFileError, folder_files, is_whole, verify_folder, verify_safetensors

__all__ = ["SourceError", "downloading_nothing", "endpoint", "fetch"]
DEMO = Path(__file__).parents[1] / "demo" / "base"
HUB = "https://huggingface.co"
HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co", "hf-mirror.com")
HUB_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w.-]+))?(/(?P<file>.+))?")
HUB_PAGE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(/(blob|resolve|tree)/(?P<revision>[\w.-]+)(/(?P<file>.+))?)?/?")
MODEL_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".onnx")
MIRROR = "if the hub is out of reach, set HF_ENDPOINT=https://hf-mirror.com (or another mirror) or give a local path"


def fetch(source: str, folder: Path | None = None, patterns: tuple[str, ...] = ()) -> Path:
    """The local file or folder of a model, downloaded if need be.

    source    'demo' (the model that travels with the package), a local file or folder, a hub id `owner/name` or
              `owner/name@revision`, a file in one `owner/name/path/file.safetensors`, the same on ModelScope as
              `modelscope:owner/name`, the address of a page of either, or the URL of any file
    folder    where downloads are kept; without it the hub's cache, and for others `lorakit/models` below XDG_CACHE_HOME
    patterns  globs of the files wanted from a folder that is not a diffusers model, such as a tagger's

    What is in the cache is used without asking the network; name a revision to get another one. HF_ENDPOINT names a
    mirror of the hub, MODELSCOPE_ENDPOINT one of ModelScope. Raises SourceError (it cannot be had) and ModelFileError
    (it is damaged or something else).
    """
    source = str(source).strip()
    if not source:
        raise SourceError("No model was named; give a path, a hub id such as owner/name, or an URL.")
    local = DEMO if source == "demo" else Path(source).expanduser()
    if local.exists():
        return _local(local, patterns)
    elsewhere = modelscope.named(source)
    if elsewhere is not None:
        hub = HUB_ID.fullmatch(elsewhere)
        if hub is None:
            raise SourceError(f"{source!r} names no model on ModelScope; write modelscope:owner/name.")
        wanted = Wanted(hub["repo"], hub["revision"], hub["file"], patterns, folder or kept(), "ModelScope")
        return _from_modelscope(wanted)
    if re.match(r"https?://", source):
        url = urlsplit(source)
        hub = HUB_PAGE.fullmatch(unquote(url.path).strip("/"))
        if not (hub and url.netloc in (*HUB_HOSTS, urlsplit(endpoint()).netloc)):
            return _verified(_from_url(source, folder or kept()))
    else:
        hub = HUB_ID.fullmatch(source)
        if hub is None or not hub["file"] and source.endswith(MODEL_SUFFIXES):
            raise SourceError(
                f"No file or folder {source!r} (looked in {Path.cwd()}); give the path of a .safetensors "
                "file or of a diffusers folder, a hub id such as owner/name, or the URL of a file."
            )
    return _from_hub(Wanted(hub["repo"], hub["revision"], hub["file"], patterns, folder))


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT as it is now, not as it was when the client was imported."""
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


# ---- the hub ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a hub repository: one file, the files that match patterns, or else a diffusers model."""

    repo: str
    revision: str | None
    file: str | None
    patterns: tuple[str, ...]
    folder: Path | None
    site: str = "the hub"

    def __str__(self) -> str:
        where = modelscope.endpoint() if self.site == "ModelScope" else endpoint()
        return f"{self.repo}{'@' + self.revision if self.revision else ''} at {where}"


def _from_hub(wanted: Wanted) -> Path:
    from huggingface_hub import errors

    try:
        return _verified(_cached(wanted) or _snapshot(wanted))
    except errors.GatedRepoError as error:
        raise SourceError(
            f"{wanted} is gated: accept its terms on {HUB}/{wanted.repo}, then {LOGIN}, or give a local path."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise SourceError(
            f"There is no model {wanted}, nor a local path of that name: check the spelling; for a private one {LOGIN}."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(
            f"There is no revision {wanted}: leave @{wanted.revision} away, or name a branch, tag or commit "
            f"that {HUB}/{wanted.repo} lists."
        ) from error
    except (errors.HTTPError, OSError) as error:  # HTTPError: the base of all errors of the client's HTTP library
        raise SourceError(
            f"Could not download {wanted} ({type(error).__name__}: {' '.join(str(error).split())[:160]}); what "
            f"arrived is kept, run it again to go on; {MIRROR}."
        ) from error


def _cached(wanted: Wanted) -> Path | None:
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    if wanted.file:
        path = try_to_load_from_cache(wanted.repo, wanted.file, cache_dir=wanted.folder, revision=wanted.revision)
        return Path(path) if isinstance(path, str) else None
    try:
        folder = Path(
            snapshot_download(
                wanted.repo,
                revision=wanted.revision,
                cache_dir=wanted.folder,
                local_files_only=True,
                allow_patterns=[*INDEXES],
            )
        )
    except LocalEntryNotFoundError:
        return None
    return folder if _holds(folder, wanted.patterns) else None


def _holds(folder: Path, patterns: tuple[str, ...]) -> bool:
    """Whether a folder of downloads has all that is wanted of it."""
    return all(any(folder.glob(pattern)) for pattern in patterns) if patterns else is_whole(folder)


def _snapshot(wanted: Wanted) -> Path:
    """Large files come through `download`, which goes on where another process was cut (the client begins them anew);
    the client finds them in its cache and does the rest."""
    may_download(wanted)
    from huggingface_hub import HfApi, constants, hf_hub_url, snapshot_download, try_to_load_from_cache
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import build_hf_headers

    repo, cache = wanted.repo, Path(wanted.folder or constants.HF_HUB_CACHE)
    info = HfApi(endpoint=endpoint()).model_info(repo, revision=wanted.revision, files_metadata=True)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    names = _choose(wanted, list(siblings))
    for name in names:
        lfs = siblings[name].lfs
        if lfs and not re.fullmatch("[0-9a-f]{64}", lfs.sha256):  # it becomes a file's name
            raise SourceError(f"{wanted} tells a SHA-256 of {name} that is none; {MIRROR}.")
        if lfs and not isinstance(try_to_load_from_cache(repo, name, cache_dir=cache, revision=info.sha), str):
            blob = cache / repo_folder_name(repo_id=repo, repo_type="model") / "blobs" / lfs.sha256
            url = hf_hub_url(repo, name, revision=info.sha, endpoint=endpoint())
            download(url, blob, headers=build_hf_headers(), size=lfs.size, sha256=lfs.sha256)
    folder = Path(
        snapshot_download(
            repo,
            revision=wanted.revision,
            cache_dir=cache,
            endpoint=endpoint(),
            allow_patterns=[glob.escape(name) for name in names],
        )
    )
    return folder / wanted.file if wanted.file else folder


def _choose(wanted: Wanted, names: list[str]) -> list[str]:
    repo = wanted.repo
    single = [name for name in names if name.endswith((".safetensors", ".ckpt")) and "/" not in name]
    offer = f"; it has {', '.join(f'{repo}/{name}' for name in single[:8])}" if single else ""
    if wanted.file:
        if wanted.file not in names:
            raise SourceError(f"{repo} on {wanted.site} has no file {wanted.file}{offer}.")
        return [wanted.file]
    if wanted.patterns:
        missing = [pattern for pattern in wanted.patterns if not any(fnmatch(name, pattern) for name in names)]
        if missing:
            raise SourceError(f"{repo} on {wanted.site} has no {', '.join(missing)}.")
        return [name for name in names if any(fnmatch(name, pattern) for pattern in wanted.patterns)]
    if not any(name in names for name in INDEXES):
        raise SourceError(
            f"{repo} on {wanted.site} is not a diffusers model (no model_index.json): name one of its files{offer}."
        )
    return folder_files(names)


def _from_modelscope(wanted: Wanted) -> Path:
    root = modelscope.place(wanted.folder, wanted.repo, wanted.revision)
    found = root / wanted.file if wanted.file else root
    if not (found.is_file() if wanted.file else _holds(root, wanted.patterns)):
        may_download(wanted)
        modelscope.bring(wanted.repo, wanted.revision, root, lambda names: _choose(wanted, names))
    return _verified(found)


# ---- one file over HTTP ----------------------------------------------------------------------------------------------


def _from_url(url: str, folder: Path) -> Path:
    """A file from any address, kept in `folder` under the name that its server gives it; with a mark of the address
    where another file has that name.
    """
    import requests

    # the name is remembered beside the file: an address like /download/123 does not tell it without the network
    mark = hashlib.sha256(url.encode()).hexdigest()[:16]
    note = folder / f".{mark}.name"
    name = note.read_text("utf-8") if note.is_file() else ""
    if name and (folder / name).is_file():
        return folder / name
    may_download(bare(url))
    try:
        with requests.get(url, stream=True, timeout=TIMEOUT, headers={"Accept-Encoding": "identity"}) as reply:
            refuse(reply, url)
            told = re.search(r'filename="?([^";]+)', reply.headers.get("Content-Disposition", ""))
            size = int(reply.headers["Content-Length"]) if "Content-Length" in reply.headers else None
        if not name:
            path = Path(told[1] if told else unquote(urlsplit(url).path))
            is_taken = (folder / path.name).exists() or path.name in {
                n.read_text("utf-8") for n in folder.glob(".*.name")
            }
            name = f"{path.stem}-{mark[:6]}{path.suffix}" if is_taken else path.name
            folder.mkdir(parents=True, exist_ok=True)
            note.write_text(name, "utf-8")
        return download(url, folder / name, headers={}, size=size, sha256=None)
    except (requests.RequestException, OSError) as error:
        raise SourceError(
            f"Could not download {bare(url)} ({type(error).__name__}); what arrived is kept, run it again to "
            "go on, or download it yourself and give its path."
        ) from error
