"""The manifest as a file: written, read back, and rewritten by other hands."""

import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import small
from click.testing import CliRunner

from cli.main import main
from pipeline.errors import ArtefactError, UsageError
from pipeline.manifest import Manifest, read_manifest, write_manifest
from pipeline.store import open_store


@pytest.fixture
def manifest(raw: Path) -> Manifest:
    return small.ingest(raw)


def refused(path: Path, words: str) -> None:
    with pytest.raises(ArtefactError, match=words) as caught:
        read_manifest(path)
    assert "gms-lmm ingest" in caught.value.fix
    assert caught.value.exit_code == 4


def test_it_reads_back_as_written(manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "new" / "m.parquet"
    whole = replace(manifest, labels=True, window=(0, 4095), foreground="#ff0000")
    write_manifest(whole, path)
    read = read_manifest(path)
    assert read.frame.equals(whole.frame)
    for name in ("root", "layout", "labels", "settings", "window", "foreground", "digest"):
        assert getattr(read, name) == getattr(whole, name)
    assert [path.name for path in path.parent.iterdir()] == ["m.parquet"]


def test_what_is_not_set_reads_back_as_none(manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(manifest, tmp_path / "m.parquet")
    read = read_manifest(tmp_path / "m.parquet")
    assert (read.labels, read.window, read.foreground) == (False, None, None)


def test_the_same_data_gives_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet"):
        write_manifest(small.ingest(raw), tmp_path / name)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_table_filtered_and_widened_by_polars_encodes(
    manifest: Manifest, tmp_path: Path, url: str, kl_folder: Path
) -> None:
    write_manifest(manifest, tmp_path / "m.parquet")
    table = pl.read_parquet(tmp_path / "m.parquet").filter(pl.col("class") == "benign")
    table = table.with_columns(reader=pl.lit("A. B."))
    assert 0 < table.height < manifest.frame.height
    table.reverse().write_parquet(tmp_path / "benign.parquet")
    words = ["encode", str(tmp_path / "benign.parquet"), url, "--tokenizer", str(kl_folder)]
    result = CliRunner().invoke(main, [*words, "--size", "64"])
    assert result.exit_code == 0
    samples = open_store(url).samples
    assert samples["sample_id"].to_list() == sorted(table["sample_id"])
    assert "reader" not in samples.columns


def test_table_that_has_been_to_csv_types_reads_back(manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(manifest, tmp_path / "m.parquet")
    table = pl.read_parquet(tmp_path / "m.parquet").cast({"height": pl.Int64, "fold": pl.Float64})
    table.write_parquet(tmp_path / "wide.parquet")
    assert read_manifest(tmp_path / "wide.parquet").digest == manifest.digest


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (pl.DataFrame.clear, "has no rows"),
        (lambda table: table.drop("root", "fold"), "lacks the columns fold, root"),
        (lambda table: table.vstack(table[:1]), r"1 samples stand in several rows: benign \(1\)"),
        (lambda table: table.with_columns(split=pl.lit("dev")), "unknown split 'dev'"),
        (lambda table: table.with_columns(image=pl.lit(None, pl.String)), "empty cells in image"),
        (lambda table: table.with_columns(height=pl.lit("tall")), "columns are not a manifest's"),
        (
            lambda table: table.with_columns(root=pl.lit("/") + pl.col("sample_id")),
            "rows differ in root",
        ),
    ],
    ids=["empty", "columns", "twice", "split", "null", "type", "two data sets"],
)
def test_table_that_is_no_manifest_any_more_is_refused(
    manifest: Manifest, tmp_path: Path, change: object, words: str
) -> None:
    write_manifest(manifest, tmp_path / "m.parquet")
    change(pl.read_parquet(tmp_path / "m.parquet")).write_parquet(tmp_path / "changed.parquet")
    refused(tmp_path / "changed.parquet", words)


def test_reader_refuses_what_is_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("text")
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "other.parquet")
    refused(tmp_path / "absent.parquet", "no such manifest")
    refused(tmp_path / "text.parquet", "not a manifest")
    refused(tmp_path / "other.parquet", "not a manifest: it lacks the columns sample_id, dataset")


@pytest.mark.parametrize("version", ["1", "99"])
def test_reader_refuses_another_format_by_name(
    manifest: Manifest, tmp_path: Path, version: str
) -> None:
    metadata = {"artefact": "gms-lmm manifest", "format_version": version}
    manifest.frame.write_parquet(tmp_path / "m.parquet", metadata=metadata)
    refused(tmp_path / "m.parquet", f"format {version}; this gms-lmm reads 2")


def test_reader_refuses_a_vanished_root(manifest: Manifest, raw: Path, tmp_path: Path) -> None:
    write_manifest(manifest, tmp_path / "m.parquet")
    shutil.rmtree(raw)
    refused(tmp_path / "m.parquet", "which has gone")


def test_place_that_cannot_be_written_is_a_usage_error(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "m.parquet"):
        with pytest.raises(UsageError, match="cannot be written"):
            write_manifest(manifest, place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "raw"]


def test_digest_is_that_of_before_twins_and_folds(manifest: Manifest) -> None:
    """Stores hold it: data that has not changed is not to look as if it had."""
    frame = manifest.frame
    before = replace(manifest, frame=frame.drop("twin_group", "fold")).digest
    assert manifest.digest == before
    divided = frame.with_columns(
        twin_group=pl.lit("benign (1)"), fold=pl.lit(3, pl.Int32), split=pl.lit("test")
    )
    assert replace(manifest, frame=divided).digest == before
    edited = frame.with_columns(height=pl.lit(1, pl.Int32))
    assert replace(manifest, frame=edited).digest != before
