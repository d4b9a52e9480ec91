"""Folds pooled: every photo predicted once per repeat, by a run that never saw it, all from the same fresh weights."""

import numpy as np
import pandas as pd
import pytest

from fruitlib.core import config
from fruitlib.data import splits
from fruitlib.evaluation import crossval, metrics, wording
from fruitlib.runs.run import Run, create_run
from fruitlib.training import train


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    """Three folds of one combination, really trained for an epoch each; and the combinations."""
    folder = tmp_path_factory.mktemp("folds")
    settings = {"data": str(shapes), "folds": 3, "test_per_class": 2, "image_size": 32, "epochs": 1, "cam_every": 0}
    work = {}
    for fold in (1, 2, 3):
        cfg = config.make(settings | {"fold": fold})
        splits.prepare_manifest(cfg, folder)
        work[f"fold={fold}"] = create_run(folder / f"fold={fold}", cfg)
        train.fit(work[f"fold={fold}"])
    return work, {"run": list(work)}, folder


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


def test_03_reads_the_pooled_predictions_and_says_so(trained):
    work, combinations, folder = trained
    (folder / crossval.POOLED).unlink(missing_ok=True)
    own, pooled = crossval.out_of_sample(work["fold=1"])
    assert len(own) == len(work["fold=1"].rows("val")) and not pooled
    crossval.pool_folds(work, combinations, folder)
    table, pooled = crossval.out_of_sample(work["fold=1"])
    assert len(table) == 42 and pooled
    assert wording.out_of_sample_text(table, pooled, 3) == "out-of-fold predictions on 42 photos, 3 folds"


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
