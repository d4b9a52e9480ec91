"""The figures of `bench.py`: medians and quartiles, the table, ratios, and what has fallen since the last kept ones.

A measurement is a row (a task, such as "resnet18, batch 64, fp32") by column (who did it) with a figure per round, or
None where a round gave none. Ratios are taken round by round, then their median: what slows a whole round cancels out.
"""

import statistics

OURS, LIMIT = "fruitlib", "limit"
ALL_PAGES = "fruitlib, all pages"
OF_LIMIT, OF_QUICKEST = "fruitlib / limit", "quickest peer's seconds / ours"  # the ratios
FALL = 0.15  # by what share a ratio may fall below the kept one
Measured = dict[str, dict[str, list[float | None]]]


def quartiles(figures: list[float | None]) -> list[float] | None:
    """Lower quartile, median and upper quartile of those figures that are there; None where there are none."""
    there = [figure for figure in figures if figure is not None]
    if not there:
        return None
    return statistics.quantiles(there, n=4, method="inclusive") if len(there) > 1 else there * 3


def ratio(above: list[float | None], below: list[float | None]) -> float | None:
    """The median over the rounds of one figure divided by another; None where no round has both."""
    pairs = zip(above, below, strict=False)
    ratios = [a / b for a, b in pairs if a is not None and b is not None]
    return statistics.median(ratios) if ratios else None


def as_they_come(speed: Measured, network: str, default: str) -> dict[str, list[float | None]]:
    """A row for a network as everybody comes: peers in fp32, ours in its default precision, the higher of the limits.

    Args:
        network: the rows' name without the precision, such as "resnet18, batch 64".
        default: the precision that ours takes by itself.
    """
    row = {name: found for name, found in speed[f"{network}, fp32"].items() if name not in (OURS, LIMIT)}
    limits = [of_row.get(LIMIT, []) for name, of_row in speed.items() if name.startswith(f"{network}, ")]
    best = max(limits, key=lambda limit: (quartiles(limit) or [0, 0, 0])[1])
    return row | {OURS: speed[f"{network}, {default}"].get(OURS, []), LIMIT: best}


def ratios(speed: Measured, whole: Measured) -> dict[str, float]:
    """What is kept and compared, larger is better: our speed by the limit; the quickest peer's seconds by ours."""
    found = {}
    for row, columns in speed.items():
        found[f"{row}: {OF_LIMIT}"] = ratio(columns.get(OURS, []), columns.get(LIMIT, []))
    for row, columns in whole.items():
        peers = {name: quartiles(figures) for name, figures in columns.items() if not name.startswith(OURS)}
        peers = {name: found_of[1] for name, found_of in peers.items() if found_of}
        if peers:
            quickest = columns[min(peers, key=peers.get)]
            found[f"{row}: {OF_QUICKEST}"] = ratio(quickest, columns.get(ALL_PAGES, []))
    return {name: round(value, 3) for name, value in found.items() if value is not None}


def fallen(kept: dict[str, float], now: dict[str, float], named: str = "the kept figures") -> list[str]:
    """A line for each ratio that is more than 15 % below the kept one; one that was not measured now is no fall."""
    return [
        f"{name} has fallen from {before:.2f} to {now[name]:.2f} (more than {FALL:.0%} below {named})"
        for name, before in kept.items()
        if name in now and now[name] < (1 - FALL) * before
    ]


def summary(measured: Measured) -> dict[str, dict[str, list[float]]]:
    """Quartiles of every row and column that has figures, rounded, for `results.json`."""
    found = {}
    for row, columns in measured.items():
        of_row = {name: quartiles(figures) for name, figures in columns.items()}
        found[row] = {name: [round(figure, 1) for figure in three] for name, three in of_row.items() if three}
    return found


def tables(results: dict) -> list[str]:
    """Markdown of what `results.json` holds: photos per second, seconds of whole processes; those that are there."""
    corners = {"photos_per_s": "photos/s, median (quartiles)", "seconds": "seconds from command to end"}
    ratios_of = {"photos_per_s": OF_LIMIT, "seconds": OF_QUICKEST}
    return [
        _table(results[name], corner, ratios_of[name], results["ratios"])
        for name, corner in corners.items()
        if results[name]
    ]


def _table(rows: dict[str, dict[str, list[float]]], corner: str, kind: str, of_all: dict[str, float]) -> str:
    """A row per task, its medians and quartiles by column, its ratio; a dash where there is none."""
    columns = list(dict.fromkeys(column for found in rows.values() for column in found))
    columns.sort(key=lambda column: (column == LIMIT, column.startswith(OURS)))
    lines = [f"| {' | '.join([corner, *columns, kind])} |", f"|{'---|' * (len(columns) + 2)}"]
    for row, found in rows.items():
        cells = [_cell(found.get(column)) for column in columns]
        value = of_all.get(f"{row}: {kind}")
        lines.append(f"| {' | '.join([row, *cells, '–' if value is None else f'{value:.2f}'])} |")
    return "\n".join(lines)


def _cell(found: list[float] | None) -> str:
    """61 (60–63); the median alone where the quartiles are the same number."""
    if not found:
        return "–"
    low, median, high = (f"{figure:,.0f}" for figure in found)
    return median if low == high else f"{median} ({low}–{high})"
