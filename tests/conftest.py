"""Keeps every test away from the network, the user's model cache and any display; a tiny base of every family."""

import gc
import os
import signal
import sys
import tempfile

import pytest

from lorakit import models

_cache = tempfile.TemporaryDirectory()
os.environ["HF_HOME"] = os.environ["XDG_STATE_HOME"] = _cache.name
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nothing listens there: a hidden call to the hub fails at once
os.environ["MPLBACKEND"] = "agg"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: more threads wait for each other ten times as long
# A shell's background job starts with SIGINT ignored, a job of nohup or cron with SIGHUP; child processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_ignore_collect(collection_path, config):
    """The browser's tests import for seconds what only they need: not unless they are asked for."""
    if collection_path.name == "browser" and "not browser" in config.option.markexpr:
        return True


_frozen = 0  # modules that were imported when objects were last left out of garbage collection


@pytest.fixture(autouse=True)
def frozen_imports():
    """Objects of torch and its friends are left out of garbage collection, which each run asks for several times."""
    global _frozen
    yield
    # most of them are imported by the first test that trains, not with its file
    if len(sys.modules) > _frozen + 50:
        gc.collect()
        gc.freeze()
        _frozen = len(sys.modules)


@pytest.fixture(scope="module", params=models.names())
def family(request) -> str:
    """Each model family in turn."""
    return request.param


@pytest.fixture(scope="module")
def base(family, tmp_path_factory):
    """A tiny base of the family, in a folder whose name must not get out."""
    from tiny import save_base

    root = tmp_path_factory.mktemp(family)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        yield save_base(family, root / "secretfolder" / "base-v1")


@pytest.fixture(scope="module")
def forked():
    """Trainers and probes that this process starts are forks of one that has imported everything: seconds less each."""
    from forked import subprocess_with_forks

    from lorakit.training import jobs, probe

    with pytest.MonkeyPatch.context() as patch:
        for module in (jobs, probe):
            patch.setattr(module, "subprocess", subprocess_with_forks())
        yield
