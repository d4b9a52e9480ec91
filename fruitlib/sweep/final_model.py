"""What a sweep ends in: the combination that validation chooses, and the model of it that is shipped.

Without folds, the chosen run's model is shipped. With folds, each combination is evaluated by its pooled out-of-fold
predictions, and none of its models has learnt from all photos; the params file says which one goes out:

    ship: refit      one more training, on the photos of all folds (Hastie, Tibshirani and Friedman 2009, section 7.10)
    ship: ensemble   all folds' models together, their probabilities averaged (Krogh and Vedelsby 1995)
    ship: fold       the first fold's model as it is

The first two have learnt from every photo outside the test. What may be expected of them is the out-of-fold accuracy
of their combination, which judges models that learnt from fewer photos; a test, where there is one, judges themselves.
"""

import math
import statistics
from pathlib import Path

import numpy as np
import pandas as pd

from fruitlib.core import config as configs
from fruitlib.core import files
from fruitlib.core.config import FOLD_SETTINGS, Config
from fruitlib.core.errors import InputError
from fruitlib.core.model_names import FITTED_HEADS
from fruitlib.evaluation import ranking
from fruitlib.runs.run import FOLDS, Run, create_run
from fruitlib.sweep.params import Sweep, run_name

RUN_STAGES = ("02_train", "03_metrics", "04_gradcam", "05_quantize")
NUMBER_STAGES = ("02_train", "metrics")  # of a run that gets no pages beyond 02: what 03 shows, computed without it
BEST = 3  # combinations that get pages with `pages: best`
TEST_STAGE = "06_test_accuracy"


def check_final(plan: Sweep) -> None:
    """Refuse, before anything is trained, what could not be shipped in the end.

    Raises:
        InputError: a refit by a schedule that follows validation, of which a refit has none.
    """
    trained = [config for config in plan.runs.values() if config.head not in FITTED_HEADS]
    watching = any(config.scheduler == "plateau" for config in trained)
    if plan.config.folds and plan.ship == "refit" and watching:
        raise InputError(
            f"{plan.source}: ship: refit trains on the photos of all folds, which leaves scheduler: plateau none to "
            "watch: set ship: ensemble, or another scheduler"
        )


def choose(plan: Sweep, work: dict[str, Run], states: dict, sweep_dir: Path) -> str | None:
    """The combination that is best on validation; None where none is complete."""
    return next(iter(ranked(plan, work, states, sweep_dir)), None)


def ranked(plan: Sweep, work: dict[str, Run], states: dict, sweep_dir: Path) -> list[str]:
    """The combinations, best on validation first: without folds the complete runs, ties going to the lower loss.

    With folds they are ranked by their pooled out-of-fold predictions, of those all of whose runs are complete.
    """
    complete = [name for name in work if states[name]["state"] == "complete"]
    if not plan.config.folds:
        rows = {name: work[name].read_json("metrics.json") for name in complete}
    else:
        path, combinations = sweep_dir / "results_oof.csv", plan.combinations()
        pooled = files.read_csv(path).set_index("combination").to_dict("index") if path.is_file() else {}
        whole = [name for name, names in combinations.items() if name in pooled and set(names) <= set(complete)]
        rows = {name: pooled[name] for name in whole}
    return sorted(rows, key=lambda name: ranking.place(rows[name], plan.choose_by))


def with_pages(plan: Sweep, ranking: list[str]) -> list[str]:
    """The runs that get 03, 04 and 05 after all are ranked, given their combinations, best first.

    `pages: chosen`: the first run (with folds the first fold) of the best one. `pages: best`: all runs of the best
    one, and the first of each that follows. None with `pages: every`, where each run has got them already.
    """
    if plan.pages == "every":
        return []
    runs = [plan.combinations()[name] for name in ranking[: 1 if plan.pages == "chosen" else BEST]]
    firsts = [names[0] for names in runs]
    return firsts if plan.pages == "chosen" else [*dict.fromkeys([*(runs[0] if runs else []), *firsts])]


def plan_final(plan: Sweep, folds: list[Run]) -> Run:
    """The run that is shipped of a combination, given its complete runs: the first of them, or one beside them."""
    first = folds[0]
    if not plan.config.folds or plan.ship == "fold":
        return first
    differing = {name: value for name, value in plan.differs[first.name].items() if name not in FOLD_SETTINGS}
    settings = first.config.model_dump() | {"fold": 0, "repeat": 1, "cam_every": 0}
    if plan.ship == "refit" and first.config.patience:
        settings |= _without_stopping(first.config, folds)
    config = configs.make(settings, f"{plan.source}, ship: {plan.ship}")
    return Run(first.sweep_dir / run_name(differing | {"ship": plan.ship}), config)


