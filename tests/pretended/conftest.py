"""The pretended device must be there before torch is imported: `make pretended` starts pytest with it."""

import sys

import pytest


@pytest.fixture(scope="session")
def native():
    """Counters of the pretended device, whose memory has no limit before and after a test."""
    plugin = sys.modules.get("pretended_cuda")
    if plugin is None:
        pytest.fail("run `make pretended`: the device has to be there before torch is imported")
    return plugin.native


@pytest.fixture(autouse=True)
def _no_limit(native):
    yield
    native.set_limit(0)
