"""Folds pooled: every photo predicted once per repeat, by a run that never saw it, all from the same fresh weights."""

import numpy as np
import pandas as pd
import pytest

from fruitlib.core import config, files
from fruitlib.data import splits
from fruitlib.evaluation import crossval, metrics, wording
from fruitlib.runs.run import Run, create_run
from fruitlib.training import train
from tests.simulations import fold_epochs


def train_folds(shapes, folder, **changes):
    """Three folds of one combination, really trained; the runs, the combinations, their folder."""
    settings = {"data": str(shapes), "folds": 3, "test_per_class": 2, "image_size": 32, "epochs": 1, "cam_every": 0}
    work = {}
    for fold in (1, 2, 3):
        cfg = config.make(settings | changes | {"fold": fold})
        splits.prepare_manifest(cfg, folder)
        work[f"fold={fold}"] = create_run(folder / f"fold={fold}", cfg)
        train.fit(work[f"fold={fold}"])
    return work, {"run": list(work)}, folder


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    """Three folds of an epoch each."""
    return train_folds(shapes, tmp_path_factory.mktemp("folds"))


def test_every_photo_is_predicted_once_by_a_fold_that_did_not_learn_from_it(trained):
    work, combinations, folder = trained
    pooled, problems = crossval.pool_folds(work, combinations, folder)
    assert problems == []
    manifest = splits.load_manifest(folder)
    assert sorted(pooled["path"]) == sorted(manifest.loc[manifest["split"] == "train", "path"])
    for name, run in work.items():
        predicted = set(pooled.loc[pooled["run"] == name, "path"])
        assert predicted and not predicted & set(run.rows("train")["path"])
        assert not predicted & set(run.rows("test")["path"])
    assert pd.read_csv(folder / crossval.POOLED).shape == pooled.shape


def test_no_photo_has_a_say_in_the_epoch_that_predicts_it(shapes, tmp_path):
    """What a fold's photos make of its own epochs is made up: the others' mean curve chooses all the same."""
    work, combinations, folder = train_folds(shapes, tmp_path, epochs=4, keep="best", lr=0.01)
    curves = {"fold=1": [0.1, 0.2, 0.9, 0.3], "fold=2": [0.6, 0.8, 0.1, 0.1], "fold=3": [0.9, 0.4, 0.3, 0.1]}
    for name, curve in curves.items():
        work[name].history().assign(val_macro_f1=curve).to_csv(folder / name / "history.csv", index=False)
    pooled, problems = crossval.pool_folds(work, combinations, folder)
    assert problems == []
    assert pooled.groupby("run")["epoch"].unique().map(list).to_dict() == {"fold=1": [1], "fold=2": [3], "fold=3": [3]}
    for name, epoch in (("fold=1", 1), ("fold=2", 3), ("fold=3", 3)):
        paths, probs = work[name].epoch_probs()
        own = pooled[pooled["run"] == name].set_index("path").loc[paths]
        found, _ = work[name].probs(own)
        np.testing.assert_allclose(found, probs[epoch - 1].astype(float), atol=1e-6)
        assert own["predicted"].tolist() == np.array(work[name].class_names)[probs[epoch - 1].argmax(1)].tolist()
    assert sorted(pooled["path"]) == sorted(work["fold=1"].manifest.query("split == 'train'")["path"])


def test_the_last_epoch_predicts_where_the_last_is_kept(trained):
    work, combinations, folder = trained
    pooled, _ = crossval.pool_folds(work, combinations, folder)
    assert set(pooled["epoch"]) == {1}
    for name, run in work.items():
        own = pooled[pooled["run"] == name].reset_index(drop=True)[run.predictions("val").columns]
        pd.testing.assert_frame_equal(own, run.predictions("val"))


@pytest.mark.parametrize(
    ("monitor", "epoch"),
    [("macro_f1", 2), ("accuracy", 3), ("loss", 4)],
)
def test_the_others_mean_curve_chooses_the_epoch(monitor, epoch):
    columns = ["epoch", "val_loss", "val_macro_f1", "val_accuracy"]
    first = pd.DataFrame(
        [(1, 0.9, 0.5, 0.5), (2, 0.8, 0.9, 0.6), (3, 0.4, 0.7, 0.8), (4, 0.1, 0.6, 0.8)], columns=columns
    )
    second = pd.DataFrame([(1, 0.9, 0.6, 0.8), (2, 0.5, 0.6, 0.7)], columns=columns)  # it stopped early
    third = first.assign(val_accuracy=[0.5, 0.5, 0.9, 0.8])
    assert crossval.epoch_by_others([first, second, third], 4, monitor) == epoch
    assert crossval.epoch_by_others([first, second, third], 2, "loss") == 2  # itself it has two epochs


def test_photos_that_choose_their_own_epoch_flatter_it_and_others_do_not():
    table = fold_epochs.table(40)
    assert (table["own best"] > 2).all() and table["by others"].abs().mean() < 1, table
    assert (table["by others"].abs() < 2.5).all(), table  # 5 points a repetition at n = 30, 0.8 in the mean of 40


def test_of_equal_epochs_the_one_with_the_lowest_loss_predicts():
    table = pd.DataFrame({"epoch": [1, 2, 3], "val_loss": [0.9, 0.2, 0.5], "val_macro_f1": [0.1 + 0.2, 0.3, 0.3]})
    assert crossval.epoch_by_others([table], 3, "macro_f1") == 2


