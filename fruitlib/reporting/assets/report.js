/* The report's only script: it sorts and filters runs, draws curves, compares two runs photo by photo, and browses the
   photos of a run. It reads the page's own JSON and asks for nothing else. Texts become text nodes, never markup. What
   is chosen stands in the address after #, so that a view can be sent to somebody. */
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const view = new URLSearchParams(location.hash.slice(1));
  const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f00"];
  const DASHES = ["", "7 4", "2 3", "9 3 2 3"];
  const SVG = "http://www.w3.org/2000/svg";
  const Z = 1.959963984540054; // of the normal distribution, for 95 %

  // ---- elements

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (name in element && name !== "list" && typeof value !== "string") element[name] = value;
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  function draw(tag, attributes = {}, ...children) {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  const dot = (cx, cy, r, fill) => draw("circle", { cx, cy, r, fill });

  let choices = 0;
  function choice(label, options, value, changed) {
    const id = `choice-${(choices += 1)}`;
    const select = make("select", { id, onchange: () => changed(select.value) });
    for (const [key, text] of options) select.append(make("option", { value: key, selected: key === value }, text));
    return make("span", { class: "choice" }, make("label", { for: id }, label), " ", select);
  }

  function tick(label, checked, changed) {
    const box = make("input", { type: "checkbox", checked, onchange: () => changed(box.checked) });
    return make("label", { class: "tick" }, box, " ", label);
  }

  /* One picture of a sheet: a window behind which the whole sheet is moved. */
  function cell(sheet, at, alt, side) {
    const box = make("span", { class: "cell" }, make("img", { src: sheet.file, alt }));
    const [x, y] = [at % sheet.columns, Math.floor(at / sheet.columns)];
    const place = { side: `${side}px`, columns: sheet.columns, x, y };
    for (const [name, value] of Object.entries(place)) box.style.setProperty(`--${name}`, value);
    return box;
  }

  function keep(name, value) {
    if (value === "" || value === null || value === undefined) view.delete(name);
    else view.set(name, value);
    history.replaceState(null, "", `#${view}`);
  }

  addEventListener("hashchange", () => location.reload()); // an address that was pasted, or the way back

  const distinct = (values) => [...new Set(values)];
  function tally(values) {
    const counts = new Map();
    for (const value of values) counts.set(value, (counts.get(value) || 0) + 1);
    return counts;
  }

  const share = (millionths) => (millionths / 1e6).toFixed(2);

  /* Wilson's interval, as fruitlib.evaluation.metrics.wilson computes it. */
  function wilson(correct, n) {
    if (!n) return [NaN, NaN];
    const p = correct / n;
    const z2 = Z * Z;
    const centre = (p + z2 / (2 * n)) / (1 + z2 / n);
    const half = (Z / (1 + z2 / n)) * Math.sqrt((p * (1 - p)) / n + z2 / (4 * n * n));
    return [correct ? Math.max(centre - half, 0) : 0, correct < n ? Math.min(centre + half, 1) : 1];
  }

  // ---- the table of runs

  const table = document.getElementById("runs");
  if (table) setUpRuns();

  function setUpRuns() {
    const byName = new Map(data.runs.map((run) => [run.name, run]));
    const rows = [...table.tBodies[0].rows];
    const given = new Map(rows.map((row, at) => [row, at]));
    const unfinished = [...document.querySelectorAll(".unfinished [data-run]")];
    const settings = distinct(data.runs.flatMap((run) => Object.keys(run.settings)));
    const chosen = new Set((view.get("runs") || "").split("|").filter((name) => byName.has(name)));
    for (const name of settings) addColumn(name);
    const headers = [...table.tHead.rows[0].cells];
    for (const header of headers) {
      const button = make("button", { type: "button", class: "sort", onclick: () => sortBy(header) });
      const [title, ...details] = header.childNodes;
      title.remove();
      button.append(make("span", { class: "name" }, title.textContent.trim()), ...details);
      header.append(button);
    }
    for (const row of rows) {
      const name = row.dataset.run;
      const box = make("input", { type: "checkbox", checked: chosen.has(name), "aria-label": `Choose ${name}` });
      box.addEventListener("change", () => {
        chosen[box.checked ? "add" : "delete"](name);
        keep("runs", [...chosen].join("|"));
        explore([...chosen].map((each) => byName.get(each)));
      });
      row.cells[0].prepend(box, " ");
    }
    buildTools();
    if (view.get("sort")) {
      const [key, direction] = view.get("sort").split(" ");
      const header = headers.find((each) => each.dataset.key === key);
      if (header) order(header, direction === "down" ? -1 : 1);
    }
    filter();
    explore([...chosen].map((name) => byName.get(name)));
    const copy = document.getElementById("runs-copy");
    copy.append(make("button", { type: "button", class: "link", onclick: copyTable }, "Copy the table as Markdown"));

    /* What is shown of the table, as people paste it into an issue or a letter. */
    async function copyTable(event) {
      const columns = headers.filter((header) => !header.hidden);
      const words = (cell) => cell.innerText.replaceAll("|", "/").split(/\s+/).join(" ").trim();
      const line = (cells) => `| ${cells.join(" | ")} |`;
      const shown = [...table.tBodies[0].rows].filter((row) => !row.hidden);
      const others = (row) => columns.slice(1).map((header) => words(row.cells[header.cellIndex]));
      const cells = (row) => [row.dataset.run.replaceAll("|", "/"), ...others(row)];
      const names = columns.map((header) => header.querySelector(".name").textContent);
      const text = [line(names), line(names.map(() => "---")), ...shown.map((row) => line(cells(row)))].join("\n");
      try {
        await navigator.clipboard.writeText(text);
        event.target.textContent = "Copied";
      } catch {
        copy.replaceChildren(make("pre", {}, text)); // a browser that does not let pages copy
      }
    }

    function addColumn(name) {
      const key = `set.${name}`;
      const hidden = !(view.get("show") || "").split(",").includes(key);
      table.tHead.rows[0].append(make("th", { scope: "col", "data-key": key, hidden }, name));
      for (const row of rows) {
        const run = byName.get(row.dataset.run);
        const value = (run && run.settings[name]) || "–";
        row.append(make("td", { "data-value": value, hidden }, value));
      }
    }

    function sortBy(header) {
      const direction = header.getAttribute("aria-sort") === "descending" ? 1 : -1;
      order(header, direction);
      keep("sort", `${header.dataset.key} ${direction < 0 ? "down" : "up"}`);
    }

    function order(header, direction) {
      const column = header.cellIndex;
      const value = (row) => {
        const text = row.cells[column].dataset.value ?? row.dataset.run;
        return text !== "" && !Number.isNaN(Number(text)) ? Number(text) : text === "–" ? null : text;
      };
      const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : `${a}`.localeCompare(`${b}`));
      const sorted = [...rows].sort((one, other) => {
        const [a, b] = [value(one), value(other)];
        if (a === null || b === null) return (a === null) - (b === null); // what was not measured stays last
        return direction * compare(a, b) || given.get(one) - given.get(other);
      });
      table.tBodies[0].append(...sorted);
      for (const each of headers) each.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", direction < 0 ? "descending" : "ascending");
    }

    function buildTools() {
      const tools = document.getElementById("runs-tools");
      const states = distinct(data.runs.map((run) => run.state));
      if (states.length > 1) tools.append(filterChoice("State", "state", states));
      for (const name of settings) {
        const values = distinct(data.runs.map((run) => run.settings[name]).filter((value) => value !== undefined));
        if (values.length > 1 && values.length <= 12) tools.append(filterChoice(name, `is.${name}`, values));
      }
      const columns = make("details", { class: "columns" }, make("summary", {}, "Columns"));
      for (const header of headers.slice(1)) {
        const label = header.querySelector(".name").textContent;
        columns.append(tick(label, !header.hidden && !isHidden(header), (on) => showColumn(header, on)));
        if (isHidden(header)) toggle(header, false);
      }
      tools.append(columns, make("p", { class: "note", id: "runs-shown", role: "status" }));
    }

    function isHidden(header) {
      return (view.get("hide") || "").split(",").includes(header.dataset.key);
    }

    function toggle(header, on) {
      header.hidden = !on;
      for (const row of rows) row.cells[header.cellIndex].hidden = !on;
    }

    function showColumn(header, on) {
      toggle(header, on);
      const extra = (each) => each.dataset.key.startsWith("set.");
      const keys = (some) => some.map((each) => each.dataset.key).join(",");
      keep("hide", keys(headers.filter((each) => !extra(each) && each.hidden)));
      keep("show", keys(headers.filter((each) => extra(each) && !each.hidden)));
    }

    function filterChoice(label, key, values) {
      const options = [["", "all"], ...values.map((value) => [value, value])];
      return choice(label, options, view.get(key) || "", (value) => {
        keep(key, value);
        filter();
      });
    }

    function filter() {
      const passes = (run) =>
        !run || // a row that is in the table alone
        ((!view.get("state") || run.state === view.get("state")) &&
          settings.every((name) => !view.get(`is.${name}`) || run.settings[name] === view.get(`is.${name}`)));
      let shown = 0;
      for (const row of [...rows, ...unfinished]) {
        row.hidden = !passes(byName.get(row.dataset.run));
        shown += !row.hidden;
      }
      const all = rows.length + unfinished.length;
      const some = shown < all ? `${shown} of ${all} runs. ` : "";
      const hint = "Tick runs to see their curves; tick two to see where they disagree.";
      document.getElementById("runs-shown").textContent = some + hint;
    }
  }

  // ---- chosen runs: their curves, and where two of them disagree

  function explore(runs) {
    const place = document.getElementById("runs-explore");
    place.replaceChildren();
    if (!runs.length) return;
    const metrics = distinct(runs.flatMap((run) => Object.keys(run.history))).filter((name) => name !== "epoch");
    if (metrics.length) {
      const metric = metrics.includes(view.get("curve")) ? view.get("curve") : metrics.at(-1);
      const picked = (value) => {
        keep("curve", value);
        explore(runs);
      };
      place.append(make("h3", {}, "Curves of the chosen runs"));
      place.append(choice("Show", metrics.map((name) => [name, name.replaceAll("_", " ")]), metric, picked));
      place.append(curves(runs, metric));
    }
    if (runs.length === 2) place.append(...disagreements(runs[0], runs[1]));
  }

  function curves(runs, metric) {
    const lines = runs.map((run) => ({ run, epochs: run.history.epoch || [], values: run.history[metric] || [] }));
    const values = lines.flatMap((line) => line.values).filter((value) => value !== null);
    const last = Math.max(2, ...lines.flatMap((line) => line.epochs));
    const low = Math.min(0, ...values);
    const high = metric.includes("loss") ? Math.max(...values, 1e-9) : Math.max(1, ...values);
    const x = (epoch) => 46 + (540 * (epoch - 1)) / (last - 1);
    const y = (value) => 14 + 220 * (1 - (value - low) / (high - low));
    const title = metric.replaceAll("_", " ");
    const plot = draw("svg", { viewBox: "0 0 600 276", class: "plot", role: "img", "aria-label": `${title} by epoch` });
    for (const part of [0, 0.25, 0.5, 0.75, 1]) {
      const value = low + part * (high - low);
      plot.append(draw("line", { x1: 46, x2: 586, y1: y(value), y2: y(value), class: "grid" }));
      plot.append(draw("text", { x: 40, y: y(value) + 4, "text-anchor": "end" }, `${Number(value.toPrecision(3))}`));
    }
    plot.append(draw("text", { x: 46, y: 256 }, "1"));
    plot.append(draw("text", { x: 586, y: 256, "text-anchor": "end" }, `epoch ${last}`));
    const legend = make("ul", { class: "legend" });
    lines.forEach((line, at) => {
      const stroke = COLOURS[at % COLOURS.length];
      const dash = DASHES[Math.floor(at / COLOURS.length) % DASHES.length];
      const point = (value, n) => (value === null ? "" : `${x(line.epochs[n])},${y(value)}`);
      const points = line.values.map(point).join(" ");
      const style = { stroke, "stroke-dasharray": dash, fill: "none", "stroke-width": 2 };
      if (line.values.length > 1) plot.append(draw("polyline", { points, ...style }));
      else if (line.values.length) plot.append(dot(x(line.epochs[0]), y(line.values[0]), 5, stroke));
      const sample = draw("svg", { width: 28, height: 8, "aria-hidden": "true" });
      sample.append(draw("line", { x2: 28, y1: 4, y2: 4, ...style }));
      const note = line.values.length ? ` ${line.values.at(-1)} at the end` : " no curve";
      const numbers = make("a", { href: `${encodeURIComponent(line.run.name)}/history.csv` }, "history.csv");
      legend.append(make("li", {}, sample, " ", make("code", {}, line.run.name), `${note}; `, numbers));
    });
    return make("figure", { class: "curves" }, plot, make("figcaption", {}, `${title}, by epoch`), legend);
  }

  function disagreements(a, b) {
    const heading = make("h3", {}, "Where they disagree");
    const [of_a, of_b] = [a, b].map((run) => predictionsOf(run.name));
    if (!of_a || !of_b) return [heading, make("p", {}, "The predictions of one of them are not on this page.")];
    const both = [...of_a.keys()].filter((photo) => of_b.has(photo));
    if (!both.length) return [heading, make("p", {}, "They were validated on different photos: none is in both.")];
    const right = (side, photo) => side.get(photo)[0] === data.labels[photo];
    const apart = both.filter((photo) => of_a.get(photo)[0] !== of_b.get(photo)[0]);
    const only = (one, other) => apart.filter((photo) => right(one, photo) && !right(other, photo)).length;
    const text =
      `A: ${a.name}. B: ${b.name}. They predict different classes for ${apart.length} of ${both.length} photos: ` +
      `A alone is right on ${only(of_a, of_b)}, B alone on ${only(of_b, of_a)}. ` +
      "Whether that is more than chance: fruitlib compare, or notebook 07.";
    const list = make("ul", { class: "pairs-of-photos" });
    for (const photo of apart.slice(0, 100)) list.append(pairItem(photo, [a, of_a], [b, of_b]));
    const more = apart.length > 100 ? [make("p", { class: "note" }, `The first 100 of ${apart.length}.`)] : [];
    return [heading, make("p", { id: "pair" }, text), list, ...more];
  }

  function predictionsOf(name) {
    const own = data.predictions[name];
    if (!own) return null;
    const photo = (at) => (own.photos ? own.photos[at] : at);
    return new Map(own.predicted.map((predicted, at) => [photo(at), [predicted, own.confidence[at]]]));
  }

  function pairItem(photo, ...sides) {
    const item = make("li", {});
    if (data.cells[photo] >= 0) item.append(cell(data.sheet, data.cells[photo], data.paths[photo], 96));
    const texts = make("span", { class: "texts" }, make("span", { class: "path" }, data.paths[photo]));
    texts.append(make("span", {}, `label: ${data.classes[data.labels[photo]]}`));
    sides.forEach(([run, own], at) => {
      const [predicted, confidence] = own.get(photo);
      const mark = predicted === data.labels[photo] ? "✓ right" : "✗ wrong";
      const sure = (confidence / 1000).toFixed(2);
      texts.append(make("span", {}, `${"AB"[at]}: ${data.classes[predicted]} ${sure} ${mark}`));
    });
    item.append(texts);
    sides.forEach(([run, own], at) => {
      const row = run.heat ? run.heat.of[photo] : undefined;
      if (row === undefined) return;
      const target = run.heat.for === "predicted" ? own.get(photo)[0] : data.labels[photo];
      const words = `${"AB"[at]}: heat for ${data.classes[target]}`;
      const picture = heatOf(run, row, `${words}, over ${data.paths[photo]}`);
      item.append(make("span", { class: "photo" }, picture, make("small", {}, words)));
    });
    return item;
  }

  function heatOf(run, row, alt) {
    const sheet = { ...run.heat, file: `${encodeURIComponent(run.name)}/${run.heat.file}` };
    const first = row * sheet.columns;
    return make("span", { class: "over" }, cell(sheet, first, alt, 96), cell(sheet, first + sheet.columns - 1, "", 96));
  }

  // ---- the photos of a run

  if (data.paths && document.getElementById("browser")) setUpPhotos();

  function setUpPhotos() {
    const PAGE = 120; // photos at a time
    const FOLLOWED_HEAT = "Heat: for the true class; no colour: nothing there counts. ↑ and ↓: another epoch.";
    const EVERY_HEAT =
      "Heat: for the predicted class; no colour: nothing there counts. Other layers and epochs: of a few photos.";
    const NO_HEAT =
      "No heat was kept of this photo. It is kept of every photo where 04 has 100 at most to look at, " +
      "and shown for the first runs of a large sweep.";
    const n = data.paths.length;
    const state = { photo: data.paths.indexOf(view.get("photo")), limit: PAGE };
    const read = (name) => view.get(name) || "";
    const above = () => Math.round(Number(read("above") || 0) * 1e6);
    const label = (at) => data.classes[data.labels[at]];
    const guess = (at) => data.classes[data.predicted[at]];
    const answered = (at) => data.confidence[at] > above() || !read("above");
    let shown = [];

    setUpSlider();
    const controls = make("div", { class: "tools" });
    const grid = make("div", { class: "cells photos-grid", role: "group", "aria-label": "Photos" });
    const status = make("p", { class: "note", role: "status", id: "photos-shown" });
    const detail = make("section", { id: "detail", tabindex: "0", "aria-label": "One photo", onkeydown: keys });
    const section = make("section", {}, make("h2", {}, "Browse the photos"), controls, status, detail, grid);
    document.getElementById("browser").append(section);
    buildControls();
    linkTables();
    recount();
    list();
    setUpMap();
    for (const link of document.querySelectorAll(".beside-runs a")) {
      link.addEventListener("click", () => (link.hash = `${view}`)); // the same photo, of another run
    }

    function setUpSlider() {
      const range = { type: "range", min: "0", max: "0.99", step: "0.01", value: read("above") || "0" };
      const slider = make("input", { id: "above", ...range });
      const text = make("output", { id: "answered", for: "above" });
      slider.addEventListener("input", () => {
        keep("above", Number(slider.value) ? slider.value : "");
        recount();
        list();
      });
      const label = make("label", { for: "above" }, "Answer only above a confidence of");
      document.getElementById("slider").append(label, " ", slider, " ", text);
    }

    /* The numbers of the photos answered, as fruitlib.reporting.explore.answered computes them. */
    function recount() {
      const own = data.paths.map((_, at) => at).filter(answered);
      const correct = own.filter((at) => data.predicted[at] === data.labels[at]).length;
      const [low, high] = wilson(correct, own.length);
      const numbers = { n: own.length, correct, coverage: own.length / n, accuracy: correct / own.length, low, high };
      const output = document.getElementById("answered");
      Object.assign(output.dataset, numbers);
      const ends = `95 % interval ${low.toFixed(2)}–${high.toFixed(2)}, n = ${own.length}${data.same}`;
      const found = own.length ? `accuracy ${numbers.accuracy.toFixed(3)} (${ends})` : "no photo is that sure";
      const part = `it answers ${(100 * numbers.coverage).toFixed(1)} % of photos`;
      output.textContent = `${Number(read("above") || 0).toFixed(2)}: ${part}; ${found}`;
      const counts = tally(own.map((at) => `${data.labels[at]} ${data.predicted[at]}`));
      for (const box of document.querySelectorAll("#matrix [data-true]")) {
        const [t, p] = [box.dataset.true, box.dataset.predicted];
        const count = counts.get(`${t} ${p}`) || 0;
        box.className = t === p ? "right" : count ? "wrong" : "none";
        (box.querySelector("button") || box).textContent = count;
      }
    }

    function buildControls() {
      const classes = [["", "all"], ...data.classes.map((name, at) => [`${at}`, name])];
      const outcomes = [["", "all"], ["right", "right"], ["wrong", "wrong"]];
      const orders = [["", "as listed"], ["unsure", "least sure first"], ["sure", "surest first"]];
      const parts = [["Label", "true", classes], ["Predicted", "predicted", classes], ["Outcome", "outcome", outcomes]];
      const groups = [["", "all"], ...data.groups.map((name, at) => [`${at}`, name])];
      if (data.groups.length) parts.push([data.groupWord, "group", groups]);
      parts.push(["Heat", "heat", [["", "all"], ["yes", "with heat"]]], ["Order", "order", orders]);
      for (const [label, key, options] of parts) {
        if (key === "heat" && !data.heat.file && !data.every.file) continue;
        controls.append(choice(label, options, read(key), (value) => {
          keep(key, value);
          list();
        }));
      }
    }

    function choose(values) {
      for (const key of ["true", "predicted", "outcome", "group"]) keep(key, values[key] ?? "");
      controls.replaceChildren();
      buildControls();
      list();
      section.scrollIntoView({ block: "start" });
    }

    function linkTables() {
      const link = (box, values) => {
        const text = box.textContent;
        const name = `${text} photos: ${values.name}`;
        const button = make("button", { type: "button", class: "count", title: name }, text);
        button.addEventListener("click", () => choose(values));
        box.replaceChildren(button);
      };
      for (const box of document.querySelectorAll("#matrix [data-true], #pairs [data-true]")) {
        const [t, p] = [box.dataset.true, box.dataset.predicted];
        link(box, { true: t, predicted: p, name: `${data.classes[t]}, predicted ${data.classes[p]}` });
      }
      for (const box of document.querySelectorAll("#grid [data-group]")) {
        const group = `${data.groups.indexOf(box.dataset.group)}`;
        link(box, { group, predicted: box.dataset.predicted, outcome: "wrong", name: box.dataset.group });
      }
    }

    function list() {
      const wanted = (key, values, at) => read(key) === "" || values[at] === Number(read(key));
      const outcome = (at) => (data.labels[at] === data.predicted[at] ? "right" : "wrong");
      shown = data.paths.map((_, at) => at).filter(
        (at) =>
          answered(at) &&
          wanted("true", data.labels, at) &&
          wanted("predicted", data.predicted, at) &&
          wanted("group", data.group, at) &&
          (!read("outcome") || outcome(at) === read("outcome")) &&
          (!read("heat") || heatOf(at))
      );
      const sign = { sure: -1, unsure: 1 }[read("order")] || 0;
      if (sign) shown.sort((a, b) => sign * (data.confidence[a] - data.confidence[b]));
      const plural = shown.length === 1 ? "photo" : "photos";
      status.textContent = `${shown.length} of ${n} ${plural}. ← and → go from one to the next.`;
      state.limit = PAGE;
      fill();
      select(shown.includes(state.photo) ? state.photo : shown.length ? shown[0] : -1);
    }

    function fill() {
      grid.replaceChildren(...shown.slice(0, state.limit).map(thumbnail));
      if (shown.length > state.limit) {
        const more = () => {
          state.limit += PAGE;
          fill();
        };
        grid.append(make("button", { type: "button", class: "more", onclick: more }, `Show ${PAGE} more`));
      }
    }

    function thumbnail(at) {
      const right = data.labels[at] === data.predicted[at];
      const text = right ? label(at) : `${label(at)}, predicted ${guess(at)}`;
      const button = make("button", { type: "button", class: right ? "photo" : "photo wrong", "data-photo": `${at}` });
      button.addEventListener("click", () => select(at));
      if (data.cells[at] >= 0) button.append(cell(data.sheet, data.cells[at], "", 76));
      button.append(make("small", {}, `${right ? "" : "✗ "}${text} ${share(data.confidence[at])}`));
      return button;
    }

    function select(at) {
      state.photo = at;
      if (view.get("photo") !== null || at !== shown[0]) keep("photo", at < 0 ? "" : data.paths[at]);
      for (const button of grid.querySelectorAll("[aria-current]")) button.removeAttribute("aria-current");
      const button = grid.querySelector(`[data-photo="${at}"]`);
      if (button) button.setAttribute("aria-current", "true");
      for (const mark of document.querySelectorAll("#map .here")) mark.classList.remove("here");
      const mark = document.querySelector(`#map [data-photo="${at}"]`);
      if (mark) mark.classList.add("here");
      detail.replaceChildren(...(at < 0 ? ["No photo passes these filters."] : describe(at)));
    }

    function describe(at) {
      const pictures = make("div", { class: "pictures" });
      const found = heatOf(at);
      if (found) pictures.append(...overlaid(at, found));
      else if (data.cells[at] >= 0) pictures.append(cell(data.sheet, data.cells[at], data.paths[at], 240));
      const right = data.labels[at] === data.predicted[at];
      const facts = make("div", { class: "facts" }, make("p", { class: "path" }, data.paths[at]));
      facts.append(make("p", {}, `Label: ${label(at)}. Predicted: ${guess(at)}, ${right ? "✓ right" : "✗ wrong"}.`));
      if (data.group[at] >= 0) facts.append(make("p", {}, `${data.groupWord}: ${data.groups[data.group[at]]}`));
      facts.append(probabilities(at));
      if (found) facts.append(heatControls(at, found.sheet));
      else if (data.heat.file) facts.append(make("p", { class: "note" }, NO_HEAT));
      return [pictures, facts];
    }

    function probabilities(at) {
      const list = make("dl", { class: "probabilities" });
      for (const [c, p] of data.top.slice(at * data.shown, (at + 1) * data.shown)) {
        const bar = make("span", { class: "bar" });
        bar.style.width = `${p / 1e4}%`;
        list.append(make("dt", {}, data.classes[c]), make("dd", {}, bar, ` ${(p / 1e6).toFixed(3)}`));
      }
      return list;
    }

    /* The sheet that has heat of a photo, and its row there; null where none was kept. */
    function heatOf(at) {
      if (data.rows[at] >= 0) return { sheet: data.heat, row: data.rows[at] };
      return data.everyRows[at] >= 0 ? { sheet: data.every, row: data.everyRows[at] } : null;
    }

    function layerNumber(sheet) {
      const fits = (each) => each.layer === read("layer") && `${each.epoch}` === read("epoch");
      const wanted = sheet.layers.findIndex(fits);
      return wanted >= 0 ? wanted : sheet.layers.length - 1;
    }

    function overlaid(at, { sheet, row }) {
      const first = row * sheet.columns;
      const heat = cell(sheet, first + 1 + layerNumber(sheet), `heat over ${data.paths[at]}`, 240);
      heat.style.opacity = read("opacity") || "0.8";
      const original = cell(sheet, first, data.paths[at], 240);
      return [original, make("span", { class: "over" }, cell(sheet, first, "", 240), heat)];
    }

    function heatControls(at, sheet) {
      const now = sheet.layers[layerNumber(sheet)];
      const set = (layer, epoch) => {
        keep("layer", layer);
        keep("epoch", epoch);
        select(at);
      };
      const layers = distinct(sheet.layers.map((each) => each.layer)).map((name) => [name, name]);
      const epochs = distinct(sheet.layers.map((each) => `${each.epoch}`)).map((name) => [name, name]);
      const range = { type: "range", min: "0", max: "1", step: "0.05", value: read("opacity") || "0.8" };
      const opacity = make("input", { id: "opacity", ...range });
      opacity.addEventListener("input", () => {
        keep("opacity", opacity.value);
        detail.querySelector(".over .cell:last-child").style.opacity = opacity.value;
      });
      return make(
        "div",
        { class: "tools" },
        choice("Layer", layers, now.layer, (value) => set(value, now.epoch)),
        choice("Epoch", epochs, `${now.epoch}`, (value) => set(now.layer, value)),
        make("label", { class: "choice" }, "Heat ", opacity),
        make("p", { class: "note" }, sheet === data.every ? EVERY_HEAT : FOLLOWED_HEAT)
      );
    }

    function keys(event) {
      if (["INPUT", "SELECT"].includes(event.target.tagName)) return;
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) {
        const next = shown.indexOf(state.photo) + step;
        if (next >= 0 && next < shown.length) select(shown[next]);
        event.preventDefault();
      }
      const later = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (later && data.heat.layers.length && data.rows[state.photo] >= 0) {
        const now = data.heat.layers[layerNumber(data.heat)];
        const epochs = distinct(data.heat.layers.map((each) => each.epoch));
        const next = epochs[epochs.indexOf(now.epoch) + later];
        if (next !== undefined) {
          keep("layer", now.layer);
          keep("epoch", next);
          select(state.photo);
        }
        event.preventDefault();
      }
    }
    document.addEventListener("keydown", (event) => {
      const free = event.target === document.body || grid.contains(event.target);
      if (free && ["ArrowLeft", "ArrowRight"].includes(event.key)) keys(event);
    });

    // ---- the photos on a plane

    function setUpMap() {
      const place = document.getElementById("map");
      if (n < 3) return;
      const colourings = [["label", "label"], ["predicted", "predicted class"], ["outcome", "right or wrong"]];
      if (data.groups.length) colourings.push(["group", data.groupWord]);
      const body = make("div", {});
      const paint = () => body.replaceChildren(...mapOf(read("colour") || "label"));
      const picked = (value) => {
        keep("colour", value);
        paint();
        select(state.photo);
      };
      const what = data.mapOf === "features" ? "features" : "probabilities (this run has no features saved)";
      const note =
        `The two first principal components of its ${what}. ` +
        "Photos side by side are alike to the network; ✗ is wrong. A click shows the photo.";
      place.append(make("h2", {}, "Which photos look alike to it?"), make("p", { class: "note" }, note));
      place.append(choice("Colour", colourings, read("colour") || "label", picked), body);
      paint();
      select(state.photo);
    }

    function mapOf(colouring) {
      const { labels, predicted, group, classes, groups } = data;
      const names = { label: classes, predicted: classes, outcome: ["right", "wrong"], group: groups }[colouring];
      const wrong = (at) => labels[at] !== predicted[at];
      const outcome = labels.map((_, at) => Number(wrong(at)));
      const kind = (at) => ({ label: labels, predicted, outcome, group })[colouring][at];
      const counted = tally(data.paths.map((_, at) => kind(at)));
      const counts = names.map((_, k) => counted.get(k) || 0);
      const bySize = names.map((_, k) => k).sort((a, b) => counts[b] - counts[a]);
      const largest = bySize.slice(0, COLOURS.length).sort((a, b) => a - b);
      const colour = (k) => (largest.includes(k) ? COLOURS[largest.indexOf(k)] : "#888888");
      const title = `Photos on a plane, coloured by ${colouring}`;
      const plot = draw("svg", { viewBox: "-20 -20 1040 640", class: "plot map", role: "img", "aria-label": title });
      data.paths.forEach((path, at) => {
        const [x, y] = [data.map[at][0], 600 - 0.6 * data.map[at][1]];
        const shape = wrong(at)
          ? draw("path", { d: `M${x - 9} ${y - 9}l18 18m0-18l-18 18`, stroke: colour(kind(at)), "stroke-width": 5 })
          : dot(x, y, 8, colour(kind(at)));
        shape.dataset.photo = at;
        shape.append(draw("title", {}, `${path}: ${label(at)}, predicted ${guess(at)}`));
        shape.addEventListener("click", () => {
          select(at);
          section.scrollIntoView({ block: "start" });
        });
        plot.append(shape);
      });
      const legend = make("ul", { class: "legend" });
      for (const k of largest) {
        const sample = draw("svg", { width: 14, height: 14, "aria-hidden": "true" }, dot(7, 7, 6, colour(k)));
        legend.append(make("li", {}, sample, ` ${names[k]} (${counts[k]})`));
      }
      if (names.length > largest.length) legend.append(make("li", {}, `grey: ${names.length - largest.length} others`));
      return [make("figure", {}, plot), legend];
    }
  }
})();
