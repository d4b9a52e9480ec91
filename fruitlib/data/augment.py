"""Augmentation as data: what happens to a photo is drawn from (seed, epoch, slot), and applied on the CPU or a GPU.

Crops are rectangles of whole pixels, which are enlarged to the picture's size. Warps are homographies in coordinates
from -1 to 1 over the picture, leading from a pixel of the result to where it is taken from; colours are affine maps of
RGB in [0, 1]. A slot is a place in an epoch: a photo shown twice has two.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torchvision.transforms import InterpolationMode, v2

LUMA = np.array([0.299, 0.587, 0.114])  # weights of red, green and blue in brightness (ITU-R BT.601)
ORDER, AUGMENT, MIX = 0, 1, 2  # purposes; each has its own random stream
GEOMETRIC_POLICIES, COLOUR_POLICIES = ("geometric", "full"), ("colour", "full")
TORCHVISION_POLICIES = ("trivial", "randaugment")
ROWS = 1 << 16


@dataclass(frozen=True)
class Draws:
    """What is done to each of m photos; None where a policy leaves that alone."""

    crops: np.ndarray | torch.Tensor | None = None  # int64 (m, 5): left, top, width, height; 1 where mirrored, else 0
    warps: np.ndarray | torch.Tensor | None = None  # float64 (m, 3, 3)
    colours: np.ndarray | torch.Tensor | None = None  # float64 (m, 3, 4)
    torchvision_policy: str = ""  # trivial or randaugment; torchvision draws its operations from `seeds`
    seeds: np.ndarray | None = None  # int64 (m,)

    def pick(self, slots) -> "Draws":
        """The draws of these slots."""
        parts = self.crops, self.warps, self.colours, self.seeds
        crops, warps, colours, seeds = (None if part is None else part[slots] for part in parts)
        return Draws(crops, warps, colours, self.torchvision_policy, seeds)

    def sent(self, send: Callable[[torch.Tensor], torch.Tensor]) -> "Draws":
        """Crops, warps and colours as float32 tensors on the device where `send` brings each, for `apply_batch`."""
        parts = self.crops, self.warps, self.colours
        return Draws(*(None if part is None else send(torch.from_numpy(part).float()) for part in parts))


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed: photo i with photo `partners[i]`, of which it keeps `share`; `box` is cutmix's part."""

    partners: np.ndarray  # int64 (batch,)
    share: float
    box: tuple[int, int, int, int] | None = None  # left, top, right, bottom, in pixels, taken from the partner


def generator(seed: int, epoch: int, purpose: int) -> torch.Generator:
    """A random stream of its own for each (seed, epoch, purpose)."""
    words = np.random.SeedSequence([seed, epoch, purpose]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> 1))


def draw(policy: str, count: int, seed: int, epoch: int, side: int) -> Draws:
    """An epoch's augmentation by `policy`, a row for each of `count` slots; row i is the same for any larger count.

    `side` is that of the pictures in pixels.

    none; crop: a part of 35 to 100 % of the area and 3:4 to 4:3, mirrored or not (as in Szegedy et al. 2015);
    geometric: see `_geometric`; colour: see `_colours`; full: both; trivial: TrivialAugment (Müller and Hutter 2021)
    and randaugment: RandAugment (Cubuk et al. 2020), both by torchvision.
    """
    random, parts = generator(seed, epoch, AUGMENT), []
    for start in range(0, max(count, 1), ROWS):  # in parts, so that millions of slots pass through little memory
        rows = min(ROWS, count - start)
        parts.append(_drawn(policy, torch.rand(rows, 12, generator=random, dtype=torch.float64).numpy().T, side))
    columns = {name: [getattr(part, name) for part in parts] for name in ("crops", "warps", "colours", "seeds")}
    whole = {name: None if some[0] is None else np.concatenate(some) for name, some in columns.items()}
    return Draws(torchvision_policy=parts[0].torchvision_policy, **whole)


def _drawn(policy: str, numbers: np.ndarray, side: int) -> Draws:
    """The draws that `policy` makes of random numbers (12, m)."""
    if policy == "crop":
        return Draws(crops=_crops(numbers[:5], side))
    if policy in TORCHVISION_POLICIES:
        return Draws(torchvision_policy=policy, seeds=(numbers[0] * 2**53).astype(np.int64))
    return Draws(
        warps=_geometric(numbers[:8]) if policy in GEOMETRIC_POLICIES else None,
        colours=_colours(numbers[8:]) if policy in COLOUR_POLICIES else None,
    )


