"""The label desk: doubtful labels, conflicts, near-duplicates, quarantined photos: keep, relabel or set aside.

A widget for 01 and 03. A decision is written at once to the data set's file of corrections (`data.corrections`), so
that none is lost when view, page or kernel changes; taking one back writes another row. No photo is touched.
"""

import base64
import html
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from ipywidgets import HTML, Box, Button, Dropdown, HBox, Layout, VBox

from fruitlib.core import files, machine
from fruitlib.core.config import Config
from fruitlib.core.errors import InputError
from fruitlib.core.texts import printable, shortened
from fruitlib.data import corrections, dataset, decoding, duplicates, photo_checks, sources
from fruitlib.data.corrections import KEEP, KEY, RELABEL, SET_ASIDE, UNDO
from fruitlib.evaluation import label_errors
from fruitlib.reporting.keys_box import KeysBox
from fruitlib.reporting.pictures import encoded

CARDS = 12  # on a page
SIDE = 176  # of a card's picture, pixels
IMAGE = f"<img width={SIDE} height={SIDE} alt=\"{{}}\" src='data:image/jpeg;base64,{{}}'>"
NARROW, WIDE = "21em", "31em"  # a card with one picture or two
KINDS = ("doubtful label", "conflict", "quarantined", "near-duplicate")
STATES = ("to decide", "decided", "all")
SAME_PHOTO = "the same photo is labelled"  # how `duplicates.resolve` begins the reason of such a conflict
WORDS = {KEEP: "kept", RELABEL: "relabelled", SET_ASIDE: "set aside"}
AS_IT_IS = {"crop_to": "box", "resize": "pad", "center": 1.0, "brightness": 1.0, "contrast": 1.0}
AS_IT_IS |= {"saturation": 1.0, "sharpness": 1.0, "image_size": SIDE}


def show(
    config: Config,
    manifest: pd.DataFrame,
    doubtful: pd.DataFrame | None = None,
    who: str = "",
    sweep_dir: Path | None = None,
):
    """The desk over a manifest's photos, or a line where it has none to show; nothing while a sweep executes this.

    Args:
        doubtful: `label_errors.doubtful_labels`, where a model's predictions are at hand.
        who: a name to keep with each decision.
        sweep_dir: where 03 has not been executed yet on what is shown: the labels that runs of this sweep, and of
            those beside it, have doubted so far (`label_errors.doubts_of_runs`).
    """
    if machine.in_sweep():
        return None
    if corrections.place(config) is None:
        return HTML("corrections: none is set, so that no decision can be kept: set corrections: auto")
    if sweep_dir is not None:
        doubtful, problems = label_errors.doubts_of_runs(sweep_dir, manifest)
        print("\n".join([doubts_text(doubtful), *problems]))
    return LabelDesk(config, manifest, doubtful, who).widget


def doubts_text(doubtful: pd.DataFrame) -> str:
    """How many labels runs have doubted so far."""
    photos, runs = doubtful["path"].nunique(), doubtful["run"].nunique()
    if not photos:
        return "no run has doubted a label of these photos so far"
    return f"doubtful labels: {photos:,}, from 03 of {runs:,} run{'s' * (runs != 1)}"


def cases(manifest: pd.DataFrame, doubtful: pd.DataFrame | None = None) -> pd.DataFrame:
    """What a person should look at, a row a photo.

    Of each set of near-duplicates the first photo is left out, and so are test photos, which nobody should look at.

    Returns:
        path, kinds (some of `KINDS`), reasons (a sentence each), suggested (a label), beside (the path of the photo
        that it looks like; "" where it is about this one alone).
    """
    found = [*_doubtful(doubtful), *_conflicts(manifest), *_quarantined(manifest), *_near(manifest)]
    table = pd.DataFrame(found, columns=["kind", "path", "reason", "suggested", "beside"])
    order = table["kind"].map(KINDS.index)
    parts = table.iloc[order.argsort(kind="stable")].groupby("path", sort=False)
    together = {"kinds": ("kind", list), "reasons": ("reason", list), "suggested": ("suggested", "first")}
    return parts.agg(**together, beside=("beside", _first)).reset_index()


