"""Several processes: they give the numbers of one, report why they fail, resume when one is lost, and none is left."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from support import forkserver, wait_until

from fruitlib.core.errors import InputError
from fruitlib.data import dataset
from fruitlib.evaluation import metrics
from fruitlib.runs.run import Busy, Run
from fruitlib.training import distributed, evaluate, messages, models, train, weights

VALUES = ["train_loss", "train_accuracy", "train_macro_f1", "val_loss", "val_accuracy", "val_macro_f1", "lr"]


def weights_of(run) -> dict[str, torch.Tensor]:
    return weights.load_checkpoint(run.path / "best.pt")["state_dict"]


def assert_same_training(run, other) -> None:
    """Only the order of float32 additions differs: one errs by 6e-8 of its size."""
    np.testing.assert_allclose(run.history()[VALUES], other.history()[VALUES], rtol=0, atol=1e-5)
    for name, tensor in weights_of(other).items():
        torch.testing.assert_close(weights_of(run)[name], tensor, rtol=0, atol=1e-5)


def children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def fit(path: str) -> None:
    """The life of a process that starts a training."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    train.fit(Run(Path(path)))


def start_training(run) -> tuple[multiprocessing.Process, list[psutil.Process]]:
    """`train.fit` in a process of its own; returns it, and torchrun's agent and workers below it, in this order."""
    child = forkserver().Process(target=fit, args=(str(run.path),))
    child.start()
    wait_until(lambda: not run.history().empty, 60)
    agent = next(one for one in psutil.Process(child.pid).children() if "torch.distributed.run" in one.cmdline())
    workers = agent.children(recursive=True)
    assert len(workers) >= 2, "torchrun and two workers should be there"
    return child, [agent, *workers]


AGENT = """
import os, signal, sys
from pathlib import Path
from fruitlib.training import distributed
for number in range(2):
    if os.fork() == 0:
        distributed._leave_with_starter()
        Path(sys.argv[1], f"watching.{number}").touch()
        signal.pause()
signal.pause()
"""


def fit_without_torch(path: str) -> None:
    """The same with an agent whose workers train nothing, but watch who started them as real ones do."""

    def start_agent(run, processes: int, threads: int, mark: str) -> subprocess.Popen:
        environment = os.environ | {"FRUITLIB_STARTER": mark}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        command = [sys.executable, "-c", AGENT, str(run.path)]
        return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)

    distributed._start_agent = start_agent
    fit(path)


def test_two_processes_give_the_numbers_of_one(make_run):
    """Same batches, loss over the whole batch, no BatchNorm."""
    one, two = make_run("one", processes=1), make_run("two", processes=2)
    train.fit(one)
    seen, before = [], set(Path(tempfile.gettempdir()).glob("torchelastic*"))
    train.fit(two, on_epoch=lambda history: seen.append(len(history)))
    assert_same_training(two, one)
    assert seen == [1, 2, 3]
    assert len(train.kept_cams(two)) == 3  # epochs 1, 2 and 3, drawn by rank 0
    assert two.record("train")["processes"] == 2
    assert set(Path(tempfile.gettempdir()).glob("torchelastic*")) <= before  # torchrun leaves folders there


def test_with_batchnorm_the_numbers_are_those_of_the_kept_weights_and_each_photo_is_evaluated_once(
    make_run, forked_group
):
    """Processes have statistics of their own; what is evaluated must be what is kept. 15 photos do not halve."""
    run = make_run(model="resnet18", processes=2, epochs=1, val_per_class=5)
    train.fit(run)
    assert run.predictions("val")["path"].tolist() == run.rows("val")["path"].tolist()
    model, _ = models.restore(run.path / "best.pt")
    logits = evaluate.predict(model, dataset.load_photos(run, "val"))
    probs, _ = run.probs(run.predictions("val"))
    np.testing.assert_allclose(probs, metrics.softmax(logits.numpy()), atol=1e-4)


