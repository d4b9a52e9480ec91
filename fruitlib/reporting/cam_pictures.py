"""What the Grad-CAM browser shows, as HTML and as a figure: a photo, where one network or two look, probabilities."""

import base64
import html
import textwrap
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from fruitlib.core import texts
from fruitlib.explain import gradcam
from fruitlib.reporting.cam_views import Look
from fruitlib.reporting.compare_figures import MAX_BARS, SIDES
from fruitlib.reporting.labels import label
from fruitlib.reporting.pictures import encoded

RAMP = np.linspace(0, 1, 9)[None]  # from no heat to full heat, of the legend
SIDE = 320  # pixels of a picture on a page


@dataclass(frozen=True)
class Shown:
    """One side of what is shown."""

    letter: str  # A or B
    name: str  # of the run, and of what computes
    look: Look
    class_names: list[str]
    note: str = ""  # what else has to be known, such as that this network was trained on the photo

    @property
    def predicted(self) -> str:
        """The class predicted."""
        return self.class_names[int(self.look.probs.argmax())]

    def probability(self, name: str) -> float:
        """Of a class; NaN where this side does not know it."""
        return float(self.look.probs[self.class_names.index(name)]) if name in self.class_names else float("nan")

    def answer(self, true: str) -> str:
        """`predicts apple (97 %), right`."""
        verdict = "right" if self.predicted == true else "wrong"
        return f"predicts {texts.printable(self.predicted)} ({self.look.probs.max():.0%}), {verdict}"

    @property
    def about_heat(self) -> list[str]:
        """What the heat is for and how it was found; then its scale."""
        what = f"heat for {texts.printable(self.look.target)}" if self.look.target else "the same for every class"
        return [f"{self.look.how}; {what}" if not self.look.empty else self.look.how, self.look.scale]


def bars(sides: list[Shown], true: str) -> list[str]:
    """The classes worth a bar, in their order: the true one, those predicted or asked for, the likeliest others."""
    names = list(dict.fromkeys(name for side in sides for name in side.class_names))
    always = {true, *(side.predicted for side in sides), *(side.look.target for side in sides)}
    highest = {name: np.nanmax([side.probability(name) for side in sides]) for name in names}
    chosen = sorted(names, key=lambda name: (name not in always, -highest[name]))[:MAX_BARS]
    return [name for name in names if name in chosen]


# ---- HTML


def page(title: str, true: str, sides: list[Shown], opacity: float) -> str:
    """The photo, each side's heat over it, and the probabilities, side by side as far as there is room."""
    size = sides[0].look.photo.shape[0]
    parts = [_picture(sides[0].look.photo, "the photo", [f"{size} × {size} pixels, as A gets it"])]
    for side in sides:
        words = [side.answer(true), *side.about_heat, *([side.note] if side.note else [])]
        picture = gradcam.overlay(side.look.photo / 255, side.look.heat, opacity)
        legend = "<div><b>no heat</b></div>" if side.look.empty else _legend(opacity)
        parts.append(_picture(picture, f"{side.letter}: {side.name}", words, side.letter, legend))
    parts.append(_bars(sides, true))
    style = "display:flex;flex-wrap:wrap;gap:14px;align-items:flex-start;line-height:1.4;white-space:normal"
    head = f"<div style='margin:4px 0'><b>{_text(title)}</b></div>"
    return f"{head}<div style='{style}'>{''.join(parts)}</div>"


def _picture(pixels: np.ndarray, title: str, words: list[str], letter: str = "", legend: str = "") -> str:
    source = base64.b64encode(encoded(pixels, "PNG", compress_level=1)).decode()
    alt = html.escape(". ".join([title, *words]), quote=True)
    lines = "".join(f"<div>{_text(line)}</div>" for line in words)
    colour = f"border-left:4px solid {SIDES[letter.lower()]};padding-left:6px;" if letter else ""
    return (
        f"<figure style='margin:0;width:{SIDE}px;max-width:100%'>"
        f"<img src='data:image/png;base64,{source}' alt=\"{alt}\" style='width:100%;display:block'>{legend}"
        f"<figcaption style='{colour}margin-top:4px;overflow-wrap:anywhere'>"
        f"<div style='font-weight:600'>{_text(title)}</div>{lines}</figcaption></figure>"
    )


