// Figures of notebook pages: Escape closes an enlarged one, and a figure's table is copied as Markdown.
// Without this script figures are enlarged and closed by links, and tables are saved as CSV.
"use strict";

// The rows of a CSV text, each a list of texts; quotes as in RFC 4180.
function csvRows(text) {
  const rows = [[""]];
  let quoted = false;
  for (let i = 0; i < text.length; i++) {
    const row = rows[rows.length - 1], letter = text[i];
    if (letter === '"' && quoted && text[i + 1] === '"') {
      row[row.length - 1] += '"';
      i++;
    } else if (letter === '"') quoted = !quoted;
    else if (letter === "," && !quoted) row.push("");
    else if (letter === "\n" && !quoted) rows.push([""]);
    else if (letter !== "\r" || quoted) row[row.length - 1] += letter;
  }
  return rows.filter((row) => row.length > 1 || row[0] !== "");
}

function asMarkdown(rows) {
  const line = (cells) => "| " + cells.map((cell) => cell.replace(/\|/g, "\\|").replace(/\s*\n\s*/g, " ")).join(" | ") + " |";
  return [line(rows[0]), line(rows[0].map(() => "---")), ...rows.slice(1).map(line)].join("\n") + "\n";
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // a browser that forbids it on file://
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    if (!copied) throw new Error("the browser does not let a page copy");
  }
}

function addCopyButton(link) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy as Markdown";
  button.addEventListener("click", async () => {
    const csv = decodeURIComponent(link.href.slice(link.href.indexOf(",") + 1));
    try {
      await copyText(asMarkdown(csvRows(csv)));
      button.textContent = "Copied";
    } catch (problem) {
      button.textContent = "Not copied: " + problem.message;
    }
  });
  link.after(button);
}

function closeEnlarged() {
  const shown = document.querySelector("figure:target");
  if (shown) location.hash = shown.querySelector(".frame").id;
  return Boolean(shown);
}

document.addEventListener("keydown", (event) => { if (event.key === "Escape") closeEnlarged(); });
document.addEventListener("click", (event) => { // on the enlarged picture itself
  if (event.target.closest("figure:target .frame") && closeEnlarged()) event.preventDefault();
});
document.querySelectorAll("figcaption a.table").forEach(addCopyButton);
