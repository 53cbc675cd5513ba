"""Every verb on a disk that fails at any operation: one message, never a traceback or a hang, and nothing is lost."""

from __future__ import annotations

import argparse
import errno
import hashlib
import io
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import yaml
from failing_disk import Ended, FailingDisk, Fault, compiler

from lorakit.cli import FAULT, UNREAD, _parser, main
from lorakit.project import Project
from lorakit.run.config import read_config
from lorakit.training.status import project_status

# operation -> the errors that it may end with
ERRORS = {
    "open": (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EMFILE, errno.EIO),
    "read": (errno.EIO, errno.EACCES, errno.EMFILE),
    "write": (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG),
    "rename": (errno.EIO, errno.EROFS, errno.ENOSPC),
    "fsync": (errno.EIO, errno.ENOSPC),
    "mkdir": (errno.ENOSPC, errno.EROFS, errno.EACCES),
    "unlink": (errno.EROFS, errno.EACCES),
}
# verb -> its arguments; {p} is a project with a trained run, {r} a remote copy, {b} the base, {t} their folder
VERBS = {
    "demo": "--output {t}/demo",
    "doctor": "{p}",
    "model check": "{b}",
    "model fetch": "--set model.source={b}",
    "data add": "{p} {t}/new --into more",
    "data prepare": "{p}",
    "data buckets": "{p}",
    "data check": "{p}",
    "data fix": "{p} restore",
    "data regularize": "{p} --run run1 --set regularize.use_captions=false",
    "tag run": "{p} --set tagger.source=demo",
    "tag show": "{p}",
    "tag edit": "{p} --add hat",
    "tag undo": "{p}",
    "tag redo": "{p}",
    "tag history": "{p}",
    "tag lock": "{p}",
    "tag unlock": "{p}",
    "tag diff": "{p}",
    "train": "{p} --run run2 --config {t}/settings.yaml",
    "start": "{p} --run run1",
    "watch": "{p}",
    "stop": "{p}",
    "extend": "{p} --epochs 3 --way hold",
    "fits": "{p} --vram 8",
    "status": "{p}",
    "open": "{r} --local {t}/local",
    "sync": "{p}",
    "grid": "{p} --x checkpoint --y strength=1 --set steps=1",
    "export": "{p} --output {t}/out",
}


