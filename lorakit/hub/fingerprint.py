"""SHA-256 of model files, remembered by path, size and modification time, so that gigabytes are read once."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from lorakit.files import write_json
from lorakit.files.disk import read_json

# Bytes that are read at a time.
BLOCK = 1 << 22


def memo_file() -> Path:
    """The file with the remembered digests, below XDG_CACHE_HOME like other caches of the user."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "lorakit" / "digests.json"


def file_digest(files: list[Path]) -> str:
    """One SHA-256 for the contents of several files in their order, in hexadecimal."""
    memo = memo_file()
    try:
        digest_of = read_json(memo)
    # A damaged file costs time only: the digests are computed again.
    except (FileNotFoundError, ValueError):
        digest_of = {}
    digests = []
    for file in files:
        # a file that was replaced has another size or time, and is read again
        stat = file.stat()
        key = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        if key not in digest_of:
            digest_of[key] = _sha256(file)
            # After each file, as the next one may take minutes and be interrupted. A home that cannot be written costs
            # time only.
            with suppress(OSError):
                memo.parent.mkdir(parents=True, exist_ok=True)
                write_json(memo, digest_of)
        digests.append(digest_of[key])
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while block := opened.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
