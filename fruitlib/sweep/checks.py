"""What is checked before a sweep writes anything: its notebooks, weights, photos and this machine."""

from fruitlib.core import files, machine, texts
from fruitlib.core.config import Config
from fruitlib.core.errors import InputError
from fruitlib.core.model_names import BASE_CLASSES, TIMM
from fruitlib.data import sources
from fruitlib.evaluation import prevalence
from fruitlib.runs.stages import notebook_path
from fruitlib.sweep import final_model, worker
from fruitlib.sweep.final_model import RUN_STAGES, TEST_STAGE
from fruitlib.sweep.params import Sweep


def possible_configs(plan: Sweep) -> list[Config]:
    """The settings of all runs; of a search, those at the corners of its space."""
    return plan.search.corners if plan.search else list(plan.runs.values())


def check_plan(plan: Sweep) -> list[str]:
    """Refuse a sweep whose notebooks or weights are missing, or whose settings this machine cannot use.

    Returns:
        a line for each of the weights that its runs start from: where they come from, and what proves them.
    """
    for stage in (*worker.SWEEP_STAGES, *RUN_STAGES, TEST_STAGE):
        if not notebook_path(stage).is_file():
            raise InputError(f"{notebook_path(stage)}: no such notebook; set FRUITLIB_HOME to the project folder")
    final_model.check_final(plan)
    for config in possible_configs(plan):
        if config.base_weights and not files.resolve(config.base_weights).is_file():
            raise InputError(f"base_weights {config.base_weights}: no such file; params/base_model.yaml trains one")
        named = config.weights in ("none", "DEFAULT", "package")
        if not named and not files.resolve(config.weights).is_file():
            wanted = "set none, DEFAULT, package or the path of a file"
            raise InputError(f"weights {config.weights}: no such file; {wanted}", "weights")
    return _check_with_torch(plan)


def _check_with_torch(plan: Sweep) -> list[str]:
    """Check what needs torch, and so some seconds to import it."""
    all_configs = possible_configs(plan)
    starts = {}
    for config in all_configs:
        of_timm = config.model.startswith(TIMM)  # which may take some sizes only
        if of_timm or config.weights != "none" or config.base_weights:
            key = (config.model, config.weights, config.base_weights, config.image_size if of_timm else 0)
            starts.setdefault(key, config)
    lower = [config for config in all_configs if config.precision in ("bf16", "fp16")]
    if not (starts or lower):
        return []
    from fruitlib.training import models, precision

    origins = [f"{config.model}: {models.check_start_weights(config)}" for config in starts.values()]
    for config in lower:
        precision.check_precision(config, machine.device())
    return list(dict.fromkeys(origins))


def check_classes(plan: Sweep, progress) -> None:
    """Refuse settings that do not fit the photos' classes, before any run starts.

    `progress` is called while photos are drawn.

    Raises:
        InputError: share_class or deploy_shares name a class that is none, or model base has not its five classes.
    """
    configs = possible_configs(plan)
    if not any(config.model == "base" or config.share_class or config.deploy_shares for config in configs):
        return
    sources.ready(plan.config.data, progress, plan.config.photos_dir)
    classes = sorted(sources.scan(plan.config)[0]["label"].unique())
    for config in configs:
        if config.model == "base" and len(classes) != BASE_CLASSES:
            raise InputError(
                f"model base has {BASE_CLASSES} classes, the photos have {len(classes)}: use model end2end", "model"
            )
        if config.share_class and texts.normal(config.share_class) not in classes:
            known = f"no such class among {', '.join(classes)}"
            raise InputError(f"share_class = {config.share_class}: {known}", "share_class")
        if config.deploy_shares:
            prevalence.shares_in_order(config.deploy_shares, classes)
