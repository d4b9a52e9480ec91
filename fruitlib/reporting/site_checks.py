"""What the index says of a sweep's worth: what was checked, and what it was made with.

Each check comes from a record in the sweep's folder or in that of the shipped run, and is absent where nothing was
recorded.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from fruitlib.core.texts import number
from fruitlib.deploy import int8_verdict
from fruitlib.reporting.explore import record_of
from fruitlib.reporting.pages import Page

PASSED, FAILED, OPEN = "passed", "failed", "open"


@dataclass(frozen=True)
class Check:
    """One check: what it asks, how it ended (passed, failed, or open where it could not tell), and what was found."""

    name: str
    state: str
    found: str


def checks(sweep_dir: Path, shared: list[Page], runs: list[dict], shipped: dict | None) -> list[Check]:
    """What was checked in a sweep, as far as there are records of it."""
    found = [_leaks(shared), *map(_shuffled, runs)]
    if shipped:
        record = record_of(sweep_dir / shipped["name"] / "stages" / "train.json")
        found += [_shortcuts(_looked_at(runs, shipped)), _parity(shipped["row"]), _int8(shipped["row"])]
        found.append(_weights(record))
    return [check for check in found if check]


def _leaks(shared: list[Page]) -> Check | None:
    numbers = next((page.headline.get("numbers", {}) for page in shared if page.path.stem == "01_split"), {})
    if "leaks" not in numbers:
        return None
    leaks = int(numbers["leaks"])
    text = "no photo, copy or group is in two parts" if not leaks else f"{leaks:,} photos or groups are in two parts"
    return Check("No leak", FAILED if leaks else PASSED, f"{text} (01)")


def _shuffled(run: dict) -> Check | None:
    """A network trained on shuffled labels must not know more than the most frequent class."""
    if (run.get("settings") or {}).get("train_labels") != "shuffled" or run["state"] != "complete":
        return None
    accuracy, low, chance = (number(run["row"].get(f"{part}accuracy{end}")) for part, end in _SHUFFLED)
    if math.isnan(low + chance):
        return None
    text = f"trained on shuffled labels it is right on {accuracy:.2f} (from {low:.2f}), guessing on {chance:.2f}"
    return Check("Shuffled labels", FAILED if low > chance else PASSED, text)


_SHUFFLED = (("", ""), ("", "_low"), ("majority_", ""))


def _looked_at(runs: list[dict], shipped: dict) -> dict:
    """The shipped run's row; after folds, where 04 did not look at it, that of a fold of its combination."""
    combination = shipped["row"].get("combination")
    own = [run["row"] for run in runs if combination and run["row"].get("combination") == combination]
    return next((row for row in [shipped["row"], *own] if _has(row, "grey_accuracy")), {})


def _has(row: dict, *names: str) -> bool:
    return all(math.isfinite(number(row.get(name))) for name in names)


def _shortcuts(row: dict) -> Check | None:
    """Whether 04 found that something beside the object gives the class away."""
    if not _has(row, "grey_accuracy"):
        return None
    name = "No shortcut beside the object"
    if not _has(row, "hidden_corrected", "hidden_chance"):
        return Check(name, OPEN, "the object’s place is not known, so that it cannot be hidden (04)")
    found = "with the object hidden and its leaning to some classes taken out, it is right on "
    found += f"{number(row['hidden_corrected']):.2f} of photos, the best constant answer on "
    found += f"{number(row['hidden_chance']):.2f} (04)"
    if not _has(row, "shortcut"):
        return Check(name, OPEN, f"too few photos to decide; {found}")
    return Check(name, FAILED if number(row["shortcut"]) else PASSED, found)


def _parity(row: dict) -> Check | None:
    share = number(row.get("fp32_agreement"))
    if math.isnan(share):
        return None
    text = f"the ONNX file predicts torch’s class for {share:.1%} of the photos that torch computed"
    return Check("Same answers once exported", PASSED if share == 1 else FAILED, text)


def _int8(row: dict) -> Check | None:
    state, most = row.get("int8_state"), number(row.get("int8_costs_at_most"))
    if not isinstance(state, str) or not state:
        return None
    if state in (int8_verdict.BROKEN, int8_verdict.NOT_MADE):
        return Check("INT8", FAILED if state == int8_verdict.BROKEN else OPEN, f"{state}: use fp32")
    count = number(row.get("int8_n"))
    on = f", n = {count:.0f}" if math.isfinite(count) else ""
    cost = (
        f"it costs at most {100 * most:.1f} points of accuracy (95 %{on})" if math.isfinite(most) else "no cost known"
    )
    proven = state == int8_verdict.PROVEN
    return Check("INT8", PASSED if proven else OPEN, cost if proven else f"not broken; cost not proven small: {cost}")


def _weights(record: dict) -> Check | None:
    weights = record.get("weights")
    proof = weights.get("proof") if isinstance(weights, dict) else None
    if not isinstance(proof, str) or not proof:
        return None
    opening, _, text = proof.partition(": ")
    return Check("Pretrained weights", PASSED if opening == "proven" else OPEN, text or proof)


def made_with(sweep_dir: Path, sweep: dict, shipped: dict | None) -> list[tuple[str, str]]:
    """(what, value) of the footer: the command, fingerprints, and the licence of the shipped run's weights."""
    record = record_of(sweep_dir / shipped["name"] / "stages" / "train.json") if shipped else {}
    weights = record.get("weights")
    weights = weights if isinstance(weights, dict) else {}
    facts = [
        ("Command", sweep.get("command")),
        ("Settings file", sweep.get("params_digest")),
        ("Data", record.get("data_fingerprint")),
        ("Weights, sha256", weights.get("sha256")),
        ("Weights, licence", weights.get("licence") or ("none is known" if weights.get("sha256") else "")),
    ]
    return [(name, f"{value}") for name, value in facts if value]
