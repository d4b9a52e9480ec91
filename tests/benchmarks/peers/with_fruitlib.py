"""fruitlib as a library, without notebooks: photos checked, divided and decoded, trained, validated; its own history.

For precision `default` nothing is trained, and the JSON says what the settings come to. $FRUITLIB_HOME names the folder
that all is written to.
"""

import common

import fruitlib  # noqa: F401  (sets how torch's threads wait, before torch loads)

# isort: split
from pathlib import Path

from fruitlib.core import config, files, machine
from fruitlib.data import splits
from fruitlib.runs.run import create_run
from fruitlib.training import precision as precisions
from fruitlib.training import train as training

NETWORKS = {common.THREE_CONVOLUTIONS: "end2end"}


def train(options, precision: str, clock: common.Clock) -> dict:
    """Train, validate after every epoch; the weights are saved in the run's folder."""
    settings = {
        "data": options.folder,
        "test_per_class": 0,
        "model": NETWORKS.get(options.network, options.network),
        "weights": "none",
        "image_size": options.side,
        "augment": "crop",
        "batch_size": options.batch,
        "lr": common.LR,
        "epochs": options.epochs,
    }
    settings |= {} if precision == "default" else {"precision": precision}
    cfg, folder = config.make(settings), files.home() / "executed" / Path(options.weights).stem
    if precision == "default":
        return {"precision": precisions.choose(cfg, machine.device()).precision}
    splits.prepare_manifest(cfg, folder)
    run = create_run(folder / precision, cfg)
    history, photos = training.fit(run), run.record("train")["photos_per_epoch"]
    clock.photos = [photos] * len(history)
    clock.seconds = [photos / rate for rate in history["photos_per_second"]]
    return {}


if __name__ == "__main__":
    common.main(train)
