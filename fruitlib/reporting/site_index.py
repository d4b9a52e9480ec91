"""What the index of a sweep says: results, who was chosen and why, checks, four pictures, and what the script explores.

Everything comes from files of the sweep's folder; what cannot be read is named on the page and breaks nothing.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from fruitlib.core.errors import first_line
from fruitlib.core.files import read_csv, read_json
from fruitlib.core.texts import number, printable, shortened
from fruitlib.evaluation.effects_wording import leading_effects_text
from fruitlib.evaluation.ranking import place
from fruitlib.evaluation.selection import SelectionOptimism
from fruitlib.evaluation.study import value_text
from fruitlib.evaluation.sweep_answers import INSIGHT
from fruitlib.evaluation.wording import choice_text, tie_text
from fruitlib.reporting.explore import (
    RunPhotos,
    as_script_data,
    confusion_of,
    load_groups,
    load_history,
    load_pooled,
    paired_runs,
    sheet_data,
)
from fruitlib.reporting.pages import Page
from fruitlib.reporting.site_checks import checks, made_with
from fruitlib.reporting.sprites import NOTHING, Sheet

EXPECTED = ["02_train", "03_metrics", "04_gradcam", "05_quantize"]  # of a complete run that names no `stages`
MAX_PLOTTED = 20  # runs in the interval plot, best first
STRIP_PHOTOS = 6
NONE = "–"
LINK = "is a link and is left out: put what it leads to there"


@dataclass
class Seen:
    """What is known of the validation photos: of each run by name, and the sheets that show them."""

    photos: dict[str, RunPhotos] = field(default_factory=dict)
    heat: dict[str, Sheet] = field(default_factory=dict)
    every: dict[str, Sheet] = field(default_factory=dict)  # heat of each validation photo, where there are few
    sheet: Sheet = NOTHING
    pages: set[str] = field(default_factory=set)  # runs with a page of photos
    left_out: int = 0  # runs whose predictions are not on the index
    problems: list[str] = field(default_factory=list)  # pages of photos that cannot be written, and why


def fixed(value, digits: int) -> str:
    """A number with so many decimals, or a dash where it is none."""
    return f"{number(value):.{digits}f}" if math.isfinite(number(value)) else NONE


def facts(sweep_dir: Path, sweep: dict, pages: dict[str, list[Page]], seen: Seen, links: list[str]) -> dict:
    """Everything the template shows on the index: by name, for `report.html.j2`."""
    results, no_results = _table(sweep_dir / "results.csv")
    openings, no_openings = _table(sweep_dir / "test_openings.csv")
    pooled, no_pooled = _table(sweep_dir / "results_oof.csv")
    effects, no_effects = _table(sweep_dir / INSIGHT)
    rows = {str(row.get("run")): row for row in results}
    runs = [run | {"row": rows.get(run["name"], {}), "pages": pages.get(run["name"], [])} for run in sweep["runs"]]
    complete = [run for run in runs if run["state"] == "complete"]
    # a run that was made to be shipped was trained on the validation photos too
    ranking = ranked([run for run in complete if run.get("candidate", "stages" not in run)], sweep)
    shipped = next((run for run in runs if run["name"] == sweep["shipped"]), None)
    pooled.sort(key=lambda row: place(row, sweep["choose_by"], row.get("combination") == sweep["chosen"]))
    winners = [row for row in pooled if shipped and row.get("combination") == shipped["row"].get("combination")]
    winner = next(iter(winners + pooled), None)
    empty = "results.csv is missing or empty: no numbers to show" if complete and not results else ""
    problems = [no_results or empty, no_openings, no_pooled, no_effects, *sweep["refused"], *links, *seen.problems]
    under_way = is_under_way(sweep)
    problems += _problems({"name": "", "pages": pages[""]}, [] if under_way else ["01_split"])
    problems += [text for run in complete for text in _problems(run, run.get("stages", EXPECTED))]
    grouped = any(number(row.get("groups")) > 0 for row in [*results, *pooled])
    # folds validate on different photos: their combinations are ranked
    plotted = [{"name": f"{row.get('combination')}", "row": row} for row in pooled] if pooled else ranking
    data, left = _data(sweep_dir, runs, ranking, seen)
    return {
        "page": None,
        "sweep": sweep | {"grouped": grouped},
        "complete": ranking,
        "unfinished": [run for run in runs if run["state"] != "complete"],
        "shipped": shipped,
        "winner": winner,
        "shared": pages[""],
        "measured": {name for run in ranking for name, value in run["row"].items() if fixed(value, 0) != NONE},
        "forest": forest(plotted[:MAX_PLOTTED]),
        "plotted": len(plotted),
        "best_plotted": shipped and (f"{winner.get('combination')}" if pooled else shipped["name"]),
        "chosen_among": choice_text(SelectionOptimism(**sweep.get("optimism", {}))),
        "openings": openings,
        "pooled": pooled,
        "effects": leading_effects_text(pd.DataFrame(effects), sweep["choose_by"]),
        "under_way": under_way,
        "problems": [text for text in problems if text],
        "photos": _photos(sweep_dir),
        "tie": _tie(sweep, pooled, ranking, shipped, winner),
        "checks": checks(sweep_dir, pages[""], runs, shipped),
        "made_with": made_with(sweep_dir, sweep, shipped),
        "with_photos": seen.pages,
        "strip": strip_of(sweep_dir, shipped, winner, ranking, seen),
        "data": as_script_data(data),
        "paired_left_out": left + seen.left_out,
    }


def is_under_way(sweep: dict) -> bool:
    """Whether runs are still to come."""
    runs = sweep["runs"]
    return any(run["state"] == "pending" for run in runs) or sweep.get("total", 0) > len(runs)


def _photos(sweep_dir: Path) -> dict:
    """The classes that were found (`listing`), and notes on what was left out; empty where 01 has not been executed."""
    try:
        record = {} if (path := sweep_dir / "manifest.json").is_symlink() else read_json(path)
        return {"listing": record.get("listing") or "", "notes": list(map(str, record.get("notes") or []))}
    except (OSError, ValueError, TypeError):
        return {"listing": "", "notes": []}


def _table(path: Path) -> tuple[list[dict], str]:
    """(rows, one line on why the file is not read or ""); a file that is not there has no rows."""
    if path.is_symlink():
        return [], f"{path.name} {LINK}"
    try:
        return (read_csv(path, dtype={"run": str}).to_dict("records"), "") if path.is_file() else ([], "")
    except (OSError, ValueError) as error:
        return [], f"{path.name} cannot be read: {first_line(error)}"


def _problems(run: dict, expected: list[str]) -> list[str]:
    where = f"{run['name']}: " if run["name"] else ""
    present = {page.path.stem for page in run["pages"]}
    missing = [f"{stem}.ipynb is missing" for stem in expected if stem not in present]
    return [where + text for text in missing + [page.failure for page in run["pages"] if page.failure]]


def ranked(runs: list[dict], sweep: dict) -> list[dict]:
    """Best first (`ranking.place`), the chosen one first among equals."""
    return sorted(runs, key=lambda run: place(run["row"], sweep["choose_by"], run["name"] == sweep["shipped"]))


def forest(runs: list[dict]) -> dict:
    """Where each run's accuracy and interval lie, in per cent of a plot's width, and the axis's marks."""
    runs = [run for run in runs if fixed(run["row"].get("accuracy"), 0) != NONE]
    points = [[number(run["row"].get(f"accuracy{end}")) for end in ("", "_low", "_high")] for run in runs]
    points = [[row[0] if math.isnan(value) else value for value in row] for row in points]
    low, high = min(map(min, points), default=0), max(map(max, points), default=1)
    step = next((step for step in (0.01, 0.02, 0.05, 0.1) if high - low <= 6 * step), 0.2)
    first = math.floor(low / step + 1e-9)
    last = max(first + 1, math.ceil(high / step - 1e-9))

    def share(value: float) -> float:
        return round(5 + 90 * (value / step - first) / (last - first), 2)

    marks = [(run, *map(share, row)) for run, row in zip(runs, points, strict=True)]
    return {"marks": marks, "ticks": [(share(n * step), f"{n * step:.2f}") for n in range(first, last + 1)]}


