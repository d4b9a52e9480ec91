"""Proof that pretrained weights are what their source claims, by two photos that every machine has.

scikit-learn brings a pagoda (`china.jpg`) and a dahlia (`flower.jpg`). Two things are looked at, before a network's own
head is replaced. Its names: with ImageNet's 1000 classes it must call the one a building, the other a flower or what
looks like one. Its normalisation: BatchNorm keeps the mean and variance of what it saw in training, and only photos
normalised as they were then give the first layers the like. Measured on EfficientNet lite0 to lite2, the distance is
.03 to .05 for their own normalisation, .25 to .37 for the next best, .7 for ImageNet's, and .5 or more for whatever
normalisation of networks with fresh weights. The order of colours it cannot tell (.03 to .05 for blue first, too).
"""

from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn.functional import interpolate

from fruitlib.core import files
from fruitlib.core.errors import InputError
from fruitlib.training.weights import MEAN, STD, Facts, Triple

VERSION = 2  # of what is proven: kept verdicts of another version are not used
# ImageNet's classes for what the photos show, and for what looks like it
BUILDING = {442: "bell cote", 449: "boathouse", 483: "castle", 497: "church", 538: "dome", 663: "monastery"}
BUILDING |= {668: "mosque", 698: "palace", 832: "stupa", 858: "tile roof", 975: "lakeside"}
FLOWER = {985: "daisy", 599: "honeycomb", 996: "hen-of-the-woods", 108: "sea anemone", 947: "mushroom", 309: "bee"}
FLOWER |= {310: "ant", 619: "lampshade", 738: "pot", 883: "vase", 944: "artichoke", 946: "cardoon", 991: "coral fungus"}
FLOWER |= {109: "brain coral", 117: "chambered nautilus", 957: "pomegranate", 723: "pinwheel", 936: "head cabbage"}
FLOWER |= {986: "yellow lady's slipper", 992: "agaric", 994: "stinkhorn", 995: "earthstar"}
PHOTOS = {"china.jpg": (BUILDING, (0, 40)), "flower.jpg": (FLOWER, (70, 120))}  # and where squares begin, from the left
TOP = 5
LARGEST_SIDE = 256  # of the photos in pixels: enough to name them, for networks trained at more, too
SIDE = 128  # for BatchNorm's statistics, which hardly change with it
LAYERS = 6  # of BatchNorm, the first: later ones depend on what a photo shows
FIT = 0.25  # the largest distance of a normalisation that fits
CLEAR = 3  # times as far: another normalisation does not fit
SURER = 1.5  # nats: another normalisation names clearly better
SPREAD = 0.01  # nats: the entropy of answers that are sure of one name
HALF, ZERO, ONE = (0.5, 0.5, 0.5), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
BYTE = (1 / 255, 1 / 255, 1 / 255)
NORMALISATIONS = [(MEAN, STD), (HALF, HALF), (ZERO, ONE), (MEAN, BYTE), (ZERO, BYTE)]


@dataclass(frozen=True)
class Verdict:
    """What the photos say about weights.

    `named`: whether the network names them; None without ImageNet's head. `fits`: whether the own normalisation, an
    other one or none does; unsure, where names speak for another; "" where nothing shows it. `mean` and `std` are those
    to use. `text` says it for people.
    """

    text: str
    mean: Triple
    std: Triple
    named: bool | None = None
    fits: str = ""

    @property
    def failed(self) -> bool:
        """Whether the photos speak against these weights, and nothing for them."""
        return self.named is False and self.fits not in ("own", "other")

    @property
    def opening(self) -> str:
        """`proven` where something speaks for the weights, else `not proven`."""
        shown = self.named is not False and self.fits in ("own", "other")
        return "proven" if shown or (self.named and not self.fits) else "not proven"


