"""model.md: what a run's exported files are, of what their numbers speak, and how to call them.

It contains only what the run's files and the sweep's hold; what is missing is left out.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import fields
from importlib import resources
from pathlib import Path

import pandas as pd

from fruitlib.core import files, model_names, texts
from fruitlib.core.errors import InputError
from fruitlib.core.files import display_path
from fruitlib.data.splits import SPLIT_NAMES
from fruitlib.deploy import predict, verify
from fruitlib.deploy.int8_verdict import BROKEN, NOT_MADE
from fruitlib.deploy.model_files import FILES
from fruitlib.deploy.test_scores import TEST_FILE
from fruitlib.deploy.verify import ExportRecord
from fruitlib.evaluation import crossval, run_wording, wording
from fruitlib.evaluation.answering import ANSWERING_FILE, NONE, Answering
from fruitlib.evaluation.intervals import Share
from fruitlib.evaluation.validation import METRICS_FILE
from fruitlib.runs.run import Run

CARD_FILE = "model.md"
OUT_OF_FOLD = "results_oof.csv"  # of a sweep with folds: a row per combination
FEW = 10  # photos of a class, too few for a number of its own
NAMED = 30  # classes that a sentence names, at most
SNIPPETS = {  # heading -> file in assets, language of the code
    "Python (`pip install numpy pillow onnxruntime`)": ("use.py", "python"),
    "C++17 (ONNX Runtime's C++ interface, and OpenCV to read the photo; fruitlib's tests do not compile it)": (
        "use.cpp",
        "cpp",
    ),
    "JavaScript, in Node.js (`npm install onnxruntime-node sharp`)": ("use.mjs", "js"),
    "JavaScript, in a browser (onnxruntime-web)": ("use.browser.js", "js"),
}


def write(run: Run) -> Path:
    """Write `model.md` beside an exported run's files; numbers of 03 and 06 are in it where these were executed.

    Raises:
        InputError: the run was not exported, or a file of it is missing or damaged.
    """
    export = verify.load_export_record(run)
    made = {backend: run.path / name for backend, name in FILES.items() if (run.path / name).is_file()}
    metadata = predict.read_metadata(run.path / FILES[export.shipped])
    if "temperature" not in metadata:
        file = display_path(run.path / FILES[export.shipped])
        raise InputError(f"{file}: of an earlier version of fruitlib, which took no photos; execute 05_quantize again")
    sections = [
        _title(run, export),
        _what_it_is(run, metadata),
        _photos(run),
        _numbers(run, export),
        _answering(run, metadata),
        _limits(run, metadata),
        _files(run, made, export),
        _how_to_call(run, FILES[export.shipped]),
    ]
    path = run.path / CARD_FILE
    files.write_text(path, "\n\n".join(filter(None, sections)) + "\n")
    return path


def escaped(text: object) -> str:
    """A text from elsewhere, such as a class's name, on one line and without a meaning in Markdown or HTML."""
    return re.sub(r"([\\`*\[\]<>|#&~!]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(str(text).split()))


def _title(run: Run, export: ExportRecord) -> str:
    title = f"# Model card: {escaped(run.name)}"
    return f"{title}\n\nThe file to use is `{FILES[export.shipped]}`. The run's own report says more."


def _what_it_is(run: Run, metadata: dict[str, str]) -> str:
    config, trained = run.config, run.record("train")
    weights = trained.get("weights", {})
    names = ", ".join(escaped(name) for name in run.class_names[:NAMED])
    names += " and others, in the table below" if len(run.class_names) > NAMED else ""
    lines = [
        f"- Classes ({len(run.class_names)}): {names}",
        f"- Network: {escaped(config.model)}, for images of {config.image_size} × {config.image_size} pixels"
        + (f"; an ensemble of {len(run.members)} models" if run.members else ""),
        f"- Input: {escaped(metadata.get('input', ''))}. The file resizes photos itself (`resize: {config.resize}`).",
        f"- Output: {escaped(metadata.get('output', ''))}; temperature {float(metadata['temperature']):.3g}",
    ]
    if weights.get("source", "fresh") != "fresh":
        lines.append(f"- Weights it was trained from: {escaped(_without_folder(weights))}")
        lines.append(f"- Of these weights: {escaped(model_names.licence_words(weights.get('licence', '')))}")
    elif weights:
        lines.append("- Weights: trained from fresh ones, none of others")
    if "heat" in metadata:
        lines.append(f"- Heat, where it looked: {escaped(metadata['heat'])}")
    return "## What it is\n\n" + "\n".join(lines)


def _without_folder(weights: Mapping[str, str]) -> str:
    """Where weights come from, in words; of a file of this machine the name alone."""
    file = weights.get("file") or ""
    return weights["summary"].replace(file, Path(file).name) if file else weights["summary"]


def _photos(run: Run) -> str:
    """What it was trained and tested on: photos and groups of each class and split."""
    parts = {split: run.rows(split) for split in SPLIT_NAMES}
    parts = {split: rows for split, rows in parts.items() if len(rows)}
    counts = pd.DataFrame({split: rows["label"].value_counts() for split, rows in parts.items()})
    counts = counts.reindex(run.class_names).fillna(0).astype(int)
    lines = [_row(["class", *(SPLIT_NAMES[split] for split in parts)]), _row(["---", *["---:"] * len(parts)])]
    lines += [_row([escaped(name), *(f"{count:,}" for count in row)]) for name, *row in counts.itertuples()]
    lines.append(_row(["all photos", *(f"{len(rows):,}" for rows in parts.values())]))
    groups = [rows.loc[rows["group"] != "", "group"].nunique() for rows in parts.values()]
    word = run.config.group_word
    if any(groups):
        lines.append(_row([escaped(wording.plural_of(word)), *(f"{count:,}" for count in groups)]))
    last = list(parts.values())[-1]
    text = f"Photos of {escaped(Path(run.config.data).name)} (fingerprint {run.data_fingerprint})."
    return f"## Photos\n\n{text}\n\n" + "\n".join(lines) + f"\n\n{wording.population_text(list(last['group']), word)}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _numbers(run: Run, export: ExportRecord) -> str:
    word, lines = run.config.group_word, []
    if content := _test_record(run):
        share = wording.share_text(_share(_test_numbers(content["numbers"])), word)
        lines.append(
            f"- Test accuracy of {content['shipped']}: {share}. No test photo had a part in training or choosing."
        )
    if pooled := pooled_numbers(run):
        text = f"- Out-of-fold accuracy: {wording.share_text(_share(pooled), word)}. "
        lines.append(text + "It judges the models of the folds, each on photos that it did not see.")
    elif content := run.read_json(METRICS_FILE):
        text = f"- Validation accuracy of the network: {wording.share_text(_share(content), word)}. "
        lines.append(text + "Where epochs or runs were chosen by these photos, it flatters.")
    lines.append(f"- {int8_text(export.record())}")
    return "## How good it is\n\n" + "\n".join(lines)


def _test_record(run: Run) -> dict:
    """The content of `test.json`; empty where it is of earlier files, or 06 was not executed."""
    return run.read_json(TEST_FILE) if run.is_complete("test") else {}


def _share(numbers: Mapping) -> Share:
    """Accuracy with its intervals, from numbers named as in `metrics.json`."""
    ends = (float(numbers.get(name, "nan")) for name in ("correlation", "same_low", "same_high"))
    accuracy, low, high = (numbers[name] for name in ("accuracy", "accuracy_low", "accuracy_high"))
    return Share(accuracy * numbers["n"], int(numbers["n"]), low, high, int(numbers["groups"]), *ends)


def _test_numbers(numbers: Mapping) -> dict:
    """The numbers of `test.json`, named as in `metrics.json`."""
    named = {name.removeprefix("test_"): value for name, value in numbers.items()}
    return named | {"accuracy_low": named["low"], "accuracy_high": named["high"]}


def pooled_numbers(run: Run) -> dict:
    """The row of the run's combination in the sweep's `results_oof.csv`; empty where there is none."""
    path = run.sweep_dir / OUT_OF_FOLD
    predictions, pooled = crossval.out_of_sample(run)
    if not pooled or not path.is_file():
        return {}
    table = files.read_csv(path, dtype={"combination": str}, keep_default_na=True)
    own = table[table["combination"] == predictions["combination"].iloc[0]]
    return own.iloc[0].dropna().to_dict() if len(own) else {}


def int8_text(numbers: Mapping) -> str:
    """The verdict on INT8, from the numbers of `export.json`."""
    state = numbers["int8_state"]
    if state == NOT_MADE:
        return f"There is no INT8 file: {escaped(numbers.get('int8_why', 'none was made'))}"
    text = f"INT8: {state}"
    if n := numbers.get("int8_n"):
        same, which = f"{numbers['int8_same']:,} of {n:,}", escaped(numbers.get("int8_photos", "photos"))
        text += f". It predicts what the network does on {same} {which}, and loses at most "
        text += f"{100 * numbers['int8_costs_at_most']:.1f} points of accuracy "
        text += "(95 % bound)"
    return f"{text}. Use fp32." if state == BROKEN else f"{text}."


def _answering(run: Run, metadata: Mapping[str, str]) -> str:
    """From which probability on it may answer alone, and what that speaks of; "" where the file does not say."""
    if "answer_above" not in metadata:
        return ""
    above, most = metadata["answer_above"], 100 * float(metadata["max_error"])
    wrong = f"at most {most:.3g} % of its answers are wrong"
    if above == NONE:
        lines = [f"- No probability is proven above which {wrong}: a person should look at every answer."]
    else:
        lines = [f"- It may answer alone where its probability is above {float(above):.3g}: {wrong}."]
        lines.append("- Where its probability is lower, a person should look.")
    if content := run.read_json(ANSWERING_FILE):
        names = [field.name for field in fields(Answering) if field.name != "curve"]
        alone = Answering(**{name: content.get(name, math.nan) for name in names}, curve=pd.DataFrame())
        which = "out-of-fold" if content["pooled"] else "validation"
        lines.append(f"- From {which} predictions: {run_wording.alone_text(alone, run.config.group_word)}.")
    shares = json.loads(metadata.get("class_shares") or "{}")
    listed = ", ".join(f"{escaped(name)} {share:.0%}" for name, share in list(shares.items())[:NAMED])
    more = f" and {len(shares) - NAMED:,} others" if len(shares) > NAMED else ""
    lines.append(
        f"- Threshold and sets hold for photos with these class shares: {listed}{more}. The temperature is fitted for "
        "the shares that `deploy_shares` names, else for those of the folder."
    )
    return "## When it may answer alone\n\n" + "\n".join(lines)


def _limits(run: Run, metadata: Mapping[str, str]) -> str:
    lines = [
        "- It names one of its classes for every photo, also for one that shows none of them.",
        "- It was tried on photos like those above only; other cameras, light and backgrounds were not tried.",
    ]
    last = "test" if _test_record(run) else "val"
    if last == "val":
        lines.append("- It was not tried on test photos: 06 was not executed for it.")
    counts = run.rows(last)["label"].value_counts().reindex(run.class_names).fillna(0)
    few = [escaped(name) for name in run.class_names if counts[name] < FEW]
    if few:
        which = "test" if last == "test" else "validation"
        lines.append(
            f"- Fewer than {FEW} {which} photos each, too few to judge a class alone: {texts.some(few, NAMED)}."
        )
    if (cut := metadata.get("cut_to", "none")) != "none":
        lines.append(f"- Training photos were cut to their {cut}. Cut photos likewise; the file does not.")
    return "## Limits\n\n" + "\n".join(lines)


def _files(run: Run, made: Mapping[str, Path], export: ExportRecord) -> str:
    """Size, time for a photo and SHA-256 of each file."""
    numbers, side = export.record(), run.config.image_size
    lines = [_row(["file", "size", f"one photo of {side} × {side} pixels, one CPU thread", "SHA-256"])]
    lines.append(_row(["---", "---:", "---:", "---"]))
    for backend, path in made.items():
        time = numbers.get(f"latency_ms_{backend}")
        shown = f"{time:.2f} ms" if time else ""
        lines.append(_row([f"`{path.name}`", f"{path.stat().st_size / 1e6:.2f} MB", shown, f"`{files.sha256(path)}`"]))
    return "## Files\n\n" + "\n".join(lines)


def _how_to_call(run: Run, name: str) -> str:
    classes = ", ".join(json.dumps(one, ensure_ascii=False) for one in run.class_names)
    parts = ["## How to call it", "Photos must be upright. Answer alone only above the probability named above."]
    for heading, (file, language) in SNIPPETS.items():
        code = (resources.files("fruitlib.deploy") / "assets" / file).read_text("utf-8")
        code = code.replace("model.onnx", name).replace("CLASSES", classes)
        parts.append(f"### {heading}\n\n```{language}\n{code}```")
    return "\n\n".join(parts)
