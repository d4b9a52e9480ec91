"""The answers of 07 and 08: a sentence and numbers for the top of the page, and the files that hold them.

A sweep writes `insight.csv` by the same function as it goes on; the report's index and the terminal read it.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from fruitlib.core import files
from fruitlib.evaluation import effects, effects_wording, wording
from fruitlib.evaluation.compare import Comparison, Pair
from fruitlib.evaluation.outcomes import load_outcomes
from fruitlib.evaluation.selection import SelectionOptimism
from fruitlib.evaluation.study import Study

INSIGHT = "insight.csv"
Answer = tuple[str, dict[str, float]]  # the sentence, and the numbers kept beside it


def write_comparison(folder: Path, pair: Pair, comparison: Comparison) -> Answer:
    """Write `compare.json`: both names, the numbers that are not NaN, and the summary."""
    names = {"a": pair.a.name, "b": pair.b.name}
    summary = wording.comparison_text(comparison)
    files.write_json(folder / "compare.json", {**names, **comparison.numbers, "summary": summary})
    return wording.comparison_answer(comparison, *names.values()), comparison.numbers


def write_effects(study: Study) -> pd.DataFrame:
    """Write `insight.csv`: the effects of a study with a `summary` of each. Without any, no file is left.

    Returns:
        the table, as `effects.main_effects`, with `summary`.
    """
    table = effects.main_effects(study.results, study.differs, study.measures, load_outcomes(study))
    word, path = study.group_word, study.folder / INSIGHT
    table = table.assign(summary=[effects_wording.effect_summary(row, word) for row in table.to_dict("records")])
    if len(table):
        files.write_csv(path, table)
    else:
        path.unlink(missing_ok=True)
    return table


def load_effects(sweep_dir: Path) -> pd.DataFrame:
    """What `write_effects` wrote; empty without the file."""
    path = sweep_dir / INSIGHT
    table = files.read_csv(path) if path.is_file() else pd.DataFrame()
    return table if "findable" in table else pd.DataFrame()  # or written before answers spoke of new groups


def write_interactions(path: Path, table: pd.DataFrame) -> None:
    """Write `interactions.csv`; without any, no file is left."""
    path.unlink(missing_ok=True)
    if len(table):
        files.write_csv(path, table)


def questions_summary(table: pd.DataFrame, settings: list[str]) -> str:
    """A line for each question of `insight.csv`, and for each setting that no two runs allow to ask about."""
    lines = [summary.replace("\n", "\n    ") for summary in table["summary"]]
    lines += [
        f"{name}: no two runs differ in it alone: not asked" for name in settings if name not in set(table["setting"])
    ]
    return "\n".join(lines)


def interactions_summary(table: pd.DataFrame, word: str = "group", at_most: int = 3) -> str:
    """How many interactions were asked about and are significant, and a line for each of the clearest."""
    significant = table[table["significant"]].sort_values("holm_p").head(at_most)
    count = f"interactions asked about: {len(table)}, significant: {table['significant'].sum()}"
    return "\n".join([count, *(effects_wording.effect_summary(row, word) for row in significant.to_dict("records"))])


def beside_probe_summary(numbers: Mapping, is_probe: bool, candidates: int, word: str = "group") -> str:
    """Whether the chosen run is worth more than frozen features; empty where neither is known.

    Args:
        numbers: those of the run, or of the combination, as in `metrics.json`.
        is_probe: whether the run is itself a logistic regression on frozen features; used where nothing was compared.
        candidates: among how many it was chosen by its results.
    """
    text = wording.probe_text(numbers, word)
    if not text:
        itself = "The chosen run is itself a logistic regression on frozen features, which others have to beat"
        return itself if is_probe else ""
    better = numbers["over_probe"] > 0 and numbers.get("over_probe_p", 1) < 0.05
    caveat = f"; it was picked out of {candidates} by its results, which makes p too small"
    return f"Compared with frozen features: {text}{caveat if better and candidates > 1 else ''}"


def write_insight(study: Study, table: pd.DataFrame, interactions: pd.DataFrame, optimism: SelectionOptimism) -> Answer:
    """Write `insight.json`: the answer, the measure, and how many runs, questions and interactions there were.

    Args:
        table: the effects, as in `insight.csv`.
        optimism: what choosing the best run adds to its accuracy; in the file in points.
    """
    numbers = {"runs": len(study.results), "questions": len(table), "significant": int(table["significant"].sum())}
    numbers["interactions"] = len(interactions)
    if optimism.measured:
        numbers["selection_optimism_points"] = 100 * optimism.points
    text = effects_wording.effects_answer_text(table, study.measure, study.group_word)
    files.write_json(study.folder / "insight.json", {"answer": text, "measure": study.measure, **numbers})
    return text, numbers
