"""`Config`: every setting with its type, range, default and help; which settings belong to which stage."""

import itertools
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fruitlib.core import model_names
from fruitlib.core.errors import InputError
from fruitlib.core.model_names import FITTED_HEADS, OURS
from fruitlib.core.setting_errors import explain, setting_kind


class Config(BaseModel):
    """All settings of one run. Unknown names, wrong types and values out of range are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    data: str = Field(
        "sample", min_length=1, description="sample, sample5, a folder, a table, or COCO, YOLO, VOC files"
    )
    columns: dict[str, str] = Field({}, description="a table's names for path, label, group, split, x, y, w, h …")
    photos_dir: str = Field("", description="folder that a table's paths start from; empty: the table's own")
    group_pattern: str = Field("", description="file names with the group first: <variety>__<view>; empty: none")
    bad_photos: Literal["quarantine", "stop"] = Field(
        "quarantine", description="a photo that does not open: quarantine | stop"
    )
    min_side: int = Field(16, ge=1, description="photos with a shorter side are quarantined, pixels")
    max_megapixels: float = Field(
        89, gt=0, le=2000, description="larger photos are quarantined, million pixels; above 89 read at reduced scale"
    )
    near_duplicates: Literal["group", "ignore"] = Field(
        "group", description="photos that look alike: group (kept on one side) | ignore"
    )
    corrections: str = Field("auto", min_length=1, description="labels corrected by hand: auto | none | a CSV file")
    subset: float = Field(1.0, gt=0, le=1, description="share of the photos to use, whole groups, of every class")
    val_per_class: int | float = Field(10, gt=0, description="validation photos per class; below 1: a share of them")
    test_per_class: int | float = Field(10, ge=0, description="test photos per class; below 1: a share; 0: no test")
    folds: int = Field(0, ge=0, le=100, description="cross-validation: parts that validate in turn; 0: one split")
    repeats: int = Field(1, ge=1, le=100, description="how many times the photos are divided into folds")
    split_seed: int = Field(0, ge=0, description="another number gives another split")

    model: str = Field("end2end", description="end2end | base | torchvision's names, resnet18 … | timm:NAME")
    head: Literal["linear", "gap_bn", "logistic", "svm", "knn", "prototypes"] = Field(
        "linear", description="trained: linear | gap_bn; fitted on frozen features: logistic | svm | knn | prototypes"
    )
    head_width: int = Field(0, ge=0, le=65536, description="units of a hidden layer in gap_bn; 0: none")
    dropout: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = Field(
        "auto", description="share of features dropped before the last layer; auto: the model's own"
    )
    base_weights: str = Field(
        "", description="best.pt of a trained base model to start end2end from; empty: random weights"
    )
    weights: str = Field(
        "none",
        min_length=1,
        description="none | DEFAULT (pretrained, downloaded) | package (pretrained, installed) | a file",
    )
    freeze: Literal["none", "backbone", "all_but_last_block"] = Field(
        "none", description="weights that are not trained: none | backbone | all_but_last_block"
    )
    unfreeze_every: int = Field(
        0, ge=0, description="gradual unfreezing: epochs until one more frozen block is trained; 0: never"
    )
    layer_decay: float = Field(1.0, gt=0, le=1, description="lr of each block is this factor of the next block's")
    head_start: Literal["fresh", "logistic"] = Field(
        "fresh",
        description="first weights of a linear head: fresh | logistic (fitted on the features, before training)",
    )
    views: Literal["one", "flip", "five"] = Field(
        "one", description="views of a photo that are averaged: one | flip (and mirrored) | five (corners and centre)"
    )

    lr: float = Field(0.001, gt=0, le=10, description="peak learning rate")
    optimizer: Literal["adam", "adamw", "sgd", "rmsprop"] = Field("adam", description="adam | adamw | sgd | rmsprop")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd (Nesterov's) and rmsprop")
    weight_decay: float = Field(
        0.0001, ge=0, le=1, description="L2 penalty, decoupled in adamw; never on biases and norms"
    )
    scheduler: Literal["step", "exponential", "cosine", "plateau", "one_cycle", "constant"] = Field(
        "cosine", description="step | exponential | cosine | plateau | one_cycle | constant"
    )
    warmup_epochs: int = Field(0, ge=0, description="epochs in which lr rises to its peak, before the scheduler")
    batch_size: int = Field(16, ge=2, le=65536, description="images per optimizer step, over all processes")
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="images a device computes at a time; auto: all, fewer if GPU memory is too small"
    )
    clip_norm: float = Field(0.0, ge=0, description="gradients are scaled down to this norm; 0: never")
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay of averaged weights, which are then evaluated and kept; 0: off"
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="initial weights, order of photos, augmentation")
    epochs: int = Field(20, ge=1, le=100000, description="passes over the training photos")
    loss: Literal["ce", "focal", "mix", "soft_f1"] = Field("ce", description="ce | focal | mix | soft_f1")
    focal_ratio: float = Field(0.5, ge=0, le=1, description="share of focal loss in mix")
    focal_gamma: float = Field(2.0, ge=0, le=20, description="focusing parameter of focal loss")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of each label spread over all classes")
    monitor: Literal["macro_f1", "accuracy", "balanced_accuracy", "loss"] = Field(
        "macro_f1", description="validation metric of best epoch, early stopping and plateau"
    )
    patience: int = Field(0, ge=0, description="stop after so many epochs without a better monitor; 0: never")
    min_delta: float = Field(0.0, ge=0, description="gain in monitor that counts as better for patience and plateau")
    keep: Literal["auto", "best", "last"] = Field(
        "auto", description="epoch kept: best (by monitor) | last | auto (last where the schedule ends by design)"
    )
    train_share: float = Field(
        1.0, gt=0, le=1, description="share of the training photos that are used, for learning curves"
    )
    share_class: str = Field("", description="class that train_share applies to; empty: every class")
    train_labels: Literal["given", "shuffled"] = Field(
        "given", description="given | shuffled (a check: nothing can be learned, so validation must be at chance)"
    )
    fold: int = Field(1, ge=0, description="the fold this run validates on; 0: none, all photos train")
    repeat: int = Field(1, ge=1, description="the division into folds this run uses; a sweep runs them all")

    image_size: Annotated[int, Field(ge=32, le=1024)] = Field(
        96, description="side of the square the model sees, pixels; auto: the model's own"
    )
    crop_to: Literal["box", "object", "none"] = Field(
        "box", description="box (where a table gives one) | object (found on a plain background) | none"
    )
    crop_margin: float = Field(0.1, ge=0, le=2, description="margin around box or object, as a share of its side")
    resize: Literal["crop", "pad", "squash"] = Field(
        "crop", description="how a photo becomes square: crop | pad | squash"
    )
    center: Annotated[float, Field(gt=0.1, le=1)] = Field(
        1.0, description="share of the square's side that is kept, in the middle; auto: as the weights were evaluated"
    )
    brightness: float = Field(1.0, gt=0, le=10, description="factor on every photo; 1: as it is")
    contrast: float = Field(1.0, gt=0, le=10, description="factor on every photo; 1: as it is")
    saturation: float = Field(1.0, ge=0, le=10, description="factor on every photo; 1: as it is, 0: grey")
    sharpness: float = Field(1.0, ge=0, le=10, description="factor on every photo; 1: as it is, below: blurred")
    deep_bits: Annotated[int, Field(ge=8, le=32)] | Literal["auto"] = Field(
        "auto", description="bits that photos of more than 8 are shown as; auto: as many as they use"
    )

    augment: Literal["none", "crop", "geometric", "colour", "full", "trivial", "randaugment"] = Field(
        "geometric", description="none | crop | geometric | colour | full | trivial | randaugment"
    )
    mixing: Literal["none", "mixup", "cutmix"] = Field("none", description="none | mixup | cutmix, pairs of photos")
    mixing_alpha: float = Field(0.4, gt=0, le=10, description="how evenly pairs are mixed: Beta(alpha, alpha)")
    balance: Literal[
        "none", "class_weights", "weighted_sampler", "oversample", "undersample", "augment_to", "smote"
    ] = Field(
        "none",
        description="none | class_weights | weighted_sampler | oversample | undersample | augment_to | smote",
    )
    augment_to: int = Field(
        0, ge=0, description="photos per class once augmented copies are added (balance: augment_to)"
    )
    cache: Literal["auto", "ram", "disk", "stream"] = Field(
        "auto",
        description="decoded photos: auto | ram (mapped, read ahead) | disk (mapped) | stream (decoded every epoch)",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="of training: fp32 | bf16 | fp16 (GPU) | auto (what this machine does fastest)"
    )
    memory_format: Literal["channels_last", "contiguous"] = Field(
        "channels_last", description="channels_last | contiguous"
    )
    compile: Literal["none", "default"] = Field("none", description="torch.compile: none | default")
    cam_every: int = Field(5, ge=0, description="keep Grad-CAM pictures every so many epochs; 0: never")
    processes: int = Field(1, ge=1, le=1024, description="training processes of one run, on this machine")
    track: list[Literal["tensorboard", "wandb"]] = Field(
        [], description="where history.csv is mirrored to: [tensorboard, wandb]"
    )
    lr_find: int = Field(0, ge=0, le=10000, description="steps of the learning-rate finder shown in 02; 0: none")

    calibration_images: int = Field(100, ge=1, description="training photos that set the INT8 ranges")
    int8_agreement: float = Field(
        0.9, ge=0, le=1, description="share of photos on which INT8 must predict the label that torch does"
    )
    int8_speedup: float = Field(
        1.1, ge=0, description="times as fast as fp32 that INT8 must be to be delivered; 0: however slow, for its size"
    )
    int8_margin: float = Field(
        0.03, gt=0, le=1, description="accuracy that INT8 may cost at most, to be called proven; a share"
    )

    probe: Literal["auto", "none"] = Field(
        "auto",
        description="baseline in 03 of frozen pretrained features: auto (the run's own, or installed ones) | none",
    )
    group_word: str = Field(
        "group", min_length=1, description="what a group of photos is called: variety, patient, tree, day"
    )
    deploy_shares: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="share of each class where the model will be used; empty: as in the photos"
    )
    max_error: float = Field(
        0.05, gt=0, lt=1, description="share of wrong answers that is allowed where the model answers alone"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_truth_values(cls, values):
        """YAML's true and yes would pass as the number 1; no setting is a truth value, so refuse them."""
        for name, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, bool) and name in cls.model_fields:
                wanted = setting_kind(name, cls.model_fields)
                raise InputError(f"{name} = {str(value).lower()}: a truth value, where {wanted} is wanted", name)
        return values

    @field_validator("track", mode="before")
    @classmethod
    def _one_is_a_list(cls, track):
        return [track] if isinstance(track, str) else track

    @model_validator(mode="before")
    @classmethod
    def _what_auto_means(cls, values):
        """`image_size` and `center`: auto become the model's own at once, so that everything after sees numbers.

        A fitted head means a frozen backbone, and photos as they are.
        """
        if not isinstance(values, dict):
            return values
        values, model = dict(values), str(values.get("model", "end2end"))
        if "auto" in (values.get("image_size"), values.get("center")) and not model_names.problem(model):
            side, center = model_names.own_view(model)
            own = {"image_size": side, "center": center}
            values |= {name: value for name, value in own.items() if values.get(name) == "auto"}
        if values.get("head") in FITTED_HEADS:
            values = {"freeze": "backbone", "augment": "none"} | values
        return values

    @field_validator("model")
    @classmethod
    def _known_model(cls, model):
        if problem := model_names.problem(model):
            raise InputError(f"model = {model!r}: {problem}", "model")
        return model

    @field_validator("processes")
    @classmethod
    def _enough_for_each(cls, processes, info):
        batch_size = info.data.get("batch_size", 2)
        if processes > 1 and batch_size < 2 * processes:
            raise InputError(
                f"batch_size {batch_size} is too small for {processes} processes (at least 2 images each)", "processes"
            )
        return processes

    @model_validator(mode="after")
    def _weights_fit_together(self):
        if self.base_weights and self.model != "end2end":
            raise InputError(f"base_weights starts model end2end only, not {self.model}", "base_weights")
        if self.weights in ("DEFAULT", "package") and self.model in OURS:
            raise InputError(
                f"weights {self.weights}: torchvision's and timm's models have them, not {self.model}", "weights"
            )
        if self.weights != "none" and self.base_weights:
            raise InputError("weights and base_weights both name the weights to start from: set one of them", "weights")
        random = not self.base_weights and self.weights == "none"
        if self.freeze != "none" and random and self.head not in FITTED_HEADS:
            raise InputError(
                f"freeze = {self.freeze} keeps random weights: name weights (package, DEFAULT, a file) or base_weights",
                "freeze",
            )
        if self.unfreeze_every and self.freeze == "none":
            raise InputError(
                f"unfreeze_every = {self.unfreeze_every}: nothing is frozen; set freeze: backbone", "unfreeze_every"
            )
        return self

    @model_validator(mode="after")
    def _head_fits_together(self):
        if self.model in OURS and (self.head != "linear" or self.dropout != "auto"):
            named = "head" if self.head != "linear" else "dropout"
            raise InputError(f"head and dropout belong to torchvision's and timm's models, not to {self.model}", named)
        if self.head_width and self.head != "gap_bn":
            raise InputError(
                f"head_width = {self.head_width}: head {self.head} has no hidden layer; set head: gap_bn", "head_width"
            )
        if self.head_start != "fresh" and (self.head != "linear" or self.model in OURS):
            what = f"model {self.model}" if self.model in OURS else f"head {self.head}"
            raise InputError(
                f"head_start = {self.head_start}: starts the linear head of pretrained ones, not {what}",
                "head_start",
            )
        if self.head in FITTED_HEADS and self.lr_find:
            raise InputError(f"lr_find = {self.lr_find}: head {self.head} has no lr; set lr_find: 0", "lr_find")
        if self.head in FITTED_HEADS and not self.features_once:
            raise InputError(
                f"head = {self.head} is fitted on a frozen network: set freeze: backbone, augment: none, mixing: none",
                "head",
            )
        if self.head in FITTED_HEADS and self.balance not in ("none", "class_weights", "smote"):
            raise InputError(
                f"balance = {self.balance} repeats photos in batches; head {self.head} takes class_weights or smote",
                "balance",
            )
        return self

    @model_validator(mode="after")
    def _recipe_fits_together(self):
        if self.head in FITTED_HEADS:
            return self  # it has no epochs
        if self.warmup_epochs >= self.epochs:
            raise InputError(
                f"warmup_epochs = {self.warmup_epochs}: fewer than epochs = {self.epochs} are needed", "warmup_epochs"
            )
        if self.loss == "soft_f1":
            if self.micro_batch != "auto":
                raise InputError(
                    f"loss = soft_f1 counts over a whole batch, micro_batch = {self.micro_batch} sees parts of it: "
                    "set micro_batch: auto",
                    "micro_batch",
                )
            if self.balance == "class_weights":
                raise InputError(
                    "loss = soft_f1 weighs all classes alike already: set balance other than class_weights", "balance"
                )
        if self.micro_batch == 1 and self.head == "gap_bn":
            raise InputError(
                "micro_batch = 1: BatchNorm in head gap_bn needs 2 images or more at a time", "micro_batch"
            )
        if 0 < self.lr_find < 20:
            raise InputError(f"lr_find = {self.lr_find}: a curve needs at least 20 steps, better 100", "lr_find")
        if self.patience and self.patience >= self.epochs:
            raise InputError(f"patience = {self.patience}: never reached within epochs = {self.epochs}", "patience")
        return self

    @model_validator(mode="after")
    def _folds_fit_together(self):
        if self.folds == 1:
            raise InputError("folds = 1: one part cannot both train and validate; set 0 or 2 or more", "folds")
        if self.fold == 0 and not self.folds:
            raise InputError("fold = 0 trains on the photos of all folds: set folds to 2 or more", "fold")
        if self.fold > max(self.folds, 1):
            raise InputError(f"fold = {self.fold}: there are folds = {self.folds}", "fold")
        if self.repeat > self.repeats:
            raise InputError(f"repeat = {self.repeat}: there are repeats = {self.repeats}", "repeat")
        if self.repeats > 1 and not self.folds:
            raise InputError(f"repeats = {self.repeats} repeats folds: set folds to 2 or more", "repeats")
        for name in ("val_per_class", "test_per_class"):
            if (wanted := getattr(self, name)) > 1 and wanted != int(wanted):
                raise InputError(f"{name} = {wanted}: a whole number of photos, or a share below 1", name)
        return self

    @model_validator(mode="after")
    def _balance_fits(self):
        if (self.balance == "augment_to") != bool(self.augment_to):
            named = "augment_to" if self.augment_to else "balance"
            raise InputError("balance = augment_to and augment_to = N (photos per class) go together: set both", named)
        if self.balance == "augment_to" and self.augment == "none":
            raise InputError(
                "balance = augment_to adds augmented children: set augment, to geometric for example", "augment"
            )
        if self.balance == "smote" and not self.features_once:
            raise InputError(
                "balance = smote mixes frozen features: set freeze: backbone with weights: package (or base_weights), "
                "augment: none and mixing: none",
                "balance",
            )
        return self

    @property
    def keeps_last(self) -> bool:
        """Whether the last epoch is kept, whatever validation says of others.

        `auto` keeps it where the learning rate ends by design and no early stopping watches: choosing an epoch on few
        validation photos flatters, and the last one is the schedule's own.
        """
        ends = self.scheduler in ("step", "exponential", "cosine", "one_cycle") and not self.patience
        return self.keep == "last" or (self.keep == "auto" and ends)

    @property
    def features_once(self) -> bool:
        """Whether every epoch would compute the same features, so that once will do."""
        still = self.freeze == "backbone" and not self.unfreeze_every
        return still and self.augment == "none" and self.mixing == "none"