def test_a_failing_process_is_reported_once_and_leaves_nothing_behind(make_run):
    """Only the worker whose share the photo is in fails by itself; the other sees a connection end."""
    run = make_run(processes=2, cache="stream")  # else the photo would come from the cache file
    before = children()
    broken = run.sweep_dir / "manifest.csv"
    broken.write_text(broken.read_text().replace(run.rows("train")["path"][0], "disc/gone.png"))
    with pytest.raises(RuntimeError, match=r"2 processes failed: InputError: .*gone\.png: does not open") as failure:
        train.fit(run)
    assert str(failure.value).count("\n") == 0
    assert "a worker was lost" not in (run.path / "train.log").read_text()  # it would fail again
    assert children() <= before and not run.record("train") and not (run.path / distributed.FAILED).exists()


def test_an_interrupt_ends_every_process(make_run):
    """Ctrl-C (or the stop button) while two workers train: none of them, nor torchrun, is left."""
    run = make_run(processes=2, epochs=100000)
    child, family = start_training(run)
    os.kill(child.pid, signal.SIGINT)
    child.join(30)
    assert child.exitcode == 1
    _, alive = psutil.wait_procs(family, timeout=1)
    assert alive == []
    with run.locked():  # and the run is free again
        assert not run.is_complete("train")


def test_torchrun_and_its_workers_leave_when_their_starter_is_killed_outright(make_run):
    run = make_run(processes=2, epochs=100000)
    child, family = start_training(run)
    child.kill()
    child.join(20)
    assert child.exitcode == -signal.SIGKILL
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []


@pytest.mark.parametrize("killed", ["starter", "agent", "starter and agent"])
def test_workers_leave_whichever_of_those_above_them_is_killed(make_run, killed):
    run = make_run(processes=2)
    child = forkserver().Process(target=fit_without_torch, args=(str(run.path),))
    child.start()
    try:
        wait_until(lambda: len(list(run.path.glob("watching.*"))) == 2, 60)
    except AssertionError:
        child.kill()
        raise
    (agent,) = (one for one in psutil.Process(child.pid).children() if AGENT in one.cmdline())
    workers = agent.children()
    assert len(workers) == 2
    if "starter" in killed:
        child.kill()
    if "agent" in killed:
        agent.kill()
    child.join(20)
    assert child.exitcode == (-signal.SIGKILL if "starter" in killed else 1)
    _, alive = psutil.wait_procs([agent, *workers], timeout=20)
    assert alive == []


def test_orphans_are_found_by_their_mark_and_the_stubborn_are_killed():
    """A worker that ignores the request to end, and whose agent died first, is no one's child any more."""
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    )
    code = (
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {stubborn!r}], start_new_session=True)"
    )
    environment = os.environ | {messages.STARTER: "1:2"}
    agent = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
    assert agent.stdout.readline() and agent.wait(timeout=10) == 0
    orphans = [one for one in psutil.process_iter() if marked(one, "1:2")]
    assert len(orphans) == 1
    distributed.end_tree(agent, patience=0.2, mark="1:2")
    _, alive = psutil.wait_procs(orphans, timeout=5)
    assert alive == []
    agent.stdout.close()


def test_a_helper_that_outlives_torchrun_does_not_keep_the_notebook_waiting(make_run):
    code = "import subprocess; from fruitlib.training import messages; messages.epoch_done('epoch 1');"
    code += "subprocess.Popen(['sleep', '60'])"
    environment, run, seen = os.environ | {messages.STARTER: "3:4"}, make_run(), []
    agent = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    distributed._follow(agent, "3:4", run, seen.append, patience=0.5)
    assert len(seen) == 1 and (run.path / "train.log").read_text() == "epoch 1\n"
    assert not any(marked(one, "3:4") for one in psutil.process_iter())
    agent.stdout.close()


def marked(process: psutil.Process, mark: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.environ().get(messages.STARTER) == mark
    return False


def test_two_machines_give_the_numbers_of_one_process(make_run):
    """torchrun by hand, an agent for each machine (here both this one), and the shared run folder."""
    one, two = make_run("one"), make_run("two")
    train.fit(one)
    environment = os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=3"]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--local-addr=127.0.0.1"]
    command += [f"--log-dir={two.sweep_dir / 'torchrun'}", "-m", "fruitlib.training.train", str(two.path)]
    agents = [subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) for _ in range(2)]
    try:
        with pytest.raises(Busy):  # rank 0 holds the lock
            wait_until_busy(two, agents)
        assert [agent.wait(timeout=60) for agent in agents] == [0, 0]
    finally:
        for agent in agents:
            distributed.end_tree(agent)
    assert_same_training(two, one)
    assert two.is_complete("train"), two.record("train")
    assert two.record("train")["processes"] == 2 and two.config.processes == 1


