"""The answers of 07 and 08: a sentence and numbers for the top of the page, and the files that hold them."""

from pathlib import Path

import pandas as pd

from fruitlib.core import files
from fruitlib.evaluation import effects
from fruitlib.evaluation.compare import Pair
from fruitlib.evaluation.study import Study

Answer = tuple[str, dict[str, float]]  # the sentence, and the numbers kept beside it


def comparison_rows(verdict: dict) -> dict[str, tuple[float, float, float]]:
    """B less A in accuracy and in macro-F1: (difference, low, high), by name, from `compare.verdict`."""
    names = {"accuracy": "accuracy", "macro-F1": "macro_f1"}
    return {
        name: (verdict[f"{key}_difference"], verdict[f"{key}_low"], verdict[f"{key}_high"])
        for name, key in names.items()
    }


def write_comparison(folder: Path, pair: Pair, verdict: dict) -> Answer:
    """Write `compare.json`: both names, and what `compare.verdict` returned, without numbers that are NaN."""
    numbers = {name: value for name, value in verdict.items() if name != "summary" and value == value}
    names = {"a": pair.a.name, "b": pair.b.name}
    files.write_json(folder / "compare.json", {**names, **numbers, "summary": verdict["summary"]})
    named = "" if pair.a is pair.b else f"A: {pair.a.name}, B: {pair.b.name}. "
    return named + verdict["summary"], numbers


def write_effects(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Write effects or interactions with a column `summary`, a sentence for each; returns that table."""
    table = table.assign(summary=[effects.effect_text(row) for row in table.to_dict("records")])
    files.write_csv(path, table)
    return table


def write_interactions(path: Path, table: pd.DataFrame) -> None:
    """Write `interactions.csv`; without any, no file is left."""
    path.unlink(missing_ok=True)
    if len(table):
        files.write_csv(path, table)


def questions_summary(table: pd.DataFrame, settings: list[str]) -> str:
    """A line for each question of `insight.csv`, and for each setting that no two runs allow to ask about."""
    lines = list(table["summary"])
    lines += [
        f"{name}: no two runs differ in it alone: not asked" for name in settings if name not in set(table["setting"])
    ]
    return "\n".join(lines)


def interactions_summary(table: pd.DataFrame, at_most: int = 3) -> str:
    """How many interactions were asked about and are significant, and a line for each of the clearest."""
    significant = table[table["significant"]].sort_values("holm_p").head(at_most)
    count = f"interactions asked about: {len(table)}, significant: {table['significant'].sum()}"
    return "\n".join([count, *(effects.effect_text(row) for row in significant.to_dict("records"))])


def write_insight(study: Study, table: pd.DataFrame, interactions: pd.DataFrame, optimism: float) -> Answer:
    """Write `insight.json`: the answer, the measure, and how many runs, questions and interactions there were.

    Args:
        table: the effects, as in `insight.csv`.
        optimism: what choosing the best run adds to its accuracy, a share; NaN: not known. In the file in points.
    """
    numbers = {"runs": len(study.results), "questions": len(table), "significant": int(table["significant"].sum())}
    numbers |= {"interactions": len(interactions)} | ({"flattery_points": 100 * optimism} if optimism >= 0 else {})
    text = effects.answer(table, study.measure)
    files.write_json(study.folder / "insight.json", {"answer": text, "measure": study.measure, **numbers})
    return text, numbers
