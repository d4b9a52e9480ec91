"""Does a network look at the object, or at what happens to be around it?

Four answers on validation photos: how much of the heat lies on the object; whether hot places count (`insertion`); how
often it is right without colour or in other colours; and how often it is right where the object is hidden, which
nothing but a shortcut explains (Xiao et al. 2021, "Noise or Signal", hide it likewise; here the hole's form gives no
class away, see `object_masks.holes`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fruitlib.core import files, progress
from fruitlib.core.errors import InputError
from fruitlib.data import dataset, sources
from fruitlib.data.augment import LUMA
from fruitlib.data.dataset import Photos
from fruitlib.evaluation import shortcut_findings as findings
from fruitlib.evaluation.shortcut_findings import GREY, HUE, Background, Changed, Gain, HeatOnObject
from fruitlib.explain import insertion, object_masks
from fruitlib.explain.gradcam import Heatmaps
from fruitlib.explain.insertion import Curves
from fruitlib.explain.object_masks import Masks
from fruitlib.runs.run import Run

SHORTCUTS_FILE = "shortcuts.json"
HEADLINE = ("heat_on_object", "hidden_corrected", "hidden_chance")
MOST_PHOTOS = 400  # validation photos that are changed, evenly spread
CURVE_PHOTOS = 16, 8  # photos whose curves are followed, of a small network and of a large one
SMALL = 0.2e9  # floating-point operations for one photo, up to which a network is small


@dataclass(frozen=True)
class Looked:
    """What was found on n validation photos, and the pictures that showed it."""

    labels: np.ndarray  # (n,) class indexes
    predicted: np.ndarray  # (n,) of the photos as they are
    names: list[str]  # of the classes
    groups: list[str]  # (n,)
    word: str  # what a group is called
    pictures: np.ndarray  # uint8 (n, S, S, 3)
    turned: np.ndarray  # the same with the hue turned
    masks: Masks
    heat: HeatOnObject
    changes: dict[str, Changed]  # GREY and HUE
    hue_where: str  # where the hue was turned
    background: Background | None  # None where no object's place is known
    curves: Curves
    gains: list[Gain]
    curve_groups: list[str]

    @property
    def verdict(self) -> str:
        """Whether it looks at the object, in a sentence."""
        if self.background is None:
            return f"Whether the background gives the class away is not known: {self.masks.summary}"
        return self.background.verdict(self.word)

    def answer(self, otherwise: str) -> str:
        """The verdict; where none can be given, that sentence and why."""
        return self.verdict if self.background else f"{otherwise}. {self.verdict}"

    @property
    def lines(self) -> list[str]:
        """A sentence for each finding."""
        heat = [f"heat: {self.heat.text(self.labels, self.names)}"] if self.masks.known.any() else []
        return [
            self.masks.summary,
            *heat,
            f"hiding by heat: {findings.gains_text(self.gains, self.curve_groups, self.word)}",
            self.changes[GREY].text("without colour", self.word),
            self.changes[HUE].text(f"hue turned by a third of the circle, red to green ({self.hue_where})", self.word),
            self.verdict,
        ]

    @property
    def record(self) -> dict[str, float]:
        """The numbers by name, without those that do not exist; `findings.COLUMNS` of them go into results.csv."""
        share, area = self.heat.median
        numbers = {"heat_on_object": share, "object_area": area, "heat_below_even": self.heat.below}
        numbers |= {"objects_known": int(self.masks.known.sum()), "shortcut_photos": len(self.labels)}
        for name, one in (("grey", self.changes[GREY]), ("hue", self.changes[HUE])):
            numbers |= {f"{name}_accuracy": one.accuracy, **_difference(name, one)}
        if self.background:
            one = self.background.corrected
            numbers |= {"hidden_accuracy": self.background.answered.value, "hidden_corrected": one.accuracy}
            numbers |= {"hidden_chance": one.beside, **_difference("hidden", one)}
            numbers |= {} if self.background.open else {"shortcut": int(self.background.shortcut)}
        for one in self.gains:
            name = f"{one.name.lower()}_gain"
            numbers |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
        return {name: value for name, value in numbers.items() if np.isfinite(value)}

    @property
    def headline(self) -> dict[str, float]:
        """The numbers that stand beside the verdict."""
        return {name: self.record[name] for name in HEADLINE if name in self.record}

    def write(self, run: Run) -> None:
        """Write the numbers and sentences to the run's `shortcuts.json`."""
        files.write_json(run.path / SHORTCUTS_FILE, self.record | {"summary": self.lines})


