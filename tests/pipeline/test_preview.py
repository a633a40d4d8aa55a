"""The contact sheet: which samples, which pixels where, and the numbers written beside them."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import small
import torch
from click.testing import CliRunner, Result
from PIL import Image

from cli.main import main
from pipeline.augment import ViewPolicy, draw_views
from pipeline.images.sheet import CAPTION_PX, GAP_PX
from pipeline.manifest import Manifest, write_manifest
from pipeline.preview import contour, describe_view, draw_preview, spread
from pipeline.tokenizer import load_tokenizer

SIDE = small.SIZE_PX


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return small.ingest(small.write_busi(tmp_path / "raw"))


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["preview", *(str(word) for word in words)])


def tile(sheet: Image.Image, row: int, column: int) -> np.ndarray:
    left = GAP_PX + column * (SIDE + GAP_PX)
    top = GAP_PX + row * (SIDE + CAPTION_PX + GAP_PX) + CAPTION_PX
    return np.array(sheet.crop((left, top, left + SIDE, top + SIDE)))


def caption(sheet: Image.Image, row: int, column: int) -> np.ndarray:
    left = GAP_PX + column * (SIDE + GAP_PX)
    top = GAP_PX + row * (SIDE + CAPTION_PX + GAP_PX)
    return np.array(sheet.crop((left, top, left + SIDE, top + CAPTION_PX)))


def clean(manifest: Manifest, sample_id: str) -> np.ndarray:
    with Image.open(small.image_path(manifest.root.parent, sample_id)) as image:
        return np.array(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


@pytest.mark.parametrize(
    ("rows", "wanted", "expected"),
    [
        (9, 3, [0, 4, 8]),
        (6, 1, [0]),
        (3, 8, [0, 1, 2]),
        (1, 8, [0]),
        (647, 8, [0, 92, 185, 277, 369, 461, 554, 646]),
    ],
)
def test_samples_are_spread_from_the_first_to_the_last(
    rows: int, wanted: int, expected: list[int]
) -> None:
    assert spread(rows, wanted) == expected


def test_contour_is_the_rim_inside_the_mask() -> None:
    mask = np.zeros((6, 7), dtype=bool)
    mask[1:5, 2:6] = True
    rim = mask.copy()
    rim[2:4, 3:5] = False
    assert np.array_equal(contour(mask), rim)


def test_contour_does_not_run_along_the_frame() -> None:
    mask = np.zeros((4, 5), dtype=bool)
    mask[:, :3] = True
    assert np.argwhere(contour(mask)).tolist() == [[row, 2] for row in range(4)]
    assert not contour(np.ones((3, 3), dtype=bool)).any()
    assert not contour(np.zeros((3, 3), dtype=bool)).any()


def test_row_shows_clean_image_contour_and_every_drawn_view(manifest: Manifest) -> None:
    preview = draw_preview(manifest, views=4, samples=2, size=SIDE)
    assert [row["sample_id"] for row in preview.rows] == ["benign (1)", "malignant (2)"]
    sheet = preview.sheet
    assert sheet.size == (5 * (SIDE + GAP_PX) + GAP_PX, 2 * (SIDE + CAPTION_PX + GAP_PX) + GAP_PX)
    for row, sample_id in enumerate(("benign (1)", "malignant (2)")):
        image = clean(manifest, sample_id)
        assert np.array_equal(tile(sheet, row, 0), image)
        outlined = (tile(sheet, row, 1) != image).any(axis=2)
        assert 20 < outlined.sum() < 0.2 * SIDE**2
        assert len({tile(sheet, row, column).tobytes() for column in range(5)}) > 2
        for column in range(5):
            assert (caption(sheet, row, column) < 128).any()


def test_views_are_those_that_encode_would_see(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With flips alone, a view must be the clean image flipped; and the contour with it."""
    plain = draw_preview(manifest, views=1, samples=1, size=SIDE).sheet

    def flip_all(sample_ids: list[str], views: int, seed: int) -> pl.DataFrame:
        always = ViewPolicy(1.0, 0.0, 0.0, 0.0, p_colour=0.0)
        return draw_views(sample_ids, views, seed, always)

    monkeypatch.setattr("pipeline.preview.draw_views", flip_all)
    sheet = draw_preview(manifest, views=2, samples=1, size=SIDE).sheet
    expected = tile(plain, 0, 1)[:, ::-1].astype(int)
    assert np.abs(tile(sheet, 0, 2).astype(int) - expected).max() <= 1


