"""The results of a sweep so far, in files: `results.csv`, `insight.csv`, `results_oof.csv`, `sweep.json`."""

import functools
from pathlib import Path

import pandas as pd

from fruitlib.core import files
from fruitlib.core.model_names import FITTED_HEADS
from fruitlib.data import splits
from fruitlib.evaluation import crossval, selection, shortcut_findings, sweep_answers, wording
from fruitlib.evaluation.study import COSTS, Study, build_study
from fruitlib.runs.run import Run
from fruitlib.runs.stages import STAGES
from fruitlib.sweep import final_model
from fruitlib.sweep.final_model import TEST_STAGE
from fruitlib.sweep.params import Sweep

SUMMARY = "sweep.json"
# What results.csv takes from the record of a training
RECORDED = {name: name for name in ("kept_epoch", "epochs", "precision")} | COSTS


def results_table(plan: Sweep, work: dict[str, Run], states: dict, shipped: dict | None = None) -> pd.DataFrame:
    """A row per run: what differs, state, validation numbers, costs, and test numbers where 06 was executed.

    `shipped`: columns to add to a run's row (`final_model.expected`), by the run's name.
    """
    rows, combination_of, settings = [], {}, plan.settings
    if plan.config.folds:
        combination_of = {run: name for name, members in plan.combinations().items() for run in members}
    for name, run in work.items():
        row = {
            "run": name,
            **{setting: getattr(run.config, setting) for setting in settings},
            "state": states[name]["state"],
        }
        if name in combination_of:
            row["combination"] = combination_of[name]
        if states[name]["state"] == "complete":
            row |= run.read_json("metrics.json")
            if plan.pages == "every" or run.is_complete("05_quantize"):
                row |= run.read_json("export.json")
            if run.is_complete("04_gradcam"):
                looked = run.read_json("shortcuts.json")
                row |= {name: looked[name] for name in shortcut_findings.COLUMNS if name in looked}
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
    """`results.csv`, `sweep.json` and the tables that compare runs, as far as the sweep has come.

    Args:
        chosen: the combination that was chosen in the end. Then `sweep.json` says, under `optimism`, what choosing adds
            to its score (`SelectionOptimism.record`), and under `beside_probe` whether it beats frozen features, in a
            sentence.
        total: how many runs there will be in the end, where a search has not proposed all of them yet.

    Returns:
        what `sweep.json` holds; a line for each combination that cannot be pooled.
    """
    expected, problems, pooled = {}, [], pd.DataFrame()
    if plan.config.folds:
        pooled, problems = crossval.pool_folds(work, plan.combinations(), sweep_dir)
        groups = _groups(pooled, next(iter(work.values())))
        pooled = crossval.pooled_results(pooled, splits.load_record(sweep_dir)["class_names"], groups)
        _write_table(pooled, sweep_dir / "results_oof.csv")
        expected = {shipped: final_model.expected(plan, shipped, chosen, pooled)} if shipped else {}
    table = results_table(plan, work, states, expected)
    _write_table(table, sweep_dir / "results.csv")
    study = _write_insight(plan, sweep_dir, table)
    sweep = sweep_record(plan, work, states) | {"chosen": chosen, "shipped": shipped}
    if chosen and study:
        sweep["optimism"] = _optimism(study)
        sweep["beside_probe"] = _beside_probe(folds_of(plan, work, chosen)[0], chosen, pooled, study)
    sweep["total"] = max(total, len(work))
    if shipped and work[shipped].is_complete("test"):
        sweep["test_remarks"] = work[shipped].record("test").get("summary", [])
    if shipped and plan.config.folds:
        sweep["made"] = final_model.origin_summary(plan, work[shipped], folds_of(plan, work, chosen))
    files.write_json(sweep_dir / SUMMARY, sweep)
    return sweep, problems


def _groups(pooled: pd.DataFrame, run: Run) -> dict[str, str]:
    """The group of every photo of the pooled predictions, by path."""
    paths = list(pooled["path"].unique()) if len(pooled) else []
    return dict(zip(paths, run.groups(paths), strict=True))


