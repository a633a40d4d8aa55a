"""Scores of a run: what is scored, in which order, on which store."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import small
import torch
from PIL import Image

from lmm.checkpoint import Run, create_run, open_run, write_checkpoint
from lmm.decoder import MaskDecoder
from lmm.evaluate import evaluate, write_evaluation, write_masks
from lmm.metrics import score
from lmm.settings import TrainSettings
from lmm.train import train
from pipeline.encode import encode
from pipeline.errors import ArtefactError
from pipeline.manifest import build_manifest
from pipeline.store import open_store
from pipeline.tokenizer import load_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(small_store: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("evaluate") / "run"
    settings = TrainSettings(loss="lm", epochs=2, batch_size=1, width=16)
    train(open_store(small_store), path, settings, device=CPU)
    return open_run(path)


def test_masks_and_scores_are_those_of_decoding_the_model_s_output(
    run: Run, small_store: str, kl_folder: Path
) -> None:
    store = open_store(small_store)
    evaluation = evaluate(run, store, "test", CPU)
    tokenizer = load_tokenizer(str(kl_folder))
    rows = store.samples.with_row_index().filter(pl.col("split") == "test").sort("sample_id")
    assert evaluation.per_image["sample_id"].to_list() == rows["sample_id"].to_list()
    for i, place in enumerate(rows["index"]):
        mean = torch.from_numpy(store.array("image_mean")[0, place][None]).float()
        with torch.no_grad():
            latent = run.model()(mean * 0.18215)["out"] / 0.18215
            pixels = tokenizer.autoencoder.decode(latent).sample
        expected = ((pixels.mean(1) + 1) / 2).clamp(0, 1)[0] > 0.5
        np.testing.assert_array_equal(evaluation.masks[i], expected.numpy())
        truth = torch.from_numpy(store.array("mask")[0, place])
        by_hand = score(expected[None], truth[None])
        for metric in ("dsc", "iou", "hd95"):
            assert evaluation.per_image[metric][i] == pytest.approx(by_hand[metric][0])


def test_the_summary_is_the_mean_over_images(run: Run, small_store: str) -> None:
    evaluation = evaluate(run, open_store(small_store), "test", CPU)
    for metric in ("dsc", "iou", "hd95"):
        mean = sum(evaluation.per_image[metric]) / len(evaluation.per_image)
        assert evaluation.summary[metric] == pytest.approx(mean)
    assert evaluation.summary["n"] == len(evaluation.per_image)
    classes = evaluation.summary["by_class"]
    assert sum(entry["n"] for entry in classes.values()) == evaluation.summary["n"]


def test_twice_gives_the_same_bytes(run: Run, small_store: str, tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        evaluation = evaluate(run, open_store(small_store), "test", CPU)
        path = write_evaluation(evaluation, tmp_path / name, "small")
        contents.append((path.read_bytes(), path.with_suffix(".json").read_bytes()))
    assert contents[0] == contents[1]
    assert json.loads(contents[0][1])["split"] == "test"


def test_masks_are_written_under_their_sample_ids(
    run: Run, small_store: str, tmp_path: Path
) -> None:
    evaluation = evaluate(run, open_store(small_store), "test", CPU)
    write_masks(evaluation, tmp_path)
    for name, mask in zip(evaluation.per_image["sample_id"], evaluation.masks, strict=True):
        written = np.asarray(Image.open(tmp_path / f"{name}.png"))
        np.testing.assert_array_equal(written, mask * np.uint8(255))


def test_a_store_of_another_tokenizer_is_refused_naming_both(run: Run, tmp_path: Path) -> None:
    small.small_kl(seed=1).save_pretrained(tmp_path / "other")
    manifest = build_manifest(small.write_busi(tmp_path / "raw"), "busi").manifest
    url = str(tmp_path / "other.zarr")
    encode(manifest, url, load_tokenizer(str(tmp_path / "other")), size=small.SIZE_PX)
    with pytest.raises(ArtefactError, match=r"trained on latents of .*kl.*holds those of .*other"):
        evaluate(run, open_store(url), "test", CPU)


def test_weights_that_have_changed_since_the_store_was_made_are_refused(
    run: Run, small_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.tokenizer._digest", lambda *_: "0" * 64)
    with pytest.raises(ArtefactError, match="has digest 000000000000"):
        evaluate(run, open_store(small_store), "test", CPU)


def test_an_imported_model_of_other_channels_is_refused(small_store: str, tmp_path: Path) -> None:
    sizes = {"latent_channels": 16, "width": 16}
    run = create_run(tmp_path / "r", {"model": sizes, "store": None, "tokenizer": None})
    write_checkpoint(run.path / "best.safetensors", {}, {})
    with pytest.raises(ArtefactError, match="16 channels"):
        evaluate(run, open_store(small_store), "test", CPU)


def test_the_decoder_thresholds_above_one_half(kl_folder: Path) -> None:
    decoder = MaskDecoder(load_tokenizer(str(kl_folder)))
    z = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        grey = torch.cat([decoder(one[None]) for one in z])
    assert torch.equal(decoder.masks(z), grey > 0.5)
