"""In which order the runs, or combinations, of a sweep stand: the sweep's choice, 07, the terminal and the report."""

import math
from collections.abc import Mapping

from fruitlib.core.texts import number

DIGITS = 9  # to which scores are compared: the same photos summed in another order are a tie


def place(row: Mapping, choose_by: str, chosen: bool = False) -> tuple:
    """What rows of a results table are sorted by: the highest `choose_by` first, rows without that number last.

    Of equals the `chosen` one is first, then the one with the lower val_loss; else their order stays.
    """
    score, loss = number(row.get(choose_by)), number(row.get("val_loss"))
    if math.isnan(score):
        return (1,)
    return 0, -round(score, DIGITS), not chosen, math.inf if math.isnan(loss) else loss
