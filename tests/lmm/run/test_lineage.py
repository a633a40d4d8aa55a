"""What a run has seen is known by the bytes of images and masks, not by names or splits."""

import hashlib

import polars as pl
import pytest

from lmm.run.lineage import lineage_of, seen_among, seen_in_words
from lmm.splits import images_by_split, images_digest

SAMPLES = pl.DataFrame(
    {
        "sample_id": ["a", "b", "c", "d", "e"],
        "split": ["train", "val", "test", None, "train"],
        "image_sha256": ["ia", "ib", "ic", "id", "ie"],
        "mask_sha256": ["ma", "mb", "mc", "md", "me"],
    }
)

LINEAGE = lineage_of(SAMPLES.filter(split="train"), SAMPLES.filter(split="val"))


def test_a_lineage_has_a_row_for_each_sample_in_its_role() -> None:
    assert LINEAGE.columns == ["image_sha256", "mask_sha256", "sample_id", "role"]
    assert LINEAGE.rows() == [
        ("ib", "mb", "b", "select"),
        ("ia", "ma", "a", "train"),
        ("ie", "me", "e", "train"),
    ]


def test_the_digest_of_a_set_is_of_its_content_alone() -> None:
    expected = hashlib.sha256(b"ia ma\nie me\n").hexdigest()
    train = SAMPLES.filter(split="train")
    renamed = train.with_columns(sample_id=pl.col("sample_id") + "2").reverse()
    assert images_digest(train) == images_digest(renamed) == expected
    other_mask = train.with_columns(mask_sha256=pl.lit("m"))
    assert images_digest(other_mask) != expected
    assert images_by_split(SAMPLES).keys() == {"train", "val", "test"}
    assert images_by_split(SAMPLES)["train"] == expected


def test_a_renamed_image_with_another_mask_was_seen_all_the_same() -> None:
    others = pl.DataFrame({"sample_id": ["x", "y", "z"], "image_sha256": ["ie", "ib", "new"]})
    assert seen_among(LINEAGE, others) == {
        "train": ["x"],
        "select": ["y"],
    }


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (None, "seen: not known"),
        ({"train": 0, "select": 0}, ""),
        ({"train": 3, "select": 0}, "3 of 9 were trained on"),
        ({"train": 0, "select": 2}, "2 of 9 chose the epoch"),
    ],
)
def test_what_was_seen_in_words(seen: dict[str, int] | None, says: str) -> None:
    assert seen_in_words(seen, 9) == says
