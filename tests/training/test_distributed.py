"""Several processes: they give the numbers of one, report why they fail, resume when one is lost, and none is left."""

import contextlib
import ipaddress
import multiprocessing
import os
import re
import signal
import socket
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
from fruitlib.training import cams, distributed, evaluate, group, messages, models, train, weights

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
    """`train.fit` in a process of its own; returns it, and the two processes below it that train."""
    child = forkserver().Process(target=fit, args=(str(run.path),))
    child.start()
    wait_until(lambda: not run.history().empty, 60)
    trainers = psutil.Process(child.pid).children()
    assert len(trainers) == 2
    return child, trainers


def private_folders(pid: int) -> list[Path]:
    """The folders through which the children of a process meet."""
    return list(Path(tempfile.gettempdir()).glob(f".{distributed.NAME}.{pid}@*"))


def test_two_processes_give_the_numbers_of_one_whoever_connects(make_run):
    """Same batches, loss over the whole batch, no BatchNorm. Only this machine can connect, and in vain."""
    one, two = make_run("one", processes=1), make_run("two", processes=2)
    train.fit(one)
    seen = []

    def connect(history) -> None:
        seen.append(len(history))
        if len(seen) == 1:
            addresses = [one.laddr for child in psutil.Process().children() for one in listening(child)]
            assert addresses and all(ipaddress.ip_address(address.ip).is_loopback for address in addresses)
            for address in addresses:
                with socket.create_connection(address, timeout=5) as connection:
                    connection.sendall(bytes(range(64)))

    train.fit(two, on_epoch=connect)
    assert_same_training(two, one)
    assert seen == [1, 2, 3]
    assert len(cams.kept_cams(two)) == 3  # epochs 1, 2 and 3, drawn by rank 0
    assert two.record("train")["processes"] == 2
    assert not private_folders(os.getpid())


def listening(process: psutil.Process) -> list:
    """The sockets on which a process of a training waits for connections."""
    if "fruitlib.training.train" not in process.cmdline():
        return []
    return [one for one in process.net_connections() if one.status == psutil.CONN_LISTEN]


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
    assert "a process was lost" not in (run.path / "train.log").read_text()  # it would fail again
    assert children() <= before and not run.record("train") and not (run.path / group.FAILED).exists()


def test_an_interrupt_ends_every_process(make_run):
    """Ctrl-C (or the stop button) while two processes train: none of them is left."""
    run = make_run(processes=2, epochs=100000)
    child, family = start_training(run)
    os.kill(child.pid, signal.SIGINT)
    child.join(30)
    assert child.exitcode == 1
    _, alive = psutil.wait_procs(family, timeout=1)
    assert alive == []
    with run.locked():  # and the run is free again
        assert not run.is_complete("train")


def test_processes_leave_when_their_starter_is_killed_outright(make_run):
    run = make_run(processes=2, epochs=100000)
    child, family = start_training(run)
    (folder,) = private_folders(child.pid)
    assert folder.stat().st_mode & 0o077 == 0
    child.kill()
    child.join(20)
    assert child.exitcode == -signal.SIGKILL
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
    assert not private_folders(child.pid)


@pytest.mark.slow
def test_kills_at_any_moment_change_nothing(make_run):
    """From the first second to the last, late ones, too. FRUITLIB_KILLS=20 kills twenty."""
    random = np.random.default_rng(14)
    one = make_run("one", epochs=30)
    train.fit(one)
    for number in range(int(os.environ.get("FRUITLIB_KILLS", "4"))):
        run = make_run(f"kill {number}", epochs=30, processes=2)
        child = forkserver().Process(target=fit, args=(str(run.path),))
        child.start()
        wait_until(lambda child=child: len(psutil.Process(child.pid).children()) == 2, 20)
        trainers = psutil.Process(child.pid).children()
        if number % 2:  # half of them when there is little left to do
            wait_until(lambda run=run, child=child: len(run.history()) > 27 or not child.is_alive(), 120)
        time.sleep(random.uniform(0, 0.4 if number % 2 else 8))
        with contextlib.suppress(psutil.NoSuchProcess):
            trainers[random.integers(2)].kill()
        child.join(120)
        assert child.exitcode == 0, (run.path / "train.log").read_text()
        assert_same_training(run, one)
        assert not any(process.is_running() for process in trainers) and not private_folders(child.pid)


