"""The INT8 recipe that suits a network: tried in an order of promise, under a gate of labels, noise and time.

Chosen on training photos that did not calibrate, so that `int8_verdict`, on validation photos, stays honest.
"""

import contextlib
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import pandas as pd

from fruitlib.core import progress
from fruitlib.core.files import folder_beside
from fruitlib.deploy import export, quantize
from fruitlib.deploy.predict import read_metadata
from fruitlib.deploy.quantize import Calibrated, QuantizeError, Recipe

TRIED_FILE = "int8_tried.csv"
# Of logits, on training photos. A frozen EfficientNet-Lite0 on fruit304 had 16 to 20 dB in five folds, and fp32's label
# on 257 of 274 photos of new varieties; with its first layer in fp32, 24 dB, and 263, in the same time.
LEAST_DB = 20.0
BEST_DB = 100.0  # a signal without noise
GIVEN_BACK = (1 / 16, 1 / 8, 1 / 4, 1 / 2)  # of the layers in INT8, the most sensitive, become fp32 again
SECONDS = 30.0  # after which no further recipe is tried
AT_ONCE = 8  # photos: with more, memory is what takes time
SHIFTING = 32  # calibration photos at most that show by how much INT8's logits are off in the mean
LAYER_PHOTOS = 2  # show each layer's error


@dataclass(frozen=True)
class Tried:
    """A recipe tried, and what it came to."""

    recipe: Recipe
    verdict: str  # in words; "passes", or what it lacks
    agreement: float = float("nan")  # share of the photos with fp32's label
    sqnr: float = float("nan")  # dB, the mean over photos, of logits less their mean
    ms: float = float("nan")  # one image, one thread, the least of many calls
    ms_fp32: float = float("nan")  # fp32's, measured in turns with it
    mb: float = float("nan")  # 10^6 bytes
    right: bool = False  # keeps labels, without too much noise
    quick: bool = False  # as much quicker than fp32 as was asked


@dataclass(frozen=True)
class Search:
    """What was tried, and what was chosen of it."""

    tried: list[Tried] = field(default_factory=list)
    photos: int = 0  # that it was tried on
    chosen: Tried | None = None  # None: there is no INT8 file
    why: str = ""  # there is none
    layers: dict[str, float] = field(default_factory=dict)  # SQNR in dB of each layer in INT8 alone, the lowest first
    dynamic: onnx.ModelProto | None = None  # the graph quantized dynamically, for comparison
    no_dynamic: str = ""  # why there is none
    apart: bool = True  # none of the photos that it was tried on calibrated

    @property
    def photos_summary(self) -> str:
        """On which photos the recipes were tried."""
        which = "that did not calibrate" if self.apart else "of those that calibrated: there are no others"
        return f"tried on {self.photos} training photos {which}"

    @property
    def table(self) -> pd.DataFrame:
        """A row for each recipe tried, in their order; the content of `TRIED_FILE`."""
        rows = [_row(each, "chosen" if each is self.chosen else each.verdict) for each in self.tried]
        return pd.DataFrame(rows, columns=list(_row(Tried(Recipe(), ""), "")))


def _row(tried: Tried, verdict: str) -> dict:
    recipe = tried.recipe
    return {
        "recipe": recipe.name,
        "ops": "all" if recipe.op_types == quantize.ALL_OP_TYPES else " ".join(recipe.op_types),
        "calibration": "percentile" if recipe.percentile else "MinMax",
        "layers_kept": len(recipe.fp32),
        "agreement": tried.agreement,
        "sqnr_db": round(tried.sqnr, 2),
        "ms": round(tried.ms, 4),
        "ms_fp32": round(tried.ms_fp32, 4),
        "mb": round(tried.mb, 3),
        "verdict": verdict,
    }


