"""Which photos of two tables are the same, whatever folders their paths begin with."""

import pandas as pd

from fruitlib.core.texts import normal

MAX_PATH_PARTS = 8  # compared from the end where whole paths do not match


def plain_paths(*sides: pd.Series) -> list[pd.Series]:
    """The paths of each side in one spelling: / between parts, no ./ before them, names as they look, in lower case.

    Where a side has two photos whose paths then are the same, these keep their own spelling, on all sides.
    """
    slashed = [paths.str.replace("\\", "/").str.removeprefix("./") for paths in sides]
    seen = [paths.map(_as_it_looks) for paths in slashed]
    doubtful: set[str] = set()
    for own, looks in zip(slashed, seen, strict=True):
        doubtful.update(looks[looks.duplicated(keep=False) & ~own.duplicated(keep=False)])
    return [looks.mask(looks.isin(doubtful), own) for own, looks in zip(slashed, seen, strict=True)]


def _as_it_looks(path: str) -> str:
    return "/".join(map(normal, path.split("/"))).casefold()


def _ends(paths: pd.Series, depth: int) -> pd.Series:
    """The last `depth` parts of each path, None where two have the same."""
    ends = paths.str.split("/").str[-depth:].str.join("/")
    return ends.where(~ends.duplicated(keep=False), None)


def photo_keys(a: pd.Series, b: pd.Series) -> tuple[list[pd.Series], int]:
    """What identifies a photo on both sides (None: nothing does), and how many parts of the path that is; 0: all.

    Where any whole path matches, whole paths: a shorter end would pair apple/7.jpg with the cherry/7.jpg of photos that
    only one side has. Else that many parts of the end, two or more, that pair most photos; else file names.
    """
    plain = plain_paths(a, b)
    if set(plain[0]) & set(plain[1]):
        return plain, 0
    best, most, matched_parts = plain, 0, 0
    for parts in range(MAX_PATH_PARTS, 0, -1):
        if parts == 1 and most:
            break
        ends = [_ends(side, parts) for side in plain]
        if (pairs := len(set(ends[0].dropna()) & set(ends[1].dropna()))) > most:
            best, most, matched_parts = ends, pairs, parts
    return best, matched_parts
