"""Which sample is train, val or test, and in which fold: drawn by seed, group by group."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping

from pipeline.errors import UsageError

SPLIT = (0.8, 0.2)  # shares of train and test
VAL_FRACTION = 0.1  # share of train


def tie_groups(groups: Mapping[str, str], ties: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Groups widened so that tied samples belong together, whatever their group_id.

    groups     sample_id → group_id
    ties       pairs of sample_ids
    returns    sample_id → the least group_id of all that are tied to its own
    """
    leader = {group: group for group in groups.values()}

    def lead(group: str) -> str:
        while leader[group] != group:
            leader[group] = group = leader[leader[group]]
        return group

    for one, other in ties:
        least, more = sorted((lead(groups[one]), lead(groups[other])))
        leader[more] = least
    return {sample: lead(group) for sample, group in groups.items()}


def check_shares(split: tuple[float, float], val_fraction: float) -> None:
    """Raise UsageError unless `split` is two shares that sum to 1 and `val_fraction` is one."""
    train, test = split
    if not (train >= 0 and test >= 0 and abs(train + test - 1) < 1e-6):
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
    least one group, and train keeps one unless its share is 0: a set that is there to be scored.

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


def draw_folds(
    groups: Mapping[str, str], classes: Mapping[str, str | None], folds: int, seed: int
) -> dict[str, int]:
    """Deal whole groups into folds that are alike in size and, as far as groups allow, in classes.

    The largest groups are dealt first, equals in the order of a hash of seed and group; each goes
    to the fold that has fewest samples of its commonest class, then fewest samples.

    groups     sample_id → group_id
    classes    sample_id → class, None where it has none
    returns    sample_id → fold, 0 to folds − 1
    raises     UsageError when there are fewer than two folds, or fewer groups than folds
    """
    members = _members(groups)
    if not 2 <= folds <= len(members):
        message = f"{folds} folds of {len(members)} groups: at least 2, and a group for each"
        raise UsageError(message, "give another number to --folds")
    held: list[Counter[str | None]] = [Counter() for _ in range(folds)]
    fold_of: dict[str, int] = {}
    for group in sorted(members, key=lambda g: (-len(members[g]), _hashed(f"fold:{seed}", g))):
        kinds = Counter(classes[sample] for sample in members[group])
        kind = kinds.most_common(1)[0][0]
        fold = min(range(folds), key=lambda i: (held[i][kind], held[i].total(), i))
        held[fold] += kinds
        fold_of |= dict.fromkeys(members[group], fold)
    return fold_of


def _hashed(salt: str, group: str) -> bytes:
    return hashlib.sha256(f"{salt}:{group}".encode()).digest()


def _members(groups: Mapping[str, str]) -> dict[str, list[str]]:
    members: dict[str, list[str]] = {}
    for sample, group in groups.items():
        members.setdefault(group, []).append(sample)
    return members


def _draw(groups: Mapping[str, str], share: float, salt: str) -> set[str]:
    """Samples of whole groups that come near `share` of all, filled in hashed order."""
    members = _members(groups)
    target = share * len(groups)
    room = target
    rest = []
    taken: list[str] = []
    for group in sorted(members, key=lambda group: _hashed(salt, group)):
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
