"""How the training that a run's folder holds differs from the one that is asked for, in words."""

import contextlib

from fruitlib.core import files
from fruitlib.core.config import TRAIN_SETTINGS, Config
from fruitlib.core.errors import InputError

MOST = 4  # settings that are named


def words(held: dict, config: Config, same_photos: bool) -> str:
    """`lr = 0.001, here 0.003`, of settings as they were `held`; or what else must differ."""
    settings = config.model_dump(include=set(TRAIN_SETTINGS))
    names = [name for name, value in held.items() if settings.get(name, value) != value]
    if names:
        more = f"; {len(names) - MOST} more" if len(names) > MOST else ""
        return "; ".join(f"{name} = {held[name]}, here {settings[name]}" for name in names[:MOST]) + more
    return "by other code, or from other starting weights" if same_photos else "other photos, labels or split"


def say_what_is_replaced(run) -> None:
    """Print why the finished training of a `Run` is removed, if it is: a setting changed by hand trains again."""
    with contextlib.suppress(InputError, OSError):  # damaged records, which are removed with it
        if run.record("train"):
            held, record = run.params["settings"], run.params["record"]
            why = words(held, run.config, record.get("data_fingerprint") == run.data_fingerprint)
            print(f"{files.display_path(run.path)} holds another training ({why}): it is replaced, 02 trains again")
