"""Two sides on the same photos: matched whatever they are called, tested as SciPy would, and described in one way."""

import dataclasses
import json
import types

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest
from sklearn.metrics import f1_score

from fruitlib import cli
from fruitlib.core.config import Config
from fruitlib.core.errors import InputError
from fruitlib.evaluation import compare, wording
from fruitlib.reporting import compare_figures
from fruitlib.runs.run import Run

NAMES = ["apple", "cherry", "tomato"]


def table(labels, predicted, **more) -> pd.DataFrame:
    paths = [f"{label}/{i:03d}.jpg" for i, label in enumerate(labels)]
    return pd.DataFrame({"path": paths, "label": labels, "predicted": predicted, **more})


@pytest.fixture
def ours():
    """Thirty photos; the first four wrong."""
    labels = NAMES * 10
    return table(labels, ["cherry", "apple", "apple", "tomato", *labels[4:]])


def csv(folder, name: str, frame: pd.DataFrame):
    frame.to_csv(folder / name, index=False)
    return folder / name


def pair_of(tmp_path, a, b, **columns) -> compare.Pair:
    sides = [csv(tmp_path, f"{name}.csv", frame) for name, frame in (("a", a), ("b", b))]
    return compare.match_photos(compare.load_predictions(sides[0]), compare.load_predictions(sides[1], columns=columns))


@given(st.lists(st.tuples(*[st.sampled_from(NAMES)] * 3), min_size=3, max_size=40))
@settings(max_examples=40, deadline=None)
def test_the_numbers_are_scipy_s_and_scikit_learn_s(rows):
    labels, a, b = (list(part) for part in zip(*rows, strict=True))
    pair = compare.match_photos(compare.Predictions("a", table(labels, a)), compare.Predictions("b", table(labels, b)))
    found = compare.compare_pair(pair)
    only_a = sum(one == label != other for label, one, other in rows)
    only_b = sum(other == label != one for label, one, other in rows)
    assert (found.only_a, found.only_b) == (only_a, only_b)
    exact = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1
    seen = 0 if only_a == only_b else binom.pmf(only_a, only_a + only_b, 0.5)
    assert found.accuracy.p == pytest.approx(exact - seen)
    assert found.accuracy.value == pytest.approx((only_b - only_a) / len(rows))
    f1 = [f1_score(labels, side, average="macro", labels=sorted(set(labels)), zero_division=0) for side in (a, b)]
    assert found.macro_f1[0] == pytest.approx(f1[1] - f1[0])
    assert compare.two_by_two(pair).sum() == len(rows) and compare.two_by_two(pair)[0, 1] == only_a


def test_a_foreign_table_with_other_names_order_and_rows(tmp_path, ours):
    """Other columns, classes in another order, a path of its own, two rows missing, three photos nobody else has."""
    foreign = pd.DataFrame({"file": "D:\\photos\\" + ours["path"].str.replace("/", "\\"), "tomato": 0.1, "apple": 0.1})
    foreign["cherry"] = 0.0
    for row, label in enumerate(ours["label"]):
        foreign.loc[row, label] = 0.8
    extra = foreign.tail(3).assign(file=[f"new{i}.jpg" for i in range(3)])
    foreign = pd.concat([foreign.iloc[:-2], extra]).sample(frac=1, random_state=0)
    columns = {"path": "file"} | {f"p_{name}": name for name in ("tomato", "cherry", "apple")}
    pair = pair_of(tmp_path, ours, foreign, **columns)
    assert (len(pair.table), pair.matched_parts, pair.only_a, pair.only_b) == (28, 2, 2, 3)
    text = wording.match_text(pair)
    assert text.startswith("photos predicted by both: 28, matched by the last 2 parts of the path")
    assert text.endswith("only in A, and left out: 2; only in B, and left out: 3")
    found = compare.compare_pair(pair)
    assert found.b_correct == 28 and found.a_correct == 24 and found.only_b == 4
    differing = compare.disagreements(pair)
    assert set(differing["right"]) == {"B"} and differing["p_b_tomato"].max() == pytest.approx(0.8)


def test_photos_are_matched_by_name_where_folders_differ_and_never_by_a_name_that_two_have(tmp_path, ours):
    foreign = ours.assign(path=[f"flat/{path.split('/')[1]}" for path in ours["path"]])
    assert pair_of(tmp_path, ours, foreign).matched_parts == 1
    foreign.loc[:1, "path"] = ["one/007.jpg", "two/007.jpg"]
    foreign = foreign.drop(index=7)
    pair = pair_of(tmp_path, ours, foreign)
    assert len(pair.table) == 27 and "007.jpg" not in " ".join(pair.table["path"])


