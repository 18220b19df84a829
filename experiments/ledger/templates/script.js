"use strict";
const table = document.getElementById("ledger");
const claims = [...table.querySelectorAll("tbody.claim")];
const images = JSON.parse(document.getElementById("figures").textContent);
const field = (id) => document.getElementById(id);
const detail = (claim) => claim.querySelector("tr.detail");

// Without this script every row stands open; with it, a row opens when it is asked for.
function open(claim, wanted) {
  detail(claim).hidden = !wanted;
  claim.querySelector(".opener").setAttribute("aria-expanded", String(wanted));
  const image = claim.querySelector("img[data-figure]");
  if (wanted && image && !image.src) image.src = images[image.dataset.figure];
}

function filter() {
  const words = field("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const claim of claims) {
    const { notes, verdict, experiment } = claim.dataset;
    const text = claim.textContent.toLowerCase();
    claim.hidden = !(
      (!field("note").value || notes.split(" ").includes(field("note").value)) &&
      (!field("verdict").value || verdict === field("verdict").value) &&
      (!field("experiment").value || experiment === field("experiment").value) &&
      words.every((word) => text.includes(word)));
    shown += !claim.hidden;
  }
  field("shown").value = `${shown} of ${claims.length} claims`;
  field("none").hidden = shown > 0;
  for (const count of document.querySelectorAll(".count"))
    count.setAttribute("aria-pressed", String(count.dataset.verdict === field("verdict").value));
}

const verdicts = ["holds", "holds partly", "not shown", "does not hold", "not measured"];
const keys = {
  claim: (claim) => Number(claim.dataset.order),
  notes: (claim) => claim.dataset.notes,
  verdict: (claim) => verdicts.indexOf(claim.dataset.verdict),
  measured: (claim) => Number(claim.dataset.order),
  experiment: (claim) => claim.dataset.experiment,
};

function sort(button) {
  const heading = button.closest("th");
  const down = heading.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.querySelectorAll("th")) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = keys[button.dataset.key];
  const compare = (a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : a.dataset.order - b.dataset.order);
  table.append(...claims.toSorted((a, b) => (down ? compare(b, a) : compare(a, b))));
}

function openLinked() {
  const claim = claims.find((one) => one.id === decodeURIComponent(location.hash.slice(1)));
  if (!claim) return;
  if (claim.hidden) { field("filters").reset(); filter(); }
  open(claim, true);
  claim.scrollIntoView();
}

for (const claim of claims) {
  open(claim, false);
  const opener = claim.querySelector(".opener");
  opener.addEventListener("click", () => open(claim, opener.getAttribute("aria-expanded") !== "true"));
}
for (const button of table.tHead.querySelectorAll("button")) button.addEventListener("click", () => sort(button));
for (const count of document.querySelectorAll(".count"))
  count.addEventListener("click", () => {
    field("verdict").value = field("verdict").value === count.dataset.verdict ? "" : count.dataset.verdict;
    filter();
  });
field("filters").addEventListener("input", filter);
field("filters").addEventListener("reset", () => setTimeout(filter));
field("filters").addEventListener("submit", (event) => event.preventDefault());
window.addEventListener("hashchange", openLinked);
openLinked();
