"""A run exported, checked against torch and measured: `export.json`, every key of it, and `int8_photos.csv`.

torch is slow on CPUs: it computes `BY_TORCH` photos, which fp32 must agree with, and fp32 stands for it on the others.
"""

import itertools
from dataclasses import asdict, dataclass

import numpy as np
import onnx
import pandas as pd

from fruitlib.core import files, machine, progress
from fruitlib.core.errors import InputError
from fruitlib.data import dataset
from fruitlib.data.dataset import Photos
from fruitlib.deploy import export, gate, int8_verdict, model_files, predict
from fruitlib.deploy.gate import FileCheck
from fruitlib.deploy.int8_search import AT_ONCE, Search
from fruitlib.deploy.int8_verdict import Int8Verdict
from fruitlib.evaluation import intervals
from fruitlib.evaluation.intervals import Share
from fruitlib.runs.run import INT8_PHOTOS, Run
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
    fp32_agreement: float  # share of the photos computed by torch whose label is torch's, 0 to 1
    mflops: float  # millions of floating-point operations for one photo
    int8_state: str  # broken | not broken; cost unproven | costs at most the margin (int8_margin) | not made
    pixels_off: float | None = None  # most that pixels of photos from disk differ from training's, in steps of 255
    int8_why: str | None = None  # why it was not made
    size_mb_int8: float | None = None
    latency_ms_int8: float | None = None
    int8_agreement: float | None = None
    int8_photos: str | None = None  # which photos INT8 is judged on, in words
    int8_n: int | None = None  # photos INT8 is judged on: validation photos, with folds those of all folds so far
    int8_same: int | None = None  # of them: INT8 predicts what torch does
    int8_lost: int | None = None  # torch is right and INT8 is not
    int8_won: int | None = None  # INT8 is right and torch is not
    int8_costs_at_most: float | None = None  # upper end of the share lost, 0 to 1, on new groups where there are any

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
    search: Search  # what was tried for INT8
    latency: pd.DataFrame  # `latency_table`: ms by backend, photos at once and threads
    from_disk: dict[str, FileCheck]  # each file on photos as they lie on disk
    heat: dict[str, float]  # each file's correlation with Grad-CAM (`gate.heat_agreement`)

    @property
    def least_ms(self) -> dict[str, float]:
        """The least latency in milliseconds, by backend."""
        return {backend: getattr(self.record, f"latency_ms_{backend}") for backend in ("torch", *self.parity)}

    @property
    def median_ms(self) -> dict[str, float]:
        """The median latency for one photo on one thread, by backend."""
        alone = self.latency[(self.latency["photos"] == 1) & (self.latency["threads"] == 1)]
        return dict(alone[alone["backend"].isin(self.least_ms)].set_index("backend")["p50_ms"])

    @property
    def not_measured(self) -> str:
        """Which times the latency table lacks, and why; a line each, "" where it is whole."""
        lines = [f"dynamic quantization: {self.search.no_dynamic}"] if self.search.no_dynamic else []
        measured = set(self.latency.loc[self.latency["photos"] == TOGETHER, "backend"])
        slow = [name for name in self.latency["backend"].unique() if name not in measured]
        if slow:
            lines.append(f"{', '.join(slow)}: {TOGETHER} photos take more than {MOST_SECONDS:g} s, too long to repeat")
        return "\n".join(lines)

    @property
    def from_disk_summary(self) -> str:
        """What each file makes of photos as they lie on disk, a line each."""
        return "\n".join(f"{backend}: {check.summary}" for backend, check in self.from_disk.items())

    @property
    def heat_summary(self) -> str:
        """How far each file's heat agrees with Grad-CAM."""
        if not self.heat:
            return "the files have no heat that could be compared with Grad-CAM"
        found = ", ".join(f"{backend} {value:.2f}" for backend, value in self.heat.items())
        whose = "Grad-CAM of the last layer (of an ensemble, the mean of its members')"
        return f"correlation with {whose}, mean of at most {gate.HEAT_PHOTOS} photos: {found}"

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
            share = f"{self.record.fp32_agreement:.1%} of {self.parity['fp32']['n']} photos"
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
BY_TORCH = 16  # photos that torch computes
TOGETHER = 32  # photos at once in the latency table
CELL_SECONDS = 0.15  # that all backends together are measured, for other cells than that of one photo on one thread
MOST_SECONDS = 0.6  # of a call, by the time of one photo on one thread; what takes longer is left out