def test_labels_of_one_side_will_do_and_two_must_agree(tmp_path, ours):
    pair = pair_of(tmp_path, ours, ours.drop(columns="label"))
    assert pair.table["label"].tolist() == ours.sort_values("path")["label"].tolist()
    other = ours.assign(label=["cherry", *ours["label"][1:]])
    with pytest.raises(InputError, match=r"apple/000.jpg: .* has the label apple, .* cherry; they must agree"):
        pair_of(tmp_path, ours, other)
    for bare in (ours.drop(columns="label"), ours.assign(label="")):
        with pytest.raises(InputError, match=r"neither .* has labels"):
            pair_of(tmp_path, bare, ours.drop(columns="label"))
    gaps = ours.assign(label=["", *ours["label"][1:]])
    assert pair_of(tmp_path, gaps, ours).table["label"][0] == "apple"  # the other side knows it
    with pytest.raises(InputError, match=r"apple/000.jpg: neither .* has its label"):
        pair_of(tmp_path, gaps, gaps)


def test_a_named_column_wins_over_one_that_has_our_name(tmp_path, ours):
    swapped = ours.rename(columns={"label": "truth"}).assign(label=ours["predicted"]).drop(columns="predicted")
    pair = pair_of(tmp_path, ours, swapped, label="truth", predicted="label")  # two names changed round
    assert pair.table["label"].tolist() == ours.sort_values("path")["label"].tolist()
    assert (pair.table["a"] == pair.table["b"]).all()
    wrong = ours.assign(truth=ours["label"], label="nonsense")
    assert len(pair_of(tmp_path, ours, wrong, label="truth").table) == 30
    renamed = ours.assign(p_pomme=0.4, p_cherry=0.6)
    pair = pair_of(tmp_path, ours, renamed, p_apple="p_pomme")
    assert pair.b.probs == ["cherry", "apple"] and pair.table["p_b_apple"].eq(0.4).all()


def test_a_class_named_like_another_s_column_keeps_its_probabilities(tmp_path, ours):
    pair = pair_of(tmp_path, ours.assign(p_apple=0.2, p_apple_b=0.8), ours.assign(p_apple=0.6))
    assert pair.table[["p_a_apple", "p_a_apple_b", "p_b_apple"]].iloc[0].tolist() == [0.2, 0.8, 0.6]


def test_whole_paths_that_fit_are_never_given_up_for_names_that_fit_more_often(tmp_path):
    labels = ["apple", "cherry", "cherry"]
    a = pd.DataFrame({"path": ["apple/1.jpg", "cherry/2.jpg", "cherry/3.jpg"], "label": labels, "predicted": labels})
    b = a.assign(path=["apple/1.jpg", "tomato/2.jpg", "tomato/3.jpg"], label=["apple", "tomato", "tomato"])
    pair = pair_of(tmp_path, a, b)
    assert pair.table["path"].tolist() == ["apple/1.jpg"] and pair.matched_parts == 0
    away = b.assign(path="D:\\fruit\\" + b["path"].str.replace("/", "\\"))
    assert pair_of(tmp_path, a, away).table["path"].tolist() == ["apple/1.jpg"]  # nor by ends of two parts


@given(st.lists(st.tuples(st.sampled_from("xy"), st.sampled_from("pq"), st.integers(0, 4)), unique=True, min_size=1))
@settings(max_examples=60, deadline=None)
def test_a_root_in_front_of_paths_changes_no_pair(parts):
    """Folders within folders, the same names again and again: with a root before them, every photo finds itself."""
    paths = ["/".join(map(str, part[3 - depth :])) for part in parts for depth in (3, 2)]
    paths = sorted(set(paths))
    frame = pd.DataFrame({"path": paths, "label": "apple", "predicted": "apple"})
    rooted = frame.assign(path="/mnt/data/" + frame["path"])
    pair = compare.match_photos(compare.Predictions("a", frame), compare.Predictions("b", rooted))
    assert (pair.table["path_b"] == "/mnt/data/" + pair.table["path"]).all()


