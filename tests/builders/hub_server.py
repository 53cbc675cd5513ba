"""A hub on 127.0.0.1 that speaks enough of the real one's HTTP for its client: model info, tree, files with ranges."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" + "0" * 34


class Hub(ThreadingHTTPServer):
    """Repositories as {owner/name: {path: bytes}}; weights count as large files (LFS), as on the hub."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.plain: dict[str, tuple[bytes, dict[str, str]]] = {}  # other addresses: path -> content, headers
        self.gated: set[str] = set()
        self.cut: dict[str, int] = {}  # path -> bytes after which the connection drops, once
        self.hang: dict[str, int] = {}  # path -> bytes after which nothing more comes, once
        self.released = threading.Event()
        self.asked: list[tuple[str, str, str | None]] = []  # method, path, Range
        self.tokens: set[str | None] = set()

    def handle_error(self, request, client_address):
        """Clients that hang up or are killed are part of the tests."""

    @property
    def address(self) -> str:
        """What HF_ENDPOINT must be."""
        return f"http://127.0.0.1:{self.server_port}"

    def ranges(self, ending: str) -> list[str | None]:
        """The Range of each GET of a path with this ending."""
        return [found for method, path, found in self.asked if method == "GET" and path.endswith(ending)]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        """Tests read `Hub.asked` instead of lines on the terminal."""

    def do_GET(self):
        self.answer(body=True)

    def do_HEAD(self):
        self.answer(body=False)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append((self.command, path, self.headers["Range"]))
        self.server.tokens.add(self.headers["Authorization"])
        if path in self.server.plain:
            content, headers = self.server.plain[path]
            return self.send(200, content, headers, body)
        if info := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            return self.describe(*info.groups(), body)
        if file := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.file(*file.groups(), body)
        self.refuse(404, "EntryNotFound", body)

    def describe(self, repo: str, what: str | None, revision: str | None, body: bool) -> None:
        if repo not in self.server.repos:
            return self.refuse(401, "RepoNotFound", body)  # as the hub answers whoever has no token
        if revision not in (None, "main", COMMIT):
            return self.refuse(404, "RevisionNotFound", body)
        entries = []
        for name, content in self.server.repos[repo].items():
            sha1, sha256 = hashlib.sha1(content).hexdigest(), hashlib.sha256(content).hexdigest()
            lfs = {"sha256": sha256, "oid": sha256, "size": len(content), "pointerSize": 134}
            entry = {"type": "file", "path": name, "rfilename": name, "size": len(content), "oid": sha1, "blobId": sha1}
            entries.append(entry | ({"lfs": lfs} if is_large(name) else {}))
        info = {"id": repo, "modelId": repo, "sha": COMMIT, "private": False, "tags": [], "siblings": entries}
        reply = entries if what == "tree" else info
        self.send(200, json.dumps(reply).encode(), {"Content-Type": "application/json"}, body)

    def file(self, repo: str, revision: str, name: str, body: bool) -> None:
        if repo in self.server.gated:
            return self.refuse(403, "GatedRepo", body)
        if repo not in self.server.repos or name not in self.server.repos[repo]:
            return self.refuse(404, "EntryNotFound", body)
        content = self.server.repos[repo][name]
        digest = hashlib.sha256(content) if is_large(name) else hashlib.sha1(content)
        self.send(200, content, {"ETag": f'"{digest.hexdigest()}"', "X-Repo-Commit": COMMIT}, body)

    def refuse(self, status: int, code: str, body: bool) -> None:
        self.send(status, b"{}", {"X-Error-Code": code, "Content-Type": "application/json"}, body)

    def send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        start = int(asked[1]) if asked and status == 200 else 0
        self.send_response(206 if start else status)
        for name, value in headers.items():
            self.send_header(name, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if body:
            self.stream(content[start:])

    def stream(self, content: bytes) -> None:
        path = self.path.partition("?")[0]
        cut = self.server.cut.pop(path, None)
        hang = self.server.hang.pop(path, None)
        self.wfile.write(content[: next((at for at in (cut, hang) if at is not None), None)])
        if hang is not None:
            self.wfile.flush()
            self.server.released.wait(60)
        if cut is not None or hang is not None:
            self.close_connection = True


def is_large(name: str) -> bool:
    """Whether the hub keeps the file in LFS."""
    return name.endswith((".safetensors", ".onnx", ".bin"))


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        hub.shutdown()
        hub.server_close()
        thread.join()
