"""Names of models: which can be had, what their weights expect, what their licences allow."""

import subprocess
import sys

import pytest
import torchvision

from fruitlib.core import config, model_names
from fruitlib.core.errors import InputError

THEIRS = [name for name in model_names.MODELS if name not in model_names.OURS]


@pytest.mark.parametrize("name", THEIRS)
def test_torchvisions_side_and_crop_are_those_its_weights_were_evaluated_at(name):
    expects = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    side, center = model_names.own_view(name)
    assert [side] == expects.crop_size and center == pytest.approx(side / expects.resize_size[0])


@pytest.mark.parametrize(
    ("model", "side", "center"),
    [
        ("end2end", 96, 1.0),
        ("resnet18", 224, 0.875),
        ("timm:tf_efficientnet_lite0", 224, 0.875),
        ("timm:tf_efficientnet_lite2", 260, 0.89),
        ("timm:vit_small_patch14_dinov2", 518, 1.0),
        ("timm:resnet18", 224, 0.95),
        ("timm:resnet18.tv_in1k", 224, 0.875),
    ],
)
def test_auto_is_the_side_and_crop_of_the_weights(model, side, center):
    made = config.make({"model": model, "image_size": "auto", "center": "auto"})
    assert (made.image_size, made.center) == (side, pytest.approx(center))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("resnet81", "not known (did you mean resnet18?)"),
        ("timm:resnt18", "timm does not know it (did you mean resnet18?)"),
        ("timm:resnet18.a9_in1k", "timm knows no weights a9_in1k of resnet18; it knows a1_in1k, a2_in1k"),
        ("timm:", "timm does not know it"),
        ("timm:hf_hub:timm/resnet18.a1_in1k", "a place, not a name: write timm's own name"),
        ("timm:hf-hub:someone/flowers", "a place, not a name: write timm's own name"),
        ("timm:local-dir:models/flowers", "a place, not a name: write timm's own name"),
    ],
)
def test_a_name_that_cannot_be_had_is_refused_in_one_line(model, words):
    with pytest.raises(InputError, match="model = ") as problem:
        config.make({"model": model})
    assert words in str(problem.value) and "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("licence", "forbidden", "words"),
    [
        ("apache-2.0", False, "licence apache-2.0"),
        ("bsd-3-clause", False, "licence bsd-3-clause"),
        ("cc-by-4.0", False, "licence cc-by-4.0"),
        ("cc-by-nc-4.0", True, "licence cc-by-nc-4.0: not for commercial use"),
        ("CC-BY-NC-SA-4.0", True, "licence CC-BY-NC-SA-4.0: not for commercial use"),
        ("fair-noncommercial-research-license", True, "not for commercial use"),
        ("non-commercial", True, "not for commercial use"),
        ("apple-amlr", True, "not for commercial use"),
        ("dinov3-license", False, "licence dinov3-license: read its terms before commercial use"),
        ("ncsa", False, "read its terms"),
        ("unknown", False, "licence not stated: ask its authors before commercial use"),
        ("", False, "licence not stated"),
    ],
)
def test_a_licence_against_commercial_use_is_recognised(licence, forbidden, words):
    assert model_names.is_non_commercial(licence) == forbidden
    assert words in model_names.licence_words(licence)


def test_timm_is_imported_only_when_one_of_its_networks_is_named():
    """It takes seconds, and takes torch along; so does what says torchvision's own crop."""
    check = (
        "import sys; from fruitlib.core import config;"
        "config.make({'model': 'resnet18', 'image_size': 'auto', 'center': 'auto'});"
        "print(sorted({'timm', 'torch', 'torchvision'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", check], text=True).strip() == "[]"
