"""How splits are read, matched and drawn."""

import os
import pickle
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.archive.split_files import (
    SplitError,
    match_splits,
    normalise,
    read_name_lists,
    read_split_file,
)
from pipeline.archive.splits import assign_splits, draw_folds, hold_out_val, tie_groups
from pipeline.errors import InputError, UsageError

GMS = {"train": {"name_list": ["a_1", "a_2"]}, "test": {"name_list": ["b_1"]}}
NAMED = {"a_1": "train", "a_2": "train", "b_1": "test"}


def pickled(path: Path, content: object) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


def test_pickle_csv_and_parquet_say_the_same(tmp_path: Path) -> None:
    table = pl.DataFrame({"sample_id": list(NAMED), "split": list(NAMED.values())})
    table.write_csv(tmp_path / "s.csv")
    table.write_parquet(tmp_path / "s.parquet")
    pickled(tmp_path / "s.pkl", GMS)
    for name in ("s.csv", "s.parquet", "s.pkl"):
        assert read_split_file(tmp_path / name) == NAMED


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=repr)
def test_csv_is_read_with_any_line_end_and_a_byte_order_mark(tmp_path: Path, end: str) -> None:
    lines = ["sample_id, split", "a_1, train", '"b, 1", test', ""]
    (tmp_path / "s.csv").write_bytes(b"\xef\xbb\xbf" + end.join(lines).encode())
    assert read_split_file(tmp_path / "s.csv") == {"a_1": "train", "b, 1": "test"}


def test_pickle_that_executes_code_is_refused_and_not_executed(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {marker}",)

    path = pickled(tmp_path / "s.pkl", {"train": {"name_list": [Evil()]}})
    with pytest.raises(SplitError, match=r"s\.pkl: asks to load \w+\.system"):
        read_split_file(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        ["a"],
        {"train": ["a"]},
        {"train": {"names": ["a"]}},
        {"train": {"name_list": "abc"}},
        {"train": {"name_list": [1, 2]}},
    ],
    ids=str,
)
def test_pickle_of_another_form_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(SplitError, match=r"s\.pkl: not of the form"):
        read_split_file(pickled(tmp_path / "s.pkl", content))


def test_damaged_and_foreign_split_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "cut.pkl").write_bytes(pickle.dumps(GMS)[:-20])
    (tmp_path / "not.parquet").write_text("text")
    (tmp_path / "bytes.csv").write_bytes(b"sample_id,split\n\xff\xfe,train\n")
    (tmp_path / "columns.csv").write_text("name,split\na,train\n")
    (tmp_path / "short.csv").write_text("sample_id,split\na,train\nb\n")
    (tmp_path / "empty.csv").write_text("sample_id,split\n")
    (tmp_path / "strange.csv").write_text("sample_id,split\na,dev\n")
    (tmp_path / "other.json").write_text("{}")
    names = [*(path.name for path in tmp_path.iterdir()), "absent.csv"]
    for name in names:
        with pytest.raises(InputError, match=name) as caught:
            read_split_file(tmp_path / name)
        assert caught.value.exit_code == 3
        assert caught.value.fix


def test_name_in_two_splits_is_refused(tmp_path: Path) -> None:
    content = {"train": {"name_list": ["a", "b"]}, "test": {"name_list": ["b"]}}
    with pytest.raises(SplitError, match="two splits: b") as caught:
        read_split_file(pickled(tmp_path / "s.pkl", content))
    assert caught.value.names == ("b",)


def test_name_lists_are_read_with_and_without_suffix(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a\r\nb.jpg\r\n\r\n")
    (tmp_path / "test.txt").write_text("c.d ")
    paths = {"train": tmp_path / "train.txt", "test": tmp_path / "test.txt"}
    assert read_name_lists(paths) == {"a": "train", "b": "train", "c.d": "test"}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("benign_1", "benign (1)", True),
        ("benign_1", "Benign_1", False),
        ("benign_1", "benign_11", False),
        ("Läsion 1", "La\u0308sion_1", True),
        ("ISIC_0024306", "ISIC_0024306", True),
        ("(1)", "1", True),
        ("()", "[]", False),
    ],
)
def test_names_are_one_after_normalising(one: str, other: str, same: bool) -> None:
    assert (normalise(one) == normalise(other)) is same


