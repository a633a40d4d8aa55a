"""Runs on disk: what is no run, or another's, is refused by name."""

import json
from pathlib import Path

import polars as pl
import pytest

from lmm.run import create_run, open_run
from lmm.run.lineage import write_lineage
from pipeline.errors import ArtefactError, UsageError


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
    run = create_run(tmp_path, {"store": {}}, lineage)
    assert run.lineage().equals(lineage)


def test_a_run_without_its_lineage_is_not_taken_for_one_that_saw_nothing(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", {"store": {}})
    with pytest.raises(ArtefactError, match=r"has no lineage\.parquet"):
        run.lineage()
    assert create_run(tmp_path / "imported", {"store": None}).lineage() is None


def test_a_missing_run_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="gms-lmm train"):
        open_run(tmp_path / "absent")
