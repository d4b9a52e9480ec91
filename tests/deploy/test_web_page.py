"""The page that runs a file in the browser: it answers as Python does, asks no network, and says what is wrong."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from fruitlib.core.errors import InputError
from fruitlib.deploy import heat, photo_files, predict, web_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
FLAGS += " disable-component-update disable-sync remote-debugging-pipe"
SIDE, CLASSES = 8, ["red", "gr</script>een", "blue"]
WORDS = {"class_names": json.dumps(CLASSES), "max_error": "0.05", "answer_above": "0.6", "licence": "MIT <b>"}
PREPROCESS = {"image_size": SIDE, "resize": "crop", "center": 1.0, "crop_to": "none"}
PREPROCESS |= dict.fromkeys(("brightness", "contrast", "saturation", "sharpness"), 1.0)


def file_by_colour(path, strength=6.0, preprocess=PREPROCESS, **words):
    """A file whose logits are a photo's mean red, green and blue, times `strength`."""
    nodes = [
        helper.make_node("Identity", ["images"], ["features"]),
        helper.make_node("GlobalAveragePool", ["images"], ["means"]),
        helper.make_node("Conv", ["means", "weights"], ["convolved"]),
        helper.make_node("Flatten", ["convolved"], ["logits"]),
    ]
    weights = strength * np.eye(3, dtype=np.float32)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (
            ("images", ["batch", 3, SIDE, SIDE]),
            ("logits", ["batch", 3]),
            ("features", ["batch", 3, "rows", "columns"]),
        )
    ]
    constants = [numpy_helper.from_array(weights[:, :, None, None], "weights")]
    graph = helper.make_graph(nodes, "colour", ends[:1], ends[1:], constants)
    core = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    metadata = WORDS | {"preprocess": json.dumps(preprocess)} | words
    return photo_files.write(core, path, preprocess, 1.0, heat.Heat(heat.CLASS_MAP, weights), metadata)


def strip(path, key: str) -> None:
    """Take a key out of a file's metadata."""
    model = onnx.load(path)
    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key != key}
    del model.metadata_props[:]
    helper.set_model_props(model, kept)
    onnx.save(model, path)


