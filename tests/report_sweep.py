"""A finished sweep's folder made of tables alone, for tests of the report: drawn photos, predictions, curves, heat."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from support import draw_shapes

from fruitlib.core import config as configs
from fruitlib.evaluation.metrics import confusion_matrix, scores, wilson

CLASSES = ["bar", "cross", "disc"]


def write_report_sweep(folder: Path, runs: int = 4, per_class: int = 10, epochs: tuple = (1, 5), **changes) -> Path:
    """A sweep of `runs` over lr and optimizer on 3 x `per_class` validation photos in groups of five; returns it."""
    photos = draw_shapes(folder / "photos", per_class)
    sweep, paths = folder / "sweep", [f"{label}/{n:03d}.png" for label in CLASSES for n in range(per_class)]
    labels = np.repeat(np.arange(3), per_class)
    sweep.mkdir()
    groups = [f"{path.split('/')[0]} {int(path[-7:-4]) // 5}" for path in paths]
    manifest = {"path": paths, "label": [CLASSES[k] for k in labels], "group": groups, "split": "val", "fold": ""}
    manifest |= {"status": "ok", "reason": "", "width": 40, "height": 40, "sha256": "", "phash": "", "bits": 0}
    pd.DataFrame(manifest).to_csv(sweep / "manifest.csv", index=False)
    (sweep / "manifest.json").write_text(json.dumps({"class_names": CLASSES, "listing": "3 classes", "notes": []}))
    config = configs.make({"data": str(photos), "image_size": 32}, "test")
    rows, listed = [], []
    for number in range(runs):
        settings = {"lr": round(0.001 * (1 + number // 2), 6), "optimizer": ("adam", "sgd")[number % 2]}
        name = ",".join(f"{key}={value}" for key, value in settings.items())
        (sweep / name / "cams").mkdir(parents=True)
        text = yaml.safe_dump({"settings": config.model_dump(), "record": {}})
        (sweep / name / "params.yaml").write_text(text)
        rows.append({"run": name, **settings} | _write_run(sweep / name, number, paths, labels, epochs))
        listed.append({"name": name, "state": "complete", "settings": settings, "error": None, "stages": []})
        listed[-1]["candidate"] = True
    listed.append({"name": "lr=9,optimizer=adam", "state": "failed", "settings": {"lr": 9, "optimizer": "adam"}})
    pd.DataFrame(rows).to_csv(sweep / "results.csv", index=False)
    best = max(rows, key=lambda row: row["macro_f1"])["run"]
    record = {"title": "Shapes", "params_file": "params/shapes.yaml", "data": "shapes", "runs": listed, "chosen": best}
    record |= {"choose_by": "macro_f1", "group_word": "variety", "versions": {"torch": "2"}}
    (sweep / "sweep.json").write_text(json.dumps(record | changes))
    return sweep


def _write_run(folder: Path, number: int, paths: list[str], labels: np.ndarray, epochs: tuple) -> dict:
    """A run's files from a network that is drawn by chance, the later the better; its row of the results."""
    rng = np.random.default_rng(number)
    logits = rng.normal(size=(len(labels), 3)) + (1 + 0.3 * min(number, 5)) * np.eye(3)[labels]
    probs = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).round(6)
    predicted = probs.argmax(1)
    table = {"path": paths, "label": [CLASSES[k] for k in labels], "predicted": [CLASSES[k] for k in predicted]}
    table |= {f"p_{name}": probs[:, k] for k, name in enumerate(CLASSES)} | {"backend": "torch"}
    pd.DataFrame(table).to_csv(folder / "predictions_val.csv", index=False)
    steps = np.arange(1, 9)
    history = {"epoch": steps, "train_loss": 1.2 / steps, "val_loss": 1 / steps + 0.1, "val_macro_f1": 1 - 0.6 / steps}
    pd.DataFrame(history).to_csv(folder / "history.csv", index=False)
    followed = [paths[0], paths[len(paths) // 3], paths[-1]]
    for epoch in epochs:
        heat = np.zeros((3, 2, 32, 32), np.float16)
        heat[:, 0, 4:16, 4 : 10 + epoch] = 1
        heat[:, 1, 18:30, 18:30] = 0.8
        arrays = {"paths": np.array(followed), "heatmap": heat, "layer_names": np.array(["conv1", "conv2"])}
        np.savez_compressed(folder / "cams" / f"epoch_{epoch:04d}.npz", **arrays)
    found = scores(confusion_matrix(labels, predicted, 3))
    low, high = wilson(found["correct"], found["n"])
    return found | {"accuracy_low": low, "accuracy_high": high, "val_loss": 0.5, "latency_ms_fp32": 10.0 - number}