def wait_until_busy(run, agents) -> None:
    while any(agent.poll() is None for agent in agents):
        with run.locked():
            time.sleep(0.02)
        time.sleep(0.1)


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_what_torchruns_flags_get_wrong_is_refused(make_run, monkeypatch):
    run = make_run(batch_size=8)
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(InputError, match="batch_size = 8: too small for 5 processes"):
        distributed._check_flags(run)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(InputError, match="export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        distributed._check_flags(run)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    distributed._check_flags(run)


def test_another_ones_end_is_told_from_an_own_failure(tmp_path):
    """Two gloo groups in two threads; one never comes to the sum, so the other's call fails inside gloo."""
    store, groups = dist.HashStore(), [None, None]

    def join(rank: int) -> None:
        groups[rank] = dist.ProcessGroupGloo(store, rank, 2, timedelta(seconds=0.5))

    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pytest.raises(RuntimeError) as echo:
        groups[0].allreduce(torch.ones(2)).wait()
    assert distributed.is_echo(echo.value)
    while_tidying = ValueError("closed file")
    while_tidying.__context__ = echo.value
    assert distributed.is_echo(while_tidying) and distributed.is_echo(dist.DistBackendError("NCCL error"))
    own = [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), InputError("gone.png: does not open")]
    own += [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), train.Diverged("no number")]
    assert not any(distributed.is_echo(problem) for problem in own)


def test_the_first_reason_is_kept_and_an_echo_gives_none(make_run, monkeypatch, capsys):
    run = make_run()

    def leave(code: int) -> None:
        raise SystemExit(code)

    def reported(problem: Exception) -> list:
        """The messages in what a worker prints as it fails."""
        with pytest.raises(SystemExit):
            distributed._fail(run, problem)
        lines = [messages.parse(line) for line in capsys.readouterr().out.split("\n")]
        return [message for message in lines if message]

    monkeypatch.setattr(distributed, "_leave", leave)
    monkeypatch.setenv(messages.STARTER, "1:2")
    assert reported(dist.DistNetworkError("peer gone")) == []
    assert not (run.path / distributed.FAILED).exists()
    assert reported(ValueError("first\nsecond line")) == [(messages.ERROR, "ValueError: first")]
    assert reported(KeyError("b")) == [(messages.ERROR, "KeyError: 'b'")]
    assert (run.path / distributed.FAILED).read_text() == "ValueError: first"


def test_how_workers_ended_that_gave_no_reason_is_read_from_torchruns_log():
    line = "E1123 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: -9) local_rank: 1 (pid: 7)\n"
    assert distributed._how_lost(line * 4, 1) == "a worker was lost 4 times, last by SIGKILL; often too little memory"
    assert (
        distributed._how_lost(line + line.replace("-9", "3"), 1) == "a worker was lost 2 times, last with exit code 3"
    )
    assert distributed._how_lost("", -9) == "torchrun ended by SIGKILL"


def test_several_processes_are_not_worth_it_for_a_small_run():
    """20 s of training would take 10 and the start, that is as long; an hour and a half, half of it."""
    assert not distributed.worth_it(1.0, 20, 2) and "processes: 1" in distributed.advice(1.0, 20, 2)
    assert distributed.worth_it(90.0, 60, 2) and "45 min" in distributed.advice(90.0, 60, 2)


@given(st.floats(0.001, 1000), st.integers(1, 1000), st.integers(2, 64))
def test_several_processes_are_never_recommended_where_one_would_be_done_first(seconds, epochs, processes):
    """Even if they shared the work perfectly; and longer runs never turn advice against them."""
    if distributed.worth_it(seconds, epochs, processes):
        assert distributed.START_SECONDS + seconds * epochs / processes < seconds * epochs
        assert distributed.worth_it(seconds * 2, epochs, processes)
