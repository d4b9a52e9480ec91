"""Do hot places count? Photos are hidden, or uncovered, hottest places first, and the probability is followed.

Deletion and insertion: Petsiuk, Das and Saenko 2018, "RISE", section 4.2. ROAD: Rong et al. 2022, "A Consistent and
Efficient Evaluation Strategy for Attribution Methods", section 4.3; its hidden pixels are means of their neighbours,
so that the form of what is hidden tells little. pytorch-grad-cam's `metrics.road` solves that system exactly, one photo
at a time, which takes minutes where this takes a second (all photos at once, on a pyramid; `filled` says how near).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

GRID = 12  # places across and down, hidden as a whole
SHARES = np.linspace(0, 1, 7)  # of the places that are hidden or uncovered
ROAD_SHARES = np.array([0.25, 0.5, 0.75])
BLUR = 6  # places across and down whose means are the blurred photo from which insertion begins
NOISE = 0.01  # standard deviation of what ROAD adds to hidden pixels, of 1
DELETION, INSERTION, ROAD = "deletion", "insertion", "ROAD"
SWEEPS = 8  # over each level of the pyramid


@dataclass(frozen=True)
class Curves:
    """The explained class's probability as places are hidden or uncovered, by heat and in a random order.

    `by_heat` and `at_random` have an array (n, shares) for each of deletion, insertion and ROAD; `shares` (s,) are
    those of the places that are hidden, for insertion uncovered.
    """

    by_heat: dict[str, np.ndarray]
    at_random: dict[str, np.ndarray]
    shares: dict[str, np.ndarray]

    def gains(self) -> dict[str, np.ndarray]:
        """By curve, for each photo (n,), the area between the two orders, positive where heat is the better guide.

        Of ROAD it is the mean over its shares.
        """
        found = {}
        for name, shares in self.shares.items():
            ahead = self.by_heat[name] - self.at_random[name]
            ahead = ahead if name == INSERTION else -ahead
            found[name] = ahead.mean(1) if name == ROAD else np.trapezoid(ahead, shares, axis=1)
        return found


@torch.inference_mode()
def curves(
    model: torch.nn.Module, images: torch.Tensor, heat: np.ndarray, targets: np.ndarray, seed: int = 0, batch: int = 64
) -> Curves:
    """The three curves of images (n, 3, S, S) in [0, 1], whose heat (n, S, S) explains the classes `targets` (n,).

    Places are the cells of a 12 x 12 grid; of equal heat, as where there is none, the order is random. The other order
    is random throughout: cells too, so that only the heat differs. Hidden cells get the photo's mean colour; insertion
    uncovers a blurred photo. The model is in eval mode, and its device is used.
    """
    device, rng = next(model.parameters()).device, np.random.default_rng(seed)
    images = images.to(device)
    chance = rng.random((len(images), GRID * GRID))
    cells = F.adaptive_avg_pool2d(torch.from_numpy(np.ascontiguousarray(heat))[:, None], GRID).flatten(1).numpy()
    orders = {"by_heat": np.lexsort((chance, -cells), axis=1), "at_random": chance.argsort(1)}
    ranks = {name: torch.from_numpy(order.argsort(1)).to(device) for name, order in orders.items()}
    asked = torch.from_numpy(np.asarray(targets)).to(device)

    def probability(changed: torch.Tensor) -> np.ndarray:
        logits = torch.cat([model(part).float() for part in changed.split(batch)])
        return logits.softmax(1).gather(1, asked[:, None])[:, 0].cpu().numpy()

    mean, blurred = images.mean((2, 3), keepdim=True), _blurred(images)
    whole, start, nothing = (probability(part) for part in (images, blurred, mean.expand_as(images)))
    found = {"by_heat": {}, "at_random": {}}
    for name, rank in ranks.items():
        some, road = (_cells_first(rank, shares, images.shape[-1]) for shares in (SHARES[1:-1], ROAD_SHARES))
        lost = [probability(torch.where(where, mean, images)) for where in some]
        won = [probability(torch.where(where, images, blurred)) for where in some]
        found[name][DELETION] = np.stack([whole, *lost, nothing], 1)
        found[name][INSERTION] = np.stack([start, *won, whole], 1)
        found[name][ROAD] = np.stack([probability(_noisy(filled(images, where), where, seed)) for where in road], 1)
    return Curves(**found, shares={DELETION: SHARES, INSERTION: SHARES, ROAD: ROAD_SHARES})


def _cells_first(ranks: torch.Tensor, shares: np.ndarray, side: int) -> list[torch.Tensor]:
    """For each share, the pixels bool (n, 1, S, S) of so many cells, those of the lowest ranks (n, GRID * GRID)."""
    grid = F.interpolate(ranks.view(-1, 1, GRID, GRID).float(), (side, side), mode="nearest")
    return [grid < round(share * GRID**2) for share in shares]


def _blurred(images: torch.Tensor) -> torch.Tensor:
    """The means of `BLUR` x `BLUR` places, smoothly joined."""
    return F.interpolate(F.adaptive_avg_pool2d(images, BLUR), images.shape[-2:], mode="bilinear")


def _noisy(images: torch.Tensor, hidden: torch.Tensor, seed: int) -> torch.Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)).to(images.device)
    return torch.where(hidden, images + NOISE * noise, images)


def filled(images: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Images (n, 3, S, S) with each hidden pixel (n, 1, S, S) near the mean of its neighbours, those across double.

    A first guess comes from a pyramid, on each level of which but the finest the system is then relaxed a few times. Of
    practice photos with a quarter to three quarters of 12 x 12 cells hidden, hidden pixels differ from the exact
    solution by 0.01 to 0.02 of 1 in the mean where these are scattered, by 0.01 to 0.06 where they are in one piece.
    """
    known = (~hidden).float()
    return _filled(images * known, known, sweeps=0)


def _filled(values: torch.Tensor, known: torch.Tensor, sweeps: int = SWEEPS) -> torch.Tensor:
    """The same of values that are 0 where `known` (n, 1, S, S) is 0."""
    side = values.shape[-1]
    if side <= 2 or bool((known > 0).all()):
        weight = known.sum((2, 3), keepdim=True).clamp_min(1e-6)
        return torch.where(known > 0, values, values.sum((2, 3), keepdim=True) / weight)
    share = F.avg_pool2d(known, 2, ceil_mode=True, count_include_pad=False)
    coarse = F.avg_pool2d(values, 2, ceil_mode=True, count_include_pad=False) / share.clamp_min(1e-6)
    coarse = _filled(torch.where(share > 0, coarse, 0), (share > 0).float())
    guess = F.interpolate(coarse, values.shape[-2:], mode="bilinear", align_corners=False)
    guess = torch.where(known > 0, values, guess)
    for _ in range(sweeps):
        guess = torch.where(known > 0, values, _neighbours(guess))
    return guess


def _neighbours(images: torch.Tensor) -> torch.Tensor:
    """The mean of the eight neighbours: 1/6 for those across and below, 1/12 for those at corners; borders repeated."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    rows = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    both = rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]
    return (both - 4 * images) / 12
