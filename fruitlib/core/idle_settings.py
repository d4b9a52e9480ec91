"""Settings that change nothing, given the others."""

from fruitlib.core.config import Config
from fruitlib.core.model_names import FITTED_HEADS

# What only a training in steps and epochs uses; a fitted head has none
TRAINING_LOOP = ["dropout", "layer_decay", "lr", "optimizer", "momentum", "weight_decay", "scheduler", "warmup_epochs"]
TRAINING_LOOP += ["batch_size", "micro_batch", "clip_norm", "ema", "epochs", "loss", "label_smoothing", "monitor"]
TRAINING_LOOP += ["focal_ratio", "focal_gamma", "patience", "min_delta", "keep"]
TRAINING_LOOP += ["precision", "memory_format", "compile", "processes", "unfreeze_every"]


def settings_without_effect(config: Config) -> set[str]:
    """Settings that change nothing, given the others: runs that differ only in them would be the same run twice."""
    used = {
        "focal_gamma": config.loss in ("focal", "mix"),
        "focal_ratio": config.loss == "mix",
        "momentum": config.optimizer in ("sgd", "rmsprop"),
        "min_delta": bool(config.patience) or config.scheduler == "plateau",
        "share_class": config.train_share < 1,
        "mixing_alpha": config.mixing != "none",
        "crop_margin": config.crop_to != "none",
    }
    if config.head in FITTED_HEADS:
        used |= dict.fromkeys(TRAINING_LOOP, False)
        used["balance"] = config.head != "prototypes" or config.balance == "smote"
    return {name for name, has_effect in used.items() if not has_effect}
