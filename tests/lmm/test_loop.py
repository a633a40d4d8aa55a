"""The loop: its learning rate, and the README's model and loss of one's own through it."""

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmm.batches import open_batches
from lmm.decoder import MaskDecoder
from lmm.evaluate import predict, read_cells
from lmm.latents import Batch, load_latents
from lmm.loop import fit, learning_rate
from lmm.run import open_run, start_run
from lmm.run.checkpoint import load_weights, read_checkpoint
from lmm.settings import TrainSettings
from lmm.step import Learner
from pipeline.errors import ArtefactError
from pipeline.store import open_store
from pipeline.tokenizer import Tokenizer

CPU = torch.device("cpu")
README = (Path(__file__).parents[2] / "lmm" / "README.md").read_text()


def test_the_learning_rate_warms_up_and_then_follows_a_cosine_to_zero() -> None:
    settings = TrainSettings(epochs=105, lr=2.0)
    rates = [learning_rate(epoch, settings) for epoch in range(1, 106)]
    assert rates[:5] == pytest.approx([2 / 6, 4 / 6, 1, 8 / 6, 10 / 6])
    assert rates[5] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.0)  # half way down
    assert rates[104] == pytest.approx(1 + math.cos(math.pi * 0.99))


def own_model_block() -> str:
    """The README's code under "A model or a loss of your own"."""
    block = re.search(r"## A model or a loss of your own\n.*?```python\n(.*?)```", README, re.S)
    assert block
    return block[1]


def test_the_readme_trains_a_model_and_a_loss_of_one_s_own_in_under_thirty_lines(
    small_store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = own_model_block()
    assert len(code.splitlines()) < 30
    shutil.copytree(small_store, tmp_path / "busi.zarr")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "own"}
    exec(compile(code, "README", "exec"), names)
    run = open_run(Path("runs/own"))
    assert capsys.readouterr().out.strip() == str(run.summary()["val_dsc"])
    lines = (run.path / "log.jsonl").read_text().splitlines()
    assert len(lines) == names["settings"].epochs
    assert all("loss_l1" in line for line in lines)
    with pytest.raises(ArtefactError, match="weights of a Residual, no LatentMappingModel"):
        run.model()
    model = names["model"]
    load_weights(model, read_checkpoint(run.path / "best.safetensors")[0])
    cells = read_cells(open_store("busi.zarr"), ["test"], CPU)
    assert predict(model, cells).masks.shape == (len(cells), 64, 64)


class Scale(nn.Module):
    """One number: Ẑ_M = a · Z_I."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(3.0))

    def forward(self, z_image: Tensor) -> dict[str, Tensor]:
        return {"out": self.a * z_image}


def test_a_loop_minimises_the_sum_of_the_parts_that_it_logs_and_counts_its_steps(
    small_store: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    seen: list[int] = []

    def loss(z_mask_hat: Any, batch: Batch, step: int) -> dict[str, Tensor]:
        seen.append(step)
        a = z_mask_hat["out"].mean() / batch.z_image.mean()
        return {"square": (a - 1) ** 2, "shift": 0.5 * a}

    store = open_store(small_store)
    settings = TrainSettings(epochs=3, batch_size=1, lr=0.1)
    model = Scale()
    learner = Learner(model, loss, settings, MaskDecoder(tokenizer))
    run = start_run(tmp_path / "run", store, settings, model_class="Scale")
    selection = load_latents(store, "val", views=1)
    summary = fit(run, learner, open_batches(store, settings, CPU), selection)
    assert seen == list(range(1, summary["steps"] + 1))
    assert summary["parameters"] == 1
    # (a − 1)² + a/2 falls from 3 towards its minimum at 3/4; AdamW's steps are of size lr.
    assert 0.75 < model.a.item() < 3 - 0.1
    # A run that is done is not done again.
    assert fit(run, learner, open_batches(store, settings, CPU), selection) == summary
    assert len(seen) == summary["steps"]
