"""Labels that a person has corrected: a row per decision in a CSV file, which every later split honours.

The file belongs to the data set, not to a sweep: `data/corrections/NAME.csv` in the project, NAME after the folder or
the table. No photo is moved or rewritten. A decision speaks of a photo's content (SHA-256), its box, and the label that
the folder or table gives it; so it holds for a photo that was renamed or moved with its class folder, and no longer for
one that was edited or has another label by now.

    sha256, path   the photo; its path when it was decided
    old            its label as the folder or table gives it
    decision       relabel | keep | set aside | undo; of a photo's decisions the latest counts
    new            the label it gets, of relabel
    when, who      UTC; who is empty unless somebody gave a name
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from fruitlib.core import files
from fruitlib.core.config import Config
from fruitlib.core.errors import InputError
from fruitlib.core.setting_errors import nearest
from fruitlib.core.texts import normal, printable
from fruitlib.data import annotations, sources, table_text
from fruitlib.data.tables import photo_of

COLUMNS = ("sha256", "path", "old", "decision", "new", "when", "who")
RELABEL, KEEP, SET_ASIDE, UNDO = "relabel", "keep", "set aside", "undo"
DECISIONS = (RELABEL, KEEP, SET_ASIDE, UNDO)
KEY = ["sha256", "box", "old"]
STATUS, BY_HAND = "set_aside", "set aside by hand"  # in a manifest, with its reason
_SHA256 = re.compile("[0-9a-f]{64}")


def place(config: Config) -> Path | None:
    """The file that holds the decisions on these photos, which need not be there yet; None with `corrections: none`.

    Raises:
        InputError: a file that was named and is not there.
    """
    if config.corrections == "none":
        return None
    if config.corrections == "auto":
        return files.home() / "data" / "corrections" / f"{_name(config.data)}.csv"
    path = files.resolve(config.corrections)
    if not path.is_file():
        way = "correct the path, set auto, or make an empty file there to begin with"
        raise InputError(f"corrections = {config.corrections}: no such file: {way}", "corrections")
    return path


def _name(data: str) -> str:
    """What a data set is called: by its folder, so that one that was moved keeps its corrections."""
    if data in sources.NAMES:
        return data
    path = files.resolve(data).resolve()
    name = f"{path.parent.name}-{path.stem}" if annotations.is_listing(path) else path.name
    return re.sub(r"[^\w.+-]+", "_", normal(name))[:80].strip("._") or "photos"


def decisions(config: Config) -> pd.DataFrame:
    """The decisions that hold for these photos, one a photo: `COLUMNS`, box, and line (of the file).

    Raises:
        InputError: a file that cannot be read, or a row that is wrong, with its line.
    """
    path = place(config)
    return latest(read(path)) if path else _no_rows()


def latest(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each photo's decisions the last one; none where that takes the earlier ones back."""
    last = rows.drop_duplicates(KEY, keep="last")
    return last[last["decision"] != UNDO].reset_index(drop=True)


def read(path: Path) -> pd.DataFrame:
    """Every row of a file of corrections in its order, with box and line; no rows where there is no file.

    Columns that people added are kept.

    Raises:
        InputError: a column is missing, or a row is wrong; the message names the line.
    """
    if not path.is_file() or not path.stat().st_size:
        return _no_rows()
    sheet, where = table_text.open_sheet(path, set(COLUMNS)), files.display_path(path)
    if missing := [name for name in COLUMNS if name not in sheet.header]:
        wanted = ", ".join(COLUMNS)
        raise InputError(f"no column {missing[0]}; a file of corrections has {wanted}", place=f"{where} line 1")
    rows = pd.concat([chunk.iloc[:, : len(sheet.header)] for chunk in sheet.chunks()] or [pd.DataFrame()])
    rows = rows.set_axis(list(sheet.header), axis=1).map(lambda cell: files.unguarded(cell).strip())
    rows["line"] = [line for line, _ in sheet.records()][1 : len(rows) + 1]
    rows = rows[(rows[list(COLUMNS)] != "").any(axis=1)].reset_index(drop=True)
    for name in ("sha256", "decision"):
        rows[name] = rows[name].str.lower()
    for name in ("old", "new"):
        rows[name] = rows[name].map(normal)
    for row in rows.to_dict("records"):
        if wrong := _wrong(row):
            raise InputError(wrong, place=f"{where} line {row['line']}")
    return rows.assign(box=_boxes(rows["path"]))