def exchange(store: str, rank: int, results) -> None:
    """The life of a process of three that exchange what a training does."""
    dist.init_process_group("gloo", store=dist.FileStore(store, 3), rank=rank, world_size=3)
    own = torch.full((2 - rank, 2), float(rank)) if rank < 2 else None
    rows = group.all_rows(own, [2, 1, 0])
    results.put((group.from_first({"rank": rank, "π": [None, 0.1]}), [part.tolist() for part in rows]))
    try:
        group.check_same_epoch(rank // 2)
    except InputError as problem:
        results.put(str(problem))


def test_what_processes_exchange_reaches_all(tmp_path):
    context = forkserver()
    results = context.SimpleQueue()
    for rank in range(3):
        context.Process(target=exchange, args=(str(tmp_path / "store"), rank, results), daemon=True).start()
    received = [results.get() for _ in range(6)]
    text = "last.pt: machines read different epochs from it ([0, 1]); start again later"
    assert received.count(text) == 3
    assert received.count(({"rank": 0, "π": [None, 0.1]}, [[[0.0, 0.0]] * 2, [[1.0, 1.0]], []])) == 3


def test_nothing_that_another_process_sends_is_unpickled():
    """torch's collectives for objects do so; ours are in `group`."""
    sources = Path(group.__file__).parent.parent.rglob("*.py")
    assert not [path for path in sources if re.search(r"dist\.\w*_object", path.read_text(encoding="utf-8"))]


def answer(store: str, rank: int, key: bytes, results) -> None:
    """The life of a process that meets another one there, and proves to it that it knows the key."""
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    try:
        group.check_members(key)
        results.put("trusted")
    except group.Stranger as problem:
        results.put(str(problem))


@pytest.mark.parametrize("other", [b"key", b"guess"])
def test_a_process_that_does_not_know_the_key_is_refused(tmp_path, other):
    context = forkserver()
    results = context.SimpleQueue()
    keys = [b"key", other]
    both = [
        context.Process(target=answer, args=(str(tmp_path / "store"), rank, key, results))
        for rank, key in enumerate(keys)
    ]
    for process in both:
        process.start()
    message = {results.get(), results.get()}
    for process in both:
        process.join(10)
    refused = {f"a process outside the group answers as process {rank}: training stops" for rank in (0, 1)}
    assert message == ({"trusted"} if other == b"key" else refused)


def follow_children(run, monkeypatch, code: str) -> tuple[str, distributed._Children, list]:
    """Follow two processes that execute `code` instead of a training; how one was lost, and the epochs seen."""

    def start(self, environment: dict[str, str]) -> subprocess.Popen:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": self._input, "stderr": subprocess.STDOUT}
        return subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True, **pipes)

    monkeypatch.setattr(distributed._Children, "_start", start)
    monkeypatch.setattr(distributed, "END_SECONDS", 1)
    seen, followed = [], distributed._Children(run, run.path, 1, 0)
    with (run.path / "train.log").open("w") as log:
        lost = followed.follow(log, seen.append)
    assert not any(marked(one, followed.mark) for one in psutil.process_iter())
    return lost, followed, seen


SPEAK = (
    "import os, time; from fruitlib.training import messages; messages.epoch_done(f'epoch of {os.environ[\"RANK\"]}');"
)


def test_a_helper_that_outlives_training_does_not_keep_the_notebook_waiting(make_run, monkeypatch):
    """W&B starts one, in a session of its own; what the processes wrote last is read all the same."""
    code = SPEAK + "import subprocess; subprocess.Popen(['sleep', '60'], start_new_session=True)"
    run = make_run(processes=2)
    lost, _, seen = follow_children(run, monkeypatch, code)
    assert (lost, len(seen)) == ("", 2)
    assert sorted((run.path / "train.log").read_text().splitlines()) == ["epoch of 0", "epoch of 1"]


@pytest.mark.parametrize(
    ("ending", "lost"),
    [
        ("os.kill(os.getpid(), 9)", "killed by SIGKILL; often too little memory"),
        ("os.kill(os.getpid(), 15)", "killed by SIGTERM"),
        ("os._exit(3)", "it ended with exit code 3"),
        ("os.kill(os.getpid(), 19)", "stopped for 0.5 s"),
    ],
)
def test_a_lost_process_ends_the_others_and_is_named(make_run, monkeypatch, ending, lost):
    """The other one would go on, and print, for a minute; it does not end when asked."""
    monkeypatch.setattr(distributed, "STOPPED_SECONDS", 0.5)
    stubborn = "signal.signal(15, signal.SIG_IGN); [(print(n, flush=True), time.sleep(0.02)) for n in range(3000)]"
    code = f"import os, signal, time\nif os.environ['RANK'] == '1': {ending}\nelse: {stubborn}"
    assert follow_children(make_run(processes=2), monkeypatch, code)[0] == lost


def test_a_failure_that_would_come_again_ends_all(make_run, monkeypatch):
    code = "from fruitlib.training import messages; messages.failed('gone.png'); import time; time.sleep(60)"
    lost, followed, _ = follow_children(make_run(processes=2), monkeypatch, code)
    assert (lost, followed.error) == ("", "gone.png")


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
            agent.terminate()
    assert_same_training(two, one)
    assert two.is_complete("train"), two.record("train")
    assert two.record("train")["processes"] == 2 and two.config.processes == 1


def wait_until_busy(run, agents) -> None:
    while any(agent.poll() is None for agent in agents):
        with run.locked():
            time.sleep(0.02)
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_what_torchruns_flags_get_wrong_is_refused(make_run, monkeypatch):
    run = make_run(batch_size=8)
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(InputError, match="batch_size = 8: too small for 5 processes"):
        group._check_flags(run)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(InputError, match="export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        group._check_flags(run)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    group._check_flags(run)


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
    assert group.is_echo(echo.value)
    while_tidying = ValueError("closed file")
    while_tidying.__context__ = echo.value
    assert group.is_echo(while_tidying) and group.is_echo(dist.DistBackendError("NCCL error"))
    own = [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), InputError("gone.png: does not open")]
    own += [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), train.Diverged("no number")]
    assert not any(group.is_echo(problem) for problem in own)


def test_the_first_reason_is_kept_and_an_echo_gives_none(make_run, monkeypatch, capsys):
    run = make_run()

    def leave(code: int) -> None:
        raise SystemExit(code)

    def reported(problem: Exception) -> list:
        """The messages in what a worker prints as it fails."""
        with pytest.raises(SystemExit):
            group._fail(run, problem)
        lines = [messages.parse(line) for line in capsys.readouterr().out.split("\n")]
        return [message for message in lines if message]

    monkeypatch.setattr(group, "_leave", leave)
    monkeypatch.setenv(messages.STARTER, "1:2")
    assert reported(dist.DistNetworkError("peer gone")) == []
    assert not (run.path / group.FAILED).exists()
    assert reported(ValueError("first\nsecond line")) == [(messages.ERROR, "ValueError: first")]
    assert reported(KeyError("b")) == [(messages.ERROR, "KeyError: 'b'")]
    assert (run.path / group.FAILED).read_text() == "ValueError: first"


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
