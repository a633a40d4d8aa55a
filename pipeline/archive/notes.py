"""What is no fault of a data set but worth knowing: torn groups, twins across splits, gaps."""

from collections.abc import Sequence

import polars as pl

from pipeline.images import ENCLOSED
from pipeline.manifest import SPLITS, Manifest
from pipeline.telling import some_of

ACROSS = (("test", "train"), ("val", "train"), ("test", "val"))


def count_twins(frame: pl.DataFrame) -> dict[str, int | dict[str, int]]:
    """How many twins a manifest's rows hold, and how many stand in two splits.

    groups         of two samples and more that share their twin_group
    samples        in these groups
    across_splits  "test-train": samples of test of whose group some are in train; "val-train" and
                   "test-val" likewise
    """
    groups = frame.group_by("twin_group").len().filter(pl.col("len") > 1)
    across = {f"{one}-{other}": len(_reaching(frame, one, other)) for one, other in ACROSS}
    return {
        "groups": groups.height,
        "samples": int(groups["len"].sum()),
        "across_splits": across,
    }


def _reaching(frame: pl.DataFrame, one: str, other: str) -> pl.DataFrame:
    """Samples of one split with a twin in the other."""
    there = frame.filter(pl.col("split") == other)
    return frame.filter(pl.col("split") == one).join(there, on="twin_group", how="semi")


def notes_on(manifest: Manifest, inside_out: Sequence[str]) -> list[str]:
    """Sentences, a thing worth knowing each.

    inside_out  samples whose masks are drawn inside out, by name
    """
    frame = manifest.frame
    notes = []
    groups = frame.group_by("group_id").agg(pl.col("split").n_unique())
    if torn := groups.filter(pl.col("split") > 1).height:
        origin = manifest.settings["split"]
        notes.append(f"{torn} of {groups.height} groups stand in several splits ({origin})")
    for one, other in ACROSS:
        if twins := len(_reaching(frame, one, other)):
            total = frame.filter(pl.col("split") == one).height
            notes.append(f"{twins} of {total} {one} images have a twin in {other}")
    alike = frame.group_by("image_sha256").agg(pl.col("sample_id").sort())
    notes += [
        f"identical images, in one split: {', '.join(names)}"
        for names in sorted(alike.get_column("sample_id").to_list())
        if len(names) > 1
    ]
    if empty := frame.filter(pl.col("foreground_fraction") == 0).height:
        notes.append(f"{empty} samples have an empty mask")
    if inside_out:
        masks = f"{len(inside_out)} masks are drawn inside out"
        if manifest.foreground == ENCLOSED:
            notes.append(f"{masks} and turned: {some_of(inside_out)}")
        else:
            fix = f"look at them; --foreground {ENCLOSED} turns them"
            notes.append(f"{masks}, foreground all round background: {some_of(inside_out)}; {fix}")
    missing = [split for split in SPLITS if split not in set(frame["split"])]
    return notes + [f"no sample is in {split}" for split in missing]
