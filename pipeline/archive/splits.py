"""Which sample is train, val or test where no one has said so: drawn by seed, group by group."""

import hashlib
from collections.abc import Mapping

from pipeline.errors import UsageError

SPLIT = (0.8, 0.2)  # shares of train and test
VAL_FRACTION = 0.1  # share of train


def tie_duplicates(groups: Mapping[str, str], image_sha256: Mapping[str, str]) -> dict[str, str]:
    """Groups widened so that byte-identical images belong together, whatever their group_id.

    groups        sample_id → group_id
    image_sha256  sample_id → digest of its image file
    returns       sample_id → the least group_id of all that are tied to its own
    """
    leader: dict[str, str] = {}

    def lead(group: str) -> str:
        while leader.setdefault(group, group) != group:
            group = leader[group]
        return group

    first: dict[str, str] = {}
    for sample, group in groups.items():
        least, other = sorted((lead(group), lead(first.setdefault(image_sha256[sample], group))))
        leader[other] = least
    return {sample: lead(group) for sample, group in groups.items()}


def check_shares(split: tuple[float, float], val_fraction: float) -> None:
    """Raise UsageError unless `split` is two shares that sum to 1 and `val_fraction` is one."""
    train, test = split
    if not (0 < train <= 1 and 0 <= test < 1 and abs(train + test - 1) < 1e-6):
        message = f"the split {train}/{test} is not two shares that sum to 1"
        raise UsageError(message, "give train/test, as in --split 0.8/0.2")
    if not 0 <= val_fraction < 1:
        message = f"the val fraction {val_fraction} is not in [0, 1)"
        raise UsageError(message, "give a share of train, as in --val-fraction 0.1")


def assign_splits(
    groups: Mapping[str, str], split: tuple[float, float], val_fraction: float, seed: int
) -> dict[str, str]:
    """Draw train, val and test so that no group stands in two of them.

    Groups are taken in the order of a hash of seed and group, so the result does not depend on the
    order of rows or on the platform. A split takes every group that still fits into its share of
    the samples, and the smallest that does not if that brings it nearer; a share above 0 gets at
    least one group, and train always keeps one.

    groups        sample_id → group_id
    split         shares of train and test, which sum to 1
    val_fraction  share of train that is held out as val
    returns       sample_id → "train", "val" or "test"
    raises        UsageError when a share is out of range
    """
    check_shares(split, val_fraction)
    test = _draw(groups, split[1], f"test:{seed}")
    drawn = {sample: "test" if sample in test else "train" for sample in groups}
    return hold_out_val(drawn, groups, val_fraction, seed)


def hold_out_val(
    splits: Mapping[str, str], groups: Mapping[str, str], val_fraction: float, seed: int
) -> dict[str, str]:
    """Move a share of train to val, whole groups of train at a time; test is untouched.

    splits        sample_id → split; returned as it is when it has a val already
    groups        sample_id → group_id
    val_fraction  share of train, 0 for none
    """
    if "val" in splits.values():
        return dict(splits)
    train = {sample: groups[sample] for sample, split in splits.items() if split == "train"}
    val = _draw(train, val_fraction, f"val:{seed}")
    return {sample: "val" if sample in val else split for sample, split in splits.items()}


def _draw(groups: Mapping[str, str], share: float, salt: str) -> set[str]:
    """Samples of whole groups that come near `share` of all, filled in hashed order."""

    def hashed(group: str) -> bytes:
        return hashlib.sha256(f"{salt}:{group}".encode()).digest()

    members: dict[str, list[str]] = {}
    for sample, group in groups.items():
        members.setdefault(group, []).append(sample)
    target = share * len(groups)
    room = target
    rest = []
    taken: list[str] = []
    for group in sorted(members, key=hashed):
        if len(members[group]) <= room:
            taken += members[group]
            room -= len(members[group])
        else:
            rest.append(group)
    if target > 0 and len(rest) > 1:
        nearest = min(rest, key=lambda group: len(members[group]))
        if not taken or len(members[nearest]) - room < room:
            taken += members[nearest]
    return set(taken)
