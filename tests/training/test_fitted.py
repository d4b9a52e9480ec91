"""A run whose head is fitted writes what any run writes, and its model answers as its head does."""

import numpy as np
import pytest
import torch

from fruitlib.core.errors import InputError
from fruitlib.data import dataset
from fruitlib.deploy import export, predict
from fruitlib.evaluation import metrics
from fruitlib.reporting import training_figures
from fruitlib.runs.run import Run
from fruitlib.sweep import final_model
from fruitlib.training import cams, evaluate, fitted, lr_finder, models, train
from fruitlib.training.result import training_answer
from fruitlib.training.weights import load_checkpoint

FROZEN = {"model": "squeezenet1_1", "weights": "none", "cam_every": 0}
KINDS = ("logistic", "svm", "knn", "prototypes")


@pytest.mark.parametrize(
    ("kind", "views", "cam_every"),
    [("logistic", "flip", 0), ("svm", "one", 0), ("knn", "five", 0), ("prototypes", "one", 5)],
)
def test_a_fitted_run_has_all_files_and_its_model_answers_alike(make_run, kind, views, cam_every, tmp_path):
    run = make_run(**FROZEN | {"head": kind, "views": views, "cam_every": cam_every})
    history = train.fit(run)
    assert len(history) == 1 and run.is_complete("train")
    record, table = run.record("train"), run.predictions("val")
    wanted = {"keep": "last", "kept_epoch": 1, "epochs": 1, "processes": 1, "train_photos": 24, "photos_per_epoch": 24}
    assert record.items() >= wanted.items() and record["head"]["kind"] == kind
    assert history["val_accuracy"][0] == pytest.approx((table["label"] == table["predicted"]).mean())
    model, _ = models.restore(run.path / "best.pt")
    probs, _ = run.probs(table)
    photos = dataset.load_photos(run, "val")
    np.testing.assert_allclose(metrics.softmax(evaluate.predict(model, photos).numpy()), probs, atol=1e-5)
    np.testing.assert_allclose(run.epoch_probs()[1][0], probs, atol=1e-3)
    assert list(cams.kept_cams(run)) == ([1] if cam_every else [])
    assert f"head {kind}, fitted on frozen features" in training_answer(run)[0]
    training_figures.training_curves(history, 20, 1, record["head"])
    if kind in ("svm", "prototypes"):  # a linear layer, as logistic's
        return
    file = export.export_onnx(model, tmp_path / "m.onnx", 32, run.class_names)
    images = dataset.to_array(photos.images)
    logits = predict.open_session(file).run(["logits"], {"images": images})[0]
    np.testing.assert_allclose(logits, export.run_torch(model, images), atol=1e-3)


def test_a_fitted_run_is_not_fitted_again_and_seeds_repeat_it(make_run, capsys):
    first, again = (make_run(name, **FROZEN, head="logistic") for name in "ab")
    train.fit(first)
    train.fit(again)
    assert (first.path / "predictions_val.csv").read_bytes() == (again.path / "predictions_val.csv").read_bytes()
    capsys.readouterr()
    train.fit(first)
    assert "trained already" in capsys.readouterr().out


def test_folds_start_alike_and_a_refit_and_an_ensemble_need_no_validation_photos(make_run):
    folds = [make_run(f"f{fold}", **FROZEN, head="logistic", folds=2, fold=fold) for fold in (1, 2)]
    for run in folds:
        train.fit(run)
    assert len({run.record("train")["initial_weights"] for run in folds}) == 1
    refit = make_run("refit", **FROZEN, head="logistic", folds=2, fold=0)
    history = train.fit(refit)
    assert refit.predictions("val").empty and "val_loss" not in history and refit.epoch_probs()[1].shape[1] == 0
    assert "Trained on all 36 photos" in training_answer(refit)[0]
    both = final_model.assemble(Run(refit.path.parent / "both", refit.config), folds)
    assert len(models.restore(both.path / "best.pt")[0].members) == 2


def test_several_processes_are_said_to_be_of_no_use(make_run, capsys):
    run = make_run(**FROZEN, head="logistic", processes=2)
    train.fit(run)
    assert run.record("train")["processes"] == 1
    assert "processes = 2: of no use to head logistic" in capsys.readouterr().out


def test_layers_before_the_last_one_stay(make_run):
    """torchvision's mobilenet has a hidden layer in its head, which its weights bring along."""
    run = make_run(**FROZEN | {"model": "mobilenet_v3_small"}, head="logistic")
    train.fit(run)
    torch.manual_seed(run.config.seed)
    fresh = models.build(run.config, 3).state_dict()
    kept = load_checkpoint(run.path / "best.pt")["state_dict"]
    differing = {name for name in fresh if not torch.equal(fresh[name], kept[name])}
    assert differing == {"net.classifier.3.weight", "net.classifier.3.bias"}


def start_of(run: Run) -> dict:
    torch.manual_seed(run.config.seed)
    model = models.build(run.config, 3)
    fitted.start_head(run, model, dataset.load_photos(run, "train"))
    return model.state_dict()


def test_a_linear_head_starts_from_the_logistic_regression_and_is_trained_on(make_run, capsys):
    settings = FROZEN | {"head_start": "logistic", "lr": 1e-9, "epochs": 1, "augment": "none"}
    run = make_run(**settings)
    train.fit(run)
    kept, started = load_checkpoint(run.path / "best.pt")["state_dict"], start_of(run)
    torch.testing.assert_close(
        kept["net.classifier.1.weight"], started["net.classifier.1.weight"], atol=1e-6, rtol=1e-4
    )
    assert "first weights of the head: logistic: fitted on 24 photos" in capsys.readouterr().out
    model = models.build(run.config, 3)
    model.load_state_dict(started)
    photos = dataset.load_photos(run, "train")
    assert (evaluate.predict(model, photos).argmax(1) == photos.labels).float().mean() > 0.9


def test_a_resumed_training_does_not_fit_the_head_again(make_run, monkeypatch):
    calls, real = [], fitted.start_head
    monkeypatch.setattr(fitted, "start_head", lambda *given: calls.append(1) or real(*given))
    run = make_run(**FROZEN, head_start="logistic", epochs=2)

    def stop(history):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.fit(run, on_epoch=stop)
    assert len(train.fit(Run(run.path))) == 2 and calls == [1]


def test_a_range_test_needs_a_learning_rate(make_run):
    with pytest.raises(InputError, match="head svm is fitted without a learning rate; set lr_find: 0"):
        lr_finder.find_lr(make_run(**FROZEN, head="svm"), 20)
