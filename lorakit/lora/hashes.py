"""Hashes by which other programs know a LoRA file; they are in its header."""

from __future__ import annotations

import hashlib
import json
from typing import Any

# Names of the hashes in a file's metadata.
NAMES = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
# The bytes of a whole file that the legacy hash covers.
LEGACY = slice(0x100000, 0x110000)


def front(header: dict[str, Any], digest: str, beginning: bytes) -> bytes:
    """The first bytes of a .safetensors file, up to its tensors, with the hashes of these in its metadata.

    header      tensor's name -> entry, and the `__metadata__`, in which earlier hashes are replaced
    digest      SHA-256 of all bytes after the header, hexadecimal
    beginning   the first of these bytes, at least LEGACY.stop of them if there are so many

    `sshs_model_hash` is that digest and `sshs_legacy_hash` the first 8 digits of SHA-256 of the bytes from 0x100000 to
    0x110000 in a file with the `ss_` entries alone: kohya's formula (library/train_util.py of sd-scripts,
    `precalculate_safetensors_hashes`), which A1111 and its extensions read. `modelspec.hash_sha256` is the digest in
    the form of https://github.com/Stability-AI/ModelSpec.
    """
    metadata = {name: text for name, text in header.get("__metadata__", {}).items() if name not in NAMES}
    own = {name: text for name, text in metadata.items() if name.startswith("ss_")}
    plain = encoded({**header, "__metadata__": own}) + beginning
    legacy = hashlib.sha256(plain[LEGACY]).hexdigest()[:8]
    hashes = dict(zip(NAMES, (digest, legacy, f"0x{digest}"), strict=True))
    return encoded({**header, "__metadata__": metadata | hashes})


def encoded(header: dict[str, Any]) -> bytes:
    """A header as it stands in a file: 8 bytes of its length (little endian), JSON, spaces up to a multiple of 8."""
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    # the format wants tensors to begin at a multiple of 8 bytes
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
