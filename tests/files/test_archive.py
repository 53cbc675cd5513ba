"""Archives: a folder goes in and comes out; nothing gets out of the folder or becomes larger than the disk."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from lorakit.files import archive
from lorakit.files.archive import ArchiveError, tar_bytes, unpack

FILES = {
    "1_mofu/00.png": b"\x89PNG" * 700,
    "1_mofu/00.txt": "mofu, 帽子".encode(),
    "角色/" + "长" * 60 + ".txt": b"x",
    "a b/ü.caption": b"",
    "a" * 120 + "/" + "b" * 120 + ".png": b"deep",
}


def fill(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def pairs(folder: Path) -> list[tuple[str, Path]]:
    return [(str(path.relative_to(folder)), path) for path in folder.rglob("*") if path.is_file()]


def content(folder: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in pairs(folder)}


def unpacked(file: Path) -> dict[str, bytes]:
    folder = file.with_suffix(".out")
    list(unpack(file, folder))
    return content(folder)


def tar_of(file: Path, *entries: tarfile.TarInfo) -> Path:
    with tarfile.open(file, "w") as opened:
        for entry in entries:
            opened.addfile(entry, io.BytesIO(b"x" * entry.size))
    return file


def zip_of(file: Path, files: dict, how: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(file, "w", how) as opened:
        for name, data in files.items():
            opened.writestr(name, data)
    return file


def entry(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.size, found.linkname = kind, size, link
    return found


def refused(file: Path, why: str) -> None:
    before = sorted(path.name for path in file.parent.iterdir())
    with pytest.raises(ArchiveError, match=why):
        unpacked(file)
    assert sorted(path.name for path in file.parent.iterdir()) == before, "something was left behind"


def test_a_folder_comes_out_as_it_went_in(tmp_path):
    file = tmp_path / "x.tar"
    file.write_bytes(b"".join(tar_bytes(pairs(fill(tmp_path / "in")))))
    assert unpacked(file) == FILES
    with tarfile.open(file) as others:  # what other programs read
        assert sorted(others.getnames()) == sorted(FILES)


def test_the_same_content_makes_the_same_archive_whenever_and_wherever(tmp_path):
    one, two = fill(tmp_path / "one"), fill(tmp_path / "two", dict(reversed(FILES.items())))
    for _, path in pairs(two):
        os.utime(path, (1, 1))
        path.chmod(0o600)
    assert b"".join(tar_bytes(pairs(one))) == b"".join(tar_bytes(reversed(pairs(two))))


def test_an_empty_folder_is_an_archive_too(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"".join(tar_bytes([])))
    assert unpacked(tmp_path / "x.tar") == {}


def test_a_name_that_is_not_utf_8_survives(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff\xfe.txt"
    with open(path, "wb") as file:
        file.write(b"x")
    name = os.fsdecode(b"\xff\xfe.txt")
    (tmp_path / "x.tar").write_bytes(b"".join(tar_bytes([(name, Path(os.fsdecode(path)))])))
    assert unpacked(tmp_path / "x.tar") == {name: b"x"}


def test_a_file_that_shrinks_while_it_is_packed_is_told(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(b"x" * 3_000_000)
    stream = tar_bytes([("x", file)])
    next(stream)
    next(stream)
    os.truncate(file, 2_000_000)
    with pytest.raises(ArchiveError, match="became shorter while it was packed"):
        list(stream)


@pytest.mark.parametrize("kind", ["zip", "stored zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_what_people_have_is_unpacked(kind, tmp_path):
    file = tmp_path / f"x.{kind.split()[-1]}"
    if "zip" in kind:
        zip_of(file, FILES, zipfile.ZIP_STORED if "stored" in kind else zipfile.ZIP_DEFLATED)
    else:
        with tarfile.open(file, f"w:{kind.partition('.')[2]}") as opened:
            opened.add(fill(tmp_path / "in"), ".")
    assert archive.is_archive(file) and unpacked(file) == FILES


def test_chinese_names_of_windows_zips_are_read(tmp_path):
    file = zip_of(tmp_path / "x.zip", {"ABCD.txt": b"x"})
    file.write_bytes(file.read_bytes().replace(b"ABCD", "角色".encode("gbk")))
    assert unpacked(file) == {"角色.txt": b"x"}


def test_a_tar_that_holds_a_zip_is_a_tar(tmp_path):
    inner = zip_of(tmp_path / "inner.zip", {"evil": b"x"})
    file = tmp_path / "x.tar"
    with tarfile.open(file, "w") as opened:
        opened.add(inner, "inner.zip")
    assert list(unpacked(file)) == ["inner.zip"]


OUTSIDE = ["../x", "a/../../x", "/etc/x", "..\\x", "C:\\x", "\\\\host\\x", "a/.."]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leads_out_of_the_folder(name, tmp_path):
    (tmp_path / "in").mkdir()
    for file in (
        zip_of(tmp_path / "in/x.zip", {"fine": b"x", name: b"x"}),
        tar_of(tmp_path / "in/x.tar", entry("fine"), entry(name)),
    ):
        refused(file, "leads out of the folder")
    assert sorted(os.listdir(tmp_path)) == ["in"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_links_and_devices_are_refused(kind, tmp_path):
    refused(tar_of(tmp_path / "x.tar", entry("a", kind, link="/etc")), "entry 'a' is a link or a device")


def test_links_in_a_zip_are_refused(tmp_path):
    link = zipfile.ZipInfo("a")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    refused(zip_of(tmp_path / "x.zip", {link: b"/etc/passwd"}), "is a link or a device")


def test_an_archive_that_becomes_too_large_is_not_unpacked(tmp_path, monkeypatch):
    file = zip_of(tmp_path / "x.zip", {"a": bytes(3_000_000)})
    monkeypatch.setattr(archive, "SMALL", 1_000_000)
    refused(file, "more than 200 times as large")
    monkeypatch.undo()
    monkeypatch.setattr(archive, "RESERVE", 1 << 60)
    refused(file, "that are free on the disk")
    monkeypatch.setattr(archive, "RESERVE", 0)
    monkeypatch.setattr(archive, "MAX_FILES", 2)
    refused(tar_of(tmp_path / "y.tar", *(entry(str(i)) for i in range(3))), "more than 2 files")


def test_a_zip_that_understates_its_size_is_damaged(tmp_path):
    file = zip_of(tmp_path / "x.zip", {"a": bytes(100_000)})
    data = file.read_bytes()
    file.write_bytes(data.replace((100_000).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    refused(file, "is damaged or incomplete")


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_a_truncated_archive_is_told_wherever_it_was_cut(kind, tmp_path):
    file = tmp_path / f"x.{kind}"
    if kind == "zip":
        zip_of(file, FILES)
    else:
        with tarfile.open(file, f"w:{kind.partition('.')[2]}") as opened:
            opened.add(fill(tmp_path / "in"), ".")
    data = file.read_bytes()
    end = len(data.rstrip(b"\0")) if kind == "tar" else len(data)  # its zeros at the end may be fewer
    for cut in sorted({0, 1, 100, 200, end // 3, end // 2, end - 1}):
        file.write_bytes(data[:cut])
        refused(file, "damaged|neither a zip nor a tar")


@pytest.mark.parametrize("data", [b"", b"<html>", b"Rar!\x1a\x07", b"7z\xbc\xaf\x27\x1c", bytes(5000)])
def test_another_kind_of_file_is_told(data, tmp_path):
    (tmp_path / "x.zip").write_bytes(data)
    if data == bytes(5000):
        assert unpacked(tmp_path / "x.zip") == {}, "zeros are an empty tar"
    else:
        refused(tmp_path / "x.zip", "neither a zip nor a tar archive")


def test_an_encrypted_zip_is_told(tmp_path):
    file = zip_of(tmp_path / "x.zip", {"a": b"x"})
    data = bytearray(file.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + place] |= 1
    file.write_bytes(data)
    refused(file, "encrypted; pack it again without a password")


def test_names_that_no_folder_can_hold_are_told(tmp_path):
    refused(zip_of(tmp_path / "x.zip", {"a": b"x", "a/b": b"x"}), "a name that no folder can hold")
    refused(zip_of(tmp_path / "y.zip", {"x" * 300: b"x"}), "a name that no folder can hold")
