"""The answer of 02: what a training came to. Apart from `train`, so that a change of words trains nothing again."""

from fruitlib.evaluation import intervals, metrics, wording
from fruitlib.runs.run import Run


def training_answer(run: Run) -> tuple[str, dict[str, float]]:
    """Score of the kept epoch on the validation photos, which epoch it is, and seconds: a sentence, and numbers."""
    trained, rows = run.record("train"), run.predictions("val")
    which = "the last" if trained["keep"] == "last" else f"the best of {trained['epochs']}"
    ended = f"epoch {trained['kept_epoch']} is kept, {which}; {trained['seconds']:.0f} s of training"
    if head := trained.get("head"):
        chosen = f" with {head['word']} = {head['strength']:g}" if head["word"] else ""
        ended = f"head {head['kind']}, fitted on frozen features{chosen}; {trained['seconds']:.0f} s"
    numbers = {"n": len(rows), "seconds": trained["seconds"], "kept_epoch": trained["kept_epoch"]}
    if rows.empty:
        return f"Trained on all {len(run.rows('train'))} photos, none validate; {ended}", numbers
    share = intervals.share_of(rows["label"] == rows["predicted"], run.groups(rows["path"]))
    scores = metrics.scores(metrics.confusion_from_names(rows["label"], rows["predicted"], run.class_names))
    accuracy = wording.share_text(share, run.config.group_word)
    numbers |= {name: scores[name] for name in ("macro_f1", "accuracy")}
    return f"Validation macro-F1 {scores['macro_f1']:.3f}, accuracy {accuracy}; {ended}", numbers