def kept(sha256: str, net: nn.Module, facts: Facts, model: str, head: bool) -> Verdict:
    """`prove`, once per model and weights (`sha256` is theirs as loaded): verdicts are kept in the cache of photos."""
    key = files.fingerprint(VERSION, sha256, asdict(facts), model, head)
    path = files.cache_dir() / "proofs" / f"{key}.json"
    try:
        held = files.read_json(path, {})
        return Verdict(**held | {name: tuple(held[name]) for name in ("mean", "std")})
    except (InputError, OSError, KeyError, TypeError):
        verdict = prove(net, facts, head)
    try:
        files.write_json(path, asdict(verdict))
    except OSError as problem:  # it is proven again next time
        if not files.is_disk_failure(problem) and not isinstance(problem, PermissionError):
            raise
    return verdict


@torch.no_grad()
def prove(net: nn.Module, facts: Facts, head: bool) -> Verdict:
    """Show the photos to a library's network, made for images of `facts.side`, with its own head.

    `head`: whether that was loaded, too.
    """
    trained = net.training
    net.eval()
    try:
        own = (tuple(facts.mean), tuple(facts.std))
        distances = _distances(net, own, facts.side)
        if distances is None:
            fits, best, text = "", own, "normalisation not proven: no BatchNorm"
        else:
            fits, best, text = _best_normalisation(distances, own)
        if not head:
            return Verdict(f"not named: no head for ImageNet's 1000 classes; {text}", *best, None, fits)
        named, names, sureness = _names(net, best, facts.side)
        if named and distances is None and (doubt := _doubt(net, own, facts.side, sureness)):
            fits, text = "unsure", f"normalisation in doubt: {doubt}"
        return Verdict(f"{names}; {text}", *best, named, fits)
    finally:
        net.train(trained)


def _photo(name: str, side: int) -> torch.Tensor:
    """Squares of a photo: (2, 3, side, side) in [0, 1]."""
    from sklearn.datasets import load_sample_image

    photo = torch.tensor(load_sample_image(name)).permute(2, 0, 1)[None].float() / 255
    high = photo.shape[2]
    squares = torch.cat([photo[..., left : left + high] for left in PHOTOS[name][1]])
    return interpolate(squares, (side, side), mode="bilinear", antialias=True)


def _run(net: nn.Module, images, normalisation: tuple[Triple, Triple], sides: tuple[int, ...]) -> torch.Tensor:
    """The network's answer to `images(side)`, normalised, at the first of these sides that it takes."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in normalisation)
    for side in sides:
        try:
            return net((images(side) - mean) / std)
        except (RuntimeError, AssertionError, ValueError):  # some transformers take one side only
            if side == sides[-1]:
                raise
    raise ValueError("no side to try")


# ---- names ----


def _names(net: nn.Module, normalisation: tuple, side: int) -> tuple[bool | None, str, float]:
    """Whether the photos are named, how, and how surely; None where the network's classes are not ImageNet's 1000."""
    hits, words, sureness = [], [], 0.0
    for photo, (accepted, _) in PHOTOS.items():
        log_probs = _answers(net, photo, normalisation, side)
        if log_probs.shape[1] != 1000:
            return None, f"not named: a head of {log_probs.shape[1]} classes", 0.0
        top = log_probs.mean(0).nan_to_num(-1e9).topk(TOP).indices.tolist()
        found = [accepted[index] for index in top if index in accepted]
        hits.append(len(found))
        words.append(f"{photo}: {', '.join(found[:3]) or f'class {top[0]}'}")
        sureness += _sureness(log_probs, photo)
    named = hits[0] >= 2 and hits[1] >= 1 and sum(hits) >= 4  # by chance in less than one of 10,000
    return named, f"{'names' if named else 'does not name'} scikit-learn's photos ({'; '.join(words)})", sureness


def _answers(net: nn.Module, photo: str, normalisation: tuple, side: int, blue_first: bool = False) -> torch.Tensor:
    def squares(side: int) -> torch.Tensor:
        return _photo(photo, side).flip(1) if blue_first else _photo(photo, side)

    return _run(net, squares, normalisation, (min(side, LARGEST_SIDE), side)).log_softmax(1)


def _sureness(log_probs: torch.Tensor, photo: str) -> float:
    """Log of the probability that goes to what a photo shows, the mean over its squares."""
    return log_probs[:, list(PHOTOS[photo][0])].logsumexp(1).mean().item()


def _doubt(net: nn.Module, own: tuple, side: int, sureness: float) -> str:
    """What speaks against a normalisation where the photos are named under it; "" for nothing.

    The networks measured spread their answers by 0.5 to 6 nats over names, and by none where images are 255 times as
    bright as they should be. Then they are sure of whatever they say, so that their sureness says nothing.
    """
    answers = [_answers(net, photo, own, side) for photo in PHOTOS]
    if max(-(a.exp() * a).sum(1).mean().item() for a in answers) < SPREAD:
        return f"with {_words(own)} it is quite sure of whatever it is shown"
    found = {}
    for normalisation, blue_first in [*((one, False) for one in NORMALISATIONS[:3]), (own, True)]:
        answers = {photo: _answers(net, photo, normalisation, side, blue_first) for photo in PHOTOS}
        found[normalisation, blue_first] = sum(_sureness(answers[photo], photo) for photo in PHOTOS)
    best = max(found, key=found.__getitem__)
    if not found[best] > sureness + SURER:
        return ""
    return f"it names them more surely with {'blue first' if best[1] else _words(best[0])} than with {_words(own)}"


# ---- normalisation ----


class _Enough(Exception):
    """The first BatchNorms have been seen: the rest of the network need not run."""


def _distances(net: nn.Module, own: tuple, side: int) -> dict[tuple, float] | None:
    """How far from BatchNorm's statistics those of the photos are under each normalisation; None without BatchNorm."""
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_var is not None]
    if not norms:
        return None
    return {tried: _distance(net, norms, tried, side) for tried in dict.fromkeys([own, *NORMALISATIONS])}


