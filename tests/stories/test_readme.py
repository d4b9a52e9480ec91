"""The documents tell the truth: tables are what was measured, the tree is the tree, links lead somewhere."""

import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
import yaml

from fruitlib import cli
from fruitlib.core import config
from fruitlib.sweep import params

ROOT = Path(__file__).parents[2]
README, KOREAN, CONTRIBUTING, HOW_TO_READ, SETTINGS = (
    (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "README.ko.md", "CONTRIBUTING.md", "executed/README.md", "params/README.md")
)
PAGES = [*ROOT.glob("*.md"), *(ROOT / place / "README.md" for place in ("executed", "params", "tests/benchmarks"))]
EXAMPLE = ROOT / "executed" / "example"


def rows(results: pd.DataFrame) -> list[str]:
    """The demo's table, from `results.csv`: best first, the chosen run with its test result."""
    table = results.sort_values(["macro_f1", "test_n"], ascending=False, kind="stable")
    lines = []
    for row in table.to_dict("records"):
        validation = f"{row['accuracy']:.3f} ({row['accuracy_low']:.2f}–{row['accuracy_high']:.2f})"
        tested = row["test_n"] > 0
        test = (
            f"**{row['test_accuracy']:.3f}** ({row['test_low']:.2f}–{row['test_high']:.2f})" if tested else "not opened"
        )
        lines.append(f"| {row['run'].replace(',', ', ')} | {row['macro_f1']:.3f} | {validation} | {test} |")
    return lines


def test_the_results_table_is_the_examples():
    expected = rows(pd.read_csv(EXAMPLE / "results.csv"))
    found = [line for line in HOW_TO_READ.splitlines() if line.startswith(("| lr=", "| head="))]
    assert found == expected


WAYS = {"head=": "frozen features, logistic regression", "epochs=4": "trained further", "epochs=30": "from scratch"}


def finetuned_rows(results: pd.DataFrame) -> list[str]:
    """The README's table of params/finetune.yaml, from `results_oof.csv`: a row per way and seed."""
    lines = []
    for row in results.to_dict("records"):
        name = row["combination"]
        way = next(words for start, words in WAYS.items() if name.startswith(start))
        way += f", seed {seed[1]}" if (seed := re.search(r"seed=(\d)", name)) else ""
        accuracy = f"{row['accuracy']:.3f} ({row['accuracy_low']:.2f}–{row['accuracy_high']:.2f})"
        points = [100 * row[f"over_probe{end}"] for end in ("", "_low", "_high")]
        beside = "{:+.1f} points ({:+.1f} to {:+.1f})".format(*points) if points[0] == points[0] else "–"
        lines.append(f"| {way} | {accuracy} | {row['macro_f1']:.3f} | {beside} |")
    return lines


def test_the_table_of_pretrained_networks_is_what_was_measured():
    results = pd.read_csv(EXAMPLE / "finetune" / "results_oof.csv")
    expected = finetuned_rows(results)
    assert len(expected) == 7 and set(expected) <= set(README.splitlines())
    ((photos, varieties, folds),) = results[["n", "groups", "folds"]].drop_duplicates().to_numpy()
    text = README.replace("\n", " ")
    assert f"{photos} real photographs of {varieties} varieties of fruit, {folds} folds" in text
    assert f"n = {photos} photos, {varieties} varieties" in text


def numbers(text: str) -> list[str]:
    return sorted(re.findall(r"\d[\d.,–]*\d|\d", text))


def test_the_readme_is_two_screens_and_the_korean_one_says_the_same():
    for text in (README, KOREAN):
        lines = text.splitlines()
        assert len(lines) <= 100 and max(map(len, lines)) <= 130
    assert numbers(KOREAN) == numbers(README)
    links, commands = re.compile(r"\]\(([^)]+)\)"), re.compile(r"^((?:make|pip|\.venv|fruitlib) \S+)", re.MULTILINE)
    assert set(links.findall(KOREAN)) - {"README.md"} == set(links.findall(README)) - {"README.ko.md"}
    assert commands.findall(KOREAN) == commands.findall(README)


@pytest.mark.parametrize("text", [README, KOREAN], ids=["English", "Korean"])
def test_every_notebook_is_named_with_its_question(text):
    assert re.findall(r"`(\d\d_\w+)`", text) == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def test_02_says_what_was_measured():
    results = pd.read_csv(EXAMPLE / "finetune" / "results_oof.csv")["accuracy"].tolist()
    further, scratch = results[1:4], results[4:]
    text = (ROOT / "notebooks" / "02_train.ipynb").read_text(encoding="utf-8")
    assert f"is right on {results[0]:.2f} of the photos" in text
    assert f"trained further from there, on {min(further):.2f} to {max(further):.2f} by seed" in text
    assert f"from scratch, on {min(scratch):.2f} to {max(scratch):.2f}." in text


