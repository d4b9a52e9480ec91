"""A run exported, checked against torch and measured: `export.json`, every key of it, and `int8_photos.csv`."""

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from fruitlib.core import files
from fruitlib.core.errors import InputError
from fruitlib.data import dataset
from fruitlib.data.dataset import Photos
from fruitlib.deploy import export, int8_verdict, model_files, predict
from fruitlib.deploy.int8_verdict import Int8Verdict
from fruitlib.evaluation import intervals
from fruitlib.evaluation.intervals import Share
from fruitlib.runs.run import Run
from fruitlib.training import models

EXPORT_FILE = "export.json"
COUNTED = ("n", "same", "lost", "won", "costs_at_most")  # of an Int8Verdict, for the record


@dataclass(frozen=True)
class ExportRecord:
    """The numbers of `export.json`: what the two files cost, and whether they may be used.

    Where there is no INT8 file its numbers are None; the file then lacks them, and `int8_why` says why.
    """

    size_mb_fp32: float  # size on disk, MB of 10^6 bytes
    latency_ms_torch: float  # milliseconds for one photo on one CPU thread, the least of many calls
    latency_ms_fp32: float
    fp32_agreement: float  # share of the photos tried whose label is torch's, 0 to 1
    mflops: float  # millions of floating-point operations for one photo
    int8_state: str  # broken | not broken; cost unproven | costs at most the margin (int8_margin) | not made
    int8_why: str | None = None  # why it was not made
    size_mb_int8: float | None = None
    latency_ms_int8: float | None = None
    int8_agreement: float | None = None
    int8_n: int | None = None  # photos INT8 is judged on: validation photos, with folds those of all folds so far
    int8_same: int | None = None  # of them: INT8 predicts what torch does
    int8_lost: int | None = None  # torch is right and INT8 is not
    int8_won: int | None = None  # INT8 is right and torch is not
    int8_costs_at_most: float | None = (
        None  # upper end of the share lost, 0 to 1; for new groups where photos share any
    )

    def record(self) -> dict[str, float | str]:
        """The content of the file."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def numbers(self) -> dict[str, float]:
        """All that are numbers, by name."""
        return {name: value for name, value in self.record().items() if not isinstance(value, str)}

    def write(self, run: Run) -> None:
        """Write them to the run's `export.json`."""
        files.write_json(run.path / EXPORT_FILE, self.record())

    @property
    def shipped(self) -> str:
        """The file to use: int8, or fp32 where int8 is broken or was not made."""
        return "fp32" if self.int8_state in (int8_verdict.BROKEN, int8_verdict.NOT_MADE) else "int8"


@dataclass(frozen=True)
class Export:
    """What `export_run` finds: the record, and what it rests on."""

    record: ExportRecord
    parity: dict[str, dict]  # how far fp32 and int8 are from torch, by `export.parity`
    verdict: Int8Verdict
    shares: dict[str, Share]  # photos predicted as labelled, by backend: torch, fp32, int8
    n: int  # photos tried
    on_validation: bool  # False for a model trained on all photos: it is tried on training photos
    median_ms: dict[str, float]  # the median latency, by backend; the record has the least

    @property
    def least_ms(self) -> dict[str, float]:
        """The least latency in milliseconds, by backend."""
        return {backend: getattr(self.record, f"latency_ms_{backend}") for backend in self.median_ms}

    @property
    def sizes_mb(self) -> dict[str, float]:
        """The files' sizes in MB, by backend."""
        return {backend: getattr(self.record, f"size_mb_{backend}") for backend in self.parity}

    @property
    def photos_tried(self) -> str:
        """How many photos were tried, and of which kind."""
        return f"{self.n} {'validation' if self.on_validation else 'training'} photos"

    @property
    def agreement_summary(self) -> str:
        """On how many photos of those tried INT8 predicts what torch predicts, and the verdict."""
        if "int8" not in self.parity:
            return self.verdict.summary
        share = f"{self.record.int8_agreement:.1%} of {self.photos_tried}"
        return f"INT8 predicts the same label as torch on {share}\n{self.verdict.summary}"

    @property
    def summary(self) -> str:
        """The verdict on INT8, how many photos it has right (where validation photos measure it), and what it saves."""
        if "int8" not in self.parity:
            share = f"{self.record.fp32_agreement:.1%} of {self.photos_tried}"
            return f"{self.verdict.summary}; fp32 has the same label as torch on {share}"
        cost = f"same label as torch on {self.record.int8_agreement:.1%} of {self.photos_tried}"
        if self.on_validation:
            cost = (
                f"right on {self.shares['int8'].correct:g}/{self.n} validation photos, "
                f"torch on {self.shares['torch'].correct:g}/{self.n}"
            )
        smaller = self.record.size_mb_fp32 / self.record.size_mb_int8
        faster = self.record.latency_ms_fp32 / self.record.latency_ms_int8
        saved = f"{smaller:.1f} times smaller, {faster:.1f} times as fast as fp32"
        return f"{self.verdict.summary}; {cost}; {saved}"


