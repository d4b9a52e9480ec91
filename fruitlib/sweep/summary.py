"""What a sweep has come to so far, in files: `results.csv`, `effects.csv`, `results_oof.csv`, `sweep.json`."""

from pathlib import Path

import pandas as pd

from fruitlib.core import files
from fruitlib.data import splits
from fruitlib.evaluation import crossval, effects
from fruitlib.evaluation.study import build_study
from fruitlib.runs.run import Run
from fruitlib.sweep import final_model
from fruitlib.sweep.final_model import TEST_STAGE
from fruitlib.sweep.params import Sweep

# Of training, in results.csv
RECORDED = {name: name for name in ("best_epoch", "epochs", "precision")}
RECORDED |= {"train_seconds": "seconds", "parameters": "total_parameters", "train_photos": "train_photos"}


def results_table(plan: Sweep, work: dict[str, Run], states: dict, shipped: dict | None = None) -> pd.DataFrame:
    """A row per run: what differs, state, validation numbers, costs, and test numbers where 06 was executed.

    `shipped` adds `shipping.expected` to a run's row, by the run's name.
    """
    rows, combination_of = [], {}
    if plan.config.folds:
        combination_of = {run: name for name, members in plan.combinations().items() for run in members}
    for name, run in work.items():
        row = {
            "run": name,
            **{setting: getattr(run.config, setting) for setting in plan.settings},
            "state": states[name]["state"],
        }
        if name in combination_of:
            row["combination"] = combination_of[name]
        if states[name]["state"] == "complete":
            row |= run.read_json("metrics.json") | run.read_json("export.json")
            trained = run.record("train")
            row |= {new: trained.get(old) for new, old in RECORDED.items()}
            if run.is_complete(TEST_STAGE):
                tested = run.read_json("test.json")
                row |= tested["numbers"] | {"test_backend": tested["shipped"]}
        rows.append(row | (shipped or {}).get(name, {}))
    return pd.DataFrame(rows)


def write_summary(
    plan: Sweep,
    sweep_dir: Path,
    work: dict[str, Run],
    states: dict[str, dict],
    chosen: str | None = None,
    shipped: str | None = None,
    total: int = 0,
) -> tuple[dict, list[str]]:
    """`results.csv`, `sweep.json` and what compares runs with each other, as far as the sweep has come.

    Args:
        total: the runs there will be in the end, where a search has not proposed all of them yet.

    Returns:
        what `sweep.json` holds; in words, combinations that cannot be pooled.
    """
    expected, problems = {}, []
    if plan.config.folds:
        pooled, problems = crossval.pool_folds(work, plan.combinations(), sweep_dir)
        pooled = crossval.pooled_results(pooled, splits.load_record(sweep_dir)["class_names"])
        _write_table(pooled, sweep_dir / "results_oof.csv")
        expected = {shipped: final_model.expected(plan, shipped, chosen, pooled)} if shipped else {}
    table = results_table(plan, work, states, expected)
    _write_table(table, sweep_dir / "results.csv")
    _write_table(_effects(plan, sweep_dir, table), sweep_dir / "effects.csv")
    told = _summary(plan, work, states) | {"chosen": chosen, "shipped": shipped}
    told["total"] = max(total, len(work))
    if shipped and plan.config.folds:
        told["made"] = final_model.origin_summary(plan, work[shipped], folds_of(plan, work, chosen))
    files.write_json(sweep_dir / "sweep.json", told)
    return told, problems


def _effects(plan: Sweep, sweep_dir: Path, table: pd.DataFrame) -> pd.DataFrame:
    """What each setting does, by the rule of 08 and with its corrections, so that the two never disagree."""
    if plan.choose_by not in table:  # nothing is complete
        return pd.DataFrame()
    study = build_study(sweep_dir, table, _settings(plan), plan.choose_by)
    found = effects.main_effects(study.results, study.differs, study.measures, study.folds)
    return found.assign(summary=[effects.effect_text(row) for row in found.to_dict("records")])


def _settings(plan: Sweep) -> dict[str, dict]:
    """What differs between runs, as it was asked for; `results.csv` has the epochs and precision that came of it."""
    return {
        name: {setting: getattr(config, setting) for setting in plan.settings} for name, config in plan.runs.items()
    }


def _summary(plan: Sweep, work: dict[str, Run], states: dict) -> dict:
    """The sweep, its runs and where they ran; a run that was made to be shipped names the notebooks it has."""
    stages = ("02_train", "05_quantize", TEST_STAGE)
    finished = [run.record(stage).get("finished", "") for run in work.values() for stage in stages]
    params = next((run.params for run in work.values() if (run.path / "params.yaml").is_file()), {"record": {}})
    settings = _settings(plan)
    listed = [{"name": name, "settings": settings.get(name, {}), **states[name]} for name in work]
    for run in listed:
        run["epochs"] = work[run["name"]].config.epochs
        run |= {} if run["name"] in plan.runs else {"stages": final_model.stages(work[run["name"]])}
    return {
        "title": plan.title,
        "params_file": files.display_path(Path(plan.source).resolve()),
        "data": plan.config.data,
        "choose_by": plan.choose_by,
        "hardware": params["record"].get("hardware", ""),
        "versions": params["record"].get("versions", {}),
        "finished": max(finished, default="")[:16].replace("T", " "),
        "runs": listed,
    }


def _write_table(table: pd.DataFrame, path: Path) -> None:
    """A CSV file, whole or not at all; an empty table leaves no file."""
    if len(table):
        files.write_csv(path, table)
    else:
        path.unlink(missing_ok=True)


def folds_of(plan: Sweep, work: dict[str, Run], combination: str) -> list[Run]:
    """The runs of a combination: one, or one for each fold and repeat."""
    return [work[name] for name in (plan.combinations()[combination] if plan.config.folds else [combination])]
