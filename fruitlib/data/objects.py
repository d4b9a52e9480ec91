"""Where the object is on a plain background, found by OpenCV."""

import cv2
import numpy as np

# OpenCV would split each small picture among its own threads, which wait by spinning. That takes cores from torch
# during training, and photos are already decoded in parallel. The setting holds for the whole process.
cv2.setNumThreads(0)

VERSION = cv2.__version__


def find_object(pixels: np.ndarray, look_at: int = 256) -> tuple[float, float, float, float] | None:
    """Left, top, right and bottom of the object on a plain background in uint8 (h, w, 3), or None where there is none.

    The background's colour is the median along the border, which must be plain: three quarters of its pixels within
    30 of 255 steps of that colour. Pixels that differ from it by more than Otsu's threshold (1979) are the object;
    its largest connected part counts, unless that is under 1 % of the picture or all of it. Photos over `look_at`
    pixels are reduced to that size first.
    """
    height, width = pixels.shape[:2]
    scale = max(1, max(height, width) / look_at)
    size = max(1, round(width / scale)), max(1, round(height / scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if scale > 1 else pixels
    border = np.concatenate([small[0], small[-1], small[1:-1, 0], small[1:-1, -1]])
    colour = np.median(border, axis=0)
    plain = (np.abs(border - colour).max(1) <= 30).mean() >= 0.75
    difference = np.abs(small - colour).max(2).astype(np.uint8)
    _, mask = cv2.threshold(difference, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    count, _, facts, _ = cv2.connectedComponentsWithStats(mask)
    if not plain or count < 2 or difference.max() <= 30:  # grain and shadows alone are not an object
        return None
    left, top, wide, high, pixels_in = facts[1 + facts[1:, cv2.CC_STAT_AREA].argmax()]
    if pixels_in < 0.01 * mask.size or (wide, high) == size:
        return None
    across, down = width / size[0], height / size[1]
    return float(left * across), float(top * down), float((left + wide) * across), float((top + high) * down)
