"""What training leaves to be followed: rows arrive in every tracker once, with the values of history.csv."""

import contextlib
import importlib
import json
import math
import os
import socket
import struct
import subprocess
import sys
import threading
import time

import pandas as pd
import psutil
import pytest
import torch

from fruitlib.core import config
from fruitlib.core.errors import InputError
from fruitlib.runs.run import Run
from fruitlib.training import tracking

ROWS = [
    {"epoch": e, "lr": 0.1 / e, "train_loss": 1 / e, "val_loss": 2 / e, "val_macro_f1": e / 10, "cpu_percent": 99.5}
    for e in range(1, 6)
]
NAMES = {"lr", "loss/train", "loss/val", "macro_f1/val", "cpu_percent"}


@pytest.fixture
def make_run(tmp_path):
    """`make_run("tensorboard", lr=...)`: a run folder whose rows are mirrored there."""

    def make(*track, **settings):
        folder = tmp_path / "berries" / "lr=0.1,seed=1"
        folder.mkdir(parents=True, exist_ok=True)
        return Run(folder, config.make({"track": list(track), **settings}))

    return make


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """A home where nobody is logged in to W&B, and a server that counts who calls it."""
    pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    server = socket.create_server(("127.0.0.1", 0))
    calls = []

    def answer():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                calls.append(connection)
                connection.close()

    threading.Thread(target=answer, daemon=True).start()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "true")  # for teardown to restore what the mirror sets
    monkeypatch.delenv("WANDB_ERROR_REPORTING")
    yield calls
    server.shutdown(socket.SHUT_RDWR)
    server.close()


def mirror(run, history, rows):
    with tracking.Mirrors(run, history) as mirrors:
        for row in rows:
            mirrors.log(row)
    return mirrors


def test_history_is_written_whole(make_run):
    run = make_run()
    for end in (1, 2, 5):
        tracking.write_history(run, ROWS[:end])
        pd.testing.assert_frame_equal(run.history(), pd.DataFrame(ROWS[:end]))
    assert [path.name for path in run.path.iterdir()] == ["history.csv"]


def test_importing_loads_no_tracker():
    probe = "import sys, fruitlib.training.tracking; print({'wandb', 'tensorboard'} & set(sys.modules))"
    summary = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert summary.stdout.strip() == "set()"


def test_columns_get_their_tracker_names_and_only_numbers_pass():
    row = {"epoch": 3, "train_macro_f1": 0.5, "val_loss": math.nan, "lr": 1, "note": "x", "gpu_gb": None}
    assert tracking.scalars(row) == {"macro_f1/train": 0.5, "lr": 1.0}


def test_meters_count_a_childs_work_in_percent_of_a_core():
    meters = tracking.Meters(torch.device("cpu"))
    idle, started = meters.read(), time.monotonic()
    spin = "import time; a = bytearray(10**8); end = time.process_time() + 9\nwhile time.process_time() < end: pass"
    child = subprocess.Popen([sys.executable, "-c", spin])
    try:
        time.sleep(1.5)
        times, seconds = psutil.Process(child.pid).cpu_times(), time.monotonic() - started
        busy = meters.read()
    finally:
        child.kill()
        child.wait()
    assert set(idle) == {"cpu_percent", "ram_gb"}
    assert busy["cpu_percent"] == pytest.approx(100 * (times.user + times.system) / seconds, abs=15)
    assert times.user + times.system > 0.2
    assert busy["ram_gb"] > idle["ram_gb"] + 0.1
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]  # earlier tests may have left helpers
    assert idle["ram_gb"] * 1e9 == pytest.approx(sum(p.memory_info().rss for p in family), rel=0.2)


def events(folder):
    """{name: {step: values}} as TensorBoard itself reads the folder, and its texts' names."""
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    reader = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    curves = {tag: {} for tag in reader.Tags()["scalars"]}
    for tag, steps in curves.items():
        for event in reader.Scalars(tag):
            steps.setdefault(event.step, []).append(event.value)
    return curves, reader.Tags()["tensors"]


