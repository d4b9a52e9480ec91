"""Groups that span classes: as few photos beyond what is wanted as whole groups allow."""

import itertools

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from fruitlib.core.errors import InputError
from fruitlib.data import stratify

FULL = {"apple": 5, "cherry": 5, "tomato": 5}


def rows_of(groups):
    """Rows of groups, each {class: photos}."""
    rows = [
        (f"{label}/{number:03d}/{i}", label, f"g{number:03d}", "")
        for number, group in enumerate(groups)
        for label, photos in group.items()
        for i in range(photos)
    ]
    return pd.DataFrame(rows, columns=["path", "label", "group", "split"])


def sides(groups, val, test, seed):
    """The split of each group."""
    rows = rows_of(groups)
    split_of_row, _ = stratify.assign_splits(rows, val, test, seed)
    assert split_of_row.groupby(rows["group"]).nunique().max() == 1
    return split_of_row.groupby(rows["group"]).first().tolist()


def overshoot(table, side, val, test):
    """Photos beyond what is wanted, None where a class lacks some; `table` is (groups, classes)."""
    train, *held = (table[np.array(side) == name].sum(0) for name in ("train", "val", "test"))
    beyond = [has - want for has, want in zip(held, (val, test), strict=True)]
    return None if train.min() == 0 or np.min(beyond) < 0 else int(np.sum(beyond))


def table_of(groups):
    return np.array([[group.get(label, 0) for label in sorted(set().union(*groups))] for group in groups])


def test_one_session_that_meets_the_need_is_taken_rather_than_two():
    groups, ways = [FULL, FULL, FULL, {**FULL, "tomato": 1}], set()
    for seed in range(12):
        side = sides(groups, 3, 3, seed)
        assert sorted(side[:3]) == ["test", "train", "val"] and side[3] == "train"
        ways.add(tuple(side))
    assert len(ways) >= 4  # of six equal ways


@settings(max_examples=150, deadline=None)
@given(
    groups=st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(1, 6), min_size=1), min_size=3, max_size=6),
    val=st.integers(0, 5),
    test=st.integers(0, 5),
    seed=st.integers(0, 3),
)
def test_of_few_groups_no_other_choice_takes_less(groups, val, test, seed):
    table = table_of(groups)
    ways = itertools.product(("train", "val", "test"), repeat=len(groups))
    possible = [beyond for way in ways if (beyond := overshoot(table, way, val, test)) is not None]
    try:
        side = sides(groups, val, test, seed)
    except InputError as problem:
        assert "too few" in str(problem) and not possible
        return
    assert overshoot(table, side, val, test) == min(possible)


def test_every_way_of_nine_groups_is_compared():
    rng = np.random.default_rng(0)
    for seed in range(3):
        table = rng.integers(1, 9, (9, 3))
        groups = [dict(zip("abc", row.tolist(), strict=True)) for row in table]
        codes = np.indices((3,) * 9).reshape(9, -1).T
        train, *held = ((codes == side) @ table for side in range(3))
        beyond = np.concatenate(held, 1) - 7
        least = beyond.sum(1)[(beyond >= 0).all(1) & (train > 0).all(1)].min()
        assert overshoot(table, sides(groups, 7, 7, seed), 7, 7) == least


def test_many_groups_come_close_to_a_share_of_every_class():
    table = np.random.default_rng(0).integers(2, 9, (40, 3))
    groups = [dict(zip("abc", row.tolist(), strict=True)) for row in table]
    wanted = np.floor(0.2 * table.sum(0) + 0.5)
    for seed in range(3):
        assert 0 <= overshoot(table, sides(groups, 0.2, 0.2, seed), wanted, wanted) <= 3


def test_a_single_class_group_is_taken_where_it_fits_better():
    """Two apples and two cherries are wanted for test; the mixed session of five each would be six too many."""
    groups = [{"a": 5, "b": 5}] * 2 + [{"a": 2}, {"b": 2}]
    for seed in range(5):
        assert sides(groups, 0, 2, seed) == ["train", "train", "test", "test"]
