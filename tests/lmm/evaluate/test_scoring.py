"""Scores of a run: what is scored, in which order, on which store."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import small
import torch
from PIL import Image

import lmm.evaluate.cells
from lmm.decoder import MaskDecoder, at_size
from lmm.evaluate import Wanted, evaluate, write_evaluation, write_masks
from lmm.evaluate.ceiling import ceiling
from lmm.metrics import score
from lmm.run import Run, create_run, open_run
from lmm.run.checkpoint import load_weights, read_checkpoint, write_checkpoint
from lmm.settings import TrainSettings
from lmm.splits import images_digest
from lmm.student.file import student_of
from lmm.student.network import MaskStudent
from lmm.train import train
from pipeline.archive import build_manifest
from pipeline.encode import encode
from pipeline.errors import ArtefactError, InputError
from pipeline.pixels import to_grey
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
        evaluation = evaluate(run, open_store(small_store), "test", CPU, Wanted(native=True))
        path = write_evaluation(evaluation, tmp_path / name)
        contents.append((path.read_bytes(), path.with_suffix(".json").read_bytes()))
    assert contents[0] == contents[1]
    assert json.loads(contents[0][1])["split"] == "test"


def test_real_images_scored_twice_give_the_same_bytes(assets: Path, tmp_path: Path) -> None:
    published = assets / "splits" / "gms" / "busi_train_test_names.pkl"
    manifest = build_manifest(assets / "data" / "busi", "busi", split_file=published).manifest
    counts = {"train": 8, "val": 2, "test": 24}
    parts = [manifest.frame.filter(pl.col("split") == name).head(n) for name, n in counts.items()]
    url = str(tmp_path / "few.zarr")
    encode(replace(manifest, frame=pl.concat(parts)), url, load_tokenizer("tiny-vae"))
    settings = TrainSettings(loss="lm", epochs=1, width=16)
    train(open_store(url), tmp_path / "run", settings, device=CPU)
    contents = []
    for name in ("a", "b"):
        evaluation = evaluate(
            open_run(tmp_path / "run"), open_store(url), "test", CPU, Wanted(native=True)
        )
        path = write_evaluation(evaluation, tmp_path / name)
        contents.append((path.read_bytes(), path.with_suffix(".json").read_bytes()))
    assert contents[0] == contents[1]
    assert len(pl.read_parquet(path)) == 24


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


def test_the_table_holds_the_predicted_masks(run: Run, small_store: str) -> None:
    evaluation = evaluate(run, open_store(small_store), "test", CPU)
    for png, mask in zip(evaluation.per_image["prediction_png"], evaluation.masks, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), mask)


@pytest.mark.parametrize("hd95", ["monai", "pooled"])
def test_the_summary_says_which_hd95_it_holds(run: Run, small_store: str, hd95: str) -> None:
    store = open_store(small_store)
    evaluation = evaluate(run, store, "test", CPU, Wanted(hd95=hd95))
    ids = store.samples["sample_id"].to_list()
    rows = [ids.index(name) for name in evaluation.per_image["sample_id"]]
    expected = score(evaluation.masks, store.array("mask")[0][rows], hd95=hd95)["hd95"]
    assert evaluation.summary["hd95_definition"] == hd95
    assert evaluation.per_image["hd95"].to_list() == expected.tolist()


def test_native_scores_are_those_of_the_grey_map_at_the_original_s_size(
    run: Run, small_store: str, kl_folder: Path
) -> None:
    store = open_store(small_store)
    evaluation = evaluate(run, store, "test", CPU, Wanted(native=True))
    decoder = load_tokenizer(str(kl_folder)).autoencoder
    table = evaluation.per_image
    sizes = set()
    for row in table.iter_rows(named=True):
        place = store.samples["sample_id"].to_list().index(row["sample_id"])
        mean = torch.from_numpy(store.array("image_mean")[0, place][None]).float()
        with torch.no_grad():
            grey = to_grey(decoder.decode(run.model()(mean * 0.18215)["out"] / 0.18215).sample)
        folder = Path(store.attributes["root"])
        files = store.samples["masks"][place]
        truth = np.any([np.asarray(Image.open(folder / file)) > 0 for file in files], axis=0)
        size = (truth.shape[1], truth.shape[0])
        resized = np.asarray(
            Image.fromarray(grey[0].numpy()).resize(size, Image.Resampling.BILINEAR)
        )
        expected = score(resized[None] > 0.5, truth[None])
        sizes.add(truth.shape)
        for metric in ("dsc", "iou", "hd95"):
            assert row[f"native_{metric}"] == pytest.approx(expected[metric][0], abs=1e-3)
    assert len(sizes) > 1
    assert all(size[0] > store.size for size in sizes)
    native = evaluation.summary["native"]
    assert native["dsc"] == pytest.approx(sum(table["native_dsc"]) / len(table))
    assert {"dsc_sd", "dsc_ci95", "iou_ci95", "hd95_sd", "hd95_ci95"} <= native.keys()


def test_a_grey_map_grows_bilinearly_by_hand() -> None:
    # Two columns 0 and 1 on four: pixel centres at -0.25, 0.25, 0.75 and 1.25 of a column.
    grey = np.array([[0, 1], [0, 1]], np.float32)
    np.testing.assert_allclose(at_size(grey, 2, 4), [[0, 0.25, 0.75, 1]] * 2, atol=1e-6)
    # On six, and one row: -1/3, 0, 1/3, 2/3, 1 and 4/3.
    np.testing.assert_allclose(at_size(grey, 1, 6), [[0, 0, 1 / 3, 2 / 3, 1, 1]], atol=1e-6)


def test_a_grey_map_that_shrinks_is_averaged_by_hand() -> None:
    # Six columns on two, each in the middle of three: a triangle that ends three columns away, so
    # columns 0 to 3 weigh 2, 3, 2 and 1 of 8 on the left. Without antialias the middle is all.
    first, third = np.eye(6, dtype=np.float32)[[0, 2]]
    np.testing.assert_allclose(at_size(np.stack([first] * 2), 2, 2), [[2 / 8, 0]] * 2, atol=1e-6)
    np.testing.assert_allclose(at_size(np.stack([third] * 2), 1, 2), [[2 / 8, 1 / 8]], atol=1e-6)


def test_the_ceiling_beside_the_scores_is_that_of_the_store(run: Run, small_store: str) -> None:
    store = open_store(small_store)
    calls: list[tuple[int, int]] = []
    evaluation = evaluate(
        run,
        store,
        "test",
        CPU,
        Wanted(hd95="pooled", ceiling=True),
        lambda *call: calls.append(call),
    )
    count = evaluation.summary["n"]
    found = evaluation.summary["ceiling"]
    alone = ceiling(store, "test", CPU, hd95="pooled").summary
    assert found == alone
    assert {"n", "dsc", "iou", "hd95", "image_psnr_db"} <= found.keys()
    assert found["hd95"] != ceiling(store, "test", CPU).summary["hd95"]
    assert calls == sorted(calls)
    assert calls[-1] == (3 * count, 3 * count)


def test_the_student_s_scores_stand_beside_the_frozen_decoder_s(
    small_store: str, run: Run, tmp_path: Path
) -> None:
    store = open_store(small_store)
    settings = TrainSettings(loss="compound", epochs=1, batch_size=1, width=16)
    train(store, tmp_path / "run", settings, device=CPU)
    taught = open_run(tmp_path / "run")
    evaluation = evaluate(taught, store, "test", CPU, Wanted(student=True))
    student = MaskStudent(4, 8)
    load_weights(student, read_checkpoint(tmp_path / "run" / "student.safetensors")[0])
    rows = store.samples.with_row_index().filter(pl.col("split") == "test").sort("sample_id")
    places = rows["index"].to_list()
    means = torch.from_numpy(store.array("image_mean")[0][places]).float()
    with torch.no_grad():
        masks = student(taught.model()(means * 0.18215)["out"]) > 0
    expected = score(masks, torch.from_numpy(store.array("mask")[0][places]))
    found = evaluation.summary["student"]
    assert found["dsc"] == pytest.approx(expected["dsc"].mean())
    assert found["agreement"] == pytest.approx(score(masks, evaluation.masks)["dsc"].mean())
    assert evaluation.summary["dsc"] == evaluate(taught, store, "test", CPU).summary["dsc"]
    with pytest.raises(ArtefactError, match="has no student"):
        evaluate(run, store, "test", CPU, Wanted(student=True))


def test_a_student_is_read_as_wide_as_it_was_taught(run: Run, tmp_path: Path) -> None:
    path = Path(shutil.copytree(run.path, tmp_path / "run"))
    wider = MaskStudent(4, 8, width=48)  # than students are now
    write_checkpoint(path / "student.safetensors", dict(wider.state_dict()), {})
    z_mask_hat = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = wider(z_mask_hat) > 0
    assert 0 < expected.sum() < expected.numel()
    assert torch.equal(student_of(open_run(path), CPU).masks(z_mask_hat), expected)


def test_native_without_the_archive_says_where_it_was(
    run: Run, small_store: str, tmp_path: Path
) -> None:
    store = open_store(small_store)
    store.attributes["root"] = str(tmp_path / "gone")
    with pytest.raises(ArtefactError, match=r"its images were in .*gone, which has gone"):
        evaluate(run, store, "test", CPU, Wanted(native=True))


def test_native_with_an_edited_mask_is_refused_by_name(
    run: Run, small_store: str, tmp_path: Path
) -> None:
    store = open_store(small_store)
    root = Path(shutil.copytree(store.attributes["root"], tmp_path / "raw"))
    store.attributes["root"] = str(root)
    file = root / store.samples.filter(pl.col("split") == "test")["masks"][0][0]
    Image.fromarray(~np.asarray(Image.open(file))).save(file)
    with pytest.raises(InputError, match="changed since it was ingested"):
        evaluate(run, store, "test", CPU, Wanted(native=True))


def test_another_data_set_in_a_store_of_the_same_name_overwrites_nothing(
    run: Run, small_store: str, kl_folder: Path, tmp_path: Path
) -> None:
    names = ("benign (1)", "benign (8)", "malignant (9)", "malignant (5)")
    manifest = small.ingest(small.write_busi(tmp_path / "raw", names))
    url = str(tmp_path / "small.zarr")
    encode(manifest, url, load_tokenizer(str(kl_folder)), size=small.SIZE_PX)
    own, other = open_store(small_store), open_store(url)
    assert own.name == other.name
    paths = [
        write_evaluation(evaluate(run, store, "test", CPU), tmp_path / "scores")
        for store in (own, other)
    ]
    assert paths[0].name == "small-test.parquet"
    digest = images_digest(manifest.frame.filter(split="test"))
    assert paths[1].name == f"small-{digest[:8]}-test.parquet"
    tested = manifest.frame.filter(pl.col("split") == "test")["sample_id"]
    assert pl.read_parquet(paths[1])["sample_id"].to_list() == sorted(tested)
    assert len(list((tmp_path / "scores").iterdir())) == 4


def test_a_store_of_another_size_is_refused_naming_both(
    run: Run, kl_folder: Path, tmp_path: Path
) -> None:
    manifest = small.ingest(small.write_busi(tmp_path / "raw"))
    url = str(tmp_path / "small.zarr")
    encode(manifest, url, load_tokenizer(str(kl_folder)), size=2 * small.SIZE_PX)
    with pytest.raises(ArtefactError, match=r"trained at 64 px, .*small.zarr is at 128 px"):
        evaluate(run, open_store(url), "test", CPU)


def test_grey_of_exactly_one_half_is_background(
    kl_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(str(kl_folder))
    pixels = torch.zeros(1, 3, 2, 2)  # in [-1, 1], so a grey of 0.5
    pixels[..., 1, 1] = 1e-6
    monkeypatch.setattr(tokenizer, "decode", lambda latent, precision: pixels)
    masks = MaskDecoder(tokenizer).masks(torch.zeros(1, 4, 8, 8))
    assert masks.tolist() == [[[False, False], [False, True]]]
    assert not (at_size(np.full((2, 2), 0.5, np.float32), 5, 3) > 0.5).any()


def test_the_decoder_thresholds_above_one_half(kl_folder: Path) -> None:
    decoder = MaskDecoder(load_tokenizer(str(kl_folder)))
    z = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        grey = torch.cat([decoder(one[None]) for one in z])
    assert torch.equal(decoder.masks(z), grey > 0.5)


def test_split_and_tokenizer_are_read_once_for_all_that_is_scored(
    run: Run, small_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    for name in ("load_latents", "load_tokenizer_of"):
        original = getattr(lmm.evaluate.cells, name)

        def counted(*args: Any, _name: str = name, _original: Any = original, **more: Any) -> Any:
            read.append(_name)
            return _original(*args, **more)

        monkeypatch.setattr(lmm.evaluate.cells, name, counted)
    evaluate(run, open_store(small_store), "test", CPU, Wanted(native=True, ceiling=True))
    assert sorted(read) == ["load_latents", "load_tokenizer_of"]