def check_events(run, rows):
    curves, texts = events(run.path / "tensorboard")
    assert set(curves) == NAMES and texts == ["settings/text_summary"]
    for name, column in (("loss/train", "train_loss"), ("macro_f1/val", "val_macro_f1"), ("lr", "lr")):
        values = {step: value for step, (value,) in curves[name].items()}  # one value a step
        assert values == pytest.approx({row["epoch"]: row[column] for row in rows})


def test_tensorboard_reads_back_every_row(make_run):
    run = make_run("tensorboard")
    mirror(run, [], ROWS)
    check_events(run, ROWS)


def test_tensorboard_rows_are_there_while_training_goes_on(make_run):
    run = make_run("tensorboard")
    with tracking.Mirrors(run, []) as mirrors:
        mirrors.log(ROWS[0])
        check_events(run, ROWS[:1])


def test_resumed_tensorboard_has_each_epoch_once_and_the_later_value(make_run):
    """Killed after epoch 4 was mirrored, resumed from the checkpoint of epoch 2."""
    run = make_run("tensorboard")
    mirror(run, [], [*ROWS[:2], *({**row, "train_loss": -1.0} for row in ROWS[2:4])])
    mirror(run, ROWS[:2], ROWS[2:])
    check_events(run, ROWS)


def test_a_tracker_added_on_resuming_gets_the_earlier_epochs_too(make_run):
    run = make_run("tensorboard")
    mirror(run, ROWS[:3], ROWS[3:])
    check_events(run, ROWS)


def test_training_anew_drops_the_old_curves(make_run):
    run = make_run("tensorboard")
    mirror(run, [], ROWS)
    mirror(run, [], ROWS[:2])
    check_events(run, ROWS[:2])


