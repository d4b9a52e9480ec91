"""What a run is worth on the test photos: `test.json`, every key of it.

It stands apart from `test_set`, which predicts them: a change in how predictions are scored opens no photo again.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from fruitlib.core import files
from fruitlib.deploy import verify
from fruitlib.evaluation import intervals, metrics, wording
from fruitlib.evaluation.intervals import Share
from fruitlib.runs.run import Run

TEST_FILE = "test.json"
BACKENDS = ("torch", "fp32", "int8")


@dataclass(frozen=True)
class TestRecord:
    """The content of `test.json`: numbers of the test photos, shares from 0 to 1."""

    shipped: str  # the file these numbers are of: int8, or fp32 where 05 found int8 broken or made none
    test_accuracy: float  # of the shipped file
    test_macro_f1: float  # of the shipped file
    test_n: int  # test photos
    test_low: float  # 95 % interval of test_accuracy, for new groups; for new photos where none share a group
    test_high: float
    test_groups: int  # groups the photos come in; 0: photos stand alone
    test_same_low: float  # 95 % interval of test_accuracy on more photos of these same groups
    test_same_high: float
    test_correct_torch: int  # photos predicted as labelled, by backend
    test_correct_fp32: int
    test_correct_int8: int | None = None  # None: 05 made no INT8 file
    test_correlation: float | None = None  # how alike photos of a group are, 0 to 1; None: photos stand alone
    test_macro_f1_low: float | None = None  # 95 % interval of test_macro_f1; None where a class has a single group
    test_macro_f1_high: float | None = None

    @property
    def numbers(self) -> dict[str, float]:
        """All but `shipped`, by name."""
        return {name: value for name, value in asdict(self).items() if name != "shipped" and value is not None}

    @property
    def correct(self) -> dict[str, int]:
        """Photos predicted as labelled, by backend."""
        counts = {backend: getattr(self, f"test_correct_{backend}") for backend in BACKENDS}
        return {backend: count for backend, count in counts.items() if count is not None}

    def record(self) -> dict:
        """The content of the file: `shipped`, and `numbers` by name."""
        return {"shipped": self.shipped, "numbers": self.numbers}

    def write(self, run: Run) -> None:
        """Write it to the run's `test.json`."""
        files.write_json(run.path / TEST_FILE, self.record())


@dataclass(frozen=True)
class TestResult:
    """What `evaluate_test` finds: the record, and what it rests on."""

    record: TestRecord
    labels: np.ndarray  # class indexes (n,)
    predicted: np.ndarray  # the shipped file's, (n,)
    groups: list[str]  # of each photo, "" where it stands alone
    matrix: np.ndarray  # confusion matrix of the shipped file, (C, C)
    share: Share  # accuracy of the shipped file, with its intervals
    group_word: str  # what a group is called
    members: int  # models in the ensemble; 0: it is none

    @property
    def summary(self) -> str:
        """Accuracy and macro-F1 of the shipped file with their intervals, and how many photos the others have right."""
        record = self.record
        model = f"the ensemble of {self.members} models in {record.shipped}" if self.members else record.shipped
        accuracy = wording.share_text(self.share, self.group_word)
        ends = record.test_macro_f1_low, record.test_macro_f1_high
        macro_f1 = wording.macro_f1_text(record.test_macro_f1, *ends, self.group_word)
        others = [f"{name} {k}/{record.test_n}" for name, k in record.correct.items() if name != record.shipped]
        return f"Test accuracy of {model}: {accuracy}. Macro-F1 {macro_f1} ({', '.join(others)})"


def evaluate_test(run: Run, predictions: pd.DataFrame) -> TestResult:
    """Score the test predictions of torch, fp32 and INT8.

    Args:
        predictions: what `test_set.predict_test_photos` returns.
    """
    shipped = verify.load_export_record(run).shipped
    right = predictions["label"] == predictions["predicted"]
    correct = right.groupby(predictions["backend"]).sum()
    own = predictions[predictions["backend"] == shipped]
    probs, labels = run.probs(own)
    matrix = metrics.confusion_from_names(own["label"], own["predicted"], run.class_names)
    scores, groups = metrics.scores(matrix), run.groups(own["path"])
    share = intervals.share_of(probs.argmax(1) == labels, groups)
    ends = intervals.macro_f1_interval(labels, probs.argmax(1), len(run.class_names), groups)
    low, high = (None if math.isnan(end) else end for end in ends)
    record = TestRecord(
        shipped=shipped,
        test_accuracy=scores["accuracy"],
        test_macro_f1=scores["macro_f1"],
        test_n=len(own),
        test_low=share.low,
        test_high=share.high,
        test_groups=share.groups,
        test_correlation=share.correlation if share.groups else None,
        test_same_low=share.same_low,
        test_same_high=share.same_high,
        test_macro_f1_low=low,
        test_macro_f1_high=high,
        **{f"test_correct_{backend}": int(correct[backend]) for backend in BACKENDS if backend in correct},
    )
    return TestResult(record, labels, probs.argmax(1), groups, matrix, share, run.config.group_word, len(run.members))


def beside_validation(run: Run, result: TestResult) -> dict[str, Share]:
    """Accuracy on validation, where photos validated this run, and on test; by name."""
    rows, record = {}, result.record
    val = run.predictions("val") if (run.path / "predictions_val.csv").is_file() else pd.DataFrame()
    if len(val):
        share = intervals.share_of(val["label"] == val["predicted"], run.groups(val["path"]))
        rows[f"validation, torch, n = {share.n}"] = share
    return rows | {f"test, {record.shipped}, n = {record.test_n}": result.share}


def by_backend(run: Run, predictions: pd.DataFrame) -> dict[str, Share]:
    """Test accuracy of torch, fp32 and INT8, by name."""
    right = predictions["label"] == predictions["predicted"]
    rows = {name: own for name in BACKENDS if (own := predictions["backend"] == name).any()}
    return {name: intervals.share_of(right[own], run.groups(predictions["path"][own])) for name, own in rows.items()}
