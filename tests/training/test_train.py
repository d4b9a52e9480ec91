"""The recipe: it learns, repeats itself, is the same in two processes, and ends all it started."""

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageOps

from fruitlib.core import config, files, progress
from fruitlib.core.errors import InputError, Interrupted
from fruitlib.data import dataset, splits
from fruitlib.data.batch import Batch
from fruitlib.evaluation import metrics
from fruitlib.runs.run import Run, create_run
from fruitlib.training import cams, checkpoint, evaluate, micro_batch, models, train
from fruitlib.training.checkpoint import TrainingState
from fruitlib.training.result import training_answer
from fruitlib.training.weights import load_checkpoint

VALUES = ["train_loss", "train_accuracy", "train_macro_f1", "val_loss", "val_accuracy", "val_macro_f1", "lr"]


def test_it_learns_and_keeps_the_best_epoch(make_run):
    run = make_run(epochs=12, keep="best")
    history = train.fit(run)
    assert history["train_loss"].iloc[-1] < 0.7 * history["train_loss"].iloc[0]
    order = history.sort_values(["val_macro_f1", "val_loss", "epoch"], ascending=[False, True, True])
    assert run.record("train")["kept_epoch"] == order["epoch"].iloc[0]
    predictions = run.predictions("val")
    accuracy = (predictions["label"] == predictions["predicted"]).mean()
    assert accuracy == pytest.approx(order["val_accuracy"].iloc[0])
    assert predictions[[f"p_{name}" for name in run.class_names]].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    assert set(predictions["path"]) == set(run.rows("val")["path"])
    assert f"epoch {order['epoch'].iloc[0]} is kept, the best of 12; " in training_answer(run)[0]


def test_the_last_epoch_is_kept_where_the_schedule_ends_by_design(make_run):
    """And no file holds the weights of another one meanwhile."""
    run, there = make_run(epochs=4, lr=0.01), []
    history = train.fit(run, on_epoch=lambda _: there.append((run.path / "best.pt").is_file()))
    assert there == [False, False, False, True]
    assert run.record("train")["kept_epoch"] == load_checkpoint(run.path / "best.pt")["epoch"] == 4
    predictions = run.predictions("val")
    accuracy = (predictions["label"] == predictions["predicted"]).mean()
    assert accuracy == pytest.approx(history["val_accuracy"].iloc[-1])
    assert "epoch 4 is kept, the last; " in training_answer(run)[0]


def test_the_last_is_kept_after_early_stopping_where_it_is_asked_for(make_run):
    run = make_run(lr=1e-12, epochs=12, patience=2, augment="none", keep="last")
    train.fit(run)
    assert (run.record("train")["kept_epoch"], run.record("train")["epochs"]) == (3, 3)
    assert load_checkpoint(run.path / "best.pt")["epoch"] == 3


@pytest.mark.parametrize("keep", ["best", "last"])
def test_validation_predictions_of_every_epoch_are_kept(make_run, keep):
    run = make_run(epochs=3, lr=0.01, keep=keep)
    history = train.fit(run)
    paths, predicted = run.epoch_predictions()
    table = run.predictions("val")
    assert paths.tolist() == table["path"].tolist() and predicted.shape == (3, len(table))
    labels = table["label"].map(run.class_names.index).to_numpy()
    assert (predicted == labels).mean(1) == pytest.approx(history["val_accuracy"].to_numpy())
    kept = run.record("train")["kept_epoch"] - 1
    probs, _ = run.probs(table)
    assert np.array_equal(predicted[kept], probs.argmax(1))
    np.testing.assert_allclose(run.epoch_probs()[1][kept], probs, atol=1e-3)


def test_predictions_of_epochs_that_would_be_large_are_not_kept(make_run, monkeypatch):
    monkeypatch.setattr(evaluate, "KEPT_VALUES", 3 * 12 * 3 - 1)
    run = make_run(epochs=3)
    train.fit(run)
    assert len(run.rows("val")) == 12 and run.epoch_predictions()[1].shape == (0, 12) and run.is_complete("train")