def _tie(sweep, pooled, ranking, shipped, winner) -> str:
    if shipped is None:
        return ""
    if pooled:
        return tie_text(pooled, winner, sweep["choose_by"], "combination")
    row = next((run["row"] for run in ranking if run["name"] == shipped["name"]), None)
    return tie_text([run["row"] for run in ranking], row, sweep["choose_by"], "run") if row else ""


# ---------------------------------------------------------------- four pictures


def strip_of(sweep_dir: Path, shipped, winner, ranking: list[dict], seen: Seen) -> dict:
    """Curves, confusion, worst mistakes and where it looks, of the shipped run where it has them, else of the best.

    After folds confusion and mistakes are those of the chosen combination's pooled predictions.
    """
    groups = load_groups(sweep_dir)
    pooled = load_pooled(sweep_dir, f"{winner.get('combination')}", groups) if winner else None
    own = [run for run in ranking if winner and run["row"].get("combination") == winner.get("combination")]
    order = [run["name"] for run in [*([shipped] if shipped else []), *own, *ranking]]
    strip = {"sheet": sheet_data(seen.sheet, "assets/")}
    for name in order:
        history = load_history(sweep_dir / name)
        if len(history.get("epoch", ())) > 1:
            strip["curves"] = {"run": name} | curves_of(history)
            break
    run = next((name for name in order if name in seen.photos), "")
    photos = pooled or seen.photos.get(run)
    if photos:
        whose = {"run": "" if pooled else run, "n": len(photos.table)}
        strip["confusion"] = whose | {"table": confusion_of(photos)}
        strip["mistakes"] = whose | _worst(photos, seen.sheet)
    looks = next((name for name in order if seen.heat.get(name, NOTHING).layers), None)
    if looks:
        heat = seen.heat[looks]
        strip["looks"] = {
            "run": looks,
            "heat": sheet_data(heat, ""),
            "last": heat.layers[-1],
            "column": len(heat.layers),
        }
        strip["looks"]["rows"] = list(heat.cells.items())[:STRIP_PHOTOS]
    return strip