def _distance(net: nn.Module, norms: list[nn.Module], normalisation: tuple, side: int) -> float:
    """The mean over the first BatchNorms of `_divergence`, of the photos' squares."""
    seen: list[float] = []

    def look(norm: nn.Module, inputs: tuple) -> None:
        seen.append(_divergence(inputs[0], norm.running_mean, norm.running_var))
        if len(seen) == LAYERS:
            raise _Enough

    hooks = [norm.register_forward_pre_hook(look) for norm in norms]
    try:
        _run(net, lambda s: torch.cat([_photo(name, s) for name in PHOTOS]), normalisation, (SIDE, side))
    except _Enough:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return round(sum(seen) / len(seen), 3)


def _divergence(values: torch.Tensor, mean: torch.Tensor, var: torch.Tensor) -> float:
    """Kullback-Leibler divergence of normal distributions, from what BatchNorm keeps to what it sees.

    The mean over channels that live (trained networks have some that are constant), each at most 10.
    """
    axes = [axis for axis in range(values.ndim) if axis != 1]
    seen_mean, seen_var = values.mean(axes), values.var(axes).clamp(min=1e-12)
    live = var > 0.01 * var.mean()
    nats = ((var / seen_var).log() + (seen_var + (seen_mean - mean) ** 2) / var - 1) / 2
    return nats[live].nan_to_num(10, posinf=10).clamp(max=10).mean().item()


def _best_normalisation(distances: dict[tuple, float], own: tuple) -> tuple[str, tuple, str]:
    """Whether the own normalisation, another or none fits; the one to use; what to say."""
    best = min(distances, key=distances.__getitem__)
    if distances[best] > FIT:
        return "none", own, f"BatchNorm fits no normalisation, the nearest is {distances[best]} off"
    if distances[own] > FIT or distances[own] > max(FIT / 2, CLEAR * distances[best]):
        text = f"BatchNorm fits {_words(best)} ({distances[best]} off) and not {_words(own)} ({distances[own]} off)"
        return "other", best, text
    next_best = min(value for tried, value in distances.items() if tried != own)
    return "own", own, f"BatchNorm fits {_words(own)} ({distances[own]} off, others {next_best} or more)"


def _words(normalisation: tuple[Triple, Triple]) -> str:
    """Numbers in short: `mean 0.5, sd 0.5`."""
    parts = [f"{v[0]:.3g}" if len(set(v)) == 1 else "/".join(f"{x:.3g}" for x in v) for v in normalisation]
    return f"mean {parts[0]}, sd {parts[1]}"
