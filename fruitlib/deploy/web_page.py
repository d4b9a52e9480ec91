"""A page that runs an exported file in the browser: drop a photo, see class, probabilities and heat. Needs no network.

Browsers load neither models nor WebAssembly from a page's folder that is opened as a file, so both stand as base64 in
scripts beside the page. They run by onnxruntime-web, on one thread. Needs NumPy and onnxruntime only.

On the same pixels the page gives the probabilities that Python gives: of fp32 within 0.0001 on 42 real photos. INT8
rounds in every layer, and each runtime in its own way: there up to 0.03, as between ONNX Runtime's own optimization
levels (0.05), with the same network, a pretrained lite0. So a page of an INT8 file runs the fp32 file that was exported
with it, where that lies beside it, and says so.
"""

import base64
import html
import json
import os
import shutil
import subprocess
import tarfile
from importlib import resources
from pathlib import Path
from string import Template
from urllib.parse import quote

from fruitlib.core import files
from fruitlib.core.errors import InputError
from fruitlib.core.files import display_path
from fruitlib.deploy import predict

VERSION = "1.30.0"  # of onnxruntime-web
ARCHIVE = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"  # SHA-256 of its archive
SCRIPT, MODULE, WASM = "ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"
SCRIPTS = ("onnxruntime.js", "runtime.js", "model.js", "try.js")  # in the order in which the page loads them
FOLDER_VARIABLE = "FRUITLIB_ONNXRUNTIME_WEB"
MOST_BYTES = 300_000_000  # of a model: browsers hold no text of more than about 500 MB
CUT = "Its training photos were cut to their {what}: cut yours likewise, or the answer may be wrong."
FP32 = "model.fp32.onnx"  # as exports name it
SAME = ("class_names", "preprocess", "settings", "data")  # metadata that two files of one network share
ROUNDED = "8-bit; browsers round them differently from Python, so probabilities may differ by some hundredths"
BEFORE = "those of {fp32}, the network before it became {int8}: browsers round INT8 differently from Python"
LISTED = 8  # classes that the first sentence names, at most
SECONDS = 300  # that a download may take


def run_by_browser(model: Path) -> Path:
    """The file that a page of `model` runs: the fp32 file beside an INT8 file, of the same network, else `model`."""
    own, beside = predict.read_metadata(model), Path(model).with_name(FP32)
    if not own.get("quantization") or not beside.is_file():
        return Path(model)
    theirs = predict.read_metadata(beside)
    return beside if all(own.get(name) == theirs.get(name) for name in SAME) else Path(model)


def write(model: Path, page: Path) -> Path:
    """Write a page that runs the file `model` (`run_by_browser`), and the folder `<page>.assets` that it needs.

    Returns:
        `page`.

    Raises:
        InputError: not a file that fruitlib exported, too large for a browser, or onnxruntime-web cannot be fetched.
    """
    given, model, page = Path(model), run_by_browser(model), Path(page)
    facts = _facts(model)
    if model != given:
        facts["about"].append(["Numbers", BEFORE.format(fp32=model.name, int8=given.name)])
    if (size := model.stat().st_size) > MOST_BYTES:
        limit = f"{size / 1e6:,.0f} MB, and a page can hold {MOST_BYTES / 1e6:,.0f}"
        raise InputError(f"{display_path(model)}: {limit}; use a smaller network")
    runtime, assets = runtime_folder(), page.with_name(f"{page.stem}.assets")
    for name, text in _scripts(model, runtime).items():
        files.write_text(assets / name, text)
    files.write_text(page, _page(facts, assets.name))
    return page


def _facts(model: Path) -> dict:
    """What the page has to know of the file."""
    classes, metadata = predict.class_names(model), predict.read_metadata(model)
    if "preprocess" not in metadata:
        raise InputError(f"{display_path(model)}: takes no photos; use a file that this version of fruitlib exported")
    about = {"File": f"{model.name}, {model.stat().st_size / 1e6:.2f} MB", "SHA-256": files.sha256(model)}
    about |= {"Classes": ", ".join(classes), "Weights' licence": metadata.get("licence")}
    about |= {"Fingerprint of its training photos": metadata.get("data"), "Input": metadata.get("input")}
    about["Numbers"] = ROUNDED if metadata.get("quantization") else ""
    about |= {"Runs by": f"ONNX Runtime Web {VERSION}, Microsoft, MIT licence"}
    preprocess, cut = json.loads(metadata["preprocess"]), metadata.get("cut_to", "none")
    return {
        "name": model.name,
        "sha256": about["SHA-256"],
        "classes": classes,
        "answer_above": metadata.get("answer_above", ""),
        "max_error": float(metadata.get("max_error") or 0),
        "conformal": json.loads(metadata.get("conformal") or "{}"),
        "preprocess": {name: preprocess[name] for name in ("image_size", "resize", "center")},
        "about": [[name, text] for name, text in about.items() if text],
        "hint": "" if cut == "none" else CUT.format(what=cut),
    }


