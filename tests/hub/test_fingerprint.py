"""The digest of model files is SHA-256, is remembered, and is never that of older content."""

from __future__ import annotations

import hashlib
import os

import pytest

from lorakit.hub import fingerprint
from lorakit.hub.fingerprint import file_digest, memo_file


@pytest.fixture(autouse=True)
def _own_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def reads(monkeypatch):
    """The files that were really read."""
    found, real = [], fingerprint._sha256

    def counted(file):
        found.append(file.name)
        return real(file)

    monkeypatch.setattr(fingerprint, "_sha256", counted)
    return found


@pytest.mark.parametrize("size", [0, 1, fingerprint.BLOCK, fingerprint.BLOCK + 1])
def test_the_digest_of_one_file_is_its_sha256(size, tmp_path):
    file = tmp_path / "x"
    file.write_bytes(b"m" * size)
    assert file_digest([file]) == hashlib.sha256(b"m" * size).hexdigest()


def test_a_file_is_read_once_and_again_when_it_changed(tmp_path, reads):
    file = tmp_path / "x"
    file.write_bytes(b"one")
    first = file_digest([file])
    assert file_digest([file]) == first and reads == ["x"]
    stat = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert file_digest([file]) == hashlib.sha256(b"two").hexdigest() and reads == ["x", "x"]
    file.write_bytes(b"three")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert file_digest([file]) == hashlib.sha256(b"three").hexdigest()


def test_a_link_is_the_file_that_it_leads_to(tmp_path, reads):
    one, two, link = tmp_path / "one", tmp_path / "two", tmp_path / "link"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    os.utime(two, ns=(one.stat().st_atime_ns, one.stat().st_mtime_ns))
    link.symlink_to(one)
    first = file_digest([link])
    link.unlink()
    link.symlink_to(two)
    assert first == file_digest([one]) != file_digest([link]) == file_digest([two])
    assert reads == ["link", "link"]


def test_the_digest_of_several_files_counts_their_order_and_each_content(tmp_path):
    files = [tmp_path / name for name in "abc"]
    for file in files:
        file.write_bytes(file.name.encode())
    digests = {file_digest(order) for order in (files, files[::-1], files[:2], files[1:], files[:1])}
    assert len(digests) == 5
    (tmp_path / "elsewhere").mkdir()
    moved = [file.rename(tmp_path / "elsewhere" / f"{file.name}.bin") for file in files]
    assert file_digest(moved) in digests, "names and places do not count"


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe"])
def test_a_damaged_memory_is_made_anew(damage, tmp_path):
    file = tmp_path / "x"
    file.write_bytes(b"m")
    expected = file_digest([file])
    memo_file().write_bytes(damage)
    assert file_digest([file]) == expected and expected in memo_file().read_text(encoding="utf-8")
