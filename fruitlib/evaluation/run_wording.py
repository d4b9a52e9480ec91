"""How far a run's probabilities may be trusted, in sentences: class shares, confidence, answering alone.

Beside `wording`, which has the room's other sentences.
"""

from collections.abc import Sequence

from fruitlib.evaluation.answering import FEWEST_OF_CLASS, Answering, Conformal, RunAnswering
from fruitlib.evaluation.calibration import FEWEST_PHOTOS, Calibration, Gap
from fruitlib.evaluation.prevalence import Accuracies, PriorShift
from fruitlib.evaluation.wording import plural, plural_of

LISTED = 20  # classes named in a sentence, at most


def _speaks_of(judged: Gap | Answering, word: str) -> str:
    """`on new varieties: 8 varieties, 960 photos` or `on new photos: 30 photos`."""
    if not judged.groups:
        return f"on new photos: {plural(judged.n, 'photo')}"
    return f"on new {plural_of(word)}: {plural(judged.groups, word)}, {plural(judged.n, 'photo')}"


def shares_text(accuracies: Accuracies, shares: Sequence[float], class_names: Sequence[str]) -> str:
    """Accuracy at equal class shares, and with its interval at those where the model is used."""
    each = [f"{name} {share:.0%}" for name, share in zip(class_names, shares, strict=True)]
    where = ", ".join(each[:LISTED]) + (f" and {len(each) - LISTED:,} other classes" if len(each) > LISTED else "")
    interval = f"95 % interval {accuracies.low:.2f}–{accuracies.high:.2f}"
    return (
        f"accuracy {accuracies.equal:.2f} at equal class shares; {accuracies.used:.2f} ({interval}) where used: {where}"
    )


def prior_shift_text(shift: PriorShift) -> str:
    """Whether moving probabilities from the training shares to equal ones is a gain."""
    if shift.equal:
        return "training gave all classes equal shares: there is no prior to move"
    change = f"macro-F1 at equal class shares {shift.before:.2f} -> {shift.after:.2f}"
    moved = "probabilities moved from the training shares to equal ones"
    text = f"{moved}: {change}, {plural(shift.better, 'photo')} better, {shift.worse} worse (n = {shift.n})"
    if shift.recommended:
        return f"{text}, p = {shift.p:.2g}: a free gain where all classes count alike"
    if shift.p < 0.05:
        return f"{text}, p = {shift.p:.2g}: a loss; leave them as they are"
    return f"{text}: no proven difference (p = {shift.p:.2g})"


def gap_text(gap: Gap, word: str = "group") -> str:
    """Confidence beside accuracy, both where the model is used, and what the difference says."""
    verdict = "these photos do not show that it is too sure, or not sure enough"
    if gap.significant:
        verdict = "overconfident" if gap.value > 0 else "not sure enough"
    return (
        f"mean confidence {gap.confidence:.2f}, accuracy {gap.accuracy:.2f}: gap {gap.value:+.2f} (95 % interval "
        f"{gap.low:+.2f} to {gap.high:+.2f} {_speaks_of(gap, word)}): {verdict}"
    )


def calibration_text(found: Calibration, word: str = "group") -> str:
    """The gap, the calibration error beside what chance makes, the temperature; a line each."""
    lines = [gap_text(found.gap, word)]
    verdict = "more than chance explains" if found.beyond else "chance alone may explain it"
    expected = f"a perfectly calibrated model would show {found.chance.mean():.3f} here"
    lines += [f"calibration error {found.ece:.3f}; {expected}: {verdict}", temperature_text(found)]
    if found.gap.n < FEWEST_PHOTOS:
        few = f"{found.gap.n} photos leave a few for each bin; from {FEWEST_PHOTOS} photos on there is one"
        lines.append(f"no reliability diagram: {few}")
    return "\n".join(lines)


def temperature_text(found: Calibration) -> str:
    """The temperature, where one is called for."""
    if found.gap.accuracy == 1:
        return "temperature: nothing is wrong, so any confidence is too low for these photos; none is suggested"
    if not found.gap.significant:
        return f"temperature {found.temperature:.2f} would fit these photos best; none is called for, the gap may be 0"
    better = f"falls from {found.ece:.3f} to {found.scaled_ece:.3f}"
    change = better if found.scaled_ece < found.ece else f"does not fall ({found.ece:.3f}, {found.scaled_ece:.3f})"
    return f"divide the logits by {found.temperature:.2f} (the temperature): the error on other photos {change}"


def answering_text(found: RunAnswering, word: str = "group") -> str:
    """The threshold, the sets of classes, and of which photos they speak; a line each."""
    which = "out-of-fold predictions" if found.pooled else "validation predictions"
    lines = [
        f"from {which}: {alone_text(found.alone, word)}",
        conformal_text(found.conformal, found.alone.groups, word),
    ]
    return "\n".join([*lines, *filter(None, [answering_shares_text(found)])])


def alone_text(alone: Answering, word: str = "group") -> str:
    """Above which confidence the model may answer alone, or what a proof would need."""
    if alone.proven:
        level = (
            f"above {alone.above:.3g} it answers {alone.answered:.0%} of photos" if alone.above else "it may answer all"
        )
        return f"{level} and is wrong in at most {alone.bound:.1%} of them (95 % bound, {_speaks_of(alone, word)})"
    shown = f"that at most {alone.max_error:.0%} are wrong"
    have = plural(alone.groups, word) if alone.groups else plural(alone.n, "photo")
    if not alone.needed:
        return f"{have} cannot show {shown}, and no number of {plural_of(word)} as small as these could"
    if (alone.groups or alone.n) >= alone.needed:
        return (
            f"no confidence is proven above which at most {alone.max_error:.0%} are wrong ({have}): it errs too often"
        )
    needed = plural(alone.needed, word) if alone.groups else alone.needed
    return f"{have} cannot show {shown}: {needed} without a mistake would be needed"


def conformal_text(conformal: Conformal | None, groups: int, word: str = "group") -> str:
    """What the sets of classes look like, and of what they speak."""
    if conformal is None:
        return f"no sets of classes: they need {FEWEST_OF_CLASS} photos of each class"
    text = (
        f"sets that hold the true class for 90 % of new photos of each class: {conformal.mean_size:.2f} classes on "
        f"average, {conformal.single:.0%} hold a single one"
    )
    text += f", {conformal.empty:.0%} none (unlike any class)" if conformal.empty else ""
    new = plural_of(word)
    return text + (f"; for photos of new {new} they are too small ({plural(groups, word)})" if groups else "")


def answering_shares_text(found: RunAnswering) -> str:
    """Of which class shares the threshold speaks, where the model will be used at others; "" where it is not."""
    if not found.other_shares:
        return ""
    there, used = (
        ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        for shares in (found.photo_shares, found.deploy_shares)
    )
    return f"this speaks of photos with these class shares: {there}; where the model is used they are {used}"
