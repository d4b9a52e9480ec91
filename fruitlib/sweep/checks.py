"""What is checked before a sweep writes anything: its notebooks, weights, photos and this machine."""

from fruitlib.core import files, machine
from fruitlib.core.config import Config
from fruitlib.core.errors import InputError
from fruitlib.core.model_names import BASE_CLASSES
from fruitlib.data import sources
from fruitlib.runs.stages import notebook_path
from fruitlib.sweep import final_model, worker
from fruitlib.sweep.final_model import RUN_STAGES, TEST_STAGE
from fruitlib.sweep.params import Sweep


def possible_configs(plan: Sweep) -> list[Config]:
    """The settings of all runs; of a search, those at the corners of its space."""
    return plan.search.corners if plan.search else list(plan.runs.values())


def check_plan(plan: Sweep) -> None:
    """Refuse a sweep whose notebooks or weights are missing, or whose settings this machine cannot use."""
    for stage in (*worker.SWEEP_STAGES, *RUN_STAGES, TEST_STAGE):
        if not notebook_path(stage).is_file():
            raise InputError(f"{notebook_path(stage)}: no such notebook; set FRUITLIB_HOME to the project folder")
    final_model.check_final(plan)
    for config in possible_configs(plan):
        if config.base_weights and not files.resolve(config.base_weights).is_file():
            raise InputError(f"base_weights {config.base_weights}: no such file; params/base_model.yaml trains one")
        if config.weights not in ("none", "DEFAULT") and not files.resolve(config.weights).is_file():
            raise InputError(f"weights {config.weights}: no such file; wanted none, DEFAULT or a checkpoint")
    _check_with_torch(plan)


def _check_with_torch(plan: Sweep) -> None:
    """Check what needs torch, and so some seconds to import it."""
    all_configs = possible_configs(plan)
    starts = {(c.model, c.weights, c.base_weights): c for c in all_configs if c.weights != "none" or c.base_weights}
    lower = [config for config in all_configs if config.precision in ("bf16", "fp16")]
    if starts or lower:
        from fruitlib.training import models, precision

        for config in starts.values():
            models.check_start_weights(config)
        for config in lower:
            precision.check_precision(config, machine.device())


def check_class_count(plan: Sweep, progress) -> None:
    """Refuse model base if the photos do not have five classes. `progress` is called while photos are drawn."""
    if all(config.model != "base" for config in possible_configs(plan)):
        return
    sources.ready(plan.config.data, progress)
    classes = sources.scan(plan.config)[0]["label"].nunique()
    if classes != BASE_CLASSES:
        raise InputError(f"model base has {BASE_CLASSES} classes, the photos have {classes}: use model end2end")