def test_probabilities_in_sixteen_bits_predict_what_the_logits_do():
    logits = torch.tensor([[1.0, 1.0001, 0.0], [2.0, 2.0, 2.0001], [0.0, 9.0, 1.0]])
    found = evaluate.half_probs(logits)
    assert found.dtype == torch.float16 and found.argmax(1).tolist() == logits.argmax(1).tolist() == [1, 2, 1]
    np.testing.assert_allclose(found.numpy(), logits.softmax(1).numpy(), atol=1e-3)
    assert evaluate.half_probs(torch.empty(0, 3)).shape == (0, 3)


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(make_run):
    first, again, other = (train.fit(make_run(name, seed=seed)) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert first[VALUES].equals(again[VALUES])
    assert not first[VALUES].equals(other[VALUES])


def test_a_trained_run_is_not_trained_again_unless_its_settings_change(make_run, capsys):
    train.fit(make_run())
    written = (make_run().path / "best.pt").stat().st_mtime_ns
    train.fit(make_run())
    assert "trained already" in capsys.readouterr().out
    assert (make_run().path / "best.pt").stat().st_mtime_ns == written
    changed = make_run(lr=0.001)
    assert not changed.is_complete("train")
    train.fit(changed)
    assert (changed.path / "best.pt").stat().st_mtime_ns > written


def test_cams_are_kept_for_the_same_photos_at_the_epochs_asked_for(make_run):
    run = make_run(epochs=5, cam_every=2)
    train.fit(run)
    kept = cams.kept_cams(run)
    assert list(kept) == [1, 2, 4, 5]
    assert {one.heatmap.shape for one in kept.values()} == {(6, 3, 32, 32)}
    assert {tuple(one.targets) for one in kept.values()} == {(0, 0, 1, 1, 2, 2)}
    silent = make_run("silent", cam_every=0)
    train.fit(silent)
    assert cams.kept_cams(silent) == {}


def test_base_then_end2end(make_run, shapes, tmp_path, tiny):
    """A five-class base is trained and End2End starts from it: the whole path of params/base_model.yaml."""
    five = tmp_path / "five"
    shutil.copytree(shapes, five)
    for i, name in enumerate(("dot", "ring")):
        (five / name).mkdir()
        for file in (shapes / ["disc", "bar"][i]).iterdir():  # in other colours: the same photo has one label
            ImageOps.invert(Image.open(file)).save(five / name / file.name)
    settings = {**tiny, "data": str(five), "model": "base", "epochs": 1}
    splits.prepare_manifest(config.make(settings), tmp_path / "base")
    base = create_run(tmp_path / "base" / "run", config.make(settings))
    train.fit(base)
    run = make_run(base_weights=str(base.path / "best.pt"), lr=1e-9, epochs=1)
    train.fit(run)
    trained = load_checkpoint(base.path / "best.pt")["state_dict"]["net.conv2.weight"]
    started = load_checkpoint(run.path / "best.pt")["state_dict"]["net.base.conv2.weight"]
    torch.testing.assert_close(started, trained)
    before = run.identity("train")
    os.utime(base.path / "best.pt")
    assert Run(run.path).identity("train") == before
    torch.save(load_checkpoint(base.path / "best.pt") | {"epoch": 99}, base.path / "best.pt")
    assert Run(run.path).identity("train") != before  # another base, another training


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_torchvisions_models_train(make_run, name):
    history = train.fit(make_run(model=name, epochs=1))
    assert np.isfinite(history[VALUES].to_numpy()).all()


def test_files_are_plain_csv_and_json(make_run):
    run = make_run()
    train.fit(run)
    assert list(pd.read_csv(run.path / "history.csv")["epoch"]) == [1, 2, 3]
    record = json.loads((run.path / "stages" / "train.json").read_text())
    assert record["identity"] == run.identity("train") and record["epochs"] == 3
    assert files.home() not in run.path.parents


def test_progress_line_tells_the_time_left():
    row = {"epoch": 2, "train_loss": 0.5, "val_loss": 0.4, "val_accuracy": 0.9, "val_macro_f1": 0.88, "seconds": 20.0}
    assert train.progress_line([row, row], 10).endswith("macro-F1 0.880, 80 s left")
    assert train.progress_line([row, row], 10, best=1).endswith("macro-F1 0.880, best so far: epoch 1, 80 s left")


def batch_of(labels) -> Batch:
    labels = torch.tensor(labels)
    return Batch(torch.zeros(len(labels), 3, 2, 2), labels, None, 1.0, len(labels))


def test_each_photo_of_the_epoch_is_counted_once_in_training():
    tally = evaluate.Tally(3, torch.device("cpu"))
    tally.add(torch.tensor(1.0), torch.eye(3)[:2], batch_of([0, 2]))  # the mean of two images
    tally.add(torch.tensor(2.5), torch.eye(3)[2:], batch_of([2]))
    row = tally.row("train")
    assert row["train_loss"] == pytest.approx(4.5 / 3) and row["train_accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("settings", [{}, {"mixing": "mixup"}, {"balance": "class_weights", "label_smoothing": 0.1}])
def test_a_batch_in_parts_teaches_what_the_whole_batch_does(make_run, settings):
    """Why each part's loss is divided by the size of the whole batch: 8 in parts of at most 3 are 3, 3 and 2, and the
    mean of their means would weigh the images of the last part more."""
    whole = train.fit(make_run("whole", **settings))
    parts = train.fit(make_run("parts", micro_batch=3, **settings))
    np.testing.assert_allclose(parts[VALUES], whole[VALUES], rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_nan_or_infinite_names_epoch_batch_and_setting(make_run):
    run = make_run(lr=10, optimizer="sgd", momentum=0.99, epochs=30, cam_every=0)
    with pytest.raises(train.Diverged, match=r"at epoch \d+, .+: lower lr \(now 10\), or set clip_norm: 1"):
        train.fit(run)
    assert not run.record("train")
    tally = evaluate.Tally(3, torch.device("cpu"))
    for loss in (1.0, 2.0):
        tally.add(torch.tensor(loss), torch.eye(3), batch_of([0, 1, 2]))
    train.check_loss(tally, 4, 9, run.config)
    tally.add(torch.tensor(torch.nan), torch.eye(3), batch_of([0, 1, 2]))
    with pytest.raises(train.Diverged, match="epoch 4, batch 3 of 9"):
        train.check_loss(tally, 4, 9, run.config)


def short_of_memory(monkeypatch, most: int) -> None:
    """A GPU that holds `most` images at a time (there is none here)."""
    real = micro_batch._gradients

    def gradients(network, parts, *rest):
        if any(len(part.labels) > most for part in parts):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(network, parts, *rest)

    monkeypatch.setattr(micro_batch, "_gradients", gradients)


def test_where_gpu_memory_ends_fewer_images_are_computed_at_a_time_to_the_same_end(make_run, monkeypatch, capsys):
    plain = train.fit(make_run("plain"))
    short_of_memory(monkeypatch, most=3)
    run = make_run("short")
    np.testing.assert_allclose(train.fit(run)[VALUES], plain[VALUES], rtol=1e-4, atol=1e-5)
    assert run.record("train")["micro_batch"] == 2
    assert "GPU memory ran out: micro_batch is 2 from now on" in capsys.readouterr().out


def test_where_memory_ends_for_a_chosen_micro_batch_the_setting_is_named(make_run, monkeypatch):
    short_of_memory(monkeypatch, most=3)
    with pytest.raises(InputError, match="ran out with 4 images at a time: set micro_batch: 2"):
        train.fit(make_run(micro_batch=4))


def test_training_stops_early_and_keeps_the_best(make_run, capsys):
    run = make_run(lr=1e-12, epochs=12, patience=2, augment="none")  # nothing changes, so epoch 1 stays the best
    assert len(train.fit(run)) == 3
    assert (run.record("train")["kept_epoch"], run.record("train")["epochs"]) == (1, 3)
    assert "stopped early: 2 epochs without a better macro_f1" in capsys.readouterr().out


def test_a_gain_below_min_delta_does_not_count():
    cfg = config.make({"patience": 2, "min_delta": 0.05})
    rows = [{"val_macro_f1": value, "val_loss": 1.0} for value in (0.5, 0.52, 0.54, 0.6)]
    progress = TrainingState()
    assert [train.update_best(progress, row, cfg) for row in rows[:3]] == [True, True, True]  # better all the same
    assert train.should_stop_early(cfg, progress)
    train.update_best(progress, rows[3], cfg)
    assert not train.should_stop_early(cfg, progress)


@pytest.mark.parametrize(("monitor", "ascending"), [("loss", True), ("accuracy", False), ("balanced_accuracy", False)])
def test_the_best_epoch_is_that_of_the_monitored_metric(make_run, monitor, ascending):
    run = make_run(monitor=monitor, epochs=6, keep="best")
    history = train.fit(run)
    order = history.sort_values([f"val_{monitor}", "val_loss", "epoch"], ascending=[ascending, True, True])
    assert run.record("train")["kept_epoch"] == order["epoch"].iloc[0]


def test_averaged_weights_are_judged_and_kept(make_run):
    run = make_run(ema=0.9, epochs=2)
    train.fit(run)
    model, _ = models.restore(run.path / "best.pt")
    logits = evaluate.predict(model, dataset.load_photos(run, "val"))
    probs, _ = run.probs(run.predictions("val"))
    np.testing.assert_allclose(probs, metrics.softmax(logits.numpy()), atol=1e-5)
    plain = make_run("plain", epochs=2)
    train.fit(plain)
    moved = [torch.linalg.norm(weights(r) - weights(make_run("still", lr=1e-12, epochs=1))) for r in (plain, run)]
    assert 0 < moved[1] < moved[0]  # the average trails behind


def weights(run) -> torch.Tensor:
    if not (run.path / "best.pt").is_file():
        train.fit(run)
    return load_checkpoint(run.path / "best.pt")["state_dict"]["net.base.conv2.weight"]


def test_without_a_fold_to_judge_all_photos_teach_and_the_last_epoch_is_kept(make_run):
    run = make_run(folds=2, fold=0)
    history = train.fit(run)
    assert run.record("train")["kept_epoch"] == 3 and "val_loss" not in history
    assert run.record("train")["photos_per_epoch"] == len(run.rows("train")) == 36
    assert run.rows("val").empty and run.predictions("val").empty
    text, numbers = training_answer(run)
    assert text.startswith("Trained on all 36 photos, none validate") and "accuracy" not in numbers


def test_sixteen_bits_train_and_are_recorded(make_run):
    run = make_run(precision="bf16")
    history = train.fit(run)
    assert np.isfinite(history[VALUES].to_numpy()).all() and run.record("train")["precision"] == "bf16"
    kept = load_checkpoint(run.path / "best.pt")["state_dict"]
    assert {tensor.dtype for tensor in kept.values() if tensor.is_floating_point()} == {torch.float32}


def test_a_finished_training_leaves_no_checkpoint_to_go_on_from(make_run):
    run = make_run()
    train.fit(run)
    assert not (run.path / "last.pt").exists()


@pytest.mark.parametrize("settings", [{"patience": 1}, {"scheduler": "plateau"}])
def test_settings_that_need_validation_photos_are_refused_without_them(make_run, settings):
    with pytest.raises(InputError, match="needs validation photos"):
        train.fit(make_run(folds=2, fold=0, **settings))


def test_weights_that_are_no_numbers_are_not_kept_where_nothing_validates(make_run, monkeypatch):
    def spoil(module, *_):
        with torch.no_grad():
            next(module.parameters()).fill_(torch.nan)

    run = make_run(folds=2, fold=0, epochs=1)
    monkeypatch.setattr(train, "check_loss", lambda *_: spoil_last())
    network, real = [], models.build
    monkeypatch.setattr(models, "build", lambda *rest: network.append(real(*rest)) or network[-1])

    def spoil_last():
        spoil(network[-1])

    with pytest.raises(train.Diverged, match="epoch 1, after its last step"):
        train.fit(run)
    assert not (run.path / "best.pt").exists()


def test_figures_drawn_before_training_stay(make_run):
    run = make_run(epochs=1)
    (run.path / "figures").mkdir()
    (run.path / "figures" / "lr_finder.png").touch()
    train.fit(run)
    assert (run.path / "figures" / "lr_finder.png").exists()


def test_a_best_epoch_that_last_pt_does_not_know_is_dropped(make_run):
    """On a GPU its repetition may come out otherwise; then the best before it must still be there."""
    run = make_run(epochs=1)
    train.fit(run)
    kept = (run.path / "best.pt").read_bytes()
    content = load_checkpoint(run.path / "best.pt")
    for epoch, stays in ((8, True), (7, False)):
        torch.save(content | {"epoch": epoch}, run.path / "best.next.pt")
        (run.path / "predictions_val.next.csv").write_text("next")
        checkpoint.settle(run, TrainingState(epoch=7, kept_epoch=7))
        assert not (run.path / "best.next.pt").exists() and not (run.path / "predictions_val.next.csv").exists()
        assert ((run.path / "best.pt").read_bytes() == kept) == stays
    assert (run.path / "predictions_val.csv").read_text() == "next"


@pytest.mark.parametrize(
    ("epochs", "line"),
    [
        (
            0,
            "training was interrupted before its first epoch .*: execute 02_train again, .* starts from the beginning",
        ),
        (2, "training was interrupted after epoch 2 of 3: execute 02_train again, .* resumes with epoch 3"),
    ],
)
def test_an_interrupted_training_says_in_one_line_that_it_resumes(make_run, monkeypatch, epochs, line):
    run = make_run(epochs=3, cam_every=0)

    def interrupt(*_):
        if len(run.history()) == epochs:
            raise KeyboardInterrupt

    if not epochs:
        monkeypatch.setattr(train, "train", interrupt)
    with pytest.raises(Interrupted, match=f"^{line}$") as caught:
        train.fit(run, interrupt)
    assert caught.value._render_traceback_() == [str(caught.value)]
    monkeypatch.undo()
    assert len(train.fit(Run(run.path))) == 3


def test_a_process_of_several_leaves_no_note_of_its_progress(monkeypatch, tmp_path):
    """It ends without returning, so that what surrounds `group.worker` is never left."""
    note = tmp_path / progress.FILE

    def ends_at_once(work):
        work()
        assert not note.exists()

    monkeypatch.setattr(train.group, "worker", ends_at_once)
    monkeypatch.setattr(train, "train", lambda run, on_epoch: note.write_text("{}"))
    train.main(str(tmp_path))
