"""Errors of a disk in words: the file and the reason, however a library has passed them on."""

from __future__ import annotations

import errno
import os

import pytest

from lorakit.errors import UserError
from lorakit.files.disk import disk_error, raise_if_closed, raise_if_failing, reason_of


def of_safetensors(path: str) -> FileNotFoundError:
    """What safetensors raises for any file that it cannot open."""
    return FileNotFoundError(f"No such file or directory: {path}")


# error -> words of its sentence; None where it is no disk's
SENTENCES = [
    (OSError(errno.ENOSPC, "", "/p/x"), "/p/x cannot be written: the disk is full"),
    (OSError(errno.EIO, "", "/p/x"), "/p/x cannot be used: the disk reports an input/output error"),
    (OSError(errno.ENOTDIR, "it is no folder", "/p/x"), "/p/x cannot be used: it is no folder"),
    (OSError("No such device (os error 19)"), "A file cannot be used: the disk is gone"),
    (RuntimeError("write: No space left on device: </p/x>"), "/p/x cannot be written: the disk is full"),
    (of_safetensors("/p/gone"), "/p/gone cannot be used: it is not there"),
    (OSError("Can't load the model"), None),
    (BrokenPipeError(errno.EPIPE, ""), None),
    (ConnectionResetError(errno.ECONNRESET, ""), None),
    (UserError("/p/x is no image"), None),
    (ValueError("No space"), None),
]


@pytest.mark.parametrize("error, words", SENTENCES, ids=lambda value: repr(value)[:40])
def test_an_error_of_a_disk_has_a_sentence_and_no_other_error(error, words):
    explained = disk_error(error)
    assert (explained is None) == (words is None) and (words is None or str(explained).startswith(words))


@pytest.mark.parametrize(
    "number, words", [(errno.EACCES, "permission denied"), (errno.EIO, "input/output error"), (0, "input/output error")]
)
def test_a_file_that_is_there_and_cannot_be_opened_is_not_called_missing(tmp_path, monkeypatch, number, words):
    file = tmp_path / "x.safetensors"
    file.touch()
    plain = os.open

    def closed(path, *arguments, **options):
        if number and os.fspath(path) == os.fspath(file):
            raise OSError(number, os.strerror(number), path)
        return plain(path, *arguments, **options)

    monkeypatch.setattr(os, "open", closed)
    assert words in reason_of(of_safetensors(str(file)))


def test_an_error_that_names_no_file_is_about_the_one_that_was_given():
    assert reason_of(OSError(errno.EIO, ""), "/p") == "/p: the disk reports an input/output error"
    assert reason_of(OSError(errno.EIO, "", "/p/x"), "/p").startswith("/p/x: ")
    assert reason_of(disk_error(OSError(errno.EIO, "", "/p/x"))).startswith("/p/x: ")


@pytest.mark.parametrize(
    "number, fails, is_closed",
    [(errno.EIO, True, True), (errno.EMFILE, True, True), (errno.EACCES, False, True), (errno.ENOENT, False, False)],
)
def test_what_can_be_left_out_is_told_from_a_disk_that_fails(number, fails, is_closed):
    error = OSError(number, "", "/p/x")
    for check, expected in ((raise_if_failing, fails), (raise_if_closed, is_closed)):
        try:
            check(error, "/p/x")
        except UserError as raised:
            assert expected and "/p/x" in str(raised)
        else:
            assert not expected