def export_run(run: Run) -> Export:
    """Build both ONNX files, check them against torch, measure them, write `export.json`: the `export` stage.

    Raises:
        ExportError: no fp32 file, or it does not compute what torch computes, or a file makes other pixels of photos
            than training did. The stage is then not complete.
    """
    with progress.recorded(run.path):
        return _export_run(run)


def _export_run(run: Run) -> Export:
    identity = run.identity("export")
    model, checkpoint = models.restore(run.path / "best.pt")
    paths, search = model_files.build_model_files(run, model, checkpoint)
    progress.step("both files compared")
    photos, on_validation = photos_to_try(run)
    images, pictures = dataset.to_array(photos.images), dataset.to_pictures(photos.images)
    logits = {backend: predict.run_onnx(path, pictures, AT_ONCE) for backend, path in paths.items()}
    reference, parity = _by_torch(model, images, logits["fp32"])
    parity |= {backend: export.parity(reference, logits[backend]) for backend in paths if backend != "fp32"}
    logits = {"torch": reference, **logits}
    from_disk = {backend: gate.check_file(run, path, photos) for backend, path in paths.items()}
    labels = photos.labels.numpy()
    verdict = _judged(run, photos, logits, on_validation, search.why)
    groups = run.groups(photos.paths)
    shares = {backend: intervals.share_of(values.argmax(1) == labels, groups) for backend, values in logits.items()}
    progress.step("latency")
    latency = latency_table(model, paths, search.dynamic, images[:1], pictures[:1])
    times = latency[(latency["photos"] == 1) & (latency["threads"] == 1)].set_index("backend")["least_ms"]
    record = ExportRecord(
        **{f"size_mb_{backend}": export.size_mb(path) for backend, path in paths.items()},
        **{f"latency_ms_{backend}": float(times[backend]) for backend in ("torch", *paths)},
        **{f"{backend}_agreement": distance["agreement"] for backend, distance in parity.items()},
        mflops=export.mflops(model, images[:1]),
        pixels_off=from_disk["fp32"].pixels_off if from_disk["fp32"].n else None,
        int8_state=verdict.state,
        int8_why=verdict.why or None,
        int8_photos=None if search.why else verdict.photos,
        **{} if search.why else {f"int8_{name}": getattr(verdict, name) for name in COUNTED},
    )
    record.write(run)
    facts = {"graphs": {backend: model_files.graph_fingerprint(path) for backend, path in paths.items()}}
    facts["judged_by"] = run.int8_judges()
    run.complete("export", identity, **facts, **{"not_made": [model_files.INT8]} if search.why else {})
    progress.step("heat of both files")
    heat = gate.heat_agreement(paths, model, photos)
    return Export(record, parity, verdict, shares, len(images), on_validation, search, latency, from_disk, heat)


def _by_torch(model, images: np.ndarray, fp32: np.ndarray) -> tuple[np.ndarray, dict[str, dict]]:
    """torch's logits, and fp32's parity with it on those of the images that torch computes.

    Those are `BY_TORCH`, spread over all; for the others fp32 stands for torch.

    Raises:
        ExportError: fp32 does not compute what torch computes.
    """
    places = np.unique(np.linspace(0, len(images) - 1, BY_TORCH).round().astype(int))
    computed = export.run_torch(model, images[places], AT_ONCE)
    parity = export.parity(computed, fp32[places])
    export.check_parity(parity, export.tolerance(computed))
    logits = fp32.copy()
    logits[places] = computed
    return logits, {"fp32": parity}


