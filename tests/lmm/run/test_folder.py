"""Runs on disk: what is no run, or another's, is refused by name."""

import json
import os
from pathlib import Path

import polars as pl
import pytest

from lmm.run import create_run, open_run, run_lock
from lmm.run.lineage import write_lineage
from pipeline.errors import ArtefactError, UsageError


def _die(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_run_of_another_format_is_refused_by_its_number(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", {"model": None})
    content = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**content, "format_version": 99}))
    with pytest.raises(ArtefactError, match="run format 99"):
        open_run(run.path)


def test_a_folder_with_foreign_files_is_not_made_a_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match="is not a run"):
        create_run(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_whose_creation_was_cut_short_is_made_anew(tmp_path: Path) -> None:
    write_lineage(tmp_path, pl.DataFrame({"sample_id": ["of before"]}))
    lineage = pl.DataFrame({"sample_id": ["of now"]})
    run = create_run(tmp_path, {"store": {"url": "busi.zarr"}}, lineage)
    assert run.lineage().equals(lineage)


def test_what_an_earlier_version_left_in_its_first_moment_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "lineage.parquet.4242.partial").write_bytes(b"half")
    create_run(tmp_path, {"store": None})
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_run_that_is_killed_in_its_first_moment_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lineage = tmp_path / "run", pl.DataFrame({"sample_id": ["a"]})
    with monkeypatch.context() as patch:
        patch.setattr("lmm.run.folder.write_json", _die)
        with pytest.raises(KeyboardInterrupt):
            create_run(path, {"store": {"url": "busi.zarr"}}, lineage)
    assert not path.exists()
    assert create_run(path, {"store": {"url": "busi.zarr"}}, lineage).lineage().equals(lineage)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    with (
        run_lock(run),
        pytest.raises(ArtefactError, match=rf"runs/one is held by train, process {os.getpid()}"),
        run_lock(run),
    ):
        pass
    with run_lock(run):
        pass
    assert list(run.parent.iterdir()) == []


def test_a_run_without_its_lineage_is_not_taken_for_one_that_saw_nothing(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", {"store": {"url": "busi.zarr"}})
    with pytest.raises(ArtefactError, match=r"has no lineage\.parquet"):
        run.lineage()
    assert create_run(tmp_path / "imported", {"store": None}).lineage() is None


def test_a_missing_run_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="gms-lmm train"):
        open_run(tmp_path / "absent")