class Browser:
    """Chromium without a window, spoken to by its DevTools protocol over a pipe."""

    def __init__(self, profile):
        (ours_in, theirs_out), (theirs_in, ours_out) = os.pipe(), os.pipe()
        command = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        flags = [f"--{flag}" for flag in FLAGS.split()]
        self.process = subprocess.Popen(
            ["bash", "-c", command, "bash", CHROMIUM, *flags, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in), os.close(theirs_out)
        self.out, self.answers = os.fdopen(ours_out, "wb"), os.fdopen(ours_in, "rb")
        self.session, self.count, self.unread, self.asked = {}, 0, b"", []
        target = self("Target.getTargets")["targetInfos"][0]["targetId"]
        self.session = {"sessionId": self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Network", "Runtime", "DOM"):
            self(f"{domain}.enable")

    def __call__(self, method, **params):
        self.count += 1
        message = {"id": self.count, "method": method, "params": params} | self.session
        self.out.write(json.dumps(message).encode() + b"\0")
        self.out.flush()
        while (answer := self._next()).get("id") != self.count:
            if answer.get("method") == "Network.requestWillBeSent":
                self.asked.append(answer["params"]["request"]["url"])
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict:
        while b"\0" not in self.unread:
            more = self.answers.read1(2**20)
            assert more, "the browser has ended"
            self.unread += more
        one, self.unread = self.unread.split(b"\0", 1)
        return json.loads(one)

    def value(self, script: str):
        """What a script evaluates to, a promise's value included."""
        done = self("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def open(self, page):
        self.asked.clear()
        self("Page.navigate", url=page.as_uri())
        self.value("new Promise(go => document.readyState == 'complete' ? go() : addEventListener('load', go))")
        self.value("ready.then(() => 1, problem => 0)")

    def drop(self, name: str, content: bytes) -> dict:
        """Drop a file on the page; what the page then shows."""
        text = base64.b64encode(content).decode()
        self.value(
            f"""(async () => {{
              const bytes = Uint8Array.from(atob("{text}"), c => c.charCodeAt(0)), data = new DataTransfer();
              data.items.add(new File([bytes], {json.dumps(name)}));
              const busy = new Promise(go => new MutationObserver(() => at("state").textContent.includes("looking")
                || go()).observe(at("state"), {{ childList: true }}));
              window.dispatchEvent(new DragEvent("drop", {{ dataTransfer: data, cancelable: true }}));
              await busy;
            }})()"""
        )
        return self.value(
            """({ state: at("state").textContent, shown: !at("result").hidden, answer: at("answer").textContent,
              reason: at("reason").textContent, unsure: at("verdict").classList.contains("unsure"),
              caption: at("caption").textContent, set: at("set").textContent,
              bars: Object.fromEntries([...at("bars").rows].map(row =>
                [row.cells[0].textContent, Number(row.dataset.probability)])) })"""
        )

    def close(self):
        self("Browser.close")
        self.process.wait(30)
        self.out.close(), self.answers.close()


@pytest.fixture(scope="module")
def runtime():
    """onnxruntime-web: in the folder that FRUITLIB_ONNXRUNTIME_WEB names, else fetched by npm."""
    try:
        return web_page.runtime_folder()
    except InputError as problem:
        pytest.skip(f"no onnxruntime-web: {problem}")


@pytest.fixture(scope="module")
def browser(tmp_path_factory, runtime):
    if CHROMIUM is None:
        pytest.skip("no Chromium: what a browser does with the page is not tried")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory):
    """The browser with a page open, and the page's model."""
    folder = tmp_path_factory.mktemp("page")
    model = file_by_colour(folder / "model.onnx")
    browser.open(web_page.write(model, folder / "a page.html"))
    return browser, model


def as_bytes(picture: Image.Image, folder, name: str, **options) -> bytes:
    picture.save(folder / name, **options)
    return (folder / name).read_bytes()


def drawn(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise, mostly red on its left and blue on its right."""
    noise = np.random.default_rng(seed).integers(0, 120, (height, width, 3))
    noise[:, : width // 2, 0] += 130
    noise[:, width // 2 :, 2] += 100
    return Image.fromarray(noise.astype(np.uint8))


def by_python(model, picture: Image.Image) -> np.ndarray:
    return predict.outputs(predict.open_session(model), np.asarray(picture)[None], ("probabilities",))[0][0]


def test_the_page_answers_as_python_does_and_asks_no_network(opened, tmp_path):
    browser, model = opened
    upright = drawn(50, 30)
    turned, exif = upright.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    see_through = upright.convert("RGBA")
    see_through.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 50), (30, 1)).astype(np.uint8)))
    on_white = Image.new("RGBA", upright.size, "white")
    on_white.alpha_composite(see_through)
    photos = {
        "plain.png": (upright, upright, {}),
        "square.png": (drawn(SIDE, SIDE), drawn(SIDE, SIDE), {}),
        "tall.png": (drawn(2, 5000), drawn(2, 5000), {}),
        "turned.png": (turned, upright, {"exif": exif}),
        "transparent.png": (see_through, on_white.convert("RGB"), {}),
        "photo.jpg": (upright, None, {"quality": 90}),
        "grey.png": (upright.convert("L"), upright.convert("L").convert("RGB"), {}),
    }
    for name, (picture, seen, options) in photos.items():
        found = browser.drop(name, as_bytes(picture, tmp_path, name, **options))
        seen = seen or Image.open(tmp_path / name)
        expected = by_python(model, seen)
        assert [found["bars"][label] for label in CLASSES] == pytest.approx(expected.tolist(), abs=1e-3), name
        assert found["shown"] and found["state"].startswith(f"{name}: {seen.width} × {seen.height} pixels.")
    assert browser.asked and all(re.match("file:|blob:|data:", address) for address in browser.asked)


def test_a_large_photo_is_averaged_in_blocks_and_that_is_said(opened, tmp_path):
    browser, model = opened
    picture = drawn(2801, 1501)
    found = browser.drop("large.png", as_bytes(picture, tmp_path, "large.png", compress_level=1))
    assert "blocks of 2 × 2 pixels" in found["state"]
    expected = by_python(model, picture.reduce(2))
    assert [found["bars"][label] for label in CLASSES] == pytest.approx(expected.tolist(), abs=1e-3)


def test_heat_lies_where_the_network_looked(opened, tmp_path):
    browser, _ = opened
    picture = Image.new("RGB", (60, 30), "black")
    picture.paste((255, 0, 0), (15, 0, 30, 30))  # the left half of the central square that the network sees
    found = browser.drop("left.png", as_bytes(picture, tmp_path, "left.png"))
    assert found["caption"] == "Bright: what speaks for red."
    colours = "[5, 22, 40, 55].map(x => [...at('picture').getContext('2d').getImageData(6 * x, 90, 1, 1).data])"
    outside, hot, cold, beyond = browser.value(colours)
    assert max(outside[:3]) == 0 and max(beyond[:3]) == 0 and max(cold[:3]) < 20 and min(hot[:2]) > 100
    browser.value("at('show').click()")  # the picture is six times as large as the photo
    assert browser.value(colours)[1] == [255, 0, 0, 255]


@pytest.mark.parametrize(
    ("preprocess", "size", "square"),
    [
        ({"resize": "crop", "center": 1}, (60, 30), [15, 0, 30, 30]),
        ({"resize": "crop", "center": 0.5}, (60, 30), [22.5, 7.5, 15, 15]),
        ({"resize": "squash", "center": 0.5}, (60, 30), [15, 7.5, 30, 15]),
        ({"resize": "pad", "center": 1}, (60, 30), [0, -15, 60, 60]),
        ({"resize": "pad", "center": 0.5}, (30, 60), [0, 15, 30, 30]),
        ({"resize": "pad", "center": 0.5}, (SIDE, SIDE), [0, 0, SIDE, SIDE]),
    ],
    ids=str,
)
def test_the_square_that_the_network_sees(opened, preprocess, size, square):
    browser, _ = opened
    settings = json.dumps(preprocess | {"image_size": SIDE})
    script = f"(() => {{ const own = facts.preprocess; facts.preprocess = {settings}; const found = region({size[0]}, "
    assert browser.value(f"{script}{size[1]}); facts.preprocess = own; return found }})()") == square


def test_a_photo_may_be_chosen_instead(opened, tmp_path):
    browser, _ = opened
    picture = tmp_path / "chosen.png"
    drawn(9, 9).save(picture)
    place = browser("Runtime.evaluate", expression="at('file')")["result"]["objectId"]
    browser("DOM.setFileInputFiles", files=[str(picture)], objectId=place)
    wait = (
        "(async () => { while (!at('state').textContent.startsWith('chosen.png: 9')) await new Promise(setTimeout) })()"
    )
    browser.value(wait)
    assert not browser.value("at('result').hidden") and browser.value("document.activeElement.id") == "answer"


def test_what_is_no_photo_is_said_and_the_page_goes_on(opened, tmp_path):
    browser, _ = opened
    found = browser.drop("a.heic", b"no photo")
    assert not found["shown"] and found["state"].startswith("a.heic: this browser cannot read it as a photo.")
    assert browser.drop("b.png", as_bytes(drawn(9, 9), tmp_path, "b.png"))["shown"]


def test_the_model_cards_lines_for_the_browser_answer_alike(opened, tmp_path):
    browser, model = opened
    code = (Path(web_page.__file__).parent / "assets" / "use.browser.js").read_text("utf-8")
    code = code.replace("CLASSES", json.dumps(CLASSES)[1:-1]).replace("function answer", "function lines")
    picture = drawn(40, 20)
    content = base64.b64encode(as_bytes(picture, tmp_path, "a.png")).decode()
    file = f'new Blob([Uint8Array.from(atob("{content}"), c => c.charCodeAt(0))])'
    name, probability = browser.value(f"{code}\nready.then(() => lines(session, {file}))")
    expected = by_python(model, picture)
    assert (name, probability) == (CLASSES[expected.argmax()], pytest.approx(expected.max(), abs=1e-3))


@pytest.mark.parametrize(
    ("words", "strength", "title", "reason", "unsure"),
    [
        ({}, 20, "red", "Above 60 % it may answer alone: at most 5 %", False),
        ({}, 0.1, "Unsure; most likely red", "only above 60 % may it answer alone", True),
        ({"answer_above": "none"}, 20, "Perhaps red", "A person should look: no probability", True),
        ({"answer_above": ""}, 20, "red", "does not say when it may answer alone", False),
    ],
    ids=["sure", "unsure", "nothing proven", "unknown"],
)
def test_it_answers_alone_only_where_the_file_says_so(browser, tmp_path, words, strength, title, reason, unsure):
    thresholds = json.dumps(dict(zip(CLASSES, (0.1, 2, 2), strict=True)))
    model = file_by_colour(tmp_path / "model.onnx", strength, **words, conformal=thresholds)
    browser.open(web_page.write(model, tmp_path / "page.html"))
    picture = Image.new("RGB", (20, 20), (200, 20, 20))
    found = browser.drop("red.png", as_bytes(picture, tmp_path, "red.png"))
    assert (found["answer"], found["unsure"]) == (title, unsure) and reason in found["reason"]
    assert found["set"].startswith("Plausible classes: red.")


@pytest.mark.parametrize(
    ("beside", "runs"), [({}, "model.fp32.onnx"), ({"settings": "{1}"}, "model.int8.onnx"), (None, "model.int8.onnx")]
)
def test_a_page_of_an_int8_file_runs_the_same_networks_fp32_file(runtime, tmp_path, beside, runs):
    int8 = file_by_colour(tmp_path / "model.int8.onnx", quantization="static QDQ")
    if beside is not None:
        file_by_colour(tmp_path / "model.fp32.onnx", **beside)
    text = web_page.write(int8, tmp_path / "page.html").read_text("utf-8")
    assert f"<title>Try a photo: {runs}</title>" in text
    assert (web_page.BEFORE.format(fp32=runs, int8=int8.name) in text) == (runs != int8.name)
    assert (web_page.ROUNDED in text) == (runs == int8.name)


def test_writing_a_page_takes_the_slim_installation_only():
    check = (
        "import sys; from fruitlib.deploy import web_page; print(sorted({'torch', 'pandas', 'onnx', 'cv2', 'jinja2',"
    )
    check += " 'pydantic', 'psutil'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_text_of_the_file_is_text_and_a_cut_is_hinted_at(runtime, tmp_path):
    model = file_by_colour(tmp_path / "<b>.onnx", cut_to="object")
    page = web_page.write(model, tmp_path / "page.html")
    text = page.read_text("utf-8")
    assert "<b>.onnx" not in text and "gr</script>een" not in text and "&lt;b&gt;.onnx" in text
    assert web_page.CUT.format(what="object") in text and text.count("</script>") == 1 + len(web_page.SCRIPTS)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    web_page.write(model, page)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("npm", "reason"),
    [(None, "install Node.js, or name a folder"), ("exit 3", "try again with a network"), ("true", "try again")],
    ids=["no npm", "npm fails", "npm brings nothing"],
)
def test_without_the_runtime_one_line_says_what_to_do(tmp_path, monkeypatch, npm, reason):
    monkeypatch.setenv("FRUITLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(web_page.FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin") if npm is None else f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()
    if npm:
        (tmp_path / "bin" / "npm").write_text(f"#!/bin/sh\n{npm}\n")
        (tmp_path / "bin" / "npm").chmod(0o755)
    with pytest.raises(InputError, match=reason) as raised:
        web_page.write(file_by_colour(tmp_path / "model.onnx"), tmp_path / "page.html")
    assert "\n" not in str(raised.value) and web_page.FOLDER_VARIABLE in str(raised.value)
    assert not (tmp_path / "page.html").exists() and not list((tmp_path / "cache").glob("*"))


def test_an_archive_that_is_not_the_known_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("FRUITLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(web_page.FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "npm").write_text("#!/bin/sh\necho other > onnxruntime-web.tgz\n")
    (tmp_path / "bin" / "npm").chmod(0o755)
    with pytest.raises(InputError, match="another onnxruntime-web than the known"):
        web_page.runtime_folder()


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda folder, patch: patch.setenv(web_page.FOLDER_VARIABLE, str(folder)), "holds no ort.wasm.min.js"),
        (lambda folder, patch: patch.setattr(web_page, "MOST_BYTES", 10), "use a smaller network"),
        (lambda folder, patch: (folder / "model.onnx").write_text("no"), "not a readable ONNX file"),
        (lambda folder, patch: strip(folder / "model.onnx", "class_names"), "has no class names"),
        (lambda folder, patch: strip(folder / "model.onnx", "preprocess"), "takes no photos; use a file that this"),
    ],
    ids=["wrong folder", "too large", "no model", "somebody else's", "of an earlier version"],
)
def test_what_cannot_become_a_page_is_said_in_a_line(tmp_path, monkeypatch, prepare, reason):
    model = file_by_colour(tmp_path / "model.onnx")
    prepare(tmp_path, monkeypatch)
    with pytest.raises(InputError, match=reason):
        web_page.write(model, tmp_path / "page.html")
