"use strict";
const viewer = document.querySelector("dialog");
const byName = new Intl.Collator("en", { numeric: true });
let shown = null;

function show(button) {
  shown = button;
  const picture = button.querySelector("svg").cloneNode(true);
  viewer.querySelector("svg").replaceWith(picture);
  viewer.querySelector("h2").textContent = button.dataset.name;
  viewer.querySelector("p").textContent = button.dataset.caption;
  if (!viewer.open) viewer.showModal();
}

function step(by) {
  const group = [...shown.closest("[data-pictures]").querySelectorAll("button.picture")];
  show(group[(group.indexOf(shown) + by + group.length) % group.length]);
}

function sort(button) {
  const heading = button.closest("th");
  const table = heading.closest("table");
  const descending = heading.getAttribute("aria-sort") === "ascending";
  for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const value = (row) => row.cells[heading.cellIndex].dataset.value;
  const order = heading.dataset.kind === "number"
    ? (a, b) => Number(value(a)) - Number(value(b))
    : (a, b) => byName.compare(value(a), value(b));
  const body = table.tBodies[0];
  const rows = [...body.rows].sort((a, b) => (descending ? order(b, a) : order(a, b)));
  body.append(...rows);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.matches(".picture")) show(button);
  else if (button?.matches(".sort")) sort(button);
  else if (button?.matches(".step")) step(Number(button.value));
  else if (button?.matches(".close") || event.target === viewer) viewer.close();
});
viewer.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
