"""Sheets of the photos that rows of a table name: rows in, a Figure out; None where there are no rows.

Rows come from the manifest, from predictions, from conflicts or from doubtful labels. Photos are read from `folder`.
"""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from fruitlib.core.config import Config
from fruitlib.data import dataset, decoding, loader, sources
from fruitlib.reporting import photo_sheets


def quarantined_photos(folder: Path, manifest: pd.DataFrame, at_most: int = 18) -> Figure | None:
    """The quarantined photos of a manifest, each with its path and the reason."""
    rows = manifest[manifest["status"] == "quarantined"].head(at_most)
    if rows.empty:
        return None
    glimpses = [decoding.glimpse(sources.locate(folder, path)[0]) for path in rows["path"]]
    return photo_sheets.quarantine_sheet(glimpses, list(rows["path"] + "\n" + rows["reason"]))


def conflicting_labels(folder: Path, pairs: pd.DataFrame, config: Config, at_most: int = 12) -> Figure | None:
    """Pairs of photos that look alike and have different labels, side by side: rows of `duplicates.conflicts`."""
    pairs = pairs.head(at_most)
    if pairs.empty:
        return None
    sides = [dataset.pictures(folder, pairs[column], config) for column in ("path_a", "path_b")]
    titles = [f"{row.label_a} | {row.label_b}" for row in pairs.itertuples()]
    return photo_sheets.pair_sheet(list(zip(*sides, strict=True)), titles)


def labelled_photos(folder: Path, rows: pd.DataFrame, config: Config, title: str) -> Figure | None:
    """Photos as the model sees them, each with its label."""
    if rows.empty:
        return None
    return photo_sheets.contact_sheet(dataset.pictures(folder, rows["path"], config), list(rows["label"]), title=title)


def augmented_photos(folder: Path, rows: pd.DataFrame, config: Config) -> Figure:
    """The same few photos under every augmentation policy and every way of mixing pairs."""
    photos = dataset.pictures(folder, rows["path"], config)
    policies = [*loader.POLICIES, *loader.MIXINGS]
    return photo_sheets.policy_sheet(photos, {policy: loader.examples(photos, policy, seed=0) for policy in policies})


def mistaken_photos(folder: Path, rows: pd.DataFrame, config: Config, at_most: int = 16) -> Figure | None:
    """Wrong predictions, as `runs.run.mistakes` lists them: label, prediction and its probability."""
    rows = rows.head(at_most)
    titles = [f"{row.label}, predicted\n{row.predicted} ({row.confidence:.0%})" for row in rows.itertuples()]
    return _six_in_a_row(folder, rows, config, titles)


def doubtful_photos(folder: Path, rows: pd.DataFrame, config: Config, at_most: int = 12) -> Figure | None:
    """Photos with doubtful labels, as `label_errors.doubtful_labels` lists them, with the likelier class."""
    rows = rows.head(at_most)
    titles = [f"{row.label}, or\n{row.suggested} ({row.probability:.0%})?" for row in rows.itertuples()]
    return _six_in_a_row(folder, rows, config, titles)


def _six_in_a_row(folder: Path, rows: pd.DataFrame, config: Config, titles: list[str]) -> Figure | None:
    if rows.empty:
        return None
    return photo_sheets.contact_sheet(dataset.pictures(folder, rows["path"], config), titles, columns=6)