MOST_TRIED = 100  # training photos


def export_run(run: Run) -> Export:
    """Build both ONNX files, check them against torch, measure them, write `export.json`: the `export` stage.

    Raises:
        ExportError: no fp32 file, or it does not compute what torch computes. The stage is then not complete.
    """
    identity = run.identity("export")
    model, checkpoint = models.restore(run.path / "best.pt")
    paths, no_int8 = model_files.build_model_files(run, model, checkpoint)
    photos, on_validation = photos_to_try(run)
    images, pictures = dataset.to_array(photos.images), dataset.to_pictures(photos.images)
    logits = {"torch": export.run_torch(model, images)}
    logits |= {backend: predict.run_onnx(path, pictures) for backend, path in paths.items()}
    parity = {backend: export.parity(logits["torch"], logits[backend]) for backend in paths}
    export.check_parity(parity["fp32"], export.tolerance(logits["torch"]))
    labels = photos.labels.numpy()
    verdict = _judged(run, photos, logits, on_validation, no_int8)
    groups = run.groups(photos.paths)
    shares = {backend: intervals.share_of(values.argmax(1) == labels, groups) for backend, values in logits.items()}
    times = _latencies(model, paths, images[:1], pictures[:1])
    record = ExportRecord(
        **{f"size_mb_{backend}": export.size_mb(path) for backend, path in paths.items()},
        **{f"latency_ms_{backend}": time["least"] for backend, time in times.items()},
        **{f"{backend}_agreement": distance["agreement"] for backend, distance in parity.items()},
        mflops=export.mflops(model, images[:1]),
        int8_state=verdict.state,
        int8_why=verdict.why or None,
        **{} if no_int8 else {f"int8_{name}": getattr(verdict, name) for name in COUNTED},
    )
    record.write(run)
    run.complete("export", identity, **{"not_made": [model_files.INT8]} if no_int8 else {})
    median_ms = {backend: time["median"] for backend, time in times.items()}
    return Export(record, parity, verdict, shares, len(images), on_validation, median_ms)


def _judged(run: Run, photos: Photos, logits: dict[str, np.ndarray], on_validation: bool, no_int8: str) -> Int8Verdict:
    """The verdict on INT8; writes `int8_photos.csv`, what torch and INT8 predict for each photo tried.

    `no_int8` says why there is none to judge; there is then no such table either.
    """
    if no_int8:
        (run.path / int8_verdict.PHOTOS_FILE).unlink(missing_ok=True)
        return Int8Verdict.not_made(no_int8)
    names = np.array(run.class_names)
    columns = {"path": photos.paths, "label": names[photos.labels.numpy()]}
    columns |= {backend: names[logits[backend].argmax(1)] for backend in ("torch", "int8")}
    table = pd.DataFrame(columns)
    files.write_csv(run.path / int8_verdict.PHOTOS_FILE, table)
    return int8_verdict.judge_run(run, table, on_validation, bool(np.isfinite(logits["int8"]).all()))


def photos_to_try(run: Run) -> tuple[Photos, bool]:
    """The photos both files are tried on, and whether these are validation photos.

    A model trained on the photos of all folds has no validation photos. It is tried on the training photos that did
    not calibrate it, or on all of them where every one did; on `MOST_TRIED` of them, which show as much as all.
    """
    val_photos = dataset.load_photos(run, "val")
    if len(val_photos):
        return val_photos, True
    train_photos = dataset.load_photos(run, "train")
    used = set(model_files.calibration_photos(run).paths)
    others = [position for position, path in enumerate(train_photos.paths) if path not in used]
    return dataset.spread(train_photos.pick(others) if others else train_photos, MOST_TRIED), False


def load_export_record(run: Run) -> ExportRecord:
    """The run's `export.json`.

    Raises:
        InputError: there is none.
    """
    content = run.read_json(EXPORT_FILE)
    if not content:
        raise InputError(f"{files.display_path(run.path / EXPORT_FILE)}: no such file; execute 05_quantize first")
    return ExportRecord(**content)


def parity_table(export_result: Export) -> pd.DataFrame:
    """A row for fp32 and for int8: how far its logits are from torch's, and the share of the same labels."""
    return pd.DataFrame(export_result.parity).T


def _latencies(model, paths: dict, image: np.ndarray, picture: np.ndarray) -> dict[str, dict]:
    """Least and median milliseconds for one photo, by backend: torch as an image (1, 3, S, S), else (1, S, S, 3)."""
    runners = {"torch": export.torch_runner(model, image)}
    runners |= {backend: export.onnx_runner(path, picture) for backend, path in paths.items()}
    return export.latency_ms(runners)
