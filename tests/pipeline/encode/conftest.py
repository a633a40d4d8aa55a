"""What the tests of encoding share."""

import pytest


@pytest.fixture
def three_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two samples a shard, so that six samples are three of them."""
    monkeypatch.setattr("pipeline.store.create.SHARD_SAMPLES", 2)