def test_matching_reports_both_kinds_of_leftover() -> None:
    match = match_splits({"a_1": "train", "c_1": "test"}, ["a (1)", "b (1)"])
    assert match.splits == {"a (1)": "train"}
    assert match.unknown == ("c_1",)
    assert match.unnamed == ("b (1)",)
    assert match.clashes == ()


def test_name_that_means_two_samples_is_a_clash() -> None:
    match = match_splits({"a_1": "train"}, ["a (1)", "a-1"])
    assert match.splits == {}
    assert match.clashes == (("a (1)", "a-1"),)


def test_two_names_of_one_sample_clash_only_when_their_splits_differ() -> None:
    assert match_splits({"a_1": "train", "a 1": "train"}, ["a (1)"]).clashes == ()
    assert match_splits({"a_1": "train", "a 1": "test"}, ["a (1)"]).clashes == (("a (1)",),)


def test_shares_are_met_exactly_without_groups() -> None:
    drawn = assign_splits({str(i): str(i) for i in range(1000)}, (0.8, 0.2), 0.1, 0)
    assert Counter(drawn.values()) == {"train": 720, "val": 80, "test": 200}


def test_draw_depends_on_seed_but_not_on_row_order() -> None:
    groups = {str(i): str(i // 2) for i in range(100)}
    drawn = assign_splits(groups, (0.8, 0.2), 0.1, 0)
    assert assign_splits(dict(reversed(groups.items())), (0.8, 0.2), 0.1, 0) == drawn
    assert assign_splits(groups, (0.8, 0.2), 0.1, 1) != drawn


def test_draw_is_the_same_on_every_platform() -> None:
    """By sha256sum: test:0:a … test:0:e begin with ba, 0e, 93, 1c, 7e, so b and d come first."""
    drawn = assign_splits({x: x for x in "abcde"}, (0.6, 0.4), 0.0, 0)
    assert {sample for sample, split in drawn.items() if split == "test"} == {"b", "d"}


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=80),
    st.floats(0, 0.9),
    st.floats(0, 0.9),
    st.integers(0, 5),
)
def test_no_group_stands_in_two_splits_and_train_is_never_empty(
    members: list[int], test_share: float, val_fraction: float, seed: int
) -> None:
    groups = {f"s{i}": f"g{group}" for i, group in enumerate(members)}
    drawn = assign_splits(groups, (1 - test_share, test_share), val_fraction, seed)
    assert drawn.keys() == groups.keys()
    assert len({(groups[sample], split) for sample, split in drawn.items()}) == len(set(members))
    assert "train" in drawn.values()


def test_large_groups_are_passed_over_for_ones_that_fit() -> None:
    groups = {f"big{i}": "big" for i in range(50)} | {f"s{i}": f"g{i}" for i in range(50)}
    for seed in range(5):
        drawn = assign_splits(groups, (0.8, 0.2), 0.0, seed)
        assert Counter(drawn.values()) == {"train": 80, "test": 20}
        assert drawn["big0"] == "train"


def test_share_above_zero_gets_at_least_one_group() -> None:
    drawn = assign_splits({"a": "a", "b": "b", "c": "c"}, (0.9, 0.1), 0.1, 0)
    assert Counter(drawn.values()) == {"train": 1, "val": 1, "test": 1}


def test_val_fraction_zero_gives_no_val() -> None:
    drawn = assign_splits({str(i): str(i) for i in range(20)}, (0.8, 0.2), 0.0, 0)
    assert Counter(drawn.values()) == {"train": 16, "test": 4}