def verbs(parser: argparse.ArgumentParser, names: tuple[str, ...] = ()) -> list[str]:
    """Every verb of the terminal, as its parser has them."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    inner = [name for group in groups for key, sub in group.choices.items() for name in verbs(sub, (*names, key))]
    return inner if groups else [" ".join(names)]


def arguments(verb: str, root: Path) -> list[str]:
    places = {"p": root / "project", "r": root / "remote", "b": root / "base", "t": root}
    return [*verb.split(), *(part.format(**places) for part in VERBS[verb].split())]


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    if compiler() is None:
        pytest.skip("no C compiler (cc, gcc): a failing disk cannot be made")
    disk = FailingDisk(tmp_path_factory.mktemp("disk"))
    yield disk
    disk.close()


class World:
    """A trained project, its remote copy, a base, settings and new images; `fresh` puts all back as it was."""

    def __init__(self, root: Path, disk: FailingDisk):
        self.root, self.disk, self.kept = root / "world", disk, root / "kept"
        tiny.save_images(self.root / "project" / "dataset", sizes=((64, 64),) * 2)
        tiny.save_images(self.root / "new", sizes=((64, 64),))
        tiny.save_sd15(self.root / "base")
        changes = {"loop": {"epochs": 1, "batch_size": 1}, "sample": {"prompts": ["mofu"], "steps": 1}}
        settings = tiny.settings(self.root / "base", save={"every_steps": 1}, **changes)
        (self.root / "settings.yaml").write_text(yaml.safe_dump(settings))
        for verb in (
            ["train", self.root / "project", "--config", self.root / "settings.yaml"],
            ["tag", "edit", self.root / "project", "--add", "smile"],
        ):
            assert disk.command(verb, self.root).status == 0
        (self.root / "remote").mkdir()
        shutil.copytree(self.root / "project" / "dataset", self.root / "remote" / "dataset")
        shutil.copytree(self.root, self.kept)

    def fresh(self) -> None:
        shutil.rmtree(self.root)
        shutil.copytree(self.kept, self.root)

    def run(self, verb: str, fault: Fault | None = None) -> Ended:
        return self.disk.command(arguments(verb, self.root), self.root, fault)


@pytest.fixture(scope="module")
def world(disk, tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("failing"), disk)


def precious(root: Path) -> dict[str, str]:
    """SHA-256 of every file that no command may change: images, and what the run `run1` has saved."""
    project = root / "project"
    files = [*project.glob("dataset/1_mofu/*.png")]
    files += [
        file for name in ("lora", "states", "samples") for file in (project / "runs" / "run1" / name).rglob("*.*")
    ]
    return {str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def assert_handled(world: World, verb: str, fault: Fault) -> Ended:
    """Run a verb with a fault: it works all the same, or ends with one message that says what is wrong."""
    world.fresh()
    ended, what = world.run(verb, fault), f"{verb}, {fault}"
    # a check of several files goes on, and says which of them cannot be read
    allowed = (0, 1, 2) if verb == "model check" else (0, 2)
    assert ended.status in allowed, f"{what}: status {ended.status}, {ended.err[-2000:]}"
    assert "Traceback" not in ended.out + ended.err, f"{what}: {ended.err[-2000:]}"
    if ended.status == 2:
        *_, message = ended.err.strip().split("lorakit: ")
        assert len(message) < 1000 and message.strip().endswith((".", ")")), f"{what}: {message}"
    assert precious(world.kept).items() <= precious(world.root).items(), what
    captions = world.root.glob("project/dataset/1_mofu/*.txt")
    assert [caption.read_text()[:10] for caption in captions] == ["mofu, girl"] * 2, what
    project = Project(world.root / "project")
    assert "run1" in [run.name for run in project_status(project)] and read_config(project.run("run1")), what
    return ended


def test_every_verb_of_the_terminal_is_tried():
    assert sorted(verbs(_parser())) == sorted(VERBS)


# They take seconds: most of them have a test of their own below, all but the demo (minutes) are in the slow one.
LONG = ("demo", "doctor", "data regularize", "grid", "train")


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in LONG])
def test_a_disk_that_fails_ends_every_verb_with_one_message(world, verb):
    for fault in (Fault("open", 1, errno.ENOSPC, stays=True), Fault("read", 2, errno.EIO)):
        assert_handled(world, verb, fault)


@pytest.mark.parametrize(
    "verb, kind, at",
    [("train", "write", 12), ("grid", "write", 12), ("data regularize", "write", 5), ("demo", "mkdir", 1)],
)
def test_a_disk_that_is_full_ends_what_takes_long_with_its_name(world, verb, kind, at):
    ended = assert_handled(world, verb, Fault(kind, at, errno.ENOSPC, stays=True))
    assert ended.status == 2 and "the disk is full" in ended.err
    assert str(world.root / ("demo" if verb == "demo" else "project")) in ended.err


# verb -> its first operation on one of two images and their captions, and an error of it
READERS = {
    "data prepare": Fault("read", 2, errno.EIO),
    "tag edit": Fault("read", 4, errno.EIO),
    "open": Fault("open", 6, errno.EACCES),  # what cannot be written here was not downloaded
}


@pytest.mark.parametrize("verb", READERS)
def test_no_verb_goes_on_without_an_image_or_caption_that_a_failing_disk_did_not_give(world, verb):
    for more in range(4):
        ended = assert_handled(world, verb, replace(READERS[verb], at=READERS[verb].at + more))
        assert ended.status == 2 and "1_mofu/0" in ended.err, f"{more}: {ended.status}, {ended.err}"


@pytest.mark.slow
@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "demo"])
def test_every_operation_of_every_verb_may_fail_in_every_way(world, verb):
    world.fresh()
    counts = world.run(verb).counts
    for kind, numbers in ERRORS.items():
        # Of many operations, two dozen; the first with every error, the others with one error each, in turn.
        for turn, at in enumerate(range(1, counts[kind] + 1, max(1, counts[kind] // 24))):
            for number in (numbers[turn % len(numbers)],) if turn else numbers:
                assert_handled(world, verb, Fault(kind, at, number, stays=number in (errno.ENOSPC, errno.EROFS)))


def test_an_error_that_nobody_foresaw_is_reported_as_a_fault_without_secrets(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "token-of-a-user")

    def broken(_):
        raise KeyError("https://me:pa55@host/x with token-of-a-user")

    monkeypatch.setattr("lorakit.cli.train.project_status", broken)
    assert main(["status", str(tmp_path)]) == FAULT
    out, err = capsys.readouterr()
    (report,) = tmp_path.glob("lorakit-error-*.log")
    text = report.read_text()
    assert str(report) in err and "fault of lorakit" in err and len(err.splitlines()) == 1 and out == ""
    assert "Traceback" in text and "status" in text and "KeyError" in text
    for secret in ("pa55", "token-of-a-user"):
        assert secret not in text + err


@pytest.mark.parametrize("encoding", ["ascii", "cp936", "utf-8"])
def test_output_in_any_encoding_shows_what_it_can(tmp_path, encoding):
    folder = tmp_path / "狐 \N{FOX FACE}"
    folder.mkdir()
    console = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", console)
        assert main(["status", str(folder)]) == 0
    shown = console.buffer.getvalue().decode(encoding)
    assert "No runs yet" in shown and ("狐" in shown or "\\u72d0" in shown)


def test_a_reader_that_is_gone_ends_a_command_quietly(tmp_path, monkeypatch, capsys):
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(sys, "stdout", os.fdopen(write, "w"))
    assert main(["status", str(tmp_path)]) == UNREAD
    assert capsys.readouterr().err == ""
