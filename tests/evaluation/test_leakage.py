"""Leakage and wrong labels are found where they were planted, and not elsewhere."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fruitlib.core.errors import InputError
from fruitlib.data import decoding
from fruitlib.evaluation import label_errors, leakage, wording
from fruitlib.evaluation.intervals import units

NAMES = ["apple", "cherry", "tomato"]


def planted(leak: bool, groups_per_class: int = 10, views: int = 6):
    """Pictures in which a class has a faint pattern and, where a leak is planted, each group a strong one."""
    rng = np.random.default_rng(0)
    pictures, labels, groups = [], [], []
    pattern = rng.normal(0, 2.5, (3, 16, 16, 3))
    for group in range(3 * groups_per_class):
        label, own = group % 3, rng.normal(0, 30, (16, 16, 3))
        for _ in range(views):
            noise = own + rng.normal(0, 10, (16, 16, 3)) if leak else rng.normal(0, 30, (16, 16, 3))
            pictures.append((128 + pattern[label] + noise).clip(0, 255).repeat(2, 0).repeat(2, 1))
            labels.append(label)
            groups.append(f"g{group}")
    return np.array(pictures, np.uint8), np.array(labels), groups


def test_a_planted_leak_has_its_price():
    leak = leakage.price_of_leakage(*planted(leak=True))
    assert leak.points_low > 10 and leak.random > 0.9 and leak.safe < 0.85
    assert leak.points == pytest.approx(100 * (leak.random - leak.safe))
    assert leak.random_low <= leak.random <= leak.random_high and leak.points_low < leak.points < leak.points_high
    assert (leak.n, leak.groups, leak.measured) == (180, 30, True)
    assert f"{leak.points:.0f} points" in wording.leakage_text(leak) and "n = 180" in wording.leakage_text(leak)


def test_groups_that_share_nothing_cost_nothing():
    leak = leakage.price_of_leakage(*planted(leak=False))
    assert leak.points_low < 0 < leak.points_high and "cannot be distinguished from 0" in wording.leakage_text(leak)
    assert 0.5 < leak.safe < 1


def test_the_price_is_the_same_for_the_same_seed():
    given = planted(leak=True, groups_per_class=5, views=4)
    assert leakage.price_of_leakage(*given, seed=1, repeats=1) == leakage.price_of_leakage(*given, seed=1, repeats=1)
    assert leakage.price_of_leakage(*given, seed=1, repeats=1) != leakage.price_of_leakage(*given, seed=2, repeats=1)


def test_what_cannot_be_compared_has_a_reason():
    pictures, labels, groups = planted(leak=True, groups_per_class=2, views=3)
    alone = leakage.price_of_leakage(pictures, labels, [""] * 18)
    assert alone.reason == "no groups" and not alone.measured and np.isnan(alone.points)
    lone = [("all" if label == 2 else group) for label, group in zip(labels, groups, strict=True)]
    few = leakage.price_of_leakage(pictures, [NAMES[label] for label in labels], lone)
    assert (few.reason, few.scarcest_class, few.fewest_groups) == ("few groups", "tomato", 1)
    assert wording.leakage_text(few).startswith("class tomato has 1 group, too few")
    assert leakage.price_of_leakage(pictures, labels * 0, groups).reason == "one class"
    assert leakage.price_of_leakage(pictures[:0], labels[:0], []).reason == "one class"
    assert leakage.price_of_leakage(pictures, labels, groups, repeats=1).fewest_groups == 2


def test_groups_of_several_classes_are_compared_too():
    pictures, labels, _ = planted(leak=False, groups_per_class=4, views=3)
    sessions = [f"day{i % 3}" for i in range(len(labels))]
    assert leakage.price_of_leakage(pictures, labels, sessions, repeats=1).n == len(labels)


def test_pictures_all_alike_are_no_obstacle():
    blank = np.zeros((40, 32, 32, 3), np.uint8)
    leak = leakage.price_of_leakage(blank, np.arange(40) % 2, [f"g{i // 4}" for i in range(40)], repeats=1)
    assert leak.random < 0.6 and leak.points_low <= 0


def test_very_many_photos_are_thinned_without_losing_groups():
    rng = np.random.default_rng(0)
    units = rng.integers(0, 40, 5000)
    chosen = leakage.probe_photos(units % 3, [f"g{unit}" for unit in units], most=600)
    counts = np.bincount(units[chosen], minlength=40)
    assert 500 < len(chosen) <= 600 and set(counts) == {15} and len(set(chosen)) == len(chosen)
    assert leakage.probe_photos(units % 3, [f"g{unit}" for unit in units], most=5000).tolist() == list(range(5000))


def test_very_many_groups_are_drawn_and_rare_classes_stay():
    groups = [f"g{i // 5}" for i in range(20000)] + [f"rare{i // 5}" for i in range(40)]
    labels = np.array([0] * 20000 + [1] * 40)
    chosen = leakage.probe_photos(labels, groups, most=600)
    assert 550 < len(chosen) < 700 and (labels[chosen] == 1).sum() == 25
    sizes = pd.Series(groups)[chosen].value_counts()
    assert set(sizes) == {5}  # what stays of a group can still leak


def test_a_photo_that_stands_alone_is_its_own_group():
    assert len(set(units(["a", "", "a", "", "b"]))) == 4
    assert sorted(units(["", "a", "a", ""])) == [0, 0, 1, 2]


def test_real_fruit_leaks_as_networks_show(real_data):
    files = sorted((real_data / "fruit304").rglob("*.jpg"))
    pictures = np.stack(
        [np.asarray(decoding.open_photo(file).resize((32, 32), Image.Resampling.BOX)) for file in files]
    )
    labels = [file.parent.name for file in files]
    leak = leakage.price_of_leakage(pictures, labels, [file.name.split("__")[0] for file in files], repeats=2)
    assert leak.n == 304 and 8 < leak.points < 25 and leak.points_low > 3 and 0.6 < leak.safe < 0.8


def simulated(n: int, wrong: int, seed: int, shares=(0.42, 0.42, 0.16), repeats: int = 1) -> tuple[pd.DataFrame, set]:
    """A predictions table of a model that is right 19 times in 20, and the paths whose label was set wrong."""
    rng = np.random.default_rng(seed)
    true = rng.choice(3, n, p=shares)
    given, planted = true.copy(), rng.choice(n, wrong, replace=False)
    given[planted] = (true[planted] + rng.integers(1, 3, wrong)) % 3
    tables = []
    for repeat in range(1, repeats + 1):
        logits = rng.normal(0, 1.5, (n, 3)) + 4.2 * np.eye(3)[true]
        probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        facts = {"path": [f"{i:04d}.jpg" for i in range(n)], "label": [NAMES[i] for i in given], "repeat": repeat}
        facts |= {f"p_{name}": probs[:, k] for k, name in enumerate(NAMES)} | {"backend": "torch"}
        tables.append(pd.DataFrame(facts))
    return pd.concat(tables), {f"{i:04d}.jpg" for i in planted}


@pytest.mark.parametrize(("n", "wrong"), [(30, 3), (100, 5), (304, 15)])
def test_planted_wrong_labels_are_listed_first_and_few_others(n, wrong):
    found = accused = first = 0
    for seed in range(10):
        table, planted = simulated(n, wrong, seed)
        doubts = label_errors.doubtful_labels(table, NAMES)
        hits = doubts["path"].isin(planted)
        found, accused, first = found + hits.sum(), accused + (~hits).sum(), first + hits[:wrong].sum()
        assert doubts["quality"].is_monotonic_increasing and (doubts["suggested"] != doubts["label"]).all()
        assert (doubts["probability"] > doubts["quality"]).all()
    assert found > 0.65 * 10 * wrong and accused < 0.02 * 10 * n
    assert first > 0.65 * 10 * wrong  # most that are wrong stand above those that are not


def test_repeats_of_a_photo_are_averaged_and_find_more():
    table, planted = simulated(200, 10, seed=3, repeats=5)
    doubts = label_errors.doubtful_labels(table, NAMES)
    assert doubts["path"].is_unique and set(doubts["path"]) <= planted and len(doubts) >= 9
    row = doubts.iloc[0]
    own = table[table["path"] == row["path"]]
    assert row["probability"] == pytest.approx(own[f"p_{row['suggested']}"].mean())
    assert row["quality"] == pytest.approx(own[f"p_{row['label']}"].mean())


def test_without_doubts_the_table_is_empty_and_has_its_columns():
    columns = ["path", "label", "suggested", "probability", "quality"]
    certain = pd.DataFrame({"path": list("abcdef"), "label": NAMES * 2})
    certain = certain.assign(**{f"p_{name}": 0.02 + 0.94 * (certain["label"] == name) for name in NAMES})
    assert (
        label_errors.doubtful_labels(certain, NAMES).columns.tolist() == columns
        and label_errors.doubtful_labels(certain, NAMES).empty
    )
    one_class = certain[certain["label"] == "apple"]
    assert (
        label_errors.doubtful_labels(one_class, NAMES).empty and label_errors.doubtful_labels(certain[:0], NAMES).empty
    )


def test_a_class_of_few_photos_or_none_is_no_obstacle(capsys):
    table, _ = simulated(60, 4, seed=5, shares=(0.6, 0.38, 0.02))
    label_errors.doubtful_labels(table, NAMES)
    wrong = [*NAMES, "quince"]
    doubts = label_errors.doubtful_labels(table.assign(p_quince=0.0), wrong)
    assert len(doubts) and "quince" not in set(doubts["suggested"])
    assert "".join(capsys.readouterr()) == ""


def test_the_doubts_of_a_weak_model_come_with_a_warning():
    table, _ = simulated(100, 0, seed=0)
    right = table.assign(predicted=table["label"])
    doubts = label_errors.doubtful_labels(table, NAMES)
    assert wording.label_error_text(doubts, right).endswith(
        "of 100 labels are in doubt, by predictions that agree with 1.00 of the labels"
    )
    assert "trust your eyes" in wording.label_error_text(doubts, right.assign(predicted="apple"))


def test_predictions_that_cannot_be_used_are_refused_by_name():
    table, _ = simulated(30, 0, seed=0)
    with pytest.raises(InputError, match="no column p_tomato"):
        label_errors.doubtful_labels(table.drop(columns="p_tomato"), NAMES)
    with pytest.raises(InputError, match="label plum"):
        label_errors.doubtful_labels(table.assign(label="plum"), NAMES)
    with pytest.raises(InputError, match=r"0000\.jpg has a probability"):
        label_errors.doubtful_labels(table.assign(p_apple=np.nan), NAMES)


def test_a_list_of_doubts_that_was_just_removed_is_left_out(tmp_path, monkeypatch):
    gone = tmp_path / "other" / "run" / label_errors.DOUBTS  # by a sweep that trains this run again
    monkeypatch.setattr("pathlib.Path.glob", lambda folder, pattern: iter([gone]))
    manifest = pd.DataFrame(columns=["path", "sha256", "label", "split"], dtype=str)
    doubts, problems = label_errors.doubts_of_runs(tmp_path / "sweep", manifest)
    assert doubts.empty and len(problems) == 1 and "is left out, it cannot be read" in problems[0]


def test_importing_leakage_loads_none_of_its_tools():
    check = (
        "import sys, fruitlib.evaluation.leakage; print({'sklearn', 'cleanlab', 'scipy', 'torch'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stdout.strip() == "set()"