def test_what_was_tried_with_other_networks_is_what_was_measured():
    results = pd.read_csv(EXAMPLE / "models" / "results_oof.csv")
    by_model = {row["combination"]: f"{row['accuracy']:.2f}"[1:] for row in results.to_dict("records")}
    order = ["lite1,", "lite2,", "squeezenet1_1", "lite0,weights=none", "lite0,weights=package"]
    *others, best = [next(value for name, value in by_model.items() if part in name) for part in order]
    assert f"| {', '.join(others)} | {best} with Lite0 |" in HOW_TO_READ


def test_transfer_says_what_was_measured():
    results = pd.read_csv(EXAMPLE / "transfer" / "results_oof.csv")
    text = (ROOT / "params" / "transfer.yaml").read_text(encoding="utf-8")
    assert " ".join(f"{accuracy:.2f}"[1:] for accuracy in results["accuracy"]) in text
    probe, *_ = results["probe_accuracy"]
    assert f"reach {probe:.2f}".replace("0.", ".") in text and (results["over_probe_p"][:5] > 0.05).all()
    frozen = pd.read_csv(EXAMPLE / "finetune" / "results_oof.csv")["accuracy"][0]
    assert f"and {frozen:.2f} at 224".replace("0.", ".") in text


@pytest.mark.parametrize("network", ["insight", "insight_resnet18"])
def test_what_bf16_costs_is_what_was_measured(network):
    """No more than INT8 may, on new varieties and seeds: the lower end of a two-sided 95 % interval."""
    table = pd.read_csv(EXAMPLE / "precision" / f"{network}.csv").set_index("measure")
    score = table.loc["macro_f1"]
    assert (score["from"], score["to"], score["seeds"], score["groups"]) == ("fp32", "bf16", 5, 49)
    assert score["low"] > -config.Config().int8_margin
    text = f"macro-F1 {100 * score['gain']:+.1f} points, {100 * score['low']:+.1f} to {100 * score['high']:+.1f} on new"
    assert f"bf16 over fp32: {text} varieties and seeds" in SETTINGS.replace("\n  ", " ")


def test_what_choosing_adds_is_the_examples():
    points = 100 * json.loads((EXAMPLE / "sweep.json").read_text(encoding="utf-8"))["optimism"]["points"]
    text = f"about {points:.0f} point" + "s" * (round(points) != 1) if points >= 1 else "less than a point"
    assert f"flatters its validation accuracy by {text}." in HOW_TO_READ.replace("\n", " ")


def test_the_claims_are_answered_in_08_s_own_words():
    lines = set(pd.read_csv(EXAMPLE / "insight" / "insight.csv")["summary"].str.replace("\n", "<br>"))
    answers = [line.split("|")[2].strip() for line in HOW_TO_READ.splitlines() if "Holm p" in line]
    assert len(answers) == 4 and set(answers) <= lines


def test_the_example_is_what_the_demo_says():
    plan = params.read_params(ROOT / "params" / "demo.yaml")
    assert set(pd.read_csv(EXAMPLE / "results.csv")["run"]) == set(plan.runs)


def test_the_tree_names_every_room_and_nothing_else():
    tree = CONTRIBUTING.split("**Where things live.**")[1].split("```")[1]
    named = set(re.findall(r"^  (\w[\w.]*/?) ", tree, flags=re.MULTILINE))
    rooms = {f"{path.parent.name}/" for path in (ROOT / "fruitlib").glob("*/__init__.py")}
    modules = {path.name for path in (ROOT / "fruitlib").glob("*.py")} - {"__init__.py"}
    assert named == rooms | modules


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_local_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    assert all((page.parent / link).exists() for link in links if "://" not in link)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_command_can_be_typed(page):
    """Each is one that the parser takes, and its params file exists."""
    blocks = re.findall(r"^```\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    lines = [line.partition("#")[0] for line in "\n".join(blocks).splitlines()]
    typed = [line for line in lines if line.startswith(("fruitlib ", ".venv/bin/fruitlib "))]
    for line in typed:
        options = cli._parser().parse_args(shlex.split(line)[1:])
        named = getattr(options, "params", None)
        assert named is None or (ROOT / named).is_file() or named.name == "NAME.yaml", line


def test_every_params_file_is_listed():
    listed = set(re.findall(r"^\| `(\w+\.yaml)` \|", SETTINGS, flags=re.MULTILINE))
    assert listed == {path.name for path in (ROOT / "params").glob("*.yaml")} - {"base.yaml"}


def test_the_params_example_is_valid(tmp_path):
    text = SETTINGS.split("```yaml")[1].split("```")[0]
    (tmp_path / "story.yaml").write_text(text)
    assert len(params.read_params(tmp_path / "story.yaml").runs) == 45
    assert yaml.safe_load(text)["title"]


class Addresses(HTMLParser):
    def __init__(self, page: Path):
        super().__init__()
        self.found = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href") and value]


def test_the_example_works_from_a_folder_without_network():
    pages = list(EXAMPLE.rglob("*.html"))
    assert len(pages) >= 18
    for page in pages:
        for address in Addresses(page).found:
            if address.startswith("data:") or address.startswith("#"):
                continue
            parts = urlsplit(address)
            assert not parts.scheme and not parts.netloc, f"{page}: {address}"
            assert (page.parent / unquote(parts.path)).exists(), f"{page}: {address}"
