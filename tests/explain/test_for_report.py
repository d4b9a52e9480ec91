"""What is kept for the report while a network looks at photos: what its head is given of each, and where it looks."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fruitlib.core import config
from fruitlib.core.errors import InputError
from fruitlib.explain import for_report, gradcam
from fruitlib.reporting import explore, sprites
from fruitlib.runs.run import Run
from fruitlib.training import blocks, models

PATHS = [f"{n}.jpg" for n in range(5)]


@pytest.mark.parametrize("name", ["end2end", "timm:vit_tiny_patch16_224"])
def test_grad_cam_s_pass_leaves_the_features_that_the_head_makes_logits_of(tmp_path, name):
    settings = {"data": "none", "model": name, "image_size": 32, "val_per_class": 2, "test_per_class": 2}
    model = models.build(config.make(settings), 3).eval()
    images = torch.rand(5, 3, 32, 32)
    layers = dict([list(blocks.target_layers(model).items())[-1]])
    run = Run(tmp_path)
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "train.json").write_text('{"identity": "first"}')
    with for_report.keeping_features(run, models.head_of(model), PATHS):
        maps = gradcam.heatmaps(model, images, layers, batch_size=2)
    features = explore.load_features(tmp_path, PATHS[::-1])[::-1].copy()
    logits = models.head_of(model)(torch.from_numpy(features))
    assert logits.softmax(1).detach().numpy() == pytest.approx(maps.probs, abs=0.002)
    (tmp_path / "stages" / "train.json").write_text('{"identity": "second"}')
    assert explore.load_features(tmp_path, PATHS) is None  # those of an earlier training


def test_only_passes_inside_are_recorded():
    values = torch.rand(2, 4)
    with for_report.inputs_of(head := nn.Identity()) as seen:
        head(values)
    head(values)  # no longer
    assert len(seen) == 1 and np.array_equal(seen[0], values.numpy())


@pytest.mark.parametrize("passed", [0, 3])
def test_another_number_of_photos_is_refused(tmp_path, passed):
    head, words = nn.Identity(), f"features_val.npz: {passed} features of 5 photos; give one pass of all"
    with pytest.raises(InputError, match=words), for_report.keeping_features(Run(tmp_path), head, PATHS):
        head(torch.rand(3, 4)) if passed else None


def test_large_features_stay_whole(tmp_path):
    head = nn.Identity()
    with for_report.keeping_features(Run(tmp_path), head, PATHS):
        head(torch.full((5, 2), 1e6))
    assert explore.load_features(tmp_path, PATHS).tolist() == [[1e6, 1e6]] * 5


@pytest.mark.parametrize("n", [3, for_report.EVERY + 1])
def test_heat_of_few_photos_is_kept_small_and_makes_a_sheet(tmp_path, n):
    heat = np.zeros((n, 1, 96, 96), np.float32)
    heat[:, :, :48] = 1
    numbers = {name: np.zeros(n, int) for name in ("predicted", "targets")}
    maps = gradcam.Heatmaps(heat, heat[:, :, 0, 0], probs=heat[:, 0, 0, :2], layer_names=["conv2"], **numbers)
    run, paths = Run(tmp_path), [f"{k}.jpg" for k in range(n)]
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "train.json").write_text('{"kept_epoch": 7}')
    for_report.save_heat(run, paths, maps)
    white = np.full((96, 96, 3), 255, np.uint8)
    sheet = sprites.heat_sheet(tmp_path, lambda path, side: white, sprites.EVERY)
    if n > for_report.EVERY:
        assert sheet is sprites.NOTHING
        return
    assert sheet.name == "heat_all.webp" and list(sheet.cells) == paths and sheet.columns == 2
    assert sheet.layers == [{"epoch": 7, "layer": "conv2"}] and (tmp_path / "cams/validation_0007.npz").is_file()
    assert sprites.heat_sheet(tmp_path, lambda path, side: white) is sprites.NOTHING  # of the followed ones
    opacity = np.asarray(Image.open(tmp_path / sheet.name).convert("RGBA"))[:, 96:, 3]
    assert opacity[10:40].mean() > 240 and opacity[60:90].mean() < 15
