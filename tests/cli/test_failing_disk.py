"""Every verb on a disk that fails at any operation: one message, never a traceback or a hang, and nothing is lost."""

from __future__ import annotations

import argparse
import errno
import shutil
from pathlib import Path

import pytest
import tiny
import yaml
from failing_disk import Ended, FailingDisk, Fault, compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler (cc, gcc): a failing disk cannot be made")
WRITES = {
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


@pytest.mark.parametrize("verb", VERBS)
def test_explore(world, verb):
    import time

    world.fresh()
    t = time.time()
    done = world.run(verb)
    print(verb, done.status, round(time.time() - t, 2), done.counts, done.err[-300:])