def _no_rows() -> pd.DataFrame:
    return pd.DataFrame(columns=[*COLUMNS, "box", "line"], dtype=str)


def _wrong(row: dict) -> str:
    """What is wrong with a row, and what to do; "" if nothing is."""
    if not _SHA256.fullmatch(row["sha256"]):
        return f"sha256 = {row['sha256']!r}: wanted the 64 hexadecimal digits of a photo, as in manifest.csv"
    if row["decision"] not in DECISIONS:
        close = nearest(row["decision"], DECISIONS)
        return f"decision = {row['decision']!r}{close}: wanted {' | '.join(DECISIONS)}"
    if not row["old"]:
        return "no old: write the label that the photo has in its folder or table"
    if row["decision"] == RELABEL and not row["new"]:
        return "relabel needs the new label"
    if row["decision"] != RELABEL and row["new"]:
        return f"{row['decision']} has no new label: leave new empty"
    return ""


def _boxes(paths: pd.Series) -> list[str]:
    """What follows the file in each path: `#xywh=…`, or nothing."""
    return [path[len(file) :] for path, file in zip(paths, photo_of(paths.astype(str)), strict=True)]


def decide(path: Path, rows: Iterable[dict], who: str = "") -> None:
    """Add decisions (sha256, path, old, decision, new) to a file of corrections, at once and for good.

    Others may write at the same time. A row that takes a decision back is added, too: none is ever removed.

    Raises:
        InputError: a row that is wrong, or a file that cannot be read or written.
    """
    when = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    added = [{**dict.fromkeys(COLUMNS, ""), **row, "when": when, "who": who} for row in rows]
    if wrong := next(filter(None, map(_wrong, added)), ""):
        raise InputError(wrong)
    try:
        with files.lock(path.with_name(f".{path.name}.lock")):
            table = pd.concat([read(path).drop(columns=["box", "line"]), pd.DataFrame(added)], ignore_index=True)
            files.write_csv(path, table.fillna(""))
    except (PermissionError, NotADirectoryError) as problem:
        way = "set corrections to a file where you may write"
        raise InputError(f"cannot be written ({problem.strerror}): {way}", place=files.display_path(path)) from None


def described(config: Config, decided: pd.DataFrame) -> str:
    """The decisions in a few words that change when one of them does: `none`, or how many, where, and a digest."""
    if decided.empty:
        return "none"
    facts = decided[[*KEY, "decision", "new"]].sort_values(KEY).to_numpy().tolist()
    return f"{len(decided)} in {files.display_path(place(config))} ({files.fingerprint(facts)})"


def apply(
    manifest: pd.DataFrame, decided: pd.DataFrame, config: Config, classes: Iterable[str] = ()
) -> tuple[pd.DataFrame, list[str]]:
    """Give photos that were opened the labels decided on; no row is dropped.

    A photo that was set aside has status `set_aside`. `decision` is what was decided, or "", and `given` the label
    before.

    Args:
        manifest: path, label, status, reason, sha256, as `photo_checks.check_photos` gives them.
        decided: `decisions(config)`.
        classes: where the photos are but a part, all classes there are.

    Returns:
        the manifest; and notes: how many were corrected, and which decisions fit no photo any more.

    Raises:
        InputError: a new label that is no class, or only one class is left.
    """
    manifest = manifest.assign(decision="", given=manifest["label"])
    if decided.empty:
        return manifest, []
    where = files.display_path(place(config))
    table = manifest[manifest["sha256"].isin(decided["sha256"]) & (manifest["sha256"] != "")]
    table = table.assign(box=_boxes(table["path"]), old=table["label"], row=table.index)
    found = table[[*KEY, "row"]].merge(decided, on=KEY)
    _check_new(found, {*classes, *manifest["label"]}, where)
    rows = {name: found.loc[found["decision"] == name] for name in DECISIONS}
    manifest.loc[found["row"], "decision"] = found["decision"].to_numpy()
    manifest.loc[rows[RELABEL]["row"], "label"] = rows[RELABEL]["new"].to_numpy()
    aside = rows[SET_ASIDE]["row"]
    reasons = manifest.loc[aside, "reason"].map(lambda reason: f" ({reason})" if reason else "")
    manifest.loc[aside, "reason"] = BY_HAND + reasons
    manifest.loc[aside, "status"] = STATUS
    left = {*classes, *manifest.loc[manifest["status"] != STATUS, "label"]}
    if len(left) < 2:
        raise InputError(f"these corrections leave one class, {min(left, default='none')}: undo some", place=where)
    notes = _notes(manifest, decided, found, where)
    gone = sorted(set(found["old"]) - left)
    notes += [f"class {name} has no photo left after these corrections, and is none any more" for name in gone]
    return manifest, [printable(note) for note in notes]