def _write_insight(plan: Sweep, sweep_dir: Path, table: pd.DataFrame) -> Study | None:
    """`insight.csv` as 08 writes it, from the runs that are complete; returns these. Without any, no file is left."""
    if plan.choose_by not in table:  # nothing is complete
        (sweep_dir / sweep_answers.INSIGHT).unlink(missing_ok=True)
        return None
    study = build_study(sweep_dir, table, _settings(plan), plan.choose_by)
    sweep_answers.write_effects(study)
    return study


def _optimism(study: Study) -> dict:
    """What choosing adds to the best run's accuracy (`SelectionOptimism.record`).

    Empty where a run's files cannot be read: that must not stop a sweep at its end.
    """
    try:
        return selection.optimism_of_study(study).record()
    except (OSError, ValueError, KeyError):  # pandas' errors and InputError are ValueErrors
        return {}


def _beside_probe(run: Run, chosen: str, pooled: pd.DataFrame, study: Study) -> str:
    """Whether the chosen combination, which `run` is of, is worth more than frozen features; "" if not compared."""
    if run.config.folds:
        numbers, candidates = pooled.set_index("combination").loc[chosen].to_dict(), len(pooled)
    else:
        numbers, candidates = run.read_json("metrics.json"), len(study.results)
    is_probe = run.config.head == "logistic" and run.config.weights != "none"
    return sweep_answers.beside_probe_summary(numbers, is_probe, candidates, run.config.group_word)


def _settings(plan: Sweep) -> dict[str, dict]:
    """By run, the settings that differ, as they were set; `results.csv` has the epochs and precision that resulted."""
    differing = plan.settings
    return {name: {setting: getattr(config, setting) for setting in differing} for name, config in plan.runs.items()}


def sweep_record(plan: Sweep, work: dict[str, Run], states: dict) -> dict:
    """The sweep, its runs and where they ran.

    `stages` of a run are the notebooks it has to have; a run is no `candidate` that was made to be shipped after the
    others had been compared.
    """
    stages = ("02_train", "05_quantize", TEST_STAGE)
    finished = [run.record(stage).get("finished", "") for run in work.values() for stage in stages]
    params = next((run.params for run in work.values() if (run.path / "params.yaml").is_file()), {"record": {}})
    settings = _settings(plan)
    listed = [{"name": name, "settings": settings.get(name, {}), **states[name]} for name in work]
    for run in listed:
        config = work[run["name"]].config
        run["epochs"] = 1 if config.head in FITTED_HEADS else config.epochs
        needed = final_model.stages(work[run["name"]], plan.pages)
        run["stages"] = [stage for stage in needed if STAGES[stage].notebook]
        run["candidate"] = run["name"] in plan.runs
    return {
        "title": plan.title,
        "params_file": files.display_path(Path(plan.source).resolve()),
        "params_digest": plan.digest,
        "command": plan.command,
        "data": plan.config.data,
        "group_word": plan.config.group_word,
        "population": _population(next(iter(work.values()))) if work else "",
        "choose_by": plan.choose_by,
        "hardware": params["record"].get("hardware", ""),
        "versions": params["record"].get("versions", {}),
        "finished": max(finished, default="")[:16].replace("T", " "),
        "runs": listed,
    }


def _population(run: Run) -> str:
    """Who the new photos are that numbers of this sweep speak of."""
    path = run.sweep_dir / "manifest.csv"
    if not path.is_file():
        return ""
    return _population_once(path, path.stat().st_mtime_ns, run.config.folds, run.config.group_word)


@functools.lru_cache(maxsize=1)
def _population_once(path: Path, stamp: int, folds: int, word: str) -> str:
    """As the manifest was at `stamp`: validation photos, or with folds all that take turns to validate."""
    rows = Run(path.parent / "any").manifest
    rows = rows[rows["status"].isin(splits.USABLE) & rows["split"].isin(["train", "val"] if folds else ["val"])]
    return wording.population_text(rows["group"].tolist(), word)


def _write_table(table: pd.DataFrame, path: Path) -> None:
    """A CSV file, whole or not at all; an empty table leaves no file."""
    if len(table):
        files.write_csv(path, table)
    else:
        path.unlink(missing_ok=True)


def folds_of(plan: Sweep, work: dict[str, Run], combination: str) -> list[Run]:
    """The runs of a combination: one, or one for each fold and repeat."""
    return [work[name] for name in (plan.combinations()[combination] if plan.config.folds else [combination])]
