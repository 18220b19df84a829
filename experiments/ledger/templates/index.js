const table = document.getElementById("ledger");
const claims = [...table.querySelectorAll("tbody.claim")];
const headings = [...table.tHead.querySelectorAll("button")];
const images = JSON.parse(document.getElementById("figures").textContent);
const FILTERS = ["source", "verdict", "experiment", "search"];
const field = (id) => document.getElementById(id);
const detail = (claim) => claim.querySelector("tr.detail");

// What is searched: not the titles of studies and sources, which many claims share.
function wordsOf(claim) {
  const copy = claim.cloneNode(true);
  for (const shared of copy.querySelectorAll(".about")) shared.remove();
  return copy.textContent.toLowerCase();
}
const texts = new Map(claims.map((claim) => [claim, wordsOf(claim)]));

function load(claim) {
  const image = claim.querySelector("img[data-figure]");
  if (image && !image.src) image.src = images[image.dataset.figure];
}

// Without this script every row stands open; with it, a row opens when it is asked for.
function open(claim, wanted) {
  detail(claim).hidden = !wanted;
  claim.querySelector(".opener").setAttribute("aria-expanded", String(wanted));
  if (wanted) load(claim);
}

function filter() {
  const words = field("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const claim of claims) {
    const { source, verdict, experiment } = claim.dataset;
    claim.hidden = !(
      (!field("source").value || source.split(" ").includes(field("source").value)) &&
      (!field("verdict").value || verdict === field("verdict").value) &&
      (!field("experiment").value || experiment === field("experiment").value) &&
      words.every((word) => texts.get(claim).includes(word)));
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
  source: (claim) => claim.dataset.source,
  verdict: (claim) => verdicts.indexOf(claim.dataset.verdict),
  measured: (claim) => Number(claim.dataset.order),
  experiment: (claim) => claim.dataset.experiment,
};
let order = ""; // A key, with a minus where it goes down; empty: as the page was written.

function sort(wanted) {
  const name = wanted.replace(/^-/, "");
  const known = Object.hasOwn(keys, name);
  if (order === (known ? wanted : "")) return;
  order = known ? wanted : "";
  const down = order.startsWith("-");
  for (const button of headings)
    button.closest("th").setAttribute(
      "aria-sort", button.dataset.key !== name ? "none" : down ? "descending" : "ascending");
  const key = known ? keys[name] : keys.claim;
  const compare = (a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : a.dataset.order - b.dataset.order);
  table.append(...claims.toSorted((a, b) => (down ? compare(b, a) : compare(a, b))));
}

function address() {
  const pairs = new URLSearchParams();
  for (const name of FILTERS) if (field(name).value) pairs.set(name, field(name).value);
  if (order) pairs.set("sort", order);
  if (language() !== LANGUAGES[0]) pairs.set("lang", language());
  return `#${pairs}`;
}

// Back undoes a whole search, not its letters one by one.
let typing = false;
function remember(typed = false) {
  history[typing && typed ? "replaceState" : "pushState"](null, "", address());
  typing = typed;
}

function choose(typed) {
  filter();
  remember(typed);
}

// What the address asks for; what it does not name, or names wrongly, is as at first.
function show() {
  typing = false;
  const wanted = asked();
  const claim = claims.find((one) => one.id === target());
  setLanguage(wanted.get("lang"));
  if (target() && !claim) { // To the legend at the foot.
    document.getElementById(target())?.scrollIntoView();
    return;
  }
  for (const name of FILTERS) {
    field(name).value = wanted.get(name) ?? "";
    if (field(name).selectedIndex === -1) field(name).value = "";
  }
  sort(wanted.get("sort") ?? "");
  filter();
  if (!claim) return;
  if (claim.hidden) {
    for (const name of FILTERS) field(name).value = "";
    filter();
  }
  open(claim, true);
  claim.scrollIntoView();
}

for (const claim of claims) {
  open(claim, false);
  const opener = claim.querySelector(".opener");
  opener.addEventListener("click", () => open(claim, opener.getAttribute("aria-expanded") !== "true"));
}
for (const button of headings)
  button.addEventListener("click", () => {
    sort(order === button.dataset.key ? `-${button.dataset.key}` : button.dataset.key);
    remember();
  });
for (const count of document.querySelectorAll(".count"))
  count.addEventListener("click", () => {
    field("verdict").value = field("verdict").value === count.dataset.verdict ? "" : count.dataset.verdict;
    choose();
  });
field("filters").addEventListener("input", (event) => choose(event.target === field("search")));
field("filters").addEventListener("reset", () => setTimeout(choose));
field("filters").addEventListener("submit", (event) => event.preventDefault());
window.addEventListener("beforeprint", () => claims.filter((claim) => !claim.hidden).forEach(load));
follow(show, address);
