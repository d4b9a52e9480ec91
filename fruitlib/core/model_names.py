"""The models that can be trained, by name, each with the image size and crop its weights were trained at.

`end2end` and `base` are our own, `resnet18` and the like torchvision's, and `timm:NAME` is any network of timm, which
is imported only when one is named.
"""

import functools
import importlib.util

from fruitlib.core.setting_errors import nearest

BASE_CLASSES = 5  # what model base tells apart
OURS = ("end2end", "base")
TIMM = "timm:"
FITTED_HEADS = ("logistic", "svm", "knn", "prototypes")  # by scikit-learn, on a frozen network's features
# Every model and the side its weights were trained at (a test compares with torchvision). Convolutional ones only:
# Grad-CAM wants feature maps, and transformers want more photos than this project is about.
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


@functools.cache
def timm_settings(name: str) -> dict | None:
    """timm's `pretrained_cfg` of a network (`tf_efficientnet_lite0`, with or without a tag behind a dot).

    None where timm does not know the name.
    """
    import timm

    if not timm.is_model(name):
        return None
    found = timm.get_pretrained_cfg(name)
    return found.to_dict() if found else {}


def problem(model: str) -> str:
    """Why a model cannot be had, with the nearest name that can; empty where it can."""
    if not model.startswith(TIMM):
        return "" if model in MODELS else f"not known{nearest(model, MODELS) or '; known: ' + ', '.join(MODELS)}"
    if importlib.util.find_spec("timm") is None:
        return "timm is not installed: pip install 'fruitlib[weights]'"
    if timm_settings(name := model.removeprefix(TIMM)) is not None:
        return ""
    import timm

    return f"timm does not know it{nearest(name, timm.list_models())}"


def own_view(model: str) -> tuple[int, float]:
    """The side in pixels that a model's weights were trained at, and the share of it that their evaluation kept."""
    if not model.startswith(TIMM):
        return MODELS.get(model, 96), 1.0
    settings = timm_settings(model.removeprefix(TIMM)) or {}
    return settings.get("input_size", (3, 224, 224))[-1], settings.get("crop_pct", 1.0)