def test_03_reads_the_pooled_predictions_and_says_so(trained):
    work, combinations, folder = trained
    (folder / crossval.POOLED).unlink(missing_ok=True)
    own, pooled = crossval.out_of_sample(work["fold=1"])
    assert len(own) == len(work["fold=1"].rows("val")) and not pooled
    crossval.pool_folds(work, combinations, folder)
    table, pooled = crossval.out_of_sample(work["fold=1"])
    assert len(table) == 42 and pooled
    assert wording.out_of_sample_text(table, pooled, 3) == "out-of-fold predictions on 42 photos, 3 folds"


def test_a_refit_whose_name_was_shortened_finds_its_folds(trained):
    work, combinations, folder = trained
    crossval.pool_folds(work, combinations, folder)
    settings = work["fold=1"].config.model_copy(update={"fold": 0})
    refit = Run(folder / "augment=none,head=logistic,image_siz-0123456789ab", settings)
    table, pooled = crossval.out_of_sample(refit)
    assert pooled and len(table) == 42


def test_pooled_predictions_of_an_earlier_training_are_not_read(trained, monkeypatch):
    work, combinations, folder = trained
    crossval.pool_folds(work, combinations, folder)
    before, real = work["fold=1"].identity("03_metrics"), Run.record
    newer = {"identity": "another training"}
    monkeypatch.setattr(Run, "record", lambda run, stage: real(run, stage) | (newer if run.name == "fold=2" else {}))
    own, pooled = crossval.out_of_sample(work["fold=1"])
    assert len(own) == len(work["fold=1"].rows("val")) and not pooled
    assert work["fold=1"].identity("03_metrics") != before  # so 03 is executed again once all are


def test_folds_that_do_not_start_from_the_same_fresh_weights_are_refused(trained, monkeypatch):
    work, combinations, folder = trained
    starts = {run.record("train")["initial_weights"] for run in work.values()}
    assert len(starts) == 1
    real = Run.record
    weights = {"initial_weights": "continued"}
    monkeypatch.setattr(Run, "record", lambda run, stage: real(run, stage) | (weights if run.name == "fold=2" else {}))
    pooled, problems = crossval.pool_folds(work, combinations, folder)
    assert pooled.empty and not (folder / crossval.POOLED).exists()
    assert "did not start from the same fresh weights: remove the folders" in problems[0]


def write_probe(run, claimed: bool = True, rows: int | None = None) -> None:
    """What 03 leaves in a fold's folder where it had a probe: one that always says the first class."""
    val = run.rows("val")
    probs = np.tile([0.8, 0.1, 0.1], (len(val), 1))[:rows]
    run.write_predictions("probe", {"probe": probs}, val[:rows])
    files.write_json(run.path / "metrics.json", {"probe_accuracy": 0.3} if claimed else {})


@pytest.mark.parametrize("lacking", ["", "file", "claim", "photo"])
def test_probes_are_pooled_once_03_has_one_for_every_photo(trained, lacking):
    work, combinations, folder = trained
    for name, run in work.items():
        last = name == "fold=3"
        write_probe(run, not (last and lacking == "claim"), 3 if last and lacking == "photo" else None)
    if lacking == "file":
        (work["fold=3"].path / "predictions_probe.csv").unlink()
    pooled, problems = crossval.pool_folds(work, combinations, folder)
    for run in work.values():
        (run.path / "metrics.json").unlink()
    row = crossval.pooled_results(pooled, work["fold=1"].class_names, {}).iloc[0]
    assert problems == [] and ("probe" in pooled) == ("probe_accuracy" in row) == (not lacking)
    if not lacking:
        assert row["probe_accuracy"] == pytest.approx((pooled["label"] == work["fold=1"].class_names[0]).mean())
        assert set(files.read_csv(folder / crossval.POOLED)["probe"]) == {work["fold=1"].class_names[0]}


def test_an_incomplete_combination_is_not_pooled(trained):
    work, _, folder = trained
    assert crossval.pool_folds({**work, "x": Run(folder / "x", work["fold=1"].config)}, {"c": ["x"]}, folder)[0].empty


def test_results_are_those_of_the_pooled_labels_with_n_the_number_of_photos():
    labels = ["a"] * 6 + ["b"] * 4
    rows = []
    for repeat, wrong in ((1, 2), (2, 4)):
        for i, label in enumerate(labels):
            predicted = label if i >= wrong else "b"
            rows.append(("lr=1", repeat, i % 2 + 1, f"{i}.png", label, predicted))
    pooled = pd.DataFrame(rows, columns=["combination", "repeat", "fold", "path", "label", "predicted"])
    found = crossval.pooled_results(pooled, ["a", "b"], {}).iloc[0]
    assert (found["n"], found["folds"], found["repeats"]) == (10, 2, 2)
    assert found["accuracy"] == pytest.approx(np.mean([0.8, 0.6]))
    assert (found["accuracy_low"], found["accuracy_high"]) == metrics.wilson_share(0.7, 10)
    assert found["macro_f1_low"] < found["macro_f1"] < found["macro_f1_high"] and found["groups"] == 0
    trees = {f"{i}.png": f"tree {i // 2}" for i in range(10)}
    grouped = crossval.pooled_results(pooled, ["a", "b"], trees).iloc[0]
    assert grouped["groups"] == 5 and grouped["same_low"] == found["accuracy_low"]
    assert grouped["accuracy_low"] < found["accuracy_low"]
