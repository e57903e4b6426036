"use strict";
// Sorting of tables, and for every clip a viewer of two layers. Without this script the page shows the same pictures
// and numbers, one below the other.

const { names, layers, grids } = JSON.parse(document.getElementById("data").textContent);

// --- tables

function sortBy(table, heading, direction) {
  const column = heading.cellIndex, sign = direction === "ascending" ? 1 : -1;
  const key = (row) => row.cells[column].dataset.value;
  const compare = (a, b) => {
    const x = key(a), y = key(b);
    if (x === "" || y === "") return (x === "") - (y === ""); // nothing known: always last
    return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, { numeric: true }) : x - y);
  };
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", direction);
}

for (const button of document.querySelectorAll(".sortable thead button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th"), now = heading.getAttribute("aria-sort");
    const other = { ascending: "descending", descending: "ascending" };
    sortBy(button.closest("table"), heading, now ? other[now] : button.dataset.first);
  });
}

const groups = document.querySelectorAll(".filters button");
for (const button of groups) {
  button.addEventListener("click", () => {
    for (const each of groups) each.setAttribute("aria-pressed", each === button);
    for (const row of document.querySelector(".classes").tBodies[0].rows) {
      row.hidden = button.dataset.group !== "" && row.dataset.group !== button.dataset.group;
    }
  });
}

// --- which classes lie under the pointer

function unpacked(runs) {
  const cells = [];
  for (let i = 0; i < runs.length; i += 2) for (let n = 0; n < runs[i + 1]; n++) cells.push(runs[i]);
  return cells;
}

const cellsOf = {}; // by frame and kind, unpacked when first asked for

function classesAt(key, event, picture) {
  const grid = grids[key], box = picture.getBoundingClientRect();
  const x = Math.floor(((event.clientX - box.left) / box.width) * grid.columns);
  const y = Math.floor(((event.clientY - box.top) / box.height) * grid.rows);
  if (x < 0 || y < 0 || x >= grid.columns || y >= grid.rows) return null;
  const said = [];
  for (const kind of ["truth", "prediction", "other"]) {
    if (!(kind in grid)) continue;
    const cells = (cellsOf[`${key} ${kind}`] ??= unpacked(grid[kind]));
    const none = kind === "truth" ? "not scored" : "none";
    said.push(`${layers[kind]}: ${names[cells[y * grid.columns + x]] ?? none}`);
  }
  return said.join(" · ");
}

// --- clips

function viewerOf(clip) {
  const viewer = document.getElementById("viewer").content.firstElementChild.cloneNode(true);
  const find = (selector) => viewer.querySelector(selector);
  const stage = find(".stage"), where = find(".where"), paint = find(".paint"), title = clip.querySelector("h3").textContent;
  const pick = { a: find("select.a"), b: find("select.b") };
  let frame = null;

  const place = () => viewer.style.setProperty("--where", `${where.value}%`);
  const layerOf = (kind) => frame.querySelector(`img[data-layer="${kind}"]`);

  function show(side) {
    const kind = pick[side].value, source = layerOf(kind), picture = find(`img.${side}`);
    picture.src = source.getAttribute("src");
    picture.alt = source.alt;
    picture.classList.toggle("whole", kind === "photo");
    picture.classList.toggle("photo", kind === "photo");
    find(`.tag.${side}`).textContent = pick[side].selectedOptions[0].textContent;
  }

  function fill(side, preferred) {
    const wanted = pick[side].value || preferred;
    const pictures = [...frame.querySelectorAll("img[data-layer]")];
    pick[side].replaceChildren(
      ...pictures.map((picture) => new Option(layers[picture.dataset.layer], picture.dataset.layer)),
    );
    pick[side].value = layerOf(wanted) ? wanted : "prediction";
    show(side);
  }

  function showFrame(next) {
    frame = next;
    find(".stage > .photo").src = layerOf("photo").getAttribute("src");
    find(".stage > .photo").width = layerOf("photo").width;
    fill("a", layerOf("other") ? "prediction" : "truth");
    fill("b", layerOf("other") ? "other" : "prediction");
  }

  function drag(event) {
    const box = stage.getBoundingClientRect();
    where.value = (100 * (event.clientX - box.left)) / box.width;
    place();
  }

  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault(); // no dragging of the picture itself
    stage.setPointerCapture(event.pointerId);
    drag(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) drag(event);
  });
  where.addEventListener("input", place);
  where.setAttribute("aria-label", `border between left and right picture of ${title}, in percent`);
  paint.addEventListener("input", () => viewer.style.setProperty("--paint", paint.value / 100));
  for (const side of ["a", "b"]) pick[side].addEventListener("change", () => show(side));

  const readout = find(".readout"), pointed = readout.textContent;
  clip.addEventListener("pointermove", (event) => {
    const picture = event.target.closest(".stage, img[data-layer]");
    readout.textContent = (picture && classesAt(frame.dataset.key, event, picture)) || pointed;
  });
  return { viewer, showFrame };
}

function frameButton(frame, choose) {
  const button = document.createElement("button"), photo = frame.querySelector('img[data-layer="photo"]');
  const small = Object.assign(new Image(), { src: photo.getAttribute("src"), alt: "", loading: "lazy" });
  button.type = "button";
  button.append(small, frame.dataset.name);
  button.setAttribute("aria-label", `frame ${frame.dataset.name}`);
  button.addEventListener("click", choose);
  return button;
}

for (const clip of document.querySelectorAll(".clip")) {
  const frames = [...clip.querySelectorAll(".frame")];
  if (!frames.length) continue;
  const { viewer, showFrame } = viewerOf(clip);
  const buttons = frames.map((frame) => frameButton(frame, () => choose(frame)));
  const choose = (chosen) => {
    frames.forEach((frame, i) => {
      frame.hidden = frame !== chosen;
      buttons[i].setAttribute("aria-pressed", frame === chosen);
    });
    showFrame(chosen);
  };
  const row = document.createElement("div"), split = document.createElement("div");
  row.className = "frames";
  row.setAttribute("role", "group");
  row.setAttribute("aria-label", "Frames of this clip");
  row.append(...buttons);
  split.className = "split";
  const beside = document.createElement("div");
  frames[0].before(row, split);
  beside.append(...frames);
  split.append(viewer, beside);
  const accuracy = (frame) => (frame.dataset.accuracy === "" ? 2 : Number(frame.dataset.accuracy));
  choose(frames.reduce((worst, frame) => (accuracy(frame) < accuracy(worst) ? frame : worst)));
}
