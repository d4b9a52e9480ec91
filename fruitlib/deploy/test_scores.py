"""What a run is worth on the test photos: `test.json`, every key of it.

It stands apart from `test_set`, which predicts them: a change in how predictions are scored opens no photo again.
"""

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from fruitlib.core import files
from fruitlib.deploy import verify
from fruitlib.evaluation import intervals, metrics
from fruitlib.runs.run import Run

TEST_FILE = "test.json"


@dataclass(frozen=True)
class TestRecord:
    """The content of `test.json`: numbers of the test photos, shares from 0 to 1."""

    shipped: str  # the file these numbers are of: int8, or fp32 where 05 found int8 broken
    test_accuracy: float  # of the shipped file
    test_macro_f1: float  # of the shipped file
    test_n: int  # test photos
    test_low: float  # Wilson's 95 % interval of test_accuracy, for new photos of the same groups
    test_high: float
    test_correct_torch: int  # photos predicted as labelled, by backend
    test_correct_fp32: int
    test_correct_int8: int

    @property
    def numbers(self) -> dict[str, float]:
        """All but `shipped`, by name."""
        return {name: value for name, value in asdict(self).items() if name != "shipped"}

    @property
    def correct(self) -> dict[str, int]:
        """Photos predicted as labelled, by backend."""
        return {backend: getattr(self, f"test_correct_{backend}") for backend in ("torch", "fp32", "int8")}

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
    matrix: np.ndarray  # confusion matrix of the shipped file, (C, C)
    macro_f1_low: float  # 95 % bootstrap interval of test_macro_f1, whole groups drawn where there are groups
    macro_f1_high: float
    members: int  # models in the ensemble; 0: it is none

    @property
    def summary(self) -> str:
        """Accuracy and macro-F1 of the shipped file with their intervals, and how many photos the others have right."""
        record = self.record
        model = f"the ensemble of {self.members} models in {record.shipped}" if self.members else record.shipped
        accuracy = metrics.proportion_text(record.correct[record.shipped], record.test_n)
        macro_f1 = intervals.value_with_interval(record.test_macro_f1, self.macro_f1_low, self.macro_f1_high)
        others = [f"{name} {k}/{record.test_n}" for name, k in record.correct.items() if name != record.shipped]
        return f"Test accuracy of {model}: {accuracy}, macro-F1 {macro_f1} ({', '.join(others)})"


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
    scores = metrics.scores(matrix)
    record = TestRecord(
        shipped=shipped,
        test_accuracy=scores["accuracy"],
        test_macro_f1=scores["macro_f1"],
        test_n=len(own),
        test_low=scores["accuracy_low"],
        test_high=scores["accuracy_high"],
        **{f"test_correct_{backend}": int(correct[backend]) for backend in ("torch", "fp32", "int8")},
    )
    groups = run.groups(own["path"])
    low, high = intervals.macro_f1_interval(labels, probs.argmax(1), len(run.class_names), groups)
    return TestResult(record, matrix, low, high, len(run.members))


def beside_validation(run: Run, record: TestRecord) -> dict[str, tuple[float, float, float]]:
    """Accuracy (value, low, high) on validation, where photos validated this run, and on test; by name."""
    rows = {}
    val = run.predictions("val") if (run.path / "predictions_val.csv").is_file() else pd.DataFrame()
    if len(val):
        correct, n = int((val["label"] == val["predicted"]).sum()), len(val)
        rows[f"validation, torch, n = {n}"] = (correct / n, *metrics.wilson(correct, n))
    rows[f"test, {record.shipped}, n = {record.test_n}"] = (record.test_accuracy, record.test_low, record.test_high)
    return rows
