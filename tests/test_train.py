"""The recipe: it learns, repeats itself, is the same in two processes, and ends all it started."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from PIL import Image, ImageOps

from fruitlib import config, images, metrics, models, runs, runtime, splits, train


@pytest.fixture
def make_run(tiny, tmp_path):
    """`make_run(lr=...)` prepares a run folder with those knobs beside its manifest."""

    def make(name="run", **knobs):
        cfg = config.make({**tiny, **knobs})
        splits.prepare(cfg, tmp_path)
        return runs.create(tmp_path / name, cfg)

    return make


VALUES = ["train_loss", "train_accuracy", "train_macro_f1", "val_loss", "val_accuracy", "val_macro_f1", "lr"]


def test_it_learns_and_keeps_the_best_epoch(make_run):
    run = make_run(epochs=12)
    history = train.fit(run)
    assert history["train_loss"].iloc[-1] < 0.7 * history["train_loss"].iloc[0]
    order = history.sort_values(["val_macro_f1", "val_loss", "epoch"], ascending=[False, True, True])
    assert run.record("train")["best_epoch"] == order["epoch"].iloc[0]
    predictions = run.predictions("val")
    accuracy = (predictions["label"] == predictions["predicted"]).mean()
    assert accuracy == pytest.approx(order["val_accuracy"].iloc[0])
    assert predictions[[f"p_{name}" for name in run.class_names]].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    assert set(predictions["path"]) == set(run.rows("val")["path"])


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(make_run):
    first, again, other = (train.fit(make_run(name, seed=seed)) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert first[VALUES].equals(again[VALUES])
    assert not first[VALUES].equals(other[VALUES])


def test_a_trained_run_is_not_trained_again_unless_its_knobs_change(make_run, capsys):
    train.fit(make_run())
    written = (make_run().path / "best.pt").stat().st_mtime_ns
    train.fit(make_run())
    assert "trained already" in capsys.readouterr().out
    assert (make_run().path / "best.pt").stat().st_mtime_ns == written
    changed = make_run(lr=0.001)
    assert not changed.is_complete("train")
    train.fit(changed)
    assert (changed.path / "best.pt").stat().st_mtime_ns > written


def test_two_processes_give_the_numbers_of_one(make_run):
    """Same batches, loss over the whole batch, no BatchNorm: only the order of float32 additions differs.

    One addition errs by 6e-8 of its size; over 3 epochs of 5 steps this stays far under 1e-4 of the values.
    """
    one = train.fit(make_run("one", processes=1))
    seen = []
    two = train.fit(make_run("two", processes=2), on_epoch=lambda history: seen.append(len(history)))
    np.testing.assert_allclose(two[VALUES], one[VALUES], rtol=1e-4, atol=1e-5)
    assert seen == [1, 2, 3]
    folders = [make_run("two", processes=2).path.parent / name for name in ("one", "two")]
    weights = [models.load_checkpoint(folder / "best.pt")["state_dict"] for folder in folders]
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-3, atol=1e-5)
    assert len(train.kept_cams(make_run("two", processes=2))) == 3  # epochs 1, 2 and 3, drawn by rank 0


def test_with_batchnorm_the_numbers_are_those_of_the_kept_weights(make_run):
    """Processes have statistics of their own; what is judged must be what is kept."""
    run = make_run(model="resnet18", processes=2, epochs=1)
    train.fit(run)
    model, _ = models.restore(run.path / "best.pt")
    logits = train.predict(model, images.of(run, "val"))
    probs, _ = run.probs(run.predictions("val"))
    np.testing.assert_allclose(probs, metrics.softmax(logits.numpy()), atol=1e-4)


def test_each_photo_is_judged_once_when_processes_share_them(make_run):
    run = make_run(processes=2, batch_size=16, val_per_class=5, epochs=1)  # 15 photos for 2 processes
    train.fit(run)
    assert sorted(run.predictions("val")["path"]) == sorted(run.rows("val")["path"])


def test_a_failing_process_is_reported_and_leaves_nothing_behind(make_run):
    run = make_run(processes=2, cache="stream")  # else the photo would come from the cache file
    before = children()
    broken = run.sweep_dir / "manifest.csv"
    broken.write_text(broken.read_text().replace(run.rows("train")["path"][0], "disc/gone.png"))
    with pytest.raises(RuntimeError, match=r"2 processes failed: InputError: .*gone\.png: does not open"):
        train.fit(run)
    assert children() <= before and not run.record("train")


def test_an_interrupt_ends_every_process(make_run):
    """Ctrl-C (or the stop button) while two workers train: none of them, nor torchrun, is left."""
    run = make_run(processes=2, epochs=100000)
    child, family = start_training(run)
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=30) != 0
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    with run.locked():  # and the run is free again
        assert not run.is_complete("train")


@pytest.mark.parametrize("agent_too", [False, True])
def test_workers_leave_when_what_started_them_is_killed_outright(make_run, agent_too):
    run = make_run(processes=2, epochs=100000)
    child, family = start_training(run)
    child.kill()
    child.wait()
    if agent_too:
        next(process for process in family if "torch.distributed.run" in process.cmdline()).kill()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []


def start_training(run) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """`train.fit` in a process of its own; returns it, and torchrun's agent and workers below it."""
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in the background
        "from pathlib import Path; from fruitlib import runs, train; train.fit(runs.Run(Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, str(run.path)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return child, wait_for_workers(child, run)


