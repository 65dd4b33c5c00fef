"use strict";

const { figures, colors } = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const filter = document.getElementById("filter");
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
const plots = [...document.querySelectorAll(".plot")];

function isDark() {
  return root.style.colorScheme ? root.style.colorScheme === "dark" : systemIsDark.matches;
}

function chosen(name) {
  return new Set(new FormData(filter).getAll(name));
}

function colored(trace) {
  const color = colors[trace.meta][isDark() ? 1 : 0];
  const copy = { ...trace, line: { ...trace.line, color } };
  if (trace.fill) copy.fillcolor = color;
  if (trace.marker) copy.marker = { ...trace.marker, color };
  return copy;
}

function themed(layout) {
  const style = getComputedStyle(document.querySelector(".plot"));
  const rule = getComputedStyle(filter).borderTopColor;
  const axis = { gridcolor: rule, linecolor: rule, zerolinecolor: rule, automargin: true };
  return {
    ...layout,
    paper_bgcolor: style.backgroundColor,
    plot_bgcolor: style.backgroundColor,
    font: { family: style.fontFamily, size: 12, color: style.color },
    xaxis: { ...layout.xaxis, ...axis },
    yaxis: { ...layout.yaxis, ...axis },
  };
}

function draw(plot, schedulers) {
  const { data, layout } = figures[plot.dataset.figure];
  const shown = data.filter((trace) => schedulers.has(trace.meta)).map(colored);
  Plotly.react(plot, shown, themed(layout), { responsive: true, displayModeBar: false });
}

// a plot is drawn when it comes near the window: a page may have a hundred
const near = new Set();
const watch = new IntersectionObserver(
  (entries) => {
    const schedulers = chosen("scheduler");
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting && !near.has(target)) {
        near.add(target);
        draw(target, schedulers);
      }
    }
  },
  { rootMargin: "400px" },
);

function redraw() {
  const schedulers = chosen("scheduler");
  for (const plot of near) draw(plot, schedulers);
}

function applyFilter() {
  const schedulers = chosen("scheduler");
  for (const row of document.querySelectorAll("tr[data-scheduler]")) {
    row.hidden = !schedulers.has(row.dataset.scheduler);
  }
  if (filter.elements.task) {
    const tasks = chosen("task");
    for (const section of document.querySelectorAll("section[data-task]")) {
      section.hidden = !tasks.has(section.dataset.task);
    }
  }
  redraw();
}

function check(isChecked) {
  for (const box of filter.querySelectorAll("input[name=scheduler]")) box.checked = isChecked;
  applyFilter();
}

filter.addEventListener("change", applyFilter);
filter.addEventListener("submit", (event) => event.preventDefault());
document.getElementById("all").addEventListener("click", () => check(true));
document.getElementById("none").addEventListener("click", () => check(false));
document.getElementById("theme").addEventListener("click", () => {
  root.style.colorScheme = isDark() ? "light" : "dark";
  redraw();
});
systemIsDark.addEventListener("change", redraw);
window.addEventListener("beforeprint", () => {
  plots.forEach((plot) => near.add(plot));
  redraw();
});
plots.forEach((plot) => watch.observe(plot));
applyFilter();
