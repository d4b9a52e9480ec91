"""Views of a photo whose logits are averaged: mirrored, or cropped."""

import torch
from torch.nn.functional import interpolate

CROP = 7 / 8  # side of a crop, as a share of the photo's (224 of 256: Krizhevsky et al. 2012, section 4.1)
COUNT = {"one": 1, "flip": 2, "five": 5}  # views of a photo, by `Config.views`
SHOWN = {"one": 0, "flip": 0, "five": 4}  # the view that shows the photo as it is, or its centre


def of(images: torch.Tensor, views: str) -> list[torch.Tensor]:
    """The views of images (N, 3, S, S), each of that shape: the `Config.views` that are averaged.

    `flip`: as they are, and mirrored. `five`: the four corners and the centre, cropped and enlarged.
    """
    if views == "flip":
        return [images, images.flip(3)]
    if views == "five":
        side = images.shape[-1]
        crop = int(side * CROP)
        end, middle = side - crop, (side - crop) // 2
        corners = [(0, 0), (0, end), (end, 0), (end, end), (middle, middle)]
        parts = [images[:, :, top : top + crop, left : left + crop] for top, left in corners]
        return [interpolate(part, (side, side), mode="bilinear", antialias=False) for part in parts]
    return [images]