def _first(texts: pd.Series) -> str:
    """The first that is not empty; "" where all are."""
    return next(filter(None, texts), "")


def _doubtful(doubtful: pd.DataFrame | None) -> list[tuple]:
    rows = [] if doubtful is None else doubtful.itertuples()
    why = "the model says {0.suggested} ({0.probability:.0%})"
    if doubtful is not None and "run" in doubtful:
        why = "{0.run}, {0.found}, says {0.suggested} ({0.probability:.0%})"
    return [(KINDS[0], row.path, why.format(row), row.suggested, "") for row in rows]


def _conflicts(manifest: pd.DataFrame) -> list[tuple]:
    """The photos of each pair that looks alike under two labels, but for test photos; photos that have two labels."""
    tested = set(manifest.loc[manifest["split"] == "test", "path"])
    found, pairs = [], corrections.unconfirmed_pairs(duplicates.conflicts(manifest), manifest)
    for row in pairs.itertuples():
        for one, other, label in (("path_a", row.path_b, row.label_b), ("path_b", row.path_a, row.label_a)):
            path, why = getattr(row, one), f"looks like {other}, labelled {label}"
            if path not in tested:
                found.append((KINDS[1], path, why, label, "" if other in tested else other))
    twice = manifest[manifest["reason"].str.startswith(SAME_PHOTO)].sort_values(["sha256", "path"])
    found += [(KINDS[1], row.path, row.reason, _other_label(twice, row), "") for row in twice.itertuples()]
    return found


def _other_label(twice: pd.DataFrame, row) -> str:
    others = twice.loc[(twice["sha256"] == row.sha256) & (twice["label"] != row.label), "label"]
    return others.iloc[0] if len(others) else row.label


def _quarantined(manifest: pd.DataFrame) -> list[tuple]:
    rows = manifest[(manifest["status"] == "quarantined") & ~manifest["reason"].str.startswith(SAME_PHOTO)]
    return [(KINDS[2], row.path, row.reason, row.label, "") for row in rows.itertuples()]


def _near(manifest: pd.DataFrame) -> list[tuple]:
    pairs = duplicates.pairs(manifest[manifest["split"] != "test"])
    pairs = pairs[(pairs["label_a"] == pairs["label_b"]) & ~pairs["path_b"].isin(corrections.confirmed(manifest))]
    pairs = pairs.drop_duplicates("path_b")
    return [(KINDS[3], row.path_b, f"looks like {row.path_a}", row.label_b, row.path_a) for row in pairs.itertuples()]


class Decisions:
    """The decisions on a manifest's photos as their file holds them now, and new ones.

    Others may write the same file: `refresh` reads it again.
    """

    def __init__(self, config: Config, manifest: pd.DataFrame, who: str = ""):
        self.config, self.who, self.file = config, who, corrections.place(config)
        photos = manifest.assign(box=[path[len(file) :] for path, file in _with_files(manifest["path"])])
        self._photos = photos.set_index("path")[["sha256", "box", "label", "decision"]]
        self.refresh()

    def refresh(self) -> None:
        self.history = corrections.read(self.file)
        table = corrections.latest(self.history)
        self._now = {tuple(row[name] for name in KEY): row for row in table.to_dict("records")}

    def __len__(self) -> int:
        return len(self._now)

    def key(self, path: str) -> tuple[str, str, str]:
        """(sha256, box, label as given) of a photo; its manifest may hold the label that it was given since."""
        sha256, box, old, decision = self._photos.loc[path]
        if decision == RELABEL:
            rows = self.history[(self.history["decision"] == RELABEL) & (self.history["new"] == old)]
            rows = rows[(rows["sha256"] == sha256) & (rows["box"] == box)]
            old = rows["old"].iloc[-1] if len(rows) else old
        return sha256, box, old

    def of(self, path: str) -> dict:
        """What was decided on a photo (a row of the file); empty where nothing is."""
        return self._now.get(self.key(path), {})

    def decide(self, path: str, decision: str, new: str = "") -> None:
        """Write a decision down.

        Raises:
            InputError: the photo could not be read when it was checked, or the file cannot be written.
        """
        sha256, _, old = self.key(path)
        if not sha256:
            raise InputError(
                f"{path}: the file could not be read, so that it cannot be known again: repair or remove it"
            )
        row = {"sha256": sha256, "path": path, "old": old, "decision": decision, "new": new}
        corrections.decide(self.file, [row], self.who)
        self.refresh()

    def decided_paths(self) -> list[str]:
        """The photos of this manifest on which something was decided."""
        known = {sha256 for sha256, _, _ in self._now}
        held = self._photos.index[self._photos["sha256"].isin(known)]
        return [path for path in held if self.of(path)]