def _page(facts: dict, assets: str) -> str:
    """The page as HTML; scripts run by a nonce, as a page that is opened as a file has no origin to name."""
    nonce = facts["sha256"][:16]  # need not be secret: no text of others becomes markup here
    scripts = (f'<script nonce="{nonce}" defer src="{quote(assets)}/{name}"></script>' for name in SCRIPTS)
    values = {
        "nonce": nonce,
        "name": html.escape(facts["name"]),
        "classes": html.escape(_listed(facts["classes"])),
        "hint": html.escape(facts["hint"]),
        "assets": html.escape(assets),
        "style": _asset("try.css"),
        "facts": json.dumps(facts, ensure_ascii=False).replace("<", "\\u003c"),
        "scripts": "\n".join(scripts),
    }
    return Template(_asset("try.html")).substitute(values)


def _listed(classes: list[str]) -> str:
    return ", ".join(classes) if len(classes) <= LISTED else f"{len(classes):,} classes"


def _scripts(model: Path, runtime: Path) -> dict[str, str]:
    """The text of each of `SCRIPTS`; `parts` holds bytes as base64, by name."""
    own = {name: (runtime / file).read_bytes() for name, file in (("module", MODULE), ("wasm", WASM))}
    texts = [
        (runtime / SCRIPT).read_text("utf-8"),
        "var parts = {};\n" + "".join(_part(name, content) for name, content in own.items()),
        _part("model", model.read_bytes()),
        _asset("try.js"),
    ]
    return dict(zip(SCRIPTS, texts, strict=True))


def _part(name: str, content: bytes) -> str:
    return f'parts.{name} = "{base64.b64encode(content).decode()}";\n'


def _asset(name: str) -> str:
    return (resources.files("fruitlib.deploy") / "assets" / name).read_text("utf-8")


# ---- onnxruntime-web


def runtime_folder() -> Path:
    """The folder with the files of onnxruntime-web: the one that `FRUITLIB_ONNXRUNTIME_WEB` names, else the cache's.

    What is not in the cache is fetched by npm, once; npm's own configuration says from where.

    Raises:
        InputError: a file is missing in the folder named, or there is no npm, or npm does not get the package.
    """
    if named := os.environ.get(FOLDER_VARIABLE):
        folder = Path(named).expanduser()
        folder = folder / "dist" if (folder / "dist").is_dir() else folder
        if missing := [name for name in (SCRIPT, MODULE, WASM) if not (folder / name).is_file()]:
            there = f"{FOLDER_VARIABLE}: {folder} holds no {missing[0]}"
            raise InputError(f"{there}; name the folder of the npm package onnxruntime-web {VERSION}")
        return folder
    folder = files.cache_dir() / f"onnxruntime-web-{VERSION}"
    if not all((folder / name).is_file() for name in (SCRIPT, MODULE, WASM)):
        _fetch(folder)
    return folder


def _fetch(folder: Path) -> None:
    """Get the package by npm, and put its three files into `folder`."""
    npm = shutil.which("npm")
    remedy = f"or name a folder with onnxruntime-web {VERSION} in {FOLDER_VARIABLE}"
    if npm is None:
        raise InputError(f"the page needs onnxruntime-web, which npm fetches: install Node.js, {remedy}")
    command = [npm, "pack", f"onnxruntime-web@{VERSION}", "--silent", "--fetch-retries=0"]
    with files.folder_beside(folder) as place:
        try:
            done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=SECONDS)
            reason = (done.stderr or done.stdout).strip().splitlines()[-1:] if done.returncode else []
        except (OSError, subprocess.TimeoutExpired) as problem:
            done, reason = None, [str(problem)]
        archive = next(iter(place.glob("*.tgz")), None)
        if archive is None or done is None or done.returncode:
            why = f" ({reason[0]})" if reason else ""
            raise InputError(f"npm could not fetch onnxruntime-web {VERSION}{why}: try again with a network, {remedy}")
        if files.sha256(archive) != ARCHIVE:
            raise InputError(f"npm fetched another onnxruntime-web than the known {VERSION}: ask who runs the registry")
        _unpack(archive, folder)


def _unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as packed:
        for name in (SCRIPT, MODULE, WASM):
            with packed.extractfile(f"package/dist/{name}") as content, files.replacing(folder / name) as partial:
                partial.write_bytes(content.read())
