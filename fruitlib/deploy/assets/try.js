// One photo through the network, in this page. `parts` (the runtime and the model, as base64) and `ort` come from the
// scripts before this one; what the file says of itself stands in the page, in #facts.
"use strict";

const MOST_PIXELS = 4e6; // larger photos are averaged in blocks first
const ROWS = 10; // classes listed
const SHOWN = [360, 720]; // pixels of the picture's longer side, at least and at most
const INFERNO = [[0, 0, 4], [33, 12, 74], [87, 16, 110], [138, 34, 106], [188, 55, 84], [228, 90, 49], [249, 142, 9],
  [249, 203, 53], [252, 255, 164]]; // matplotlib's colours for heat, at equal steps
const facts = JSON.parse(document.getElementById("facts").textContent);
const at = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const limit = (share) => `${Number((100 * share).toFixed(2))} %`;
let session = null;
let shown = null; // the last answer with its photo, for drawing it again

function bytesOf(name) {
  const text = atob(parts[name]);
  delete parts[name];
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

async function start() {
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = bytesOf("wasm").buffer;
  ort.env.wasm.wasmPaths = { mjs: URL.createObjectURL(new Blob([bytesOf("module")], { type: "text/javascript" })) };
  session = await ort.InferenceSession.create(bytesOf("model"), { executionProviders: ["wasm"] });
  at("state").textContent = "Ready.";
}

// ---- from a file to pixels

async function decode(file) {
  const how = { imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none" };
  try {
    return await createImageBitmap(file, how);
  } catch {
    throw new Error(`${file.name}: this browser cannot read it as a photo. Save it as JPEG or PNG, and try again.`);
  }
}

// RGB of a photo on white, each pixel the mean of block x block; strip by strip, as browsers limit a canvas.
function pixelsOf(bitmap, block) {
  const width = Math.ceil(bitmap.width / block);
  const height = Math.ceil(bitmap.height / block);
  const pixels = new Uint8Array(width * height * 3);
  const rows = Math.max(1, Math.floor(Math.min(1e6 / bitmap.width, 2000) / block)); // of the result, in a strip
  const canvas = Object.assign(document.createElement("canvas"), { width: bitmap.width, height: rows * block });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  for (let top = 0; top < height; top += rows) {
    pen.fillStyle = "white";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(bitmap, 0, -top * block);
    const strip = pen.getImageData(0, 0, canvas.width, canvas.height);
    const own = Math.min(rows, height - top);
    for (let y = 0; y < own; y++) averageRow(strip, y * block, bitmap.height - top * block, block, pixels, (top + y) * width * 3);
  }
  return { pixels, width, height };
}

function averageRow(strip, from, rowsLeft, block, pixels, place) {
  const to = Math.min(from + block, rowsLeft);
  for (let left = 0; left < strip.width; left += block, place += 3) {
    const right = Math.min(left + block, strip.width);
    const count = (to - from) * (right - left);
    let red = 0, green = 0, blue = 0;
    for (let y = from; y < to; y++) {
      for (let i = 4 * (y * strip.width + left), end = i + 4 * (right - left); i < end; i += 4) {
        red += strip.data[i];
        green += strip.data[i + 1];
        blue += strip.data[i + 2];
      }
    }
    pixels[place] = Math.round(red / count);
    pixels[place + 1] = Math.round(green / count);
    pixels[place + 2] = Math.round(blue / count);
  }
}

// ---- the answer

async function answer(file) {
  const bitmap = await decode(file);
  const block = Math.ceil(Math.sqrt((bitmap.width * bitmap.height) / MOST_PIXELS));
  const { pixels, width, height } = pixelsOf(bitmap, block);
  const photos = new ort.Tensor("uint8", pixels, [1, height, width, 3]);
  const outputs = session.outputNames.filter((name) => name !== "logits");
  const found = await session.run({ photos }, outputs);
  const probabilities = Array.from(found.probabilities.data);
  const order = probabilities.map((_, i) => i).sort((a, b) => probabilities[b] - probabilities[a]);
  return { name: file.name, bitmap, block, width, height, probabilities, order, heat: found.heat };
}

function verdict({ probabilities, order }) {
  const name = facts.classes[order[0]];
  const probability = probabilities[order[0]];
  const above = Number.parseFloat(facts.answer_above);
  const wrong = `at most ${limit(facts.max_error)} of its answers are wrong`;
  if (facts.answer_above === "none") {
    return [false, `Perhaps ${name}`, `${percent(probability)}. A person should look: no probability is proven above which ${wrong}.`];
  }
  if (Number.isNaN(above)) return [true, name, `${percent(probability)}. The file does not say when it may answer alone.`];
  if (probability > above) return [true, name, `${percent(probability)}. Above ${limit(above)} it may answer alone: ${wrong}.`];
  return [false, `Unsure; most likely ${name}`, `${percent(probability)}. A person should look: only above ${limit(above)} may it answer alone.`];
}

function show(found) {
  shown = found;
  const [sure, title, reason] = verdict(found);
  at("verdict").classList.toggle("unsure", !sure);
  at("answer").textContent = title;
  at("reason").textContent = reason;
  at("bars").replaceChildren(...rows(found));
  const inSet = found.order.filter((i) => found.probabilities[i] >= facts.conformal[facts.classes[i]]);
  const plausible = inSet.map((i) => facts.classes[i]).join(", ") || "none; the photo is unlike those of any class";
  at("set").textContent = Object.keys(facts.conformal).length
    ? `Plausible classes: ${plausible}. For nine of ten photos like those it was tried on, the true class is among them.` : "";
  const maps = found.heat ? found.heat.dims[1] : 0;
  at("controls").hidden = !maps;
  at("choice").hidden = maps < 2;
  at("class").replaceChildren(...found.order.map((i) => new Option(facts.classes[i], i)));
  at("result").hidden = false;
  draw();
  const reduced = found.block > 1
    ? ` Larger than ${MOST_PIXELS / 1e6} megapixels: blocks of ${found.block} × ${found.block} pixels were averaged first, which may change an answer a little.` : "";
  at("state").textContent = `${found.name}: ${found.bitmap.width} × ${found.bitmap.height} pixels.${reduced}`;
  at("answer").focus();
}

function rows({ probabilities, order }) {
  const listed = order.slice(0, ROWS).map((i) => row(facts.classes[i], probabilities[i]));
  const others = order.slice(ROWS);
  if (!others.length) return listed;
  return [...listed, row(`${others.length} others together`, others.reduce((sum, i) => sum + probabilities[i], 0))];
}

function row(name, probability) {
  const line = document.createElement("tr");
  const head = Object.assign(document.createElement("th"), { scope: "row", textContent: name });
  const cells = [document.createElement("td"), document.createElement("td")];
  const bar = document.createElement("div");
  bar.style.width = `${100 * probability}%`;
  cells[0].className = "bar";
  cells[0].append(bar);
  cells[1].textContent = percent(probability);
  line.dataset.probability = probability;
  line.append(head, ...cells);
  return line;
}

// ---- where it looked

// Left, top, width and height, in photo pixels, of the square that the network saw; it may reach beyond the photo.
function region(width, height) {
  const { image_size: side, resize, center } = facts.preprocess;
  if (width === side && height === side) return [0, 0, width, height];
  let across = center * width, down = center * height;
  if (resize === "crop") across = down = center * Math.min(width, height);
  if (resize === "pad") across = down = Math.max(across, down);
  return [(width - across) / 2, (height - down) / 2, across, down];
}

function draw() {
  const { bitmap, heat, order } = shown;
  const longer = Math.max(bitmap.width, bitmap.height);
  const scale = Math.min(Math.max(longer, SHOWN[0]), SHOWN[1]) / longer;
  const canvas = Object.assign(at("picture"), {
    width: Math.max(1, Math.round(scale * bitmap.width)), height: Math.max(1, Math.round(scale * bitmap.height)) });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = "white";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const byClass = heat && heat.dims[1] > 1;
  const chosen = byClass ? Number(at("class").value) : 0;
  const hottest = heat ? hottestOf(heat, chosen) : 0;
  const hot = heat && at("show").checked && hottest > 0;
  if (hot) paint(pen, canvas, heat, chosen, hottest);
  const what = byClass ? `speaks for ${facts.classes[chosen]}` : "the network responds to most, whatever the class";
  at("caption").textContent = hot ? `Bright: what ${what}.`
    : !heat ? "This network does not say where it looked."
      : hottest > 0 ? "" : `Nothing in the photo ${what}.`;
  canvas.setAttribute("aria-label", `The photo. ${at("caption").textContent}`);
}

function mapOf(heat, chosen) {
  const [, , high, wide] = heat.dims;
  return heat.data.subarray(chosen * high * wide, (chosen + 1) * high * wide);
}

function hottestOf(heat, chosen) {
  return mapOf(heat, chosen).reduce((most, value) => Math.max(most, value), 0);
}

function paint(pen, canvas, heat, chosen, hottest) {
  const [, , high, wide] = heat.dims;
  const map = mapOf(heat, chosen);
  const value = (y, x) => Math.max(0, map[y * wide + x]) / hottest;
  const [left, top, across, down] = region(shown.width, shown.height);
  const picture = pen.getImageData(0, 0, canvas.width, canvas.height);
  for (let y = 0, i = 0; y < canvas.height; y++) {
    const v = (((y + 0.5) / canvas.height) * shown.height - top) / down;
    for (let x = 0; x < canvas.width; x++, i += 4) {
      const u = (((x + 0.5) / canvas.width) * shown.width - left) / across;
      const inside = u >= 0 && u <= 1 && v >= 0 && v <= 1;
      mix(picture.data, i, inside ? between(value, u * wide - 0.5, v * high - 0.5, wide, high) : 0);
    }
  }
  pen.putImageData(picture, 0, 0);
}

// Bilinear between the four values around a place.
function between(value, x, y, wide, high) {
  const x0 = Math.max(0, Math.floor(x)), y0 = Math.max(0, Math.floor(y));
  const x1 = Math.min(wide - 1, x0 + 1), y1 = Math.min(high - 1, y0 + 1);
  const dx = Math.min(1, Math.max(0, x - x0)), dy = Math.min(1, Math.max(0, y - y0));
  const upper = (1 - dx) * value(y0, x0) + dx * value(y0, x1);
  const lower = (1 - dx) * value(y1, x0) + dx * value(y1, x1);
  return (1 - dy) * upper + dy * lower;
}

// The pixel in grey, as heat would not show on red and yellow, under the colour of its heat.
function mix(data, i, warm) {
  const grey = 0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2];
  const step = warm * (INFERNO.length - 1);
  const low = Math.min(INFERNO.length - 2, Math.floor(step));
  for (let c = 0; c < 3; c++) {
    const colour = INFERNO[low][c] + (step - low) * (INFERNO[low + 1][c] - INFERNO[low][c]);
    data[i + c] = (1 - 0.7 * warm) * grey + 0.7 * warm * colour;
  }
}

// ---- the page

const ready = start().catch((problem) => {
  at("state").textContent = `The network does not run in this browser: ${problem.message}`;
  throw problem;
});

async function take(files) {
  if (!files.length) return;
  try {
    await ready;
    at("state").textContent = `${files[0].name}: the network is looking …`;
    await new Promise((next) => setTimeout(next, 30)); // time to show that line
    show(await answer(files[0]));
  } catch (problem) {
    at("result").hidden = true;
    at("state").textContent = problem.message;
  }
}

function about() {
  for (const [name, text] of facts.about) {
    at("about").append(Object.assign(document.createElement("dt"), { textContent: name }),
      Object.assign(document.createElement("dd"), { textContent: text }));
  }
}

let last = Promise.resolve(); // photos are looked at one after the other
const queue = (files) => (last = last.then(() => take(files)));
at("file").addEventListener("change", (event) => {
  queue([...event.target.files]);
  event.target.value = ""; // so that the same file may be chosen again
});
for (const name of ["dragover", "dragleave", "drop"]) {
  window.addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.toggle("over", name === "dragover");
    if (name === "drop") queue([...event.dataTransfer.files]);
  });
}
at("show").addEventListener("change", draw);
at("class").addEventListener("change", draw);
about();