def test_numbers_in_place_of_classes_are_pointed_out(tmp_path, ours):
    numbers = ours.assign(predicted=[str(NAMES.index(one)) for one in ours["predicted"]]).drop(columns="label")
    pair = pair_of(tmp_path, ours, numbers)
    assert compare.sides_without_labels(pair) == ["b"]
    assert "nothing that B predicts (0, 1, 2) is a label (apple, cherry, tomato)" in wording.match_text(pair)
    assert compare.sides_without_labels(pair_of(tmp_path, ours, ours)) == []


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("\u00c4pfel", "A\u0308pfel"),
        ("red apple", "red\u00a0apple"),
        ("red apple", "red apple\u200b"),
        ("1", "1.0"),
        ("Apple", "apple"),
    ],
)
@pytest.mark.parametrize("run_is", ["", "a", "b"])
def test_paths_and_labels_that_differ_in_form_alone_are_matched(tmp_path, monkeypatch, ours, theirs, run_is):
    """Two equal sets were once `A is better, p = 0.0005`."""
    monkeypatch.setattr(Run, "groups", lambda self, paths: ["" for _ in paths])
    monkeypatch.setattr(Run, "class_names", [ours, "other"] if run_is == "a" else [theirs, "other"])
    sides = []
    for name, label in (("a", ours), ("b", theirs)):
        labels = [label, "other"] * 10
        frame = table(["1" if "1" in label else one for one in labels], labels).assign(label=labels)
        frame = frame.assign(**{f"p_{label}": [0.9, 0.1] * 10, "p_other": [0.1, 0.9] * 10})
        side = compare.load_predictions(csv(tmp_path, f"{name}.csv", frame))
        sides.append(dataclasses.replace(side, run=Run(tmp_path / "run")) if name == run_is else side)
    pair = compare.match_photos(*sides)
    found = compare.compare_pair(pair)
    assert len(pair.table) == 20 and pair.matched_parts == 0
    assert found.disagree == 0 and found.accuracy.p == 1 and found.a_correct == 20
    spelled = {"": {ours, theirs}, "a": {ours}, "b": {theirs}}[run_is]
    assert set(pair.table["label"]) - {"other"} <= spelled and len(pair.class_names) == 2
    assert pair.table.filter(like="p_a_").columns.str[4:].equals(pair.table.filter(like="p_b_").columns.str[4:])
    assert "were taken for one" in wording.match_text(pair)