def _legend(opacity: float) -> str:
    """What heat looks like on a grey place of the photo."""
    grey = np.full((1, RAMP.shape[1], 3), 0.6)
    colours = [to_hex(colour / 255) for colour in gradcam.overlay(grey, RAMP, opacity)[0]]
    strip = f"background:linear-gradient(to right,{','.join(colours)})"
    return (
        "<div style='display:flex;gap:6px;align-items:center'><span>none</span>"
        f"<span style='flex:1;height:8px;{strip}'></span><span>full heat</span></div>"
    )


def _bars(sides: list[Shown], true: str) -> str:
    """A row per class, in it a bar per side."""
    rows = []
    for name in bars(sides, true):
        lines = "".join(_bar(side, side.probability(name)) for side in sides)
        weight = 600 if name == true else 400
        mark = " (true)" if name == true else ""
        rows.append(f"<div style='font-weight:{weight};margin-top:6px'>{_text(label(name, 30))}{mark}</div>{lines}")
    return f"<div style='width:250px;max-width:100%'><div>Probability</div>{''.join(rows)}</div>"


def _bar(side: Shown, probability: float) -> str:
    known = np.isfinite(probability)
    width, words = (100 * probability, f"{probability:.1%}") if known else (0, "unknown class")
    return (
        f"<div style='display:flex;gap:6px;align-items:center'><span>{side.letter}</span>"
        "<span style='flex:1;height:10px;background:rgba(128,128,128,.25)'>"
        f"<span style='display:block;height:10px;width:{width:.1f}%;background:{SIDES[side.letter.lower()]}'></span>"
        f"</span><span style='width:5.5em'>{words}</span></div>"
    )


def _text(words: str) -> str:
    return html.escape(texts.printable(words))


# ---- a figure, to keep


def figure(title: str, true: str, sides: list[Shown], opacity: float) -> Figure:
    """The same as a figure for a file: photo, each side's heat, bars of the probabilities."""
    names = bars(sides, true)
    widths = [3.2] * (1 + len(sides)) + [3.6]
    drawn = Figure(figsize=(sum(widths), 4.6), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots(1, len(widths), width_ratios=widths)
    drawn.suptitle(label(title, 110), x=0.01, ha="left", fontsize=11)
    _panel(axes[0], sides[0].look.photo, "the photo", [f"true class: {label(true)}"], "black")
    for ax, side in zip(axes[1:-1], sides, strict=True):
        picture = gradcam.overlay(side.look.photo / 255, side.look.heat, opacity)
        words = [side.answer(true), *side.about_heat, *([side.note] if side.note else [])]
        _panel(ax, picture, f"{side.letter}: {label(side.name, 44)}", words, SIDES[side.letter.lower()])
    rows, each = np.arange(len(names)), 0.8 / len(sides)
    for place, side in enumerate(sides):
        values = np.nan_to_num([side.probability(name) for name in names])
        shift = (place - (len(sides) - 1) / 2) * each
        axes[-1].barh(rows + shift, values, each * 0.9, color=SIDES[side.letter.lower()], label=side.letter)
    ticks = [label(name, 20) + (" (true)" if name == true else "") for name in names]
    axes[-1].set(yticks=rows, yticklabels=ticks, xlim=(0, 1), xlabel="probability", ylim=(len(rows) - 0.5, -0.5))
    axes[-1].grid(visible=False)
    axes[-1].legend(loc="lower right", fontsize=8)
    return drawn


def _panel(ax, picture: np.ndarray, title: str, words: list[str], colour: str) -> None:
    ax.imshow(picture)
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    ax.set_title("\n".join(textwrap.wrap(title, 34)), fontsize=9, color=colour, loc="left")
    lines = [part for line in words for part in textwrap.wrap(label(line, 120), 46)]
    ax.set_xlabel("\n".join(lines), fontsize=8, loc="left")