SPLIT_SETTINGS = tuple(itertools.takewhile(lambda name: name != "model", Config.model_fields))
EXPORT_SETTINGS = ("calibration_images", "int8_speedup", "int8_agreement")
# Verdicts and words
REPORT_SETTINGS = ("int8_agreement", "int8_margin", "probe", "group_word", "deploy_shares", "max_error")
PLACE_SETTINGS = ("cache", "track")  # where photos and curves are kept changes no result
SHOW_SETTINGS = ("lr_find",)  # what 02 shows besides
_NO_TRAIN_SETTINGS = SPLIT_SETTINGS + EXPORT_SETTINGS + PLACE_SETTINGS + SHOW_SETTINGS + REPORT_SETTINGS
TRAIN_SETTINGS = tuple(name for name in Config.model_fields if name not in _NO_TRAIN_SETTINGS)
NETWORK_SETTINGS = ("model", "head", "head_width", "dropout", "views")  # what a network is built from
FACTORS = ("brightness", "contrast", "saturation", "sharpness")
PREPROCESS_SETTINGS = ("image_size", "crop_to", "crop_margin", "resize", "center", *FACTORS, "deep_bits")
FOLD_SETTINGS = ("fold", "repeat")  # set by a sweep with `folds`, one run each


def make(settings: dict[str, Any], source: str = "settings") -> Config:
    """A `Config` from settings, or one line saying what is wrong with which.

    Raises:
        InputError: an unknown setting (with the nearest name), a wrong type, a value out of range; `setting` names
            the setting, and `place` is `source`.
    """
    try:
        return Config(**settings)
    except ValidationError as problems:
        message, setting = explain(problems.errors()[0], Config.model_fields)
        raise InputError(message, setting, settings.get(setting), place=source) from None