def _crops(numbers: np.ndarray, side: int) -> np.ndarray:
    """(m, 5) of random numbers (5, m): where the part begins, its sides, and whether it is mirrored."""
    mirror, area, aspect, *place = numbers
    area, aspect = 0.35 + 0.65 * area, np.exp((2 * aspect - 1) * np.log(4 / 3))
    sizes = [np.rint(side * np.minimum(np.sqrt(part), 1)).clip(1) for part in (area * aspect, area / aspect)]
    starts = [np.rint(share * (side - size)) for share, size in zip(place, sizes, strict=True)]
    return np.array([*starts, *sizes, mirror < 0.5]).T.astype(np.int64)


def _geometric(numbers: np.ndarray) -> np.ndarray:
    """(m, 3, 3) of random numbers (8, m). Colour stays: for fruit it is part of the label.

    Mirrors left-right, turns within ±30°, scales by 0.8 to 1.1, shifts within ±5 % of the side, and distorts: shears
    within ±0.1, and foreshortens so that opposite sides differ by 10 % at most in each direction.
    """
    mirror, angle, scale, *rest = numbers
    across, down, shear, along_x, along_y = (2 * number - 1 for number in rest)
    mirror, angle, scale = np.where(mirror < 0.5, -1.0, 1.0), (2 * angle - 1) * np.pi / 6, 0.8 + 0.3 * scale
    across, down, shear = 0.1 * across, 0.1 * down, 0.1 * shear  # coordinates run from -1 to 1: 0.1 is 5 %
    zero, one, cos, sin = np.zeros_like(angle), np.ones_like(angle), scale * np.cos(angle), scale * np.sin(angle)
    turned = [[mirror * cos, -sin, across], [mirror * sin, cos, down], [zero, zero, one]]
    distorted = [[one, shear, zero], [zero, one, zero], [0.05 * along_x, 0.05 * along_y, one]]
    return np.array(turned).transpose(2, 0, 1) @ np.array(distorted).transpose(2, 0, 1)


def _colours(numbers: np.ndarray) -> np.ndarray:
    """(m, 3, 4) of random numbers (4, m): what a lamp and a camera change, all of it linear in RGB.

    Brightness and contrast (around mid-grey) by 0.8 to 1.2, saturation by 0.7 to 1.3, hue turned within ±10°
    around the axis of greys.
    """
    bright, contrast, saturation, hue = numbers
    bright, contrast, saturation = 0.8 + 0.4 * bright, 0.8 + 0.4 * contrast, 0.7 + 0.6 * saturation
    angle = ((2 * hue - 1) * np.pi / 18)[:, None, None]
    grey, axis = np.full((3, 3), 1 / 3), np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    turn = np.cos(angle) * np.eye(3) + np.sin(angle) * axis + (1 - np.cos(angle)) * grey  # Rodrigues' formula
    fade = saturation[:, None, None] * np.eye(3) + (1 - saturation)[:, None, None] * LUMA
    colours = np.empty((len(bright), 3, 4))
    colours[:, :, :3] = (bright * contrast)[:, None, None] * (turn @ fade)
    colours[:, :, 3] = (0.5 * (1 - contrast))[:, None]
    return colours


def apply(pictures: np.ndarray, draws: Draws) -> np.ndarray:
    """The pictures uint8 (k, S, S, 3), each after its row of `draws` (k rows); borders are reflected.

    torchvision's policies draw from torch's global random state: call them where no other thread draws from it, so not
    in a thread beside training.
    """
    if draws.torchvision_policy:
        return _by_torchvision(pictures, draws)
    side, result = pictures.shape[1], pictures
    if draws.crops is not None:
        result = np.empty_like(pictures)
        crops = draws.crops.tolist()
        for picture, (left, top, width, height, mirrored), out in zip(pictures, crops, result, strict=True):
            cv2.resize(picture[top : top + height, left : left + width], (side, side), dst=out)
            if mirrored:
                cv2.flip(out, 1, dst=out)
    if draws.warps is not None:
        result = np.empty_like(pictures)
        for picture, matrix, out in zip(pictures, in_pixels(draws.warps, side), result, strict=True):
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            cv2.warpPerspective(picture, matrix, (side, side), dst=out, flags=flags, borderMode=cv2.BORDER_REFLECT)
    if draws.colours is not None:
        pictures, result = result, np.empty_like(pictures)
        for picture, colours, out in zip(pictures, draws.colours * [1, 1, 1, 255], result, strict=True):
            cv2.transform(picture, colours, dst=out)
    return result


def in_pixels(warps: np.ndarray, side: int) -> np.ndarray:
    """Homographies (k, 3, 3) between coordinates from -1 to 1 as the same between pixels' indexes, 0 to side - 1."""
    to_index = np.array([[side / 2, 0, (side - 1) / 2], [0, side / 2, (side - 1) / 2], [0, 0, 1]])
    return to_index @ warps @ np.linalg.inv(to_index)