def _difference(name: str, one: Changed) -> dict[str, float]:
    found = one.difference
    return {f"{name}_difference": found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def of_run(run: Run, model: torch.nn.Module, photos: Photos, maps: Heatmaps, write: bool = True) -> Looked:
    """Look at a run's validation photos, whose heat in the last layer is `maps`, and write `shortcuts.json`.

    Of more than 400 photos so many are taken, evenly spread.
    """
    some = np.unique(np.linspace(0, len(photos) - 1, min(MOST_PHOTOS, len(photos))).round().astype(int))
    chosen = photos.pick(some)
    boxes = object_masks.boxes_seen(sources.root(run.config.data, run.config.photos_dir), chosen.paths, run.config)
    with progress.recorded(run.path):
        progress.step("photos without colour, without the object")
        looked = look(
            model,
            dataset.to_pictures(chosen.images),
            chosen.labels.numpy(),
            maps.heatmap[some, -1],
            maps.targets[some],
            run.class_names,
            run.groups(chosen.paths),
            boxes,
            run.config.group_word,
            plain=maps.predicted[some] if run.config.views == "one" else None,
        )
    if write:
        looked.write(run)
    return looked


def look(
    model: torch.nn.Module,
    pictures: np.ndarray,
    labels: np.ndarray,
    heat: np.ndarray,
    targets: np.ndarray,
    names: Sequence[str],
    groups: Sequence[str] | None = None,
    boxes: list[np.ndarray | None] | None = None,
    word: str = "group",
    seed: int = 0,
    plain: np.ndarray | None = None,
) -> Looked:
    """All findings on photos (n, S, S, 3) uint8 with their labels (n,).

    Args:
        heat: of each photo, (n, S, S) in [0, 1].
        targets: the classes (n,) that the heat explains.
        boxes: where the object is, as `object_masks.find` takes it.
        plain: the classes (n,) that the model predicts for the photos as they are, where that is known.

    Raises:
        InputError: no photos, or another number of labels, heatmaps or targets.
    """
    if not len(pictures) or not len(pictures) == len(labels) == len(heat) == len(targets):
        counts = [len(part) for part in (pictures, labels, heat, targets)]
        raise InputError(f"photos, labels, heatmaps and targets: {counts}; give at least one, as many of each")
    groups = list(groups) if groups is not None else [""] * len(labels)
    masks = object_masks.find(pictures, boxes, seed, np.asarray(labels))
    known = np.flatnonzero(masks.known)
    whole = len(known) < len(pictures)  # then the whole photo's hue is turned, alike in all
    turned = turned_hue(pictures, None if whole else masks.masks)
    plain = _predicted(model, pictures) if plain is None else plain
    grey, hue = (_predicted(model, part) for part in (grey_of(pictures), turned))
    without = _log_probs(model, masks.hidden[known]) if len(known) else None
    right = plain == labels
    own = [groups[i] for i in known]
    behind = findings.background(labels[known], plain[known], without, names, own) if len(known) else None
    curves, chosen = _curves(model, pictures, heat, targets, seed)
    curve_groups = [groups[i] for i in chosen]
    return Looked(
        labels=labels,
        predicted=plain,
        names=list(names),
        groups=groups,
        word=word,
        pictures=pictures,
        turned=turned,
        masks=masks,
        heat=heat_on_object(heat, masks),
        changes={
            GREY: findings.changed(GREY, right, grey == labels, groups),
            HUE: findings.changed(HUE, right, hue == labels, groups),
        },
        hue_where="of the whole photo" if whole else "of the object alone",
        background=behind,
        curves=curves,
        gains=[findings.gain(name, values, curve_groups) for name, values in curves.gains().items()],
        curve_groups=curve_groups,
    )


def heat_on_object(heat: np.ndarray, masks: Masks) -> HeatOnObject:
    """The share of each photo's heat (n, S, S) on its object; each photo counts the same, however much heat it has."""
    inside, whole = (heat * masks.masks).sum((1, 2), dtype=float), heat.sum((1, 2), dtype=float)
    shares = np.divide(inside, whole, out=np.full(len(heat), np.nan), where=(whole > 0) & masks.known)
    return HeatOnObject(shares, masks.areas)


def grey_of(pictures: np.ndarray) -> np.ndarray:
    """The pictures (n, S, S, 3) without colour, of the same brightness (ITU-R BT.601)."""
    return np.repeat(np.rint(pictures @ LUMA).astype(np.uint8)[..., None], 3, axis=3)


def turned_hue(pictures: np.ndarray, masks: np.ndarray | None = None) -> np.ndarray:
    """The pictures with every hue turned by 120°, red to green, green to blue: inside the masks (n, S, S) if given.

    The channels change places, so that nothing is clipped; brightness changes with them.
    """
    turned = pictures[..., [2, 0, 1]]
    return turned if masks is None else np.where(masks[..., None], turned, pictures)


def _curves(
    model: torch.nn.Module, pictures: np.ndarray, heat: np.ndarray, targets: np.ndarray, seed: int
) -> tuple[Curves, np.ndarray]:
    """The curves of some photos that have heat, and which these are: few of a large network."""
    warm = np.flatnonzero(heat.any((1, 2)))
    most = CURVE_PHOTOS[int(_operations(model, pictures[:1]) > SMALL)]
    chosen = warm[np.unique(np.linspace(0, len(warm) - 1, min(most, len(warm))).round().astype(int))]
    images = _floats(pictures[chosen])
    model.eval()
    progress.step("deletion and insertion")
    return insertion.curves(model, images, heat[chosen], targets[chosen], seed), chosen


@torch.inference_mode()
def _operations(model: torch.nn.Module, picture: np.ndarray) -> float:
    """Floating-point operations of the model for one picture (1, S, S, 3)."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model.eval()(_floats(picture).to(next(model.parameters()).device))
    return counter.get_total_flops()


def _predicted(model: torch.nn.Module, pictures: np.ndarray) -> np.ndarray:
    """Class indexes (n,) of pictures uint8 (n, S, S, 3)."""
    return _log_probs(model, pictures).argmax(1)


@torch.inference_mode()
def _log_probs(model: torch.nn.Module, pictures: np.ndarray, batch: int = 64) -> np.ndarray:
    """Log probabilities (n, C) of pictures uint8 (n, S, S, 3), at least one."""
    device = next(model.parameters()).device
    model.eval()
    parts = [pictures[start : start + batch] for start in range(0, len(pictures), batch)]
    return torch.cat([model(_floats(part).to(device)).float().log_softmax(1).cpu() for part in parts]).numpy()


def _floats(pictures: np.ndarray) -> torch.Tensor:
    return dataset.to_float(torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2))
