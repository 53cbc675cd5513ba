"""LoKr, which the kit only reads, is trained by tests: what holds for one variant must not hold by chance."""

import pytest


@pytest.fixture(scope="module")
def lokr_is_trained():
    from trained_lokr import TrainedLokr

    from lorakit.lora.variants import lokr

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lokr, "Lokr", TrainedLokr)
        yield