def _worst(photos: RunPhotos, sheet: Sheet) -> dict:
    """The most confident mistakes; where there are none, the least confident answers."""
    wrong = photos.mistakes
    chosen = (wrong if len(wrong) else photos.least_sure)[:STRIP_PHOTOS]
    cells = [sheet.cells.get(path, -1) for path in photos.table["path"].iloc[chosen]]
    rows = photos.table.iloc[chosen].to_dict("records")
    confidence = photos.confidence[chosen] / 1e6
    shown = [row | {"at": cell, "p": p} for row, cell, p in zip(rows, cells, confidence, strict=True)]
    return {"wrong": len(wrong), "rows": shown}


def curves_of(history: dict[str, list], width: int = 240, height: int = 150) -> dict:
    """Training and validation loss as points of an SVG of so many units, with its greatest value."""
    named = {name: history[name] for name in ("train_loss", "val_loss") if name in history}
    values = [value for column in named.values() for value in column if value is not None]
    highest = max(values, default=0) or 1.0
    epochs = history["epoch"]
    last = max(epochs[-1], 2)
    lines = []
    for name, column in named.items():
        points = [
            f"{width * (epoch - 1) / (last - 1):.1f},{height * (1 - value / highest):.1f}"
            for epoch, value in zip(epochs, column, strict=True)
            if value is not None
        ]
        lines.append((name, " ".join(points)))
    return {"lines": lines, "highest": highest, "epochs": int(epochs[-1]), "width": width, "height": height}


# ---------------------------------------------------------------- what the script explores


def _setting(value) -> str:
    return shortened(printable(value_text(value)), 60)


def _data(sweep_dir: Path, runs: list[dict], ranking: list[dict], seen: Seen) -> tuple[dict, int]:
    """Settings, state and curves of every run; photos and predictions of those that have some; runs left out."""
    order = [run["name"] for run in ranking]
    paired, left = paired_runs([(name, seen.photos.get(name)) for name in order])
    listed = [
        {
            "name": run["name"],
            "state": f"{run['state']}",
            "settings": {f"{name}": _setting(value) for name, value in (run.get("settings") or {}).items()},
            "history": load_history(sweep_dir / run["name"]) if run["state"] == "complete" else {},
            "page": run["name"] in seen.pages,
            "heat": _heat(run["name"], seen, paired["paths"]),
        }
        for run in runs
    ]
    cells = [seen.sheet.cells.get(path, -1) for path in paired["paths"]]
    return paired | {"runs": listed, "cells": cells, "sheet": sheet_data(seen.sheet, "assets/")}, left


def _heat(name: str, seen: Seen, paths: list[str]) -> dict | None:
    """A run's sheet of heat, the row of each of the index's photos that is on it, and which class the heat is for.

    It is the sheet of every photo; where there is none, that of the photos that training followed.
    """
    every = seen.every.get(name, NOTHING)
    heat = every if every.layers else seen.heat.get(name, NOTHING)
    if not heat.layers:
        return None
    number_of = {path: at for at, path in enumerate(paths)}
    rows = {number_of[path]: row for path, row in heat.cells.items() if path in number_of}
    return sheet_data(heat, "") | {"of": rows, "for": "predicted" if heat is every else "true"}
