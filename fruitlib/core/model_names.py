"""The models that can be trained, by name, each with the image size and crop its weights were trained at.

`end2end` and `base` are our own, `resnet18` and the like torchvision's, and `timm:NAME` is any network of timm, which
is imported only when one is named.
"""

import functools
import importlib.util
import re

from fruitlib.core.setting_errors import nearest

BASE_CLASSES = 5  # what model base tells apart
OURS = ("end2end", "base")
TIMM = "timm:"
FITTED_HEADS = ("logistic", "svm", "knn", "prototypes")  # by scikit-learn, on a frozen network's features
# torchvision's convolutional models; its transformers are timm's too. A test compares both numbers with torchvision.
_AT_224 = """resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d resnext101_64x4d
wide_resnet50_2 wide_resnet101_2 vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn densenet121 densenet161
densenet169 densenet201 efficientnet_b0 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large convnext_tiny convnext_small
convnext_base convnext_large regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf
regnet_x_32gf regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf
shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0 squeezenet1_1"""
MODELS = dict.fromkeys(OURS, 96) | dict.fromkeys(_AT_224.split(), 224)
MODELS |= {"efficientnet_b1": 240, "efficientnet_b2": 288, "efficientnet_b3": 300, "efficientnet_b4": 380}
MODELS |= {"efficientnet_b5": 456, "efficientnet_b6": 528, "efficientnet_b7": 600}
MODELS |= {"efficientnet_v2_s": 384, "efficientnet_v2_m": 480, "efficientnet_v2_l": 480}
# The shorter side, in pixels, that a photo was resized to before its middle was cropped; 232 where not named
_RESIZED = """resnet18 resnet34 vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn densenet121 densenet161
densenet169 densenet201 efficientnet_b0 mobilenet_v3_small shufflenet_v2_x0_5 shufflenet_v2_x1_0 squeezenet1_1"""
RESIZED = dict.fromkeys(_RESIZED.split(), 256) | {"convnext_tiny": 236, "convnext_small": 230}
RESIZED |= {"efficientnet_b1": 255, "efficientnet_b3": 320, "efficientnet_b4": 384}
RESIZED |= {name: MODELS[name] for name in (*OURS, "efficientnet_b2", "efficientnet_b5", "efficientnet_b6")}
RESIZED |= {name: MODELS[name] for name in MODELS if name.startswith("efficientnet_v2") or name == "efficientnet_b7"}
OPEN_LICENCES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0")
NON_COMMERCIAL = re.compile(r"(^|[^a-z])(nc|non-?commercial|research|amlr)($|[^a-z])")


@functools.cache
def timm_settings(name: str) -> dict | None:
    """timm's `pretrained_cfg` of a network (`resnet18`, or `resnet18.a2_in1k` for other weights than its default).

    None where timm does not know the name, or not those weights.
    """
    import timm

    if not timm.is_model(name):
        return None
    try:
        found = timm.get_pretrained_cfg(name)
    except RuntimeError:  # a network it knows, behind the dot weights it does not know
        return None
    return found.to_dict() if found else {}


def timm_tags(name: str) -> list[str]:
    """The names of the weights that timm knows for a network, its default first; empty where it knows none."""
    from timm.models import get_arch_pretrained_cfgs

    known = get_arch_pretrained_cfgs(name.partition(".")[0])
    return [full.partition(".")[2] for full in known]


def problem(model: str) -> str:
    """Why a model cannot be had, with the nearest name that can; empty where it can."""
    if not model.startswith(TIMM):
        known = nearest(model, MODELS) or f"; known: {TIMM}NAME for timm's, {', '.join(MODELS)}"
        return "" if model in MODELS else f"not known{known}"
    if importlib.util.find_spec("timm") is None:
        return "timm is not installed: pip install 'fruitlib[weights]'"
    name = model.removeprefix(TIMM)
    if ":" in name or "/" in name:
        return "a place, not a name: write timm's own name of the network, and set weights to the file you have"
    if timm_settings(name) is not None:
        return ""
    import timm

    arch, _, tag = name.partition(".")
    if timm.is_model(arch):
        return f"timm knows no weights {tag} of {arch}; it knows {', '.join(timm_tags(arch)) or 'none'}"
    return f"timm does not know it{nearest(name, timm.list_models())}"


def own_view(model: str) -> tuple[int, float]:
    """The side in pixels that a model's weights were trained at, and the share of it that their evaluation kept."""
    if not model.startswith(TIMM):
        side = MODELS.get(model, 96)
        return side, side / RESIZED.get(model, 232) if model in MODELS else 1.0
    settings = timm_settings(model.removeprefix(TIMM)) or {}
    return settings.get("input_size", (3, 224, 224))[-1], settings.get("crop_pct", 1.0)


def is_non_commercial(licence: str) -> bool:
    """Whether a licence's name says that it forbids commercial use, or allows research alone.

    `cc-by-nc-4.0` and the like, `fair-noncommercial-research-license`, `apple-amlr` (Apple's for research). Others may
    forbid it in their text.
    """
    return bool(NON_COMMERCIAL.search(licence.lower()))


def licence_words(licence: str) -> str:
    """The licence of some weights and what it means for commercial use, for people."""
    if licence in ("", "unknown"):
        return "licence not stated: ask its authors before commercial use"
    if is_non_commercial(licence):
        return f"licence {licence}: not for commercial use"
    return f"licence {licence}" + ("" if licence in OPEN_LICENCES else ": read its terms before commercial use")