def offline_runs(run):
    """The transaction logs of W&B's offline runs, oldest first, as lists of protocol records."""
    paths = sorted((run.path / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    return [records(path) for path in paths]


def records(path):
    """What a .wandb file holds: a LevelDB log, 32 KiB blocks of chunks headed by checksum, length and kind."""
    internal = importlib.import_module("wandb.proto.wandb_internal_pb2")
    data, at, pending, records = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        pending += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(internal.Record.FromString(pending))
            pending = b""
    return records


def logged(records):
    """{step: {name: value}} of the history records."""
    rows = {}
    for record in records:
        if record.WhichOneof("record_type") == "history":
            values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            rows[values.pop("_step", record.history.step.num)] = values
    return rows


def check_logged(records, rows):
    got = logged(records)
    assert sorted(got) == [row["epoch"] for row in rows]
    for row in rows:
        wanted = tracking.scalars(row)
        assert {name: got[row["epoch"]][name] for name in wanted} == pytest.approx(wanted)


def test_wandb_writes_offline_files_calls_nobody_and_leaves_no_process(make_run, nobody, capfd):
    run = make_run("wandb", lr=0.02)
    before = set(psutil.Process().children(recursive=True))
    with tracking.Mirrors(run, []) as mirrors:
        helpers = set(psutil.Process().children(recursive=True)) - before
        assert len(helpers) == 1 and "--no-observability" in helpers.pop().cmdline()
        for row in ROWS:
            mirrors.log(row)
    assert set(psutil.Process().children(recursive=True)) <= before
    assert nobody == []
    (records,) = offline_runs(run)
    check_logged(records, ROWS)
    (started,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (started.project, started.display_name) == ("berries", "lr=0.1,seed=1")
    settings = {item.key: json.loads(item.value_json) for item in started.config.update}
    assert settings["lr"] == 0.02 and settings["model"] == "end2end"
    summary = capfd.readouterr()
    assert summary.out.startswith("W&B follows, offline (not logged in") and summary.out.count("\n") == 1
    assert summary.err == ""


def test_resumed_wandb_keeps_its_id_and_repeats_nothing_and_a_new_training_gets_another(make_run, nobody):
    run = make_run("wandb")
    mirror(run, [], ROWS[:3])
    mirror(run, ROWS[:3], ROWS[3:])
    mirror(run, [], ROWS[:1])
    parts = offline_runs(run)
    for records, rows in zip(parts, (ROWS[:3], ROWS[3:], ROWS[:1]), strict=True):
        check_logged(records, rows)
    first, second, third = (
        next(record.run.run_id for record in records if record.WhichOneof("record_type") == "run") for records in parts
    )
    assert first == second != third


def test_without_an_answer_from_the_server_wandb_goes_on_offline(make_run, nobody, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(tracking, "PATIENCE", 2.0)
    run = make_run("wandb")
    mirrors = mirror(run, [], ROWS)
    assert "offline (W&B cannot be reached" in mirrors.summary[0] and len(mirrors.summary) == 1
    assert nobody  # it was logged in, and did try
    check_logged(offline_runs(run)[-1], ROWS)


def test_the_environments_mode_wins_and_never_asks(make_run, nobody, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert mirror(make_run("wandb"), [], ROWS).summary == ["W&B follows, disabled ($WANDB_MODE is disabled)"]
    monkeypatch.setenv("WANDB_MODE", "online")
    (summary,) = mirror(make_run("wandb"), [], ROWS).summary
    assert "nobody is logged in: run `wandb login`; history.csv goes on" in summary
    assert offline_runs(make_run("wandb")) == [] and not nobody


def test_a_tracker_that_fails_is_left_and_the_other_goes_on(make_run, monkeypatch, capsys):
    closed = []

    def failing(run, history):
        def log(row):
            if row["epoch"] == 3:
                raise OSError(28, "No space left on device")

        return tracking.Mirror("here", log, closed.append)

    monkeypatch.setattr(tracking, "_wandb", failing)
    run = make_run("wandb", "tensorboard")
    mirrors = mirror(run, [], ROWS)
    check_events(run, ROWS)
    complaints = [line for line in mirrors.summary if "stopped" in line]
    assert complaints == ["wandb stopped: [Errno 28] No space left on device; history.csv goes on"]
    assert capsys.readouterr().out.splitlines() == mirrors.summary
    assert closed == [False]


def test_a_tracker_that_cannot_begin_or_end_does_not_stop_training(make_run, monkeypatch):
    def no_end(well):
        raise RuntimeError

    monkeypatch.setattr(tracking, "_wandb", lambda run, history: tracking.Mirror("here", lambda row: None, no_end))
    monkeypatch.setattr(tracking, "_tensorboard", lambda run, history: 1 / 0)
    mirrors = mirror(make_run("tensorboard", "wandb"), [], ROWS)
    assert mirrors.summary[0] == "tensorboard stopped: division by zero; history.csv goes on"
    assert mirrors.summary[-1] == "wandb stopped: RuntimeError; history.csv goes on"


def test_what_ends_training_is_passed_on_and_told_to_the_trackers(make_run, monkeypatch):
    closed = []
    standing = tracking.Mirror("here", lambda row: None, closed.append)
    monkeypatch.setattr(tracking, "_wandb", lambda run, history: standing)
    with pytest.raises(KeyboardInterrupt), tracking.Mirrors(make_run("wandb"), []):
        raise KeyboardInterrupt
    mirror(make_run("wandb"), [], ROWS)
    assert closed == [False, True]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_said_before_anything_begins(make_run, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    run = make_run("tensorboard", "wandb")
    with pytest.raises(InputError, match=rf"^track = {name}: not installed; pip install 'fruitlib\[track\]'"):
        tracking.Mirrors(run, [])
    assert list(run.path.iterdir()) == []


def test_a_folder_of_the_same_name_is_no_tracker(make_run, monkeypatch, tmp_path):
    (tmp_path / "elsewhere" / "wandb").mkdir(parents=True)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "elsewhere")])
    with pytest.raises(InputError, match="track = wandb: not installed"):
        tracking.Mirrors(make_run("wandb"), [])