def _with_files(paths: pd.Series):
    return zip(paths, corrections.photo_of(paths), strict=True)


class LabelDesk:
    """The widget: filters, pages of cards, and the line that says where decisions are kept."""

    def __init__(self, config: Config, manifest: pd.DataFrame, doubtful: pd.DataFrame | None = None, who: str = ""):
        self.decisions = Decisions(config, manifest, who)
        self.manifest = manifest.set_index("path", drop=False)
        self.cases = cases(manifest, doubtful).set_index("path", drop=False)
        self.pictures = Pictures(config, manifest)
        self.page, self.shown = 0, []
        self._build(sorted(set(manifest.loc[manifest["status"].isin(["ok", "sealed"]), "label"])))
        self.refresh()

    def _build(self, classes: list[str]) -> None:
        kinds = [kind for kind in KINDS if any(kind in held for held in self.cases["kinds"])]
        self.kind = Dropdown(options=[("all kinds", ""), *zip(kinds, kinds, strict=True)], description="Show")
        first = [kind for kind in kinds if kind != KINDS[3]]
        self.kind.value = first[0] if first else ""
        self.label = Dropdown(
            options=[("all classes", ""), *zip(classes, classes, strict=True)], description="of class"
        )
        self.state = Dropdown(options=STATES, description="that are")
        for control in (self.kind, self.label, self.state):
            control.layout.width = "17em"
            control.style.description_width = "4.5em"
            control.observe(lambda change: self.turn_to(0), names="value")
        self.back = Button(description="◀ back", layout=Layout(width="6em"))
        self.on = Button(description="next ▶", layout=Layout(width="6em"))
        self.back.on_click(lambda _: self.turn_to(self.page - 1))
        self.on.on_click(lambda _: self.turn_to(self.page + 1))
        self.place, self.message = HTML(), HTML()
        self.cards = [Card(classes, self._decide) for _ in range(CARDS)]
        grid = Box([card.widget for card in self.cards], layout=Layout(flex_flow="row wrap", display="flex"))
        filters = HBox([self.kind, self.label, self.state], layout=Layout(flex_flow="row wrap"))
        self.widget = KeysBox([self.message, filters, grid, HBox([self.back, self.place, self.on])])

    def turn_to(self, page: int) -> None:
        """Show another page, or another view's first one."""
        self.page = page
        self.refresh()

    def refresh(self) -> None:
        """Read the decisions again and show the page anew."""
        self.decisions.refresh()
        paths = self._chosen()
        pages = max(1, -(-len(paths) // CARDS))
        self.page = min(max(self.page, 0), pages - 1)
        self.shown = paths[self.page * CARDS : (self.page + 1) * CARDS]
        pictures = self.pictures.of([*self.shown, *filter(None, map(self._beside, self.shown))])
        for card, path in zip(self.cards, [*self.shown, *[""] * CARDS], strict=False):
            card.hide() if not path else self._fill(card, path, pictures)
        self.back.disabled, self.on.disabled = self.page == 0, self.page == pages - 1
        count = f"{len(paths):,} photo{'s' * (len(paths) != 1)}"
        self.place.value = f"{count}, page {self.page + 1} of {pages}" if paths else "no such photo"
        self._say()

    def _chosen(self) -> list[str]:
        """The paths that the filters let through, in the order of the cases; then others on which was decided."""
        kind, state, decided = self.kind.value, self.state.value, self.decisions.decided_paths()
        cases = zip(self.cases["path"], self.cases["kinds"], strict=True)
        paths = [path for path, kinds in cases if not kind or kind in kinds]
        if state == "decided" or not kind:
            paths += [path for path in decided if path not in self.cases.index]
        if state != "all":
            paths = [path for path in paths if (path in decided) == (state == "decided")]
        return [path for path in paths if self.label.value in ("", self.manifest["label"][path])]

    def _beside(self, path: str) -> str:
        """The path of the photo that it looks like; "" where there is none."""
        return self.cases["beside"].get(path, "")

    def _fill(self, card: "Card", path: str, pictures: dict[str, bytes]) -> None:
        case = self.cases.loc[path] if path in self.cases.index else None
        row, decided = self.manifest.loc[path], self.decisions.of(path)
        reasons = [row["reason"] or "decided before"] if case is None else case["reasons"]
        suggested = row["label"] if case is None else case["suggested"]
        readable = row["status"] != "quarantined" or row["reason"].startswith(SAME_PHOTO)
        card.show(path, self.decisions.key(path)[2], reasons, suggested, decided, readable)
        beside = self._beside(path)
        card.show_pictures({one: pictures[one] for one in (path, beside) if one}, self.manifest["label"].get(beside))

    def _decide(self, card: "Card", decision: str) -> None:
        """A button was pressed."""
        new = card.choice.value if decision == RELABEL else ""
        try:
            self.decisions.decide(
                card.path, KEEP if new and new == card.old else decision, new if new != card.old else ""
            )
        except InputError as problem:
            self._say(str(problem))
            return
        card.tell(self.decisions.of(card.path))
        self._say()

    def _say(self, problem: str = "") -> None:
        where, count = files.display_path(self.decisions.file), len(self.decisions)
        kept = f"{count:,} decision{'s' * (count != 1)} so far in {where}, written at once; no photo is changed. "
        way = "The sweep divides by them when it runs again, or 01 by hand. Runs whose photos change train again."
        colour = "var(--jp-error-color1, #c62828)"
        wrong = f"<br><b style='color:{colour}'>{html.escape(problem)}</b>" if problem else ""
        self.message.value = f"{html.escape(kept)}{way}{wrong}"


class Card:
    """One photo: its picture, why it is here, and what to decide."""

    def __init__(self, classes: list[str], decide: Callable[["Card", str], None]):
        self.path, self.old, self._readable = "", "", True
        self.pictures, self.text, self.state = HTML(), HTML(), HTML()
        self.choice = Dropdown(options=classes, layout=Layout(width="9em"))
        self.buttons = {}
        for decision, name in ((KEEP, "keep"), (RELABEL, "relabel"), (SET_ASIDE, "set aside"), (UNDO, "undo")):
            button = Button(description=name, layout=Layout(width="6.4em"))
            button.on_click(lambda _, decision=decision: decide(self, decision))
            self.buttons[decision] = button
        keep, relabel, aside, undo = self.buttons.values()
        rows = [HBox([keep, aside, undo]), HBox([self.choice, relabel]), self.state]
        border = "1px solid var(--jp-border-color2, #ccc)"
        layout = Layout(width=NARROW, max_width="98%", border=border, padding="6px", margin="0 8px 8px 0")
        self.widget = VBox([self.pictures, self.text, *rows], layout=layout)

    def hide(self) -> None:
        self.path, self.widget.layout.display = "", "none"

    def show(self, path: str, old: str, reasons: list[str], suggested: str, decided: dict, readable: bool) -> None:
        """Say what a photo is, and why it is here. Where it cannot be read, it can only be set aside."""
        self.path, self.old, self._readable = path, old, readable
        lines = [f"<b>{html.escape(printable(old))}</b> · {_short(path)}"]
        lines += [html.escape(shortened(printable(reason), 160)) for reason in reasons[:3]]
        lines += [f"and {len(reasons) - 3} more like this"] if len(reasons) > 3 else []
        self.text.value = "<div style='line-height:1.3;overflow-wrap:anywhere'>" + "<br>".join(lines) + "</div>"
        wanted = decided.get("new") or suggested
        self.choice.value = wanted if wanted in self.choice.options else self.choice.options[0]
        self.tell(decided)
        self.widget.layout.display = "flex"

    def show_pictures(self, pictures: dict[str, bytes], label: str | None) -> None:
        """Show the photo, and to its right the one that it looks like, of that label, where there is one."""
        encoded = {path: base64.b64encode(picture).decode() for path, picture in pictures.items()}
        images = [IMAGE.format(_short(path), text) for path, text in encoded.items()]
        row = f"<div style='display:flex;flex-wrap:wrap;gap:6px'>{''.join(images)}</div>"
        right = [
            f"left: this photo; right: <b>{html.escape(printable(label))}</b> · {_short(path)}"
            for path in list(pictures)[1:]
        ]
        self.pictures.value = row + "".join(right)
        self.widget.layout.width = WIDE if right else NARROW

    def tell(self, decided: dict) -> None:
        """Show what was decided."""
        done = decided.get("decision", "")
        for decision, button in self.buttons.items():
            button.button_style = "success" if decision == done and done != RELABEL else ""
            button.disabled = decision in (KEEP, RELABEL) and not self._readable
        if done == RELABEL:
            self.buttons[RELABEL].button_style = "success"
        self.buttons[UNDO].disabled = not done
        self.choice.disabled = not self._readable
        new = f": {decided['new']}" if done == RELABEL else ""
        self.state.value = f"✓ <b>{WORDS[done]}{html.escape(printable(new))}</b>" if done else "not decided"


class Pictures:
    """Photos for cards, as JPEG: whole (or the box), whatever the network is shown."""

    def __init__(self, config: Config, manifest: pd.DataFrame):
        self.config = photo_checks.with_bits(config, manifest).model_copy(update=AS_IT_IS)
        self.folder = sources.root(config.data, config.photos_dir)
        self.status = manifest.set_index("path")["status"]
        self._known: dict[str, bytes] = {}

    def of(self, paths: list[str]) -> dict[str, bytes]:
        """The picture of each photo; a grey one where nothing can be shown."""
        new = [path for path in paths if path not in self._known]
        decoded = self._decoded([path for path in new if self.status[path] in ("ok", corrections.STATUS)])
        for path in new:
            picture = decoded[path] if path in decoded else self._glimpse(path)
            self._known[path] = _jpeg(picture)
        return {path: self._known[path] for path in paths}

    def _decoded(self, paths: list[str]) -> dict[str, np.ndarray]:
        """Those of the photos that open."""
        if not paths:
            return {}
        try:
            return dict(zip(paths, dataset.pictures(self.folder, paths, self.config), strict=True))
        except InputError:  # one of them was removed or damaged since
            some = (self._decoded([path]) for path in paths) if len(paths) > 1 else ()
            return {path: picture for one in some for path, picture in one.items()}

    def _glimpse(self, path: str) -> np.ndarray:
        small = decoding.glimpse(sources.locate(self.folder, path)[0], SIDE)
        return np.full((SIDE, SIDE, 3), 225, np.uint8) if small is None else small


def _short(path: str) -> str:
    return html.escape(shortened(printable(path), 60))


def _jpeg(picture: np.ndarray) -> bytes:
    """A picture in the middle of a square, as JPEG."""
    from PIL import Image as Pillow

    square, photo = Pillow.new("RGB", (SIDE, SIDE), (225, 225, 225)), Pillow.fromarray(picture)
    scale = SIDE / max(photo.size)
    photo = photo.resize([max(1, round(extent * scale)) for extent in photo.size], Pillow.Resampling.BICUBIC)
    square.paste(photo, ((SIDE - photo.width) // 2, (SIDE - photo.height) // 2))
    return encoded(square, "JPEG", quality=90)