def as_given(manifest: pd.DataFrame, usable: pd.DataFrame) -> pd.DataFrame:
    """The rows to divide: as if no label had been corrected, so that a correction moves no other photo across.

    Without it, one relabelled photo would redraw the split, and test photos that were seen would be trained on. A class
    that is none any more is the exception.
    """
    if "given" not in manifest:
        return usable
    aside = manifest[(manifest["status"] == STATUS) & (manifest["reason"] == BY_HAND)]
    rows = pd.concat([usable, aside.assign(split=aside["split"].fillna(""))]).sort_index()
    kept = rows["given"].isin(set(usable["label"]))
    return rows.assign(label=rows["given"].where(kept, rows["label"]))[kept | rows.index.isin(usable.index)]


def apply_to_sealed(
    checked: pd.DataFrame, sealed: pd.Series, config: Config, classes: Iterable[str]
) -> tuple[pd.DataFrame, list[str]]:
    """`apply` to the photos among these that were sealed until now; the others have the labels decided on already."""
    decided, photos = decisions(config), checked[sealed]
    photos, notes = apply(photos, decided[decided["sha256"].isin(photos["sha256"])], config, classes)
    return pd.concat([photos, checked[~sealed]]).reindex(checked.index), notes


def confirmed(manifest: pd.DataFrame) -> set[str]:
    """The paths of photos whose label somebody has looked at and kept."""
    kept = manifest["decision"] == KEEP if "decision" in manifest else pd.Series(False, manifest.index)
    return set(manifest.loc[kept, "path"])


def unconfirmed(rows: pd.DataFrame, manifest: pd.DataFrame) -> pd.DataFrame:
    """The rows of photos (by `path`) that are not `confirmed`."""
    return rows[~rows["path"].isin(confirmed(manifest))].reset_index(drop=True)


def unconfirmed_pairs(pairs: pd.DataFrame, manifest: pd.DataFrame) -> pd.DataFrame:
    """The pairs (`path_a`, `path_b`) of which one photo at least is not `confirmed`."""
    known = confirmed(manifest)
    return pairs[~(pairs["path_a"].isin(known) & pairs["path_b"].isin(known))].reset_index(drop=True)


def _check_new(found: pd.DataFrame, classes: set[str], where: str) -> None:
    unknown = found[(found["decision"] == RELABEL) & ~found["new"].isin(classes)]
    if len(unknown):
        row = unknown.sort_values("line").iloc[0]
        wanted = f"no class of these photos{nearest(row['new'], classes)}"
        raise InputError(f"new = {row['new']!r}: {wanted}", place=f"{where} line {row['line']}")


def _notes(manifest: pd.DataFrame, decided: pd.DataFrame, found: pd.DataFrame, where: str) -> list[str]:
    """Sentences for people on what was corrected, and on what was not."""
    counts = found["decision"].value_counts()
    words = {RELABEL: "relabelled", SET_ASIDE: "set aside", KEEP: "confirmed"}
    done = ", ".join(f"{counts[name]:,} {word}" for name, word in words.items() if name in counts)
    notes = [f"labels corrected by hand ({where}): {done}"] if done else []
    unused = decided[~decided["line"].isin(found["line"])]
    unopened = unused["path"].isin(manifest.loc[manifest["sha256"] == "", "path"])
    if unopened.any():
        example = unused.loc[unopened, "path"].iloc[0]
        notes.append(f"{unopened.sum():,} corrections are of photos that were not opened, such as {example}")
    if len(lost := unused[~unopened]):
        count = f"{len(lost):,} corrections match" if len(lost) > 1 else "1 correction matches"
        first = f"line {lost['line'].iloc[0]}: {lost['path'].iloc[0]}, {lost['old'].iloc[0]}"
        notes.append(f"{count} no photo any more, since the file or its label changed ({where} {first}): decide again")
    return notes