def children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def wait_for_workers(child: subprocess.Popen, run) -> list[psutil.Process]:
    """torchrun's agent and its workers, once the first epoch is written."""
    deadline = time.monotonic() + 60
    while run.history().empty and time.monotonic() < deadline:
        time.sleep(0.2)
    family = psutil.Process(child.pid).children(recursive=True)
    assert len(family) >= 3, "torchrun and two workers should be there"
    return family


def test_each_photo_of_the_epoch_is_counted_once_in_training(make_run):
    tally = train.Tally(3)
    tally.add(torch.tensor([0.5, 1.5]), torch.eye(3)[:2], torch.tensor([0, 2]))
    tally.add(torch.tensor([1.0]), torch.eye(3)[2:], torch.tensor([2]))
    row = tally.row("train")
    assert row["train_loss"] == pytest.approx(1.0) and row["train_accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("scheduler", "formula"),
    [
        ("step", lambda e, n: 0.1 ** ((e - 1) // math.ceil(n / 3))),
        ("exponential", lambda e, n: 0.01 ** ((e - 1) / (n - 1))),
        ("cosine", lambda e, n: 0.01 + 0.99 * (1 + math.cos(math.pi * (e - 1) / (n - 1))) / 2),
    ],
)
def test_schedules_follow_their_formulas(make_run, scheduler, formula):
    history = train.fit(make_run(scheduler=scheduler, epochs=7, augment="none"))
    expected = [0.003 * formula(epoch, 7) for epoch in range(1, 8)]
    assert history["lr"].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_optimizers_are_torchs_own(name):
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    cfg = config.make({"optimizer": name, "lr": 0.02, "weight_decay": 0.03})
    found = train.build_optimizer(cfg, [torch.nn.Parameter(torch.ones(2))])
    assert type(found) is kinds[name]
    assert (found.defaults["lr"], found.defaults["weight_decay"]) == (0.02, 0.03)


def test_cams_are_kept_for_the_same_photos_at_the_epochs_asked_for(make_run):
    run = make_run(epochs=5, cam_every=2)
    train.fit(run)
    kept = train.kept_cams(run)
    assert list(kept) == [1, 2, 4, 5]
    assert {cams.heatmap.shape for cams in kept.values()} == {(6, 3, 32, 32)}
    assert {tuple(cams.targets) for cams in kept.values()} == {(0, 0, 1, 1, 2, 2)}
    silent = make_run("silent", cam_every=0)
    train.fit(silent)
    assert train.kept_cams(silent) == {}


def test_base_then_end2end(make_run, shapes, tmp_path, tiny):
    """A five-class base is trained and End2End starts from it: the whole path of params/base_model.yaml."""
    five = tmp_path / "five"
    shutil.copytree(shapes, five)
    for i, name in enumerate(("dot", "ring")):
        (five / name).mkdir()
        for file in (shapes / ["disc", "bar"][i]).iterdir():  # in other colours: the same photo has one label
            ImageOps.invert(Image.open(file)).save(five / name / file.name)
    knobs = {**tiny, "data": str(five), "model": "base", "epochs": 1}
    splits.prepare(config.make(knobs), tmp_path / "base")
    base = runs.create(tmp_path / "base" / "run", config.make(knobs))
    train.fit(base)
    run = make_run(base_weights=str(base.path / "best.pt"), lr=1e-9, epochs=1)
    train.fit(run)
    trained = models.load_checkpoint(base.path / "best.pt")["state_dict"]["net.conv2.weight"]
    started = models.load_checkpoint(run.path / "best.pt")["state_dict"]["net.base.conv2.weight"]
    torch.testing.assert_close(started, trained)
    before = run.identity("train")
    os.utime(base.path / "best.pt")
    assert runs.Run(run.path).identity("train") == before
    torch.save(models.load_checkpoint(base.path / "best.pt") | {"epoch": 99}, base.path / "best.pt")
    assert runs.Run(run.path).identity("train") != before  # another base, another training


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_torchvisions_models_train(make_run, name):
    history = train.fit(make_run(model=name, epochs=1))
    assert np.isfinite(history[VALUES].to_numpy()).all()


def test_progress_line_tells_the_time_left():
    row = {"epoch": 2, "train_loss": 0.5, "val_accuracy": 0.9, "val_macro_f1": 0.88, "seconds": 20.0}
    assert train.progress_line([row, row], 10).endswith("macro-F1 0.880, 80 s left")


def test_files_are_plain_csv_and_json(make_run):
    run = make_run()
    train.fit(run)
    assert list(pd.read_csv(run.path / "history.csv")["epoch"]) == [1, 2, 3]
    record = json.loads((run.path / "stages" / "train.json").read_text())
    assert record["identity"] == run.identity("train") and record["epochs"] == 3
    assert runtime.home() not in run.path.parents
