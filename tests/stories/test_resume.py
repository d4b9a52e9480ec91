"""A training that is killed, at any moment and any number of times, ends as if it had never stopped: bit for bit.

Same threads in both (one). The killed trainings are forked from a server that has imported all but computed nothing,
so that a start takes a tenth of a second; the kills are real ones.
"""

import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from support import launch_by_fork

from fruitlib.runs.run import Run
from fruitlib.training import cams, checkpoint, train, weights

TIMES = [
    "seconds",
    "photos_per_second",
    "cpu_percent",
    "ram_gb",
]  # the columns of history.csv that depend on the machine


@pytest.fixture(scope="module")
def server():
    """Processes that begin with everything imported, and one thread."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fruitlib.training.train"])
    yield context
    os.environ.pop("OMP_NUM_THREADS")
    if before:
        os.environ["OMP_NUM_THREADS"] = before


@pytest.fixture
def make_run(make_run):
    """The same, six epochs long: there must be something to kill."""
    return lambda name="run", **settings: make_run(name, **{"epochs": 6, **settings})


def fit(path: str, dies_at: int, after: bool) -> None:
    """The life of a training process: `train.fit`, its output appended to a file; it dies as it writes file `dies_at`.

    `after`: with the file written; else with it whole, but under its temporary name.
    """
    sys.stdout = open(Path(path).with_suffix(".txt"), "a", encoding="utf-8")  # noqa: SIM115
    replace, count = os.replace, 0

    def counted(*names) -> None:
        nonlocal count
        count += 1
        if count == dies_at and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*names)
        if count == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = counted
    train.fit(Run(Path(path)))
    sys.stdout.flush()


def start(server, run, dies_at: int = 0, after: bool = False):
    process = server.Process(target=fit, args=(str(run.path), dies_at, after))
    process.start()
    return process


def output(run) -> str:
    return run.path.with_suffix(".txt").read_text()


def undisturbed(server, run):
    process = start(server, run)
    process.join(60)
    assert process.exitcode == 0
    return run


def assert_bit_for_bit(run, other) -> None:
    history, undisturbed_history = run.history(), other.history()
    assert list(history.columns) == list(undisturbed_history.columns)
    assert history["epoch"].tolist() == list(range(1, len(undisturbed_history) + 1))
    pd.testing.assert_frame_equal(
        history.drop(columns=TIMES), undisturbed_history.drop(columns=TIMES), check_exact=True
    )
    best, expected = (weights.load_checkpoint(one.path / "best.pt") for one in (run, other))
    assert best["epoch"] == expected["epoch"] and list(best["state_dict"]) == list(expected["state_dict"])
    assert all(torch.equal(best["state_dict"][name], tensor) for name, tensor in expected["state_dict"].items())
    assert (run.path / "predictions_val.csv").read_bytes() == (other.path / "predictions_val.csv").read_bytes()
    assert all(np.array_equal(*parts) for parts in zip(run.epoch_probs(), other.epoch_probs(), strict=True))
    assert len(run.epoch_probs()[1]) == len(history)
    assert run.record("train")["kept_epoch"] == other.record("train")["kept_epoch"] == expected["epoch"]
    assert sorted(cams.kept_cams(run)) == sorted(cams.kept_cams(other))
    leftovers = [
        path.name for path in run.path.iterdir() if path.name.startswith(".") and not path.name.endswith(".lock")
    ]
    assert leftovers == [] and not (run.path / checkpoint.NAME).exists()


VARIANTS = {
    "plain": {},
    "keep the best": {"keep": "best", "lr": 0.01},
    "average, plateau, patience, clipping": {
        "ema": 0.9,
        "scheduler": "plateau",
        "patience": 5,
        "min_delta": 0.02,
        "clip_norm": 0.5,
        "lr": 0.01,
        "monitor": "accuracy",
    },
    "random augmentation, mixing, momentum, one cycle": {
        "augment": "trivial",
        "mixing": "mixup",
        "optimizer": "sgd",
        "scheduler": "one_cycle",
        "balance": "weighted_sampler",
        "cache": "stream",
    },
    "dropout, BatchNorm": {"model": "mobilenet_v3_small", "dropout": 0.3, "epochs": 4, "warmup_epochs": 1},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(make_run, server, variant):
    settings, rng = VARIANTS[variant], random.Random(variant)
    whole, run = undisturbed(server, make_run("whole", **settings)), make_run("killed", **settings)
    killed = 0
    for _ in range(3):
        process, epochs = start(server, run), len(run.history()) + rng.randint(1, 2)
        while len(run.history()) < epochs and process.is_alive():
            time.sleep(0.002)
        process.join(rng.uniform(0, 0.1))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    undisturbed(server, run)
    assert killed and "resumed after epoch" in output(run)
    assert_bit_for_bit(run, whole)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_killed_at_each_kind_of_write_it_ends_as_if_it_had_not_been(make_run, server, keep):
    """history.csv, best.pt, predictions, heatmaps, last.pt, the record: with the file in place, or nearly so."""
    rng, starts = random.Random(0), 0
    whole, run = undisturbed(server, make_run("whole", keep=keep)), make_run("killed", keep=keep)
    while not run.record("train"):
        starts += 1
        assert starts < 40, "it gets nowhere"
        process = start(server, run, dies_at=rng.randint(2, 12 if keep == "best" else 8), after=rng.random() < 0.5)
        process.join(60)
        assert process.exitcode in (0, -signal.SIGKILL)
    assert starts > 3
    undisturbed(server, run)  # where it died with the record written: fit only reports that it is trained
    assert_bit_for_bit(run, whole)


def cut_off(server, run, dies_at: int = 7):
    """The run, killed somewhere in its third epoch."""
    process = start(server, run, dies_at)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL and (run.path / checkpoint.NAME).is_file()
    return run


def test_gradual_unfreezing_resumes_where_it_was(make_run, server):
    """Blocks unfrozen before the kill train on after it; those still frozen are unfrozen in their turn."""
    first = undisturbed(server, make_run("first", epochs=1))
    settings = {"weights": str(first.path / "best.pt"), "freeze": "backbone", "unfreeze_every": 1}
    settings |= {"folds": 2, "fold": 0}  # no photo validates, so the last epoch is the one kept
    whole, run = undisturbed(server, make_run("whole", **settings)), cut_off(server, make_run("killed", **settings))
    undisturbed(server, cut_off(server, run))
    assert_bit_for_bit(run, whole)
    before, after = (weights.load_checkpoint(one.path / "best.pt")["state_dict"] for one in (first, run))
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert [name for name in still if "conv" in name] == []  # all blocks were unfrozen in the end


def test_a_head_on_a_frozen_backbone_resumes_without_the_backbone_in_its_checkpoint(make_run, server):
    first = undisturbed(server, make_run("first", epochs=1))
    settings = {"weights": str(first.path / "best.pt"), "freeze": "backbone", "augment": "none"}
    whole, run = undisturbed(server, make_run("whole", **settings)), cut_off(server, make_run("killed", **settings))
    kept = torch.load(run.path / checkpoint.NAME, weights_only=True)["parts"]["model"]
    assert list(kept) == ["weight", "bias"]  # end2end's head
    undisturbed(server, run)
    assert "resumed after epoch" in output(run)
    assert_bit_for_bit(run, whole)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"lr": 0.001}, "lr = 0.003, here 0.001"), ({"split_seed": 1}, "other photos, labels or split")],
)
def test_a_checkpoint_of_another_training_is_named_and_not_used(make_run, server, changes, named):
    cut_off(server, make_run())
    fresh, run = undisturbed(server, make_run("fresh", **changes)), make_run(**changes)
    undisturbed(server, run)
    assert f"last.pt is of another training ({named}); restarting training" in output(run)
    assert "resumed" not in output(run)
    assert_bit_for_bit(run, fresh)


def test_a_damaged_checkpoint_is_named_and_training_restarts(make_run, server):
    whole, run = undisturbed(server, make_run("whole")), cut_off(server, make_run())
    last = run.path / checkpoint.NAME
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    undisturbed(server, run)
    assert "last.pt is damaged and cannot be resumed; restarting training" in output(run)
    assert_bit_for_bit(run, whole)


def test_a_history_longer_than_the_checkpoint_is_cut_to_it(make_run, server):
    """Killed with the row of an epoch written, and its checkpoint not: each row once, all of the same attempt."""
    whole, run = undisturbed(server, make_run("whole")), cut_off(server, make_run())
    table = run.history()
    extra = table.iloc[[-1, -1]].assign(epoch=[len(table) + 1, len(table) + 2], train_loss=99.0)
    pd.concat([table, extra]).to_csv(run.path / "history.csv", index=False)
    process = start(server, run, dies_at=2)  # right after the first file it writes
    process.join(60)
    kept = torch.load(run.path / checkpoint.NAME, weights_only=True)["progress"]["epoch"]
    assert run.history()["epoch"].tolist() == list(range(1, kept + 1))
    undisturbed(server, run)
    assert_bit_for_bit(run, whole)


def test_a_killed_process_starts_all_again_and_the_numbers_are_those_of_an_undisturbed_group(make_run, capsys):
    settings = {"processes": 2, "augment": "trivial", "epochs": 40}
    whole, run, killed = make_run("whole", **settings), make_run("killed", **settings), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fruitlib.training.distributed.launch", launch_by_fork)
        train.fit(whole)
    capsys.readouterr()

    def kill_rank_0(history: pd.DataFrame) -> None:
        if len(history) >= 5 and not killed:
            below = psutil.Process().children(recursive=True)
            killed.extend(one for one in below if one.environ().get("RANK") == "0")
            killed[0].kill()
            (run.path / ".last.half.pt").touch()  # as if it had just been writing

    train.fit(run, on_epoch=kill_rank_0)
    shown = capsys.readouterr().out
    assert (
        "a process was lost (killed by SIGKILL; often too little memory): all start again (restart 1 of 3)" in shown
        and "resumed after epoch" in shown
    )
    assert_bit_for_bit(run, whole)
