"""Tensors on disk: what is damaged is named."""

from pathlib import Path

import pytest
import torch

from lmm.run.checkpoint import read_checkpoint, write_checkpoint
from pipeline.errors import ArtefactError


def test_a_truncated_checkpoint_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    write_checkpoint(path, {"a": torch.arange(100.0)}, {"epoch": 1})
    assert read_checkpoint(path)[1] == {"epoch": 1}
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ArtefactError, match=r"last\.safetensors is damaged"):
        read_checkpoint(path)
