"""What the tokenizer alone gives back, against numbers computed from the store by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import small
import torch
from click.testing import CliRunner
from PIL import Image

from cli.main import main
from lmm.evaluate.ceiling import ceiling
from lmm.metrics import score
from pipeline.archive import build_manifest
from pipeline.encode import encode
from pipeline.errors import ArtefactError, UsageError
from pipeline.store import LatentStore, open_store
from pipeline.tokenizer import load_tokenizer

CPU = torch.device("cpu")


def decoded(store: LatentStore, array: str, place: int, folder: Path) -> np.ndarray:
    """D of one stored latent of view 0 by diffusers alone: (3, S, S) around [-1, 1]."""
    latent = torch.from_numpy(store.array(array)[0, place][None]).float()
    with torch.no_grad():
        pixels = load_tokenizer(str(folder)).autoencoder.decode(latent).sample[0]
    return pixels.numpy()


def test_masks_and_images_are_scored_as_decoded_from_view_0(
    small_store: str, kl_folder: Path
) -> None:
    store = open_store(small_store)
    found = ceiling(store, "all", CPU)
    rows = store.samples.with_row_index().sort("sample_id")
    assert found.per_image["sample_id"].to_list() == rows["sample_id"].to_list()
    root = store.source().root
    for i, row in enumerate(rows.iter_rows(named=True)):
        mask = decoded(store, "mask_mean", row["index"], kl_folder).mean(0) > 0
        truth = store.array("mask")[0, row["index"]]
        by_hand = score(mask[None], np.asarray(truth)[None])
        for metric in ("dsc", "iou", "hd95"):
            assert found.per_image[metric][i] == pytest.approx(by_hand[metric][0])
        image_pm1 = decoded(store, "image_mean", row["index"], kl_folder)
        image_01 = (image_pm1.clip(-1, 1) + 1) / 2
        with Image.open(root / row["image"]) as image:
            side = (small.SIZE_PX, small.SIZE_PX)
            original = np.array(image.resize(side, Image.Resampling.BILINEAR)) / 255
        error = np.square(image_01 - original.transpose(2, 0, 1)).mean()
        assert found.per_image["image_psnr_db"][i] == pytest.approx(10 * np.log10(1 / error), 1e-4)


def test_the_summary_is_of_the_split_asked_for(small_store: str) -> None:
    store = open_store(small_store)
    calls: list[tuple[int, int]] = []
    found = ceiling(store, "test", CPU, lambda *call: calls.append(call))
    wanted = store.samples.filter(pl.col("split") == "test")["sample_id"].sort()
    assert found.per_image["sample_id"].to_list() == wanted.to_list()
    summary = found.summary
    assert (summary["n"], summary["split"], summary["no_psnr"]) == (len(wanted), "test", None)
    for key in ("dsc", "iou", "hd95", "image_psnr_db"):
        values = found.per_image[key].to_list()
        assert summary[key] == pytest.approx(sum(values) / len(values))
    assert summary["dsc_worst"] == min(found.per_image["dsc"])
    assert summary["hd95_worst"] == max(found.per_image["hd95"])
    assert summary["image_psnr_db_worst"] == min(found.per_image["image_psnr_db"])
    worst = found.per_image.filter(pl.col("sample_id") == summary["worst"])
    assert worst["dsc"].item() == summary["dsc_worst"]
    assert calls[-1] == (2 * len(wanted), 2 * len(wanted))


@pytest.mark.parametrize(("psnr", "mean"), [([np.inf, 30.0], 30.0), ([np.inf, np.inf], None)])
def test_images_that_come_back_to_the_bit_are_left_out_of_the_mean(
    psnr: list[float], mean: float | None, small_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmm.evaluate.ceiling.psnr_db", lambda *_: torch.tensor(psnr))
    found = ceiling(open_store(small_store), "test", CPU)
    assert found.summary["image_psnr_db"] == mean
    assert (found.summary["no_psnr"] is None) == (mean is not None)
    json.dumps(found.summary, allow_nan=False)


def test_without_the_archive_there_is_no_psnr_and_it_says_so(
    kl_folder: Path, tmp_path: Path
) -> None:
    root = small.write_busi(tmp_path / "raw")
    url = str(tmp_path / "s.zarr")
    manifest = build_manifest(root, "busi", split=(0.5, 0.5), val_fraction=0.0).manifest
    encode(manifest, url, load_tokenizer(str(kl_folder)), size=small.SIZE_PX)
    root.rename(tmp_path / "gone")
    result = CliRunner().invoke(main, ["ceiling", url, "--json"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["image_psnr_db"] is None
    assert answer["n"] == 3
    assert result.stderr.startswith("no image PSNR: ")
    assert "cannot be read" in result.stderr
    shown = CliRunner().invoke(main, ["ceiling", url])
    assert "mask DSC %" in shown.stdout
    assert "PSNR" not in shown.stdout


def test_the_command_prints_its_fixed_keys_and_a_table(small_store: str) -> None:
    result = CliRunner().invoke(main, ["ceiling", small_store, "--split", "all", "--json"])
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    answer = json.loads(result.stdout)
    assert {"n", "dsc", "iou", "hd95", "image_psnr_db", "dsc_worst", "worst"} <= answer.keys()
    assert (answer["n"], answer["split"]) == (6, "all")
    shown = CliRunner().invoke(main, ["ceiling", small_store, "--split", "all"])
    assert f"{100 * answer['dsc']:.2f}" in shown.stdout
    assert f"{answer['image_psnr_db']:.2f}" in shown.stdout


def test_a_split_without_samples_and_changed_weights_are_refused(
    small_store: str, kl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = small.write_busi(tmp_path / "raw")
    manifest = build_manifest(root, "busi", split=(0.5, 0.5), val_fraction=0.0).manifest
    url = str(tmp_path / "s.zarr")
    encode(manifest, url, load_tokenizer(str(kl_folder)), size=small.SIZE_PX)
    with pytest.raises(UsageError, match="no sample in split 'val'"):
        ceiling(open_store(url), "val", CPU)
    monkeypatch.setattr("pipeline.tokenizer._digest", lambda *_: "0" * 64)
    with pytest.raises(ArtefactError, match="has digest 000000000000"):
        ceiling(open_store(small_store), "test", CPU)


def test_taesd_gives_busi_masks_back_nearly_whole(assets: Path, tmp_path: Path) -> None:
    split = assets / "splits" / "gms" / "busi_train_test_names.pkl"
    manifest = build_manifest(assets / "data" / "busi", "busi", split_file=split).manifest
    test = manifest.frame.filter(pl.col("split") == "test").head(6)
    few = replace(manifest, frame=test)
    encode(few, str(tmp_path / "s.zarr"), load_tokenizer(str(assets / "weights" / "taesd")))
    summary = ceiling(open_store(str(tmp_path / "s.zarr")), "test", CPU).summary
    assert summary["n"] == 6
    assert summary["dsc_worst"] > 0.95
    assert 20 < summary["image_psnr_db"] < 40