def _judged(run: Run, photos: Photos, logits: dict[str, np.ndarray], on_validation: bool, no_int8: str) -> Int8Verdict:
    """The verdict on INT8; writes `int8_photos.csv`, what torch and INT8 predict for each photo tried.

    `no_int8` says why there is none to judge; there is then no such table either.
    """
    if no_int8:
        (run.path / INT8_PHOTOS).unlink(missing_ok=True)
        return Int8Verdict.not_made(no_int8)
    names = np.array(run.class_names)
    columns = {"path": photos.paths, "label": names[photos.labels.numpy()]}
    columns |= {backend: names[logits[backend].argmax(1)] for backend in ("torch", "int8")}
    table = pd.DataFrame(columns)
    files.write_csv(run.path / INT8_PHOTOS, table)
    return int8_verdict.judge_run(run, table, on_validation, bool(np.isfinite(logits["int8"]).all()))


def photos_to_try(run: Run) -> tuple[Photos, bool]:
    """The photos both files are tried on, and whether these are validation photos.

    A model trained on the photos of all folds has no validation photos. It is tried on the training photos that did
    not calibrate it, or on all of them where every one did; on `MOST_TRIED` of them, which show as much as all.
    """
    val_photos = dataset.load_photos(run, "val")
    if len(val_photos):
        return val_photos, True
    return model_files.photos_beside_calibration(run, MOST_TRIED), False


def load_export_record(run: Run) -> ExportRecord:
    """The run's `export.json`.

    Raises:
        InputError: there is none, or it was written by another version of fruitlib.
    """
    content, where = run.read_json(EXPORT_FILE), files.display_path(run.path / EXPORT_FILE)
    if not content:
        raise InputError("no such file; execute 05_quantize first", place=where)
    try:
        return ExportRecord(**content)
    except TypeError:
        message = "written by another version of fruitlib, whose numbers are not these; execute 05_quantize again"
        raise InputError(message, place=where) from None


def parity_table(export_result: Export) -> pd.DataFrame:
    """A row for fp32 and for int8: how far its logits are from torch's, and the share of the same labels."""
    return pd.DataFrame(export_result.parity).T


def latency_table(model, paths: dict, dynamic, image: np.ndarray, picture: np.ndarray) -> pd.DataFrame:
    """Milliseconds a call, by backend, photos at once (1, `TOGETHER`) and threads (one, all).

    Backends are torch, the run's files, and the graph `dynamic`, if there is one. torch and dynamic take images
    (1, 3, S, S), the files photos (1, S, S, 3). Calls above `MOST_SECONDS` are left out.
    """
    rows, alone = [], {}
    with files.folder_beside(paths["fp32"]) as folder:
        graphs = {"dynamic": folder / "dynamic.onnx"} if dynamic else {}
        for path in graphs.values():
            onnx.save(dynamic, path)
        for photos, threads in itertools.product((1, TOGETHER), sorted({1, machine.usable_cores()})):
            images, pictures = (np.repeat(one, photos, axis=0) for one in (image, picture))
            runners = {"torch": export.torch_runner(model, images)}
            runners |= {name: export.onnx_runner(path, pictures, threads) for name, path in paths.items()}
            runners |= {name: export.onnx_runner(path, images, threads) for name, path in graphs.items()}
            short = {name: run for name, run in runners.items() if photos * alone.get(name, 0) < 1e3 * MOST_SECONDS}
            how = {"seconds": CELL_SECONDS, "warmup": photos == 1, "fewest": 4 if photos == 1 else 1}
            if photos == threads == 1:  # these are in the record
                how = {"warmup": 2, "fewest": 8, "seconds": 0.6}
            times = export.latency_ms(short, threads=threads, **how)
            alone = alone or {name: time["least"] for name, time in times.items()}
            rows += [_latency_row(name, photos, threads, time) for name, time in times.items()]
    return pd.DataFrame(rows)


def _latency_row(backend: str, photos: int, threads: int, time: dict[str, float]) -> dict:
    found = {"p50_ms": time["median"], "p95_ms": time["p95"], "least_ms": time["least"], "calls": time["n"]}
    return {"backend": backend, "photos": photos, "threads": threads, **found}