def apply_batch(images: torch.Tensor, draws: Draws) -> torch.Tensor:
    """`apply` for float images (k, 3, S, S) in [0, 1] on their device, all at once, which is fast on a GPU.

    Written out rather than as products of matrices: those a GPU may round to TF32's three digits, which moves pixels,
    and they round differently with k, while here an image does not depend on the others.
    """
    side = images.shape[-1]
    if draws.crops is not None:
        grid = _crop_grid(torch.as_tensor(draws.crops, dtype=images.dtype, device=images.device), side)
        images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    if draws.warps is not None:
        warps = torch.as_tensor(draws.warps, dtype=images.dtype, device=images.device)[:, None, None]
        ticks = (torch.arange(side, device=images.device, dtype=images.dtype) * 2 + 1) / side - 1
        across, down = ticks.view(1, 1, side, 1), ticks.view(1, side, 1, 1)
        moved = warps[..., 0] * across + warps[..., 1] * down + warps[..., 2]
        grid = moved[..., :2] / moved[..., 2:]
        images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    if draws.colours is not None:
        colours = torch.as_tensor(draws.colours, dtype=images.dtype, device=images.device)[..., None, None]
        turned = colours[:, :, 3]
        for channel in range(3):
            turned = turned + colours[:, :, channel] * images[:, channel, None]
        images = turned.clamp(0, 1)
    return images


def _crop_grid(crops: torch.Tensor, side: int) -> torch.Tensor:
    """Where each pixel of the enlarged parts `crops` (k, 5) is taken from, (k, side, side, 2), for `F.grid_sample`."""
    starts, sizes, mirrored = crops[:, None, 0:2], crops[:, None, 2:4], crops[:, 4] > 0
    ticks = (torch.arange(side, device=crops.device, dtype=crops.dtype) + 0.5)[None, :, None] / side
    places = torch.clamp(starts + ticks * sizes - 0.5, starts, starts + sizes - 1)  # (k, side, 2), pixels' indexes
    places = (2 * places + 1) / side - 1
    across = torch.where(mirrored[:, None], places[..., 0].flip(1), places[..., 0])
    return torch.stack(torch.broadcast_tensors(across[:, None, :], places[:, :, None, 1]), dim=-1)


def _by_torchvision(pictures: np.ndarray, draws: Draws) -> np.ndarray:
    """Each picture after torchvision's policy, whose draws come from the picture's own seed."""
    make = {"trivial": v2.TrivialAugmentWide, "randaugment": v2.RandAugment}[draws.torchvision_policy]
    policy, result = make(interpolation=InterpolationMode.BILINEAR), np.empty_like(pictures)
    with torch.random.fork_rng(devices=[]):
        for picture, seed, out in zip(pictures, draws.seeds.tolist(), result, strict=True):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU too
            out[:] = policy(torch.from_numpy(picture).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    return result


def pairs(mixing: str, alpha: float, size: int, side: int, seed: int, epoch: int, number: int) -> Mix | None:
    """How batch `number` of an epoch, `size` photos of `side` pixels over all processes, is mixed; None for `none`.

    mixup (Zhang et al. 2018) adds `share` of a photo and the rest of its partner, cutmix (Yun et al. 2019) puts a
    rectangle of the partner in; `share` ~ Beta(alpha, alpha), for cutmix what the rectangle, cut off at the border and
    in whole pixels, leaves of the photo. Partners are a permutation of the batch; a photo may be its own.
    """
    if mixing == "none":
        return None
    rng = np.random.default_rng([seed, epoch, MIX, number])
    partners, share = rng.permutation(size), float(rng.beta(alpha, alpha))
    if mixing == "mixup":
        return Mix(partners, share)
    half, centre = side * np.sqrt(1 - share) / 2, rng.integers(0, side, 2)
    (left, top), (right, bottom) = ((centre + way * half).astype(int).clip(0, side) for way in (-1, 1))
    box = int(left), int(top), int(right), int(bottom)
    return Mix(partners, 1 - (box[2] - box[0]) * (box[3] - box[1]) / side**2, box)


def mixed(images: torch.Tensor, others: torch.Tensor, mix: Mix) -> torch.Tensor:
    """Images (k, 3, S, S) with their partners' images mixed in; `images` itself is changed."""
    if mix.box is None:
        return images.mul_(mix.share).add_(others, alpha=1 - mix.share)
    left, top, right, bottom = mix.box
    images[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
    return images
