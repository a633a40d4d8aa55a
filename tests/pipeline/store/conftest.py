"""A store in several shards, to be copied and pruned."""

from pathlib import Path

import pytest
import small

from pipeline.encode import encode
from pipeline.manifest import Manifest
from pipeline.tokenizer import Tokenizer


@pytest.fixture
def whole(
    tmp_path: Path, url: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> Manifest:
    """Six samples in three shards of two, in three views."""
    monkeypatch.setattr("pipeline.store.create.SHARD_SAMPLES", 2)
    manifest = small.ingest(small.write_busi(tmp_path / "raw"))
    encode(manifest, url, tokenizer, views=3, size=small.SIZE_PX)
    return manifest