@pytest.mark.parametrize("names", [("\u00e9.jpg", "e\u0301.jpg", "x.jpg"), ("A/1.jpg", "a/1.jpg", "x.jpg")])
def test_of_photos_whose_names_look_equal_each_is_itself(tmp_path, names):
    frame = pd.DataFrame({"path": names, "label": ["a", "b", "a"], "predicted": ["a", "b", "b"]})
    pair = pair_of(tmp_path, frame, frame.assign(predicted="a"))
    assert sorted(pair.table["path"]) == sorted(names) and (pair.table["path"] == pair.table["path_b"]).all()
    pair = pair_of(tmp_path, frame, frame.drop(index=0))
    assert sorted(pair.table["path"]) == sorted(names[1:]) and (pair.table["path"] == pair.table["path_b"]).all()


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_tables_are_read_with_the_separator_they_have(tmp_path, ours, separator, encoding):
    ours.assign(p_apple=0.5).to_csv(tmp_path / "a.csv", index=False, sep=separator, encoding=encoding)
    assert len(compare.load_predictions(tmp_path / "a.csv").table) == 30


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"path,label,predicted\na,b.jpg,x,x\nc.jpg,x,x\n", "a row has more fields than the header"),
        (b"path,label,predicted\nb.jpg,x,x\na,c.jpg,x,x\n", "Expected 3 fields in line 3, saw 4"),
        ("path,label,predicted\n\u00e9.jpg,x,x\n".encode("utf-16"), "not a CSV in UTF-8"),
        ("path,label,predicted\n\u00e9.jpg,x,x\n".encode("latin-1"), "not a CSV in UTF-8"),
        (b"", "No columns to parse"),
        (b"path,label,predicted\n", "no photo in common"),
        (b"path,label,predicted\na.jpg,x\n", "a.jpg has no predicted"),
        (b"path,label,predicted,p_1,p_1.0\nclass/0.jpg,1,1,0.5,0.5\n", "p_1 and p_1.0 are of one class: keep one"),
    ],
)
def test_a_csv_that_is_none_is_refused_in_one_line(tmp_path, content, words):
    (tmp_path / "b.csv").write_bytes(content)
    with pytest.raises(InputError, match=words) as problem:
        frame = pd.DataFrame({"path": ["class/0.jpg"], "label": ["1"], "predicted": ["1"]})
        sides = csv(tmp_path, "a.csv", frame), tmp_path / "b.csv"
        compare.match_photos(*map(compare.load_predictions, sides))
    assert len(str(problem.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.assign(p_apple="inf"), "p_apple holds inf, but a probability is from 0 to 1"),
        (lambda t: t.assign(p_apple="-0.2"), "p_apple holds -0.2, but a probability"),
        (lambda t: t.assign(p_apple=97.5), "p_apple holds 97.5, but a probability is from 0 to 1: convert the column"),
        (lambda t: t.assign(p_apple="NaN"), "p_apple holds 'NaN', which is not a number"),
        (lambda t: t.assign(predicted="\u200b"), "apple/000.jpg has no predicted"),
        (lambda t: t.drop(columns="path"), "no column path among label, predicted"),
        (lambda t: t.drop(columns="predicted"), "no column predicted"),
        (lambda t: pd.concat([t, t.head(1)]), "apple/000.jpg has more than one row"),
        (lambda t: pd.concat([t, t.head(1).assign(path="./apple/000.jpg")]), "./apple/000.jpg has more than one row"),
        (lambda t: t.assign(predicted=["", *t["predicted"][1:]]), "apple/000.jpg has no predicted"),
        (lambda t: t.assign(p_apple="0,5"), "p_apple holds '0,5', which is not a number"),
        (lambda t: t.drop(columns="predicted").assign(p_apple="", p_cherry=""), "apple/000.jpg has no predicted"),
        (lambda t: t.assign(path="elsewhere/" + t.index.astype(str)), "no photo in common"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(tmp_path, ours, capsys, change, words):
    sides = [str(csv(tmp_path, "a.csv", ours)), str(csv(tmp_path, "b.csv", change(ours)))]
    assert cli.main(["compare", *sides]) == 2
    message = capsys.readouterr().err
    assert words in message and len(message.splitlines()) == 1


def test_five_one_sided_disagreements_are_significant_and_four_are_not(tmp_path, ours):
    right = ours.assign(predicted=ours["label"])
    for wrong, words in ((4, "With 30 photos a difference of 27 points would be found in four"), (5, "B is better on")):
        worse = right.copy()
        worse.loc[: wrong - 1, "predicted"] = [NAMES[(NAMES.index(one) + 1) % 3] for one in right["label"][:wrong]]
        found = compare.compare_pair(pair_of(tmp_path, worse, right))
        assert found.significant == (wrong == 5) and words in wording.comparison_text(found)
        assert ("not significant on new photos" in wording.comparison_text(found)) == (wrong == 4)


def test_who_agrees_on_everything_is_told_apart_by_nothing(tmp_path, ours):
    found = compare.compare_pair(pair_of(tmp_path, ours, ours))
    assert found.accuracy.p == 1 and found.disagree == 0 and not found.numbers["significant"]
    assert "nothing tells them apart" in wording.comparison_text(found)
    assert compare.disagreements(pair_of(tmp_path, ours, ours)).empty


def test_photos_of_one_group_do_not_count_as_six():
    """Six photos of one fruit, all wrong in B: significant for photos alone, not where fruits are groups."""
    labels = [NAMES[i // 6] for i in range(18)]
    pair = compare.match_photos(
        compare.Predictions("a", table(labels, labels)),
        compare.Predictions("b", table(labels, ["cherry"] * 6 + labels[6:])),
    )
    alone = compare.compare_pair(pair)
    assert alone.significant and "A is better on new photos" in wording.comparison_text(alone)
    pair.table["group"] = [f"{label}_{i // 2}" for i, label in enumerate(pair.table["label"])]
    pair.table.loc[:5, "group"] = "one fruit"
    found = compare.compare_pair(pair)
    assert (found.accuracy.groups, found.accuracy.p) == (7, 1) and not found.significant
    text = wording.comparison_text(found)
    assert "not significant on new groups (7)" in text and "better" not in text
    pair.table["group"] = pair.table["label"]
    few = compare.compare_pair(pair)
    assert "3 groups are too few to tell" in wording.comparison_text(few)
    assert not {"p", "accuracy_low", "macro_f1_low", "detectable"} & set(few.numbers)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "B is better on new photos. A is right on 26 of 30 photos, B on 30 (A: one; B: two)"),
        (
            {"chosen_among": 5},
            "B is better on new photos, though picked by results out of 5, which makes p too small. A",
        ),
        ({"significant": False}, "Nothing shows that either is better on new photos. A is right"),
        ({"significant": False, "groups": 7}, "Nothing shows that either is better on new groups. A is right"),
        ({"groups": 3}, "3 groups and 27 photos alone are too few to tell which is better. A is right"),
        ({"significant": False, "tie": "t"}, "A tie: nothing shows that either is better on new photos. A is right"),
        ({"disagree": 0, "tie": "t"}, "A tie: they predict the same for every photo. A is right"),
        ({"alone": True}, "Only one run is complete: nothing to compare"),
    ],
)
def test_the_answer_of_07_is_one_sentence(tmp_path, changes, words):
    found = types.SimpleNamespace(groups=changes.pop("groups", 0), units=30, n=30, value=0.13)
    found.significant, found.too_few = changes.pop("significant", True), found.groups == 3
    facts = {"n": 30, "a_correct": 26, "b_correct": 30, "disagree": 4, "tie": "", "alone": False, "chosen_among": 0}
    facts |= {"folds": False, "group_word": "group", "accuracy": found}
    text = wording.comparison_answer(types.SimpleNamespace(**facts | changes), "one", "two")
    assert text.startswith(words) and len(text) < 160


def test_a_run_s_settings_say_what_a_group_is_called(tmp_path, ours, monkeypatch):
    monkeypatch.setattr(Run, "groups", lambda self, paths: [f"tree {i % 10}" for i, _ in enumerate(paths)])
    monkeypatch.setattr(Run, "class_names", NAMES)
    run = Run(tmp_path / "run")
    run.path.mkdir()
    settings = Config(group_word="tree").model_dump()
    (run.path / "params.yaml").write_text(yaml.safe_dump({"settings": settings, "record": {}}))
    better = ours.assign(predicted=ours["label"])
    pair = compare.match_photos(compare.Predictions("a", ours, run, "val"), compare.Predictions("b", better))
    text = wording.comparison_text(compare.compare_pair(pair))
    assert "sign flips of 10 trees" in text and "on new trees (10)" in text and "other seeds" in text
    both = compare.match_photos(compare.Predictions("a", ours, run), compare.Predictions("b", better, run))
    assert "seeds" not in wording.comparison_text(compare.compare_pair(both))  # two files of one training


def test_backends_of_one_table_are_compared_and_the_command_says_what_the_notebook_says(tmp_path, ours, capsys):
    both = pd.concat([ours.assign(backend="torch"), ours.assign(backend="int8", predicted=ours["label"])])
    path = csv(tmp_path, "both.csv", both)
    assert cli.main(["compare", str(path), str(path), "--backend-b", "int8"]) == 0
    printed = capsys.readouterr().out
    pair = compare.pair_of_sweep(tmp_path, str(path), str(path), backends=("", "int8"))
    assert wording.comparison_text(compare.compare_pair(pair)) in printed
    assert "A: " in printed and "(torch)" in printed and "(int8)" in printed
    with pytest.raises(InputError, match="no rows of backend fp64"):
        compare.load_predictions(path, backend="fp64")


def sweep_folder(folder, scores: dict[str, int], **more):
    """A sweep's files as 07 reads them: so many of thirty right in each run."""
    labels = NAMES * 10
    rows = []
    for run, right in scores.items():
        predicted = labels[:right] + [NAMES[(NAMES.index(one) + 1) % 3] for one in labels[right:]]
        (folder / run / "stages").mkdir(parents=True)
        (folder / run / "stages" / "train.json").write_text('{"identity": "x"}')
        csv(folder / run, "predictions_val.csv", table(labels, predicted, backend="torch"))
        rows.append({"run": run, "state": "complete", "macro_f1": right / 30})
    pd.DataFrame(rows).to_csv(folder / "results.csv", index=False)
    (folder / "sweep.json").write_text(json.dumps({"runs": [{"name": run} for run in scores]} | more))


def test_a_sweep_suggests_the_chosen_run_and_the_runner_up(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "groups", lambda self, paths: ["" for _ in paths])
    monkeypatch.setattr(Run, "class_names", NAMES)
    sweep_folder(tmp_path, {"bad": 12, "best": 29, "good": 27}, chosen="best", choose_by="macro_f1")
    pair = compare.pair_of_sweep(tmp_path)
    assert [side.name.split("/")[1] for side in (pair.a, pair.b)] == ["best (torch)", "good (torch)"]
    assert "picked out of 3" in wording.comparison_text(compare.compare_pair(pair))
    with pytest.raises(InputError, match="name both, or neither"):
        compare.pair_of_sweep(tmp_path, a="bad")
    named = compare.pair_of_sweep(tmp_path, "bad", "good")
    found = compare.compare_pair(named)
    assert (found.only_b, found.chosen_among, found.candidates) == (15, 0, 3)
    assert "named beforehand, not picked by their results out of the sweep's 3" in wording.comparison_text(found)
    with pytest.raises(InputError, match="are for CSVs"):
        compare.pair_of_sweep(tmp_path, columns=({"label": "truth"}, {}))


TIE = "macro-F1 0.900 each: a tie, which proves neither better. A was chosen "
BY_LOSS, BY_ORDER = "for its lower validation loss (0.02, the other's 0.3)", "as the first in the sweep's order"


@pytest.mark.parametrize(("losses", "words"), [((0.3, 0.02), BY_LOSS), ((0.3, 0.3), BY_ORDER), (None, BY_ORDER)])
def test_a_tie_is_called_one_and_how_it_was_broken(tmp_path, monkeypatch, losses, words):
    monkeypatch.setattr(Run, "groups", lambda self, paths: ["" for _ in paths])
    monkeypatch.setattr(Run, "class_names", NAMES)
    sweep_folder(tmp_path, {"one": 27, "two": 27, "worse": 20}, chosen="two", choose_by="macro_f1")
    if losses:
        rows = pd.read_csv(tmp_path / "results.csv").assign(val_loss=[*losses, 0.01])
        rows.to_csv(tmp_path / "results.csv", index=False)
    assert TIE + words in wording.comparison_text(compare.compare_pair(compare.pair_of_sweep(tmp_path)))
    other = compare.compare_pair(compare.pair_of_sweep(tmp_path, "two", "worse"))
    assert "a tie" not in wording.comparison_text(other)


def test_of_several_tested_runs_the_first_two_and_of_one_its_backends(tmp_path, monkeypatch, ours):
    monkeypatch.setattr(Run, "groups", lambda self, paths: ["" for _ in paths])
    monkeypatch.setattr(Run, "class_names", NAMES)
    sweep_folder(tmp_path, {"a": 12, "b": 20, "c": 25}, chosen="c", choose_by="macro_f1")
    with pytest.raises(InputError, match="no run here has opened its test photos"):
        compare.pair_of_sweep(tmp_path, split="test")
    both = pd.concat([ours.assign(backend="torch"), ours.assign(backend="int8", predicted=ours["label"])])
    csv(tmp_path / "b", "predictions_test.csv", both)
    pair = compare.pair_of_sweep(tmp_path, split="test")
    assert [side.name.split("/")[1] for side in (pair.a, pair.b)] == ["b (torch, test photos)", "b (int8, test photos)"]
    csv(tmp_path / "c", "predictions_test.csv", both)
    pair = compare.pair_of_sweep(tmp_path, split="test")
    assert [side.name.split("/")[1][0] for side in (pair.a, pair.b)] == ["c", "b"]
    found = compare.compare_pair(pair)
    assert (found.chosen_among, found.candidates) == (0, 0)  # validation picked them, not the test photos
    assert "picked" not in wording.comparison_text(found)


def test_a_lone_run_is_compared_with_itself_or_by_its_test(tmp_path, monkeypatch, ours):
    monkeypatch.setattr(Run, "groups", lambda self, paths: ["" for _ in paths])
    monkeypatch.setattr(Run, "class_names", NAMES)
    sweep_folder(tmp_path, {"run": 20})
    pair = compare.pair_of_sweep(tmp_path)
    assert pair.a is pair.b
    text = wording.comparison_text(compare.compare_pair(pair))
    assert text == "Only one run is complete: nothing to compare"
    both = [ours.assign(backend="torch"), ours.assign(backend="int8")]
    csv(tmp_path / "run", "predictions_test.csv", pd.concat(both))
    pair = compare.pair_of_sweep(tmp_path)
    assert "torch" in pair.a.name and "int8" in pair.b.name
    with pytest.raises(InputError, match="no trained run to compare"):
        compare.pair_of_sweep(tmp_path / "nowhere")


def test_repeats_of_pooled_folds_count_once(tmp_path, ours, monkeypatch):
    folds = ours.assign(combination="c", run="r", trained="t", fold=1, backend="torch")
    frame = pd.concat([folds.assign(repeat=1), folds.assign(repeat=2, predicted=folds["label"])])
    csv(tmp_path, "predictions_oof.csv", frame)
    pooled = compare.load_pooled(tmp_path, "c")
    sweep = {"runs": [], "chosen": "c"}
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    csv(tmp_path, "results.csv", pd.DataFrame({"run": ["r"], "state": ["complete"]}))
    csv(tmp_path, "results_oof.csv", pd.DataFrame({"combination": ["c"], "macro_f1": [0.5]}))
    monkeypatch.setattr(Run, "groups", lambda self, paths: ["" for _ in paths])
    monkeypatch.setattr(Run, "class_names", NAMES)
    pair = compare.pair_of_sweep(tmp_path)
    assert pair.a is pair.b  # the only combination
    assert len(pooled.table) == 30 and "repeat 1 of 2" in pooled.name
    assert (pooled.table["predicted"] != pooled.table["label"]).sum() == 4
    text = wording.comparison_text(compare.compare_pair(pair))
    assert text == "Only one combination is complete: nothing to compare"
    with pytest.raises(InputError, match="more than one row: folds with repeats"):
        compare.load_predictions(tmp_path / "predictions_oof.csv")


def test_combinations_of_folds_are_named_like_runs(tmp_path, ours, monkeypatch, capsys):
    monkeypatch.setattr(Run, "groups", lambda self, paths: ["" for _ in paths])
    monkeypatch.setattr(Run, "class_names", NAMES)
    folds = ours.assign(run="r", trained="t", repeat=1, fold=1)
    better = folds.assign(predicted=ours["label"])
    frame = pd.concat([folds.assign(combination="lr=0.1"), better.assign(combination="lr=0.2")])
    path = csv(tmp_path, "predictions_oof.csv", frame)
    with pytest.raises(InputError, match="several combinations; give two of them as SWEEP/COMBINATION"):
        compare.load_predictions(path)
    found = compare.compare_pair(compare.pair_of_sweep(tmp_path, "lr=0.1", "lr=0.2"))
    assert found.only_b == 4
    assert cli.main(["compare", str(tmp_path / "lr=0.1"), str(tmp_path / "lr=0.2")]) == 0
    assert wording.comparison_text(found) in capsys.readouterr().out


@pytest.mark.parametrize(("scores", "tie"), [((0.9, 0.9), True), ((0.9, 0.8), False)])
def test_a_tie_of_combinations_is_called_one(tmp_path, ours, monkeypatch, scores, tie):
    monkeypatch.setattr(Run, "groups", lambda self, paths: ["" for _ in paths])
    monkeypatch.setattr(Run, "class_names", NAMES)
    names = ["lr=0.1", "lr=0.2"]
    folds = [ours.assign(combination=name, run=f"r{name}", trained="t", repeat=1, fold=1) for name in names]
    csv(tmp_path, "predictions_oof.csv", pd.concat(folds))
    runs = {"run": [f"r{name}" for name in names], "combination": names, "state": "complete", "macro_f1": [0.1, 0.2]}
    csv(tmp_path, "results.csv", pd.DataFrame(runs))
    csv(tmp_path, "results_oof.csv", pd.DataFrame({"combination": names, "macro_f1": scores}))
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": [], "chosen": names[0], "choose_by": "macro_f1"}))
    text = wording.comparison_text(compare.compare_pair(compare.pair_of_sweep(tmp_path)))
    assert (TIE + BY_ORDER in text) is tie and ("a tie" in text) is tie


@pytest.mark.parametrize("part", ["val", "oof"])
def test_each_side_shows_its_own_photos_and_looks_at_those_it_predicted(tmp_path, monkeypatch, ours, part):
    """The second run has the photos under other paths; pooled folds, each of another network, have no heatmaps."""
    import torch

    from fruitlib.data import dataset

    asked, roots = [], {"a": "", "b": "other/"}
    sides = []
    for side, root in roots.items():
        run = Run(tmp_path / side / "run")
        run.path.mkdir(parents=True)
        (run.path / "best.pt").touch()
        predicted = ours["label"] if side == "b" else ours["predicted"]
        own = ours.assign(path=root + ours["path"], predicted=predicted)
        run.__dict__ |= {"manifest": own.assign(status="ok", split="train", group=""), "class_names": NAMES}
        sides.append(compare.Predictions(side, own, run, part))
    pixels = dataset.Photos(None, np.arange(4), torch.zeros(4), [])
    monkeypatch.setattr(dataset.Photos, "images", torch.full((4, 3, 8, 8), 51, dtype=torch.uint8))
    monkeypatch.setattr(dataset, "load_photos", lambda run, split, rows: asked.append(rows["path"].tolist()) or pixels)
    monkeypatch.setattr(compare_figures, "_overlays", lambda run, seen: [run.path.parent.name] * len(seen))
    pair = compare.match_photos(*sides)
    shown = compare.disagreements(pair)
    photos, overlays = compare_figures.disagreement_heatmaps(pair, shown)
    assert photos.shape == (4, 8, 8, 3) and photos.max() == pytest.approx(0.2)
    assert asked == [shown["path"].tolist(), [f"other/{path}" for path in shown["path"]]]
    assert overlays == ({"a": ["a"] * 4, "b": ["b"] * 4} if part == "val" else {})
    monkeypatch.setattr(dataset, "load_photos", lambda *a, **k: (_ for _ in ()).throw(InputError("the folder is gone")))
    assert compare_figures.disagreement_heatmaps(pair, shown) is None  # the table will do


def test_test_photos_stay_closed(tmp_path, monkeypatch, ours):
    run = Run(tmp_path / "run")
    rows = ours.assign(status="ok", split="test")
    monkeypatch.setattr(Run, "manifest", rows)
    monkeypatch.setattr(Run, "class_names", NAMES)
    monkeypatch.setattr("fruitlib.data.dataset.load_photos", lambda *a, **k: pytest.fail("a test photo was opened"))
    monkeypatch.setattr(Run, "groups", lambda self, paths: ["" for _ in paths])
    for part in ("test", "val"):  # known by the part that was read, and by the manifest
        sides = [
            compare.Predictions(name, ours.assign(predicted=answer), run, part)
            for name, answer in (("a", "x"), ("b", "y"))
        ]
        pair = compare.match_photos(*sides)
        assert compare_figures.disagreement_heatmaps(pair, compare.disagreements(pair)) is None


def test_figures(tmp_path, ours):
    pair = pair_of(tmp_path, ours, ours.assign(predicted=ours["label"], p_apple=0.9, p_cherry=0.05, p_tomato=0.05))
    ax = compare_figures.two_by_two(compare.two_by_two(pair))
    assert [text.get_text() for text in ax.texts] == ["26", "0", "4", "0"]
    rows = {"accuracy": (0.1, 0.02, 0.2), "macro-F1": (0.0, np.nan, np.nan)}
    ax = compare_figures.differences(rows, "30 photos")
    assert "(30 photos)" in ax.get_xlabel() and [text.get_text() for text in ax.texts] == [
        "+10.0",
        "+0.0 (no interval)",
    ]
    colours = [
        compare_figures.differences(rows, "30 photos", significant=yes).lines[1].get_color() for yes in (True, False)
    ]
    assert colours == [compare_figures.SIDES["b"], "#666666"]  # the interval alone does not decide
    shown = compare.disagreements(pair)
    figure = compare_figures.disagreements(shown, NAMES, np.zeros((4, 8, 8, 3)), {"a": [np.zeros((8, 8, 3))] * 4})
    assert len(figure.axes) == 12 and [text.get_text() for text in figure.axes[2].texts] == [
        "A: cherry",
        "B: apple (right)",
        "apple/000.jpg\nis apple",
    ]
    many = [f"class {i}" for i in range(30)]
    record = {
        "path": "x.jpg",
        "label": "class 29",
        "a": "class 3",
        "b": "class 4",
        "p_a_class 3": 0.6,
        "p_a_class 9": 0.3,
    }
    ax = compare_figures.disagreements(pd.DataFrame([record]), many).axes[0]
    shown = [text.get_text() for text in ax.get_yticklabels()]
    assert len(shown) == compare_figures.MAX_BARS and {"class 3", "class 4", "class 9", "class 29"} <= set(shown)
    plt.close("all")