def _without_stopping(config: Config, folds: list[Run]) -> dict[str, int]:
    """Settings of a refit where the folds stopped early: as many epochs as they needed, the median of those they kept.

    The schedule runs over these epochs, so lr falls faster than in the folds, and a longer warm-up is cut.
    """
    epochs = math.ceil(statistics.median(fold.record("train")["kept_epoch"] for fold in folds))
    return {"epochs": epochs, "patience": 0, "warmup_epochs": min(config.warmup_epochs, epochs - 1)}


def stages(run: Run, pages: str = "every") -> tuple[str, ...]:
    """The stages of a complete run; of one without validation photos those that ask for none."""
    if run.config.fold:
        return RUN_STAGES if pages == "every" else NUMBER_STAGES
    return ("05_quantize",) if run.members else ("02_train", "05_quantize")


def assemble(run: Run, folds: list[Run]) -> Run:
    """Make the planned run the ensemble of these trained runs, unless it is that already; returns it.

    Its `best.pt` holds the weights of all of them. When one of them is trained again, the ensemble is built again.

    Raises:
        InputError: a `best.pt` that cannot be read.
    """
    import torch  # which takes seconds; a sweep that ships no ensemble needs none

    from fruitlib.training import models

    with run.locked(timeout=-1):
        run = create_run(run.path, run.config, members=[fold.name for fold in folds])
        if run.is_complete("train"):
            return run
        identity = run.identity("train")
        ensemble = models.Ensemble([models.restore(fold.path / "best.pt")[0] for fold in folds])
        with files.replacing(run.path / "best.pt") as partial:
            torch.save(models.checkpoint(ensemble, run.config, run.class_names), partial)
        files.write_text(run.path / "history.csv", "epoch\n")  # nothing was trained or validated here
        run.write_predictions("val", {"torch": np.empty((0, len(run.class_names)))}, run.rows("val"))
        run.write_epoch_predictions(np.empty((0, 0, len(run.class_names))))
        run.complete("train", identity, data_fingerprint=run.data_fingerprint)
    return run


def name_folds(run: Run, folds: list[Run]) -> None:
    """Write down which trained runs a planned refit is made of: their photos judge its INT8 file.

    Its settings do not tell: combinations whose folds stopped early may differ in their planned epochs alone.
    """
    files.write_json(run.path / FOLDS, {"folds": [fold.name for fold in folds]})


def origin_summary(plan: Sweep, run: Run, folds: list[Run]) -> str:
    """How the shipped model of a combination's `folds` is made, in words; empty without folds."""
    if not plan.config.folds:
        return ""
    photos = f"{len(run.rows('train'))} photos of the folds"
    if plan.ship == "fold":
        pool = len(run.rows("train")) + len(run.rows("val"))
        return f"the first fold's model as it is, which learnt from {len(run.rows('train'))} of {pool} photos"
    if plan.ship == "ensemble":
        return f"the mean probabilities of the {len(folds)} folds' models, which learnt from all {photos} between them"
    if run.config.head in FITTED_HEADS:
        return f"its head fitted once more, on all {photos}; no photo is left to validate on"
    epochs = f"{run.config.epochs} epoch{'s' * (run.config.epochs > 1)}"
    if folds[0].config.patience:
        epochs += ", the median of the epochs that the folds kept; the schedule runs over these"
    if run.config.warmup_epochs < folds[0].config.warmup_epochs:
        epochs += f", the warm-up is cut to {run.config.warmup_epochs}"
    return f"trained once more, on all {photos}, for {epochs}; the last is kept, since no photo is left to validate on"


def expected(plan: Sweep, run: str, combination: str, pooled: pd.DataFrame) -> dict:
    """What the results say of the shipped run besides its own numbers: `shipped`, and what may be expected of it.

    That is what its combination reached out of fold (oof_n, oof_accuracy, oof_low, oof_high …), under names of its
    own, since it judges the folds' models; and the probe beside it, where there is one. Empty without folds.
    """
    if not plan.config.folds:
        return {}
    pooled_row = pooled.set_index("combination").loc[combination]
    names = {"oof_n": "n", "oof_accuracy": "accuracy", "oof_low": "accuracy_low", "oof_high": "accuracy_high"}
    names |= {"oof_macro_f1": "macro_f1", "oof_groups": "groups"}
    names |= {"oof_same_low": "same_low", "oof_same_high": "same_high"}
    names |= {f"oof_{name}": name for name in pooled_row.index if "probe" in name and pooled_row.notna()[name]}
    row = {new: pooled_row[old] for new, old in names.items()}
    agreement = {} if run in plan.runs else {"agreement_on": "training photos"}
    return {"shipped": plan.ship, "combination": combination, **row, **agreement}
