"""The authors' weights as a run: the same outputs, and nothing executed."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lmm.model import LatentMappingModel
from lmm.run.authors import import_checkpoint
from pipeline.errors import InputError


def test_imported_weights_reproduce_the_reference_outputs(assets: Path, tmp_path: Path) -> None:
    vectors = load_file(assets / "vectors" / "gms_outputs.safetensors")
    run = import_checkpoint(assets / "vectors" / "gms_checkpoint.pth", tmp_path / "gms")
    with torch.no_grad():
        outputs = run.model()(vectors["input"])
    for level in ("level3", "level2", "level1", "out"):
        # Outputs reach ±18: 1e-5 of the largest is what float32 leaves of any order of summation.
        tolerance = 1e-5 * float(vectors[level].abs().max())
        torch.testing.assert_close(outputs[level], vectors[level], rtol=0, atol=tolerance)


@pytest.mark.parametrize(("channels", "width"), [(4, 16), (16, 32)])
def test_an_import_finds_channels_and_width_in_the_weights(
    channels: int, width: int, tmp_path: Path
) -> None:
    model = LatentMappingModel(channels, width)
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    imported = import_checkpoint(tmp_path / "weights.pth", tmp_path / "run").model()
    assert (imported.latent_channels, imported.width) == (channels, width)
    for name, value in model.state_dict().items():
        assert torch.equal(imported.state_dict()[name], value), name


class Exploit:
    """Would create a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def test_a_checkpoint_that_would_execute_code_is_refused_and_does_not(tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    torch.save({"model": {"input_blocks.weight": Exploit(trap)}}, tmp_path / "trap.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Exploit(trap)))
    for name in ("trap.pth", "plain.pth"):
        with pytest.raises(InputError, match=name):
            import_checkpoint(tmp_path / name, tmp_path / "run")
    assert not trap.exists()
    assert not (tmp_path / "run").exists()


def test_what_is_no_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("not weights")
    torch.save({"model": {"other.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    for name in ("text.pth", "other.pth", "absent.pth"):
        with pytest.raises(InputError, match=name):
            import_checkpoint(tmp_path / name, tmp_path / "run")
    assert not (tmp_path / "run").exists()
