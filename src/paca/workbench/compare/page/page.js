"use strict";
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const figures = read("figures");
const root = document.documentElement;
const narrow = () => window.matchMedia("(max-width: 640px)").matches;

function palette() {
  const style = getComputedStyle(root);
  const value = (name) => style.getPropertyValue(name).trim();
  return { ink: value("--ink"), soft: value("--soft"), line: value("--line"), grid: value("--grid"), card: value("--card") };
}

function themed(layout) {
  const tint = palette();
  const axis = { gridcolor: tint.grid, linecolor: tint.line, tickcolor: tint.line, color: tint.soft };
  const small = narrow();
  return {
    ...layout,
    font: { family: getComputedStyle(document.body).fontFamily, size: small ? 11 : 13, color: tint.ink },
    hoverlabel: { ...layout.hoverlabel, bgcolor: tint.card, bordercolor: tint.line, font: { color: tint.ink } },
    xaxis: { ...layout.xaxis, ...axis },
    yaxis: { ...layout.yaxis, ...axis },
    margin: small ? { l: 44, r: 8, t: 12, b: 44 } : layout.margin,
  };
}

function draw() {
  for (const { id, figure } of figures) {
    const place = document.getElementById(id);
    Plotly.react(place, figure.data, themed(figure.layout), {
      responsive: true, displayModeBar: false,
    });
  }
}

function show(theme) {
  root.dataset.theme = theme;
  draw();
}

const dark = window.matchMedia("(prefers-color-scheme: dark)");
show(dark.matches ? "dark" : "light");
dark.addEventListener("change", (event) => show(event.matches ? "dark" : "light"));
window.matchMedia("(max-width: 640px)").addEventListener("change", draw);
document.getElementById("theme").addEventListener("click", () => show(root.dataset.theme === "dark" ? "light" : "dark"));

for (const button of document.querySelectorAll("[data-download]")) {
  button.addEventListener("click", () => {
    const name = button.dataset.download;
    const text = name === "results.json" ? JSON.stringify(read("results"), null, 2) + "\n" : read("texts")[name];
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
    link.download = name;
    link.click();
    URL.revokeObjectURL(link.href);
  });
}