def test_round_trip_numbers_are_those_of_the_pixels(manifest: Manifest, kl_folder: Path) -> None:
    tokenizer = load_tokenizer(str(kl_folder))
    preview = draw_preview(manifest, views=1, samples=6, size=SIDE, tokenizer=tokenizer)
    image = clean(manifest, "benign (2)")
    with Image.open(manifest.root / "benign" / "benign (2)_mask.png") as file:
        mask = np.array(file.resize((SIDE, SIDE), Image.Resampling.NEAREST)) > 0
    inputs = np.stack([image / 127.5 - 1, np.repeat(mask[:, :, None] * 2.0 - 1, 3, axis=2)])
    with torch.no_grad():
        model = tokenizer.autoencoder
        latent = model.encode(torch.tensor(inputs).permute(0, 3, 1, 2).float()).latent_dist.mean
        decoded = model.decode(latent).sample.clamp(-1, 1).permute(0, 2, 3, 1).numpy()
    error = ((decoded[0] - inputs[0]) * 127.5) ** 2
    assert preview.rows[1]["psnr_db"] == pytest.approx(10 * np.log10(255**2 / error.mean()), 1e-3)
    found = decoded[1].mean(axis=2) > 0
    dsc = 2 * (found & mask).sum() / (found.sum() + mask.sum())
    assert preview.rows[1]["dsc"] == pytest.approx(dsc, abs=1e-3)
    assert np.abs(tile(preview.sheet, 1, 2) - (decoded[0] + 1) * 127.5).max() < 1
    assert preview.sheet.width == 4 * (SIDE + GAP_PX) + GAP_PX


@pytest.mark.parametrize(
    ("drawn", "words"),
    [
        ({}, "as it is"),
        ({"horizontal_flip": 1}, "flip h"),
        ({"horizontal_flip": 1, "vertical_flip": 1, "quarter_turns": 1}, "flip hv, +90°"),
        ({"quarter_turns": 3}, "-90°"),
        (
            {"quarter_turns": 1, "rotation_deg": -12.4, "scale": 1.05, "shift_x": 0.08},
            "+78°, x1.05, +8 +0 %",
        ),
        ({"saturation": 1.04}, "colour"),
    ],
)
def test_view_is_described_by_what_was_drawn(drawn: dict[str, float], words: str) -> None:
    still = dict.fromkeys(
        ("horizontal_flip", "vertical_flip", "quarter_turns", "shift_x", "shift_y"), 0
    )
    parameters = {**still, "rotation_deg": 0, "scale": 1, "saturation": 1, **drawn}
    assert describe_view(parameters) == words


# --- the command


def test_sheet_is_written_and_is_the_same_again(manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(manifest, tmp_path / "m.parquet")
    out = tmp_path / "new folder" / "sheet.png"
    words = (tmp_path / "m.parquet", "-o", out, "--size", str(SIDE), "--samples", "2")
    first = run(*words, "--json")
    assert (first.exit_code, first.stderr) == (0, "")
    answer = json.loads(first.stdout)
    with Image.open(out) as sheet:
        assert sheet.size == (answer["width"], answer["height"])
    assert [row["sample_id"] for row in answer["samples"]] == ["benign (1)", "malignant (2)"]
    before = out.read_bytes()
    second = run(*words)
    assert second.stdout == f"{out}: 2 samples, {answer['width']} × {answer['height']} px\n"
    assert out.read_bytes() == before
    assert run(*words, "--seed", "1").exit_code == 0
    assert out.read_bytes() != before


def test_tokenizer_adds_its_dsc_to_each_sample(
    manifest: Manifest, tmp_path: Path, kl_folder: Path
) -> None:
    write_manifest(manifest, tmp_path / "m.parquet")
    words = (tmp_path / "m.parquet", "-o", tmp_path / "s.png", "--size", str(SIDE), "--json")
    answer = json.loads(run(*words, "--tokenizer", kl_folder).stdout)
    assert len(answer["samples"]) == 6
    assert all(0 <= row["dsc"] <= 1 and row["psnr_db"] > 0 for row in answer["samples"])


@pytest.mark.parametrize(
    ("more", "code", "complaint"),
    [
        (["-o", "sheet.docx"], 2, "cannot be written: unknown file extension"),
        (["--samples", "0"], 2, "--samples"),
        (["--tokenizer", "nowhere"], 4, "'nowhere' is neither"),
        (["--tokenizer", "KL", "--size", "60"], 2, "multiple of 8"),
    ],
    ids=["suffix", "samples", "tokenizer", "size"],
)
def test_words_that_do_not_fit_are_said(
    manifest: Manifest,
    tmp_path: Path,
    kl_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    code: int,
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_manifest(manifest, tmp_path / "m.parquet")
    words = [str(kl_folder) if word == "KL" else word for word in more]
    result = run("m.parquet", "--size", str(SIDE), "--json", *words)
    assert (result.exit_code, result.stdout) == (code, "")
    assert complaint in result.stderr
    assert not list(tmp_path.glob("*.png"))


def test_changed_image_is_named_and_nothing_is_written(manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(manifest, tmp_path / "m.parquet")
    small.edit_image(manifest.root.parent, "malignant (2)")
    result = run(tmp_path / "m.parquet", "-o", tmp_path / "s.png", "--size", str(SIDE))
    assert result.exit_code == 3
    assert "malignant (2).png changed since it was ingested" in result.stderr
    assert not (tmp_path / "s.png").exists()