def test_val_is_taken_from_train_and_only_once() -> None:
    splits = {str(i): "test" if i < 20 else "train" for i in range(120)}
    groups = {sample: sample for sample in splits}
    held = hold_out_val(splits, groups, 0.1, 0)
    assert Counter(held.values()) == {"train": 90, "val": 10, "test": 20}
    assert all(held[str(i)] == "test" for i in range(20))
    assert hold_out_val(held, groups, 0.1, 0) == held


@pytest.mark.parametrize(
    ("split", "val_fraction"),
    [
        ((0.8, 0.3), 0.1),
        ((-0.2, 1.2), 0.1),
        ((1.2, -0.2), 0.1),
        ((0.8, 0.2), 1.0),
        ((0.8, 0.2), -1),
    ],
)
def test_shares_out_of_range_are_refused(split: tuple[float, float], val_fraction: float) -> None:
    with pytest.raises(UsageError):
        assign_splits({"a": "a"}, split, val_fraction, 0)


def test_a_set_may_be_all_test() -> None:
    groups = {str(i): str(i // 3) for i in range(20)}
    assert set(assign_splits(groups, (0.0, 1.0), 0.1, 0).values()) == {"test"}


def test_ties_join_groups_through_others() -> None:
    groups = {"a": "g1", "b": "g2", "c": "g2", "d": "g3", "e": "g4"}
    tied = tie_groups(groups, [("c", "d"), ("b", "a")])
    assert tied == {"a": "g1", "b": "g1", "c": "g1", "d": "g1", "e": "g4"}


def test_published_gms_splits_are_read(assets: Path) -> None:
    sizes = {
        "busi": {"train": 517, "test": 130},
        "bus": {"train": 132, "test": 31},
        "glas": {"train": 85, "test": 80},
        "ham10000": {"train": 8015, "test": 2000},
        "kvasir": {"train": 472, "test": 118},
    }
    for name, expected in sizes.items():
        path = assets / "splits" / "gms" / f"{name}_train_test_names.pkl"
        assert Counter(read_split_file(path).values()) == expected


def folds_of(groups: dict[str, str], folds: int, classes: dict[str, str | None] | None = None):
    return draw_folds(groups, classes or dict.fromkeys(groups), folds, seed=0)


@given(st.lists(st.integers(0, 12), min_size=6, max_size=80), st.integers(2, 5))
def test_folds_keep_groups_whole_and_none_is_empty(members: list[int], folds: int) -> None:
    groups = {f"s{i}": f"g{group}" for i, group in enumerate(members)}
    if len(set(members)) < folds:
        with pytest.raises(UsageError, match="a group for each"):
            folds_of(groups, folds)
        return
    dealt = folds_of(groups, folds)
    assert dealt.keys() == groups.keys()
    assert set(dealt.values()) == set(range(folds))
    assert len({(groups[sample], fold) for sample, fold in dealt.items()}) == len(set(members))


def test_folds_are_alike_in_size_and_classes() -> None:
    classes: dict[str, str | None] = {str(i): "rare" if i < 23 else "common" for i in range(103)}
    dealt = folds_of({sample: sample for sample in classes}, 5, classes)
    assert sorted(Counter(dealt.values()).values()) == [20, 20, 21, 21, 21]
    rare = Counter(fold for sample, fold in dealt.items() if classes[sample] == "rare")
    assert sorted(rare.values()) == [4, 4, 5, 5, 5]


def test_large_groups_do_not_unbalance_folds() -> None:
    groups = {f"big{i}": f"big{i // 8}" for i in range(24)} | {f"s{i}": f"s{i}" for i in range(36)}
    assert sorted(Counter(folds_of(groups, 3).values()).values()) == [20, 20, 20]


def test_folds_depend_on_seed_but_not_on_row_order() -> None:
    groups = {str(i): str(i // 2) for i in range(100)}
    classes = dict.fromkeys(groups)
    dealt = draw_folds(groups, classes, 5, 0)
    assert draw_folds(dict(reversed(groups.items())), classes, 5, 0) == dealt
    assert draw_folds(groups, classes, 5, 1) != dealt