@dataclass(frozen=True)
class Gate:
    """What a recipe has to reach."""

    agreement: float = 0.9  # share of the photos with fp32's label: the setting int8_agreement
    speedup: float = 1.1  # times as fast as fp32: the setting int8_speedup; 0: however slow
    least_db: float = LEAST_DB

    def verdict(self, tried: Tried) -> Tried:
        """The recipe with `right`, `quick` and the verdict in words."""
        lacks = []
        if not tried.agreement >= self.agreement:
            lacks.append(f"keeps fp32's label on {tried.agreement:.3f} of the photos, not {self.agreement:g}")
        if not tried.sqnr >= self.least_db:
            lacks.append(f"noise: {tried.sqnr:.1f} dB, not {self.least_db:g}")
        right, quick = not lacks, tried.ms * self.speedup <= tried.ms_fp32
        if not quick:
            lacks.append(f"not {self.speedup:g} times as fast as fp32")
        return replace(tried, right=right, quick=quick, verdict="; ".join(lacks) or "passes")


def search(fp32: Path, int8: Path, calibration: np.ndarray, photos: np.ndarray, gate: Gate | None = None) -> Search:
    """Write the INT8 version of the graph `fp32` to `int8`, by the first recipe that passes the gate.

    First what is quick to make and seldom fails: layers with weights in INT8; the same, but for the first layer, which
    sees the photo itself. Then all operators, with ranges without outliers. Then layers given back to fp32, the most
    sensitive first, of the recipe that has the least noise of those that are quick. Where none passes, nothing is
    written: use fp32.

    Rounding shifts logits (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction",
    section 4.2); the file adds what they lack in the mean on calibration photos. Of 274 photos of new varieties,
    a frozen EfficientNet-Lite0 with its first layer in fp32 then had fp32's label on 263, not 257.

    Args:
        calibration: images (n, 3, S, S) float32 in [0, 1] that set the ranges.
        photos: such images that did not: recipes are judged by them.
    """
    gate, until = gate or Gate(), time.monotonic() + SECONDS
    try:
        calibrated = quantize.calibrate(fp32, calibration)
    except QuantizeError as problem:
        return Search(why=str(problem))
    with folder_beside(fp32) as folder:
        trial = _Trial(
            fp32, folder / "tried.onnx", calibrated, calibration[:: -(-len(calibration) // SHIFTING)], photos, gate
        )
        tried, late = [], False
        for recipe in trial.recipes(tried):
            progress.step(f"INT8 recipe {len(tried) + 1}")
            tried.append(trial.of(recipe))
            if tried[-1].verdict == "passes" or (late := time.monotonic() > until):
                break
        chosen = tried[-1] if tried[-1].verdict == "passes" else None
        layers = trial.layers(chosen)
        if chosen:
            note = f"{quantize.note(chosen.recipe, len(calibration))}, mean error taken off, tried on a CPU {_cpu()}"
            quantize.write(onnx.load(trial.path), int8, read_metadata(fp32), note)
    why = "" if chosen else _why(tried, gate, len(photos)) + f"; the search ended after {SECONDS:g} s" * late
    return Search(tried, len(photos), chosen, why, layers, *_dynamic(calibrated))


def _dynamic(calibrated: Calibrated) -> tuple[onnx.ModelProto | None, str]:
    try:
        return quantize.dynamic(calibrated), ""
    except QuantizeError as problem:
        return None, str(problem)


class _Trial:
    """Recipes for one network, each quantized, run and measured."""

    def __init__(self, fp32: Path, path: Path, calibrated: Calibrated, few: np.ndarray, photos: np.ndarray, gate: Gate):
        self.fp32, self.path, self.calibrated = fp32, path, calibrated
        self.few, self.photos, self.gate = few, photos, gate
        self.reference, self.wanted = (export.run_graph(fp32, some, AT_ONCE) for some in (photos, few))
        self.graphs: dict[Recipe, onnx.ModelProto] = {}
        self.errors: dict[Recipe, dict[str, float]] = {}

    def recipes(self, tried: list[Tried]) -> Iterator[Recipe]:
        """What to try next, given what was `tried` meanwhile."""
        x86, vnni = _is_x86(), _has_vnni()
        first = Recipe(signed=not x86, narrow=x86 and not vnni)
        yield first
        if tried[-1].quick:
            yield replace(first, fp32=tuple(quantize.first_layers(self.calibrated.graph)))
        yield replace(first, op_types=quantize.ALL_OP_TYPES, percentile=True)
        quick = [each for each in tried if each.quick]
        if quick:
            base = max(quick, key=lambda each: each.sqnr).recipe
            errors = self.errors_of(replace(base, fp32=()))
            sensitive = [name for name in errors if name not in base.fp32]
            for count in sorted({max(1, round(share * len(sensitive))) for share in GIVEN_BACK if sensitive}):
                if tried[-1].quick or len(tried[-1].recipe.fp32) <= len(base.fp32):  # more in fp32 is slower still
                    yield replace(base, fp32=(*base.fp32, *sensitive[:count]))
        if first.narrow:
            yield replace(first, signed=True, narrow=False)

    def of(self, recipe: Recipe) -> Tried:
        """What a recipe comes to."""
        self.path.unlink(missing_ok=True)
        try:
            graph = quantize.quantized(self.calibrated, recipe)
            if not recipe.fp32:
                self.graphs[recipe] = graph
            with quantize.explained():
                quantize.write(graph, self.path, {}, recipe.name)
                error = self.wanted - export.run_graph(self.path, self.few, AT_ONCE)
                quantize.write(quantize.shifted(graph, error.mean(0)), self.path, {}, recipe.name)
                logits = export.run_graph(self.path, self.photos, AT_ONCE)
                paths = {"fp32": self.fp32, "int8": self.path}
                runners = {name: export.onnx_runner(path, self.photos[:1]) for name, path in paths.items()}
                times = export.latency_ms(runners, warmup=2, seconds=0.4, fewest=5)
        except QuantizeError as problem:
            return Tried(recipe, str(problem))
        same = (logits.argmax(1) == self.reference.argmax(1)) & np.isfinite(logits).all(1)
        tried = Tried(
            recipe,
            "",
            agreement=float(same.mean()),
            sqnr=float(sqnr(_centred(self.reference), _centred(logits)).mean()),
            ms=times["int8"]["least"],
            ms_fp32=times["fp32"]["least"],
            mb=export.size_mb(self.path),
        )
        return self.gate.verdict(tried)

    def errors_of(self, recipe: Recipe) -> dict[str, float]:
        """`layer_errors` of a recipe that was tried; empty where ONNX Runtime does not run both graphs at once."""
        if recipe not in self.errors:
            self.errors[recipe] = {}
            with contextlib.suppress(QuantizeError), quantize.explained():
                few = self.photos[:LAYER_PHOTOS]
                self.errors[recipe] = layer_errors(self.calibrated, self.graphs[recipe], few)
        return self.errors[recipe]

    def layers(self, chosen: Tried | None) -> dict[str, float]:
        """The errors of all layers by the recipe chosen, else by the first, by the names of their weights."""
        if not self.graphs:
            return {}
        recipe = replace(chosen.recipe, fp32=()) if chosen else next(iter(self.graphs))
        weights = {node.name: node.input[1] for node in self.calibrated.graph.graph.node if len(node.input) > 1}
        found = self.errors_of(recipe if recipe in self.graphs else next(iter(self.graphs)))
        return {layer_label(name, weights[name]): error for name, error in found.items()}


def layer_label(node: str, weight: str) -> str:
    """A layer's name in the network."""
    return weight.removeprefix("model.").removeprefix("net.").removesuffix(".weight") if "weight" in weight else node


def _why(tried: list[Tried], gate: Gate, photos: int) -> str:
    """Why nothing of what was tried is delivered."""
    ran = [each for each in tried if np.isfinite(each.ms)]
    right = [each for each in ran if each.right]
    if not ran:
        return tried[-1].verdict
    if right:
        best = min(right, key=lambda each: each.ms / each.ms_fp32)
        times = f"{best.ms:.2f} against {best.ms_fp32:.2f} ms"
        return f"no recipe was {gate.speedup:g} times as fast as fp32 (int8_speedup) and kept its labels: {times}"
    best = max(ran, key=lambda each: (each.agreement, each.sqnr))
    return f"no recipe computes what fp32 does; the best of {len(ran)}, on {photos} training photos: {best.verdict}"


def _centred(logits: np.ndarray) -> np.ndarray:
    """Logits less their mean, which softmax does not see."""
    return logits - logits.mean(1, keepdims=True)


def sqnr(reference: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The signal-to-quantization-noise ratio in dB of each row of `values`, both (n, k); at most `BEST_DB`.

    10 log10 of the signal's power over that of the difference; minus infinity where values are not finite.
    """
    signal = np.square(reference, dtype=np.float64).sum(1)
    noise = np.square(reference.astype(np.float64) - values).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(noise == 0, BEST_DB, np.minimum(10 * np.log10(signal / noise), BEST_DB))
    return np.where(np.isfinite(noise), found, -np.inf)


def layer_errors(calibrated: Calibrated, graph: onnx.ModelProto, images: np.ndarray) -> dict[str, float]:
    """The SQNR in dB of what each layer in INT8 gives, by node name, lowest first.

    Each layer gets the fp32 network's values, rounded as `graph` rounds them, so the error is its own.
    """
    both, pairs = _side_by_side(calibrated.graph, graph)
    names = [name for pair in pairs.values() for name in pair]
    session = quantize.session_of(quantize.with_outputs(both, names))
    power = {name: np.zeros(2) for name in pairs}
    for start in range(len(images)):
        values = session.run(None, {"images": images[start : start + 1]}) if names else []
        for name, exact, rounded in zip(pairs, values[::2], values[1::2], strict=True):
            low, *_, high = calibrated.ranges.get(pairs[name][0], (-np.inf, np.inf))  # of the ReLU after a layer
            noise = exact - rounded.clip(low, high)
            power[name] += np.square(exact).sum(dtype=float), np.square(noise).sum(dtype=float)
    found = {name: float(10 * np.log10(max(s, 1e-30) / max(n, 1e-30))) for name, (s, n) in power.items()}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _side_by_side(plain: onnx.ModelProto, rounded: onnx.ModelProto) -> tuple[onnx.ModelProto, dict]:
    """Both graphs in one, where what the second rounds are the first one's values; the outputs of each INT8 layer."""
    whole = onnx.ModelProto()
    whole.CopyFrom(plain)
    held = {tensor.name for tensor in plain.graph.initializer}
    whole.graph.initializer.extend(tensor for tensor in rounded.graph.initializer if tensor.name not in held)
    values = {name for node in plain.graph.node for name in node.output} | {"images"}
    own = {name for node in rounded.graph.node for name in node.output}
    dequantized = {node.output[0] for node in rounded.graph.node if node.op_type == "DequantizeLinear"}
    pairs = {}
    for place, node in enumerate(rounded.graph.node):
        added = whole.graph.node.add()
        added.CopyFrom(node)
        added.name = f"int8/{place}"
        added.input[:] = [f"int8/{name}" if name in own else name for name in node.input]
        added.output[:] = [f"int8/{name}" if name else "" for name in node.output]
        exact = _exact(node.input[0]) if node.input else ""
        if node.op_type == "QuantizeLinear" and exact in values:
            added.input[0] = exact
        output = _exact(node.output[0])
        if node.op_type in quantize.WITH_WEIGHTS and node.input[1] in dequantized and output in values:
            pairs[node.name] = (output, added.output[0])
    return whole, pairs


def _exact(name: str) -> str:
    """The fp32 graph's name of a tensor; outputs of the graph are renamed where they are rounded."""
    return name.removesuffix("_QuantizeLinear_Input")


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")


def _has_vnni() -> bool:
    """Whether the CPU is known to add 8-bit products without saturation; only Linux says."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags


def _cpu() -> str:
    if not _is_x86():
        return f"({platform.machine()})"
    return "with VNNI" if _has_vnni() else "without VNNI"
