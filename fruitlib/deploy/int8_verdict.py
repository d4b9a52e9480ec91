"""Whether a network's INT8 file is broken, and what it costs in accuracy at most.

Judged on photos that did not train the network: a run's validation photos, or those of all folds of its combination,
which are more. `int8_photos.csv` holds what torch and INT8 predict for each of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from fruitlib.core import files
from fruitlib.evaluation import intervals
from fruitlib.evaluation.wording import plural, plural_of
from fruitlib.runs.run import INT8_PHOTOS, Run

BROKEN, PROVEN, UNPROVEN = "broken", "costs at most the margin", "not broken; cost unproven"
NOT_MADE = "not made"  # there is no INT8 file


@dataclass(frozen=True)
class Int8Verdict:
    """INT8 against torch on `n` photos: what was counted, and what follows.

    The bound `costs_at_most` counts lost photos only, gains not, so it is safe. It speaks of new groups where photos
    share any; there `same_groups_at_most` is the bound that counts photos as independent, NaN elsewhere.
    """

    n: int
    same: int  # INT8 predicts what torch does
    lost: int  # torch is right and INT8 is not
    won: int  # INT8 is right and torch is not
    state: str  # BROKEN, PROVEN, UNPROVEN or NOT_MADE
    costs_at_most: float  # one-sided 95 % upper end of the share of photos lost
    same_groups_at_most: float = float("nan")
    groups: int = 0  # groups of photos, each photo alone being one; 0 where no two photos share one
    photos: str = "validation photos"  # which these are
    group_word: str = "group"
    finite: bool = True  # whether INT8 gives numbers
    why: str = ""  # there is no INT8 file

    @classmethod
    def not_made(cls, why: str) -> "Int8Verdict":
        """The verdict where there is no INT8 file, and why."""
        return cls(0, 0, 0, 0, NOT_MADE, float("nan"), why=why)

    @property
    def summary(self) -> str:
        """The verdict with its counts and the bound."""
        if self.state == NOT_MADE:
            return f"no INT8 file: {self.why}"
        if not self.finite:
            return "INT8 is broken: its logits are not finite; use fp32"
        if self.state == BROKEN:
            return f"INT8 is broken: it predicts torch's label on {self.same} of {self.n} {self.photos}; use fp32"
        if not self.n:
            return "INT8 is not broken, its cost unproven: it has no validation photos, and no fold was exported"
        lost = f"{self.lost} of {self.n} {self.photos} lost: at most {_points(self.costs_at_most)} of accuracy"
        if self.groups:
            here = _points(self.same_groups_at_most)
            lost += f" on new {plural_of(self.group_word)} ({self.groups}); {here} on more photos of these"
        return f"INT8 is {'proven' if self.state == PROVEN else 'not broken, its cost unproven'}: {lost}"


def _points(share: float) -> str:
    points = 100 * share
    return f"{points:.1f} points" if points < 20 else f"{points:.0f} points"


def judge_int8(
    table: pd.DataFrame,
    groups: Sequence[str] | None = None,
    margin: float = 0.03,
    agreement: float = 0.9,
    **words,
) -> Int8Verdict:
    """The verdict from a row per photo with label, torch and int8, the last two being what each predicts.

    Broken: the upper 97.5 % end of the share with torch's label (Clopper and Pearson 1934) is below `agreement`. Costs
    at most the margin: so is the one-sided 95 % upper end of the share lost, in groups that of
    `intervals.new_group_interval`. With no photo lost that takes 99 photos alone for a margin of three points.

    Args:
        margin: the setting int8_margin.
        agreement: the setting int8_agreement.
        words: `photos` and `group_word` of the verdict.
    """
    right = {name: (table[name] == table["label"]).to_numpy() for name in ("torch", "int8")}
    same, n = int((table["torch"] == table["int8"]).sum()), len(table)
    lost, won = right["torch"] & ~right["int8"], right["int8"] & ~right["torch"]
    alone = intervals.share_at_most(int(lost.sum()), n)
    unit, grouped = intervals.units_of(n, groups)
    most = intervals.new_group_share_at_most(lost, unit) if grouped else alone
    broken = n > 0 and intervals.share_at_most(same, n, 0.975) < agreement
    return Int8Verdict(
        n=n,
        same=same,
        lost=int(lost.sum()),
        won=int(won.sum()),
        state=BROKEN if broken else PROVEN if most <= margin else UNPROVEN,
        costs_at_most=most,
        same_groups_at_most=alone if grouped else float("nan"),
        groups=int(unit.max()) + 1 if grouped else 0,
        **words,
    )


def judge_run(run: Run, tried: pd.DataFrame, on_validation: bool, finite: bool) -> Int8Verdict:
    """The verdict on a run's INT8 file; with folds, on the photos of all folds that were exported before it, too.

    A model without validation photos waits for folds that are exported beside it. Where the photos it was tried on say
    alone that it is broken, it is, though they may have trained it.

    Args:
        tried: path, label, torch and int8 of the photos that this file was tried on.
        on_validation: whether these are validation photos.
        finite: whether INT8 gives numbers.
    """
    config, kind = run.config, "validation photos" if on_validation else "training photos"
    limits = {"margin": config.int8_margin, "agreement": config.int8_agreement, "group_word": config.group_word}
    own = judge_int8(tried, run.groups(tried["path"]), photos=kind, **limits)
    if not finite or own.state == BROKEN:
        return replace(own, state=BROKEN, finite=finite)
    tables = [tried] if on_validation else []
    for fold in (siblings := run.sibling_folds()):
        if not on_validation:
            fold.wait_for("export")
    tables += [table for fold in siblings if len(table := load_photos(fold))]
    photos = pd.concat(tables, ignore_index=True) if tables else tried[:0]
    if config.folds:
        kind = f"out-of-fold photos of {plural(len(tables), 'fold')}"
    return judge_int8(photos, run.groups(photos["path"]), photos=kind, **limits)


def load_photos(run: Run) -> pd.DataFrame:
    """path, label, torch and int8 of a run that was exported, from `int8_photos.csv`; empty where it was not, or has
    no INT8 file.
    """
    path = run.path / INT8_PHOTOS
    if not path.is_file() or not (run.path / "export.json").is_file():
        return pd.DataFrame(columns=["path", "label", "torch", "int8"])
    return files.read_csv(path, dtype=str, keep_default_na=False)
