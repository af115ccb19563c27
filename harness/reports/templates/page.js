"use strict";
// Tables: a head that is clicked (or pressed) sorts; again, the other way. Lines of class "fixed" stay below.
function keyOf(row, column) {
  const cell = row.cells[column];
  const text = (cell.dataset.s ?? cell.textContent).trim();
  const number = Number(text);
  if (text === "" || text === "–") return null;
  return Number.isNaN(number) ? text : number;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", {numeric: true});
}

function sortBy(table, column) {
  const heads = table.tHead.rows[0].cells;
  const descending = heads[column].getAttribute("aria-sort") === "ascending";
  for (const head of heads) head.removeAttribute("aria-sort");
  heads[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
  const body = table.tBodies[0];
  const rows = [...body.rows].filter((row) => !row.classList.contains("fixed"));
  const fixed = [...body.rows].filter((row) => row.classList.contains("fixed"));
  rows.sort((first, second) => {
    const a = keyOf(first, column), b = keyOf(second, column);
    if (a === null || b === null) return (a === null) - (b === null); // what is missing comes last, either way
    return descending ? compare(b, a) : compare(a, b);
  });
  body.append(...rows, ...fixed);
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sortBy(table, column));
    head.append(button);
  });
}

// Figures: the window through which the svg is seen is its viewBox.
const MOST = 40;

function makeZoomable(box) {
  const svg = box.querySelector("svg");
  const whole = svg.viewBox.baseVal;
  const full = {x: whole.x, y: whole.y, width: whole.width, height: whole.height};
  let view = {...full};
  const touches = new Map();
  let apart = 0;

  function show(next) {
    const width = Math.min(full.width, Math.max(full.width / MOST, next.width));
    const height = width * full.height / full.width;
    view = {
      x: Math.min(Math.max(next.x, full.x), full.x + full.width - width),
      y: Math.min(Math.max(next.y, full.y), full.y + full.height - height),
      width, height,
    };
    svg.setAttribute("viewBox", `${view.x} ${view.y} ${view.width} ${view.height}`);
    box.classList.toggle("zoomed", view.width < full.width - 1e-6);
  }

  function zoom(factor, clientX, clientY) {
    const area = svg.getBoundingClientRect();
    const right = clientX === undefined ? 0.5 : (clientX - area.left) / area.width;
    const down = clientY === undefined ? 0.5 : (clientY - area.top) / area.height;
    const width = Math.min(full.width, Math.max(full.width / MOST, view.width / factor));
    const height = width * full.height / full.width;
    show({x: view.x + right * (view.width - width), y: view.y + down * (view.height - height), width});
  }

  function move(right, down) {
    show({...view, x: view.x + right, y: view.y + down});
  }

  const reset = () => show({...full});

  // The wheel scrolls the page, unless the figure was chosen (by a click or Tab) or Ctrl is held.
  box.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey && document.activeElement !== box) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.002)), event.clientX, event.clientY);
  }, {passive: false});
  box.addEventListener("dblclick", reset);
  box.addEventListener("pointerdown", (event) => {
    touches.set(event.pointerId, event);
    apart = 0;
    if (box.classList.contains("zoomed")) box.setPointerCapture(event.pointerId);
  });
  box.addEventListener("pointermove", (event) => {
    const before = touches.get(event.pointerId);
    if (!before) return;
    touches.set(event.pointerId, event);
    const area = svg.getBoundingClientRect();
    if (touches.size === 1 && box.classList.contains("zoomed")) {
      const scale = view.width / area.width;
      move((before.clientX - event.clientX) * scale, (before.clientY - event.clientY) * scale);
    } else if (touches.size === 2) {
      const [a, b] = [...touches.values()];
      const now = Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
      if (apart) zoom(now / apart, (a.clientX + b.clientX) / 2, (a.clientY + b.clientY) / 2);
      apart = now;
    }
  });
  for (const end of ["pointerup", "pointercancel", "pointerleave"]) {
    box.addEventListener(end, (event) => { touches.delete(event.pointerId); apart = 0; });
  }
  box.addEventListener("touchmove", (event) => {
    if (event.touches.length > 1 || box.classList.contains("zoomed")) event.preventDefault();
  }, {passive: false});
  box.addEventListener("keydown", (event) => {
    const step = view.width / 8;
    const acts = {
      "+": () => zoom(1.4), "=": () => zoom(1.4), "-": () => zoom(1 / 1.4), "0": reset, "Escape": reset,
      "ArrowLeft": () => move(-step, 0), "ArrowRight": () => move(step, 0),
      "ArrowUp": () => move(0, -step), "ArrowDown": () => move(0, step),
    };
    const act = acts[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key.startsWith("Arrow") && !box.classList.contains("zoomed")) return;
    event.preventDefault();
    act();
  });
  box.parentElement.querySelector("figcaption").append(tools(() => zoom(1.4), () => zoom(1 / 1.4), reset));
}

function tools(larger, smaller, reset) {
  const made = document.createElement("span");
  made.className = "tools";
  for (const [text, label, act] of [["+", "Zoom in", larger], ["−", "Zoom out", smaller], ["Reset", "Reset zoom", reset]]) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.setAttribute("aria-label", label);
    button.addEventListener("click", act);
    made.append(button);
  }
  return made;
}

document.querySelectorAll(".zoom").forEach(makeZoomable);

// A link to a row opens its details and those around it.
function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (const details of target.querySelectorAll(":scope > details")) details.open = true;
  for (let up = target; up; up = up.parentElement) if (up.tagName === "DETAILS") up.open = true;
}
window.addEventListener("hashchange", openTarget);
openTarget();
