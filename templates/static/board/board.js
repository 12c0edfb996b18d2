// The live board: events bring rendered items, keyed; what did not change stays untouched in the page.
import { startFilter } from "./filter.js";
import { startOrdering } from "./order.js";
import { startSelection } from "./select.js";

const board = document.querySelector("[data-board]");
const sections = new Map(); // of each the items, by their keys
let clockAhead = 0; // ms the server's clock is ahead of ours
let heard = Date.now();

for (const item of board.querySelectorAll("[data-key]")) {
  section(sectionOf(item)).set(item.dataset.key, item);
}

function section(name) {
  if (!sections.has(name)) sections.set(name, new Map());
  return sections.get(name);
}

function sectionOf(item) {
  if (item.matches(".count")) return "counts";
  if (item.matches(".chip-face")) return "classes";
  return item.closest("[data-section]").dataset.section;
}

const parse = (html) => {
  const template = document.createElement("template");
  template.innerHTML = html.trim();
  return template.content.firstElementChild;
};

// Only bodies are replaced: the checkbox, its tick, open details and the focus stay.
function update(item, fresh) {
  for (const { name, value } of fresh.attributes) if (item.getAttribute(name) !== value) item.setAttribute(name, value);
  for (const { name } of [...item.attributes]) if (!fresh.hasAttribute(name) && name !== "hidden") item.removeAttribute(name);
  const bodies = fresh.querySelectorAll("[data-body]");
  item.querySelectorAll("[data-body]").forEach((body, index) => {
    const focused = [...body.querySelectorAll("a, button")].indexOf(document.activeElement);
    body.replaceChildren(...bodies[index].childNodes);
    if (focused >= 0) body.querySelectorAll("a, button")[focused]?.focus();
  });
}

function apply({ full, now, sections: parts }) {
  clockAhead = now - Date.now();
  const before = new Map([...section("clients")].map(([key, tile]) => [key, tile.dataset.state]));
  for (const [name, part] of Object.entries(parts)) applySection(name, part, full);
  if (Object.keys(parts).length) {
    tellNews(before);
    showTimes();
    board.dispatchEvent(new Event("board:changed"));
  }
}

function applySection(name, { items, gone, order }, full) {
  const known = section(name);
  const list = board.querySelector(`[data-section="${name}"]`);
  for (const [key, [digest, html]] of Object.entries(items)) {
    const item = known.get(key);
    if (item?.dataset.digest === digest) continue;
    const fresh = parse(html);
    if (item) update(item, fresh);
    else if (list) known.set(key, list.appendChild(fresh));
  }
  const left = full && order ? [...known.keys()].filter((key) => !order.includes(key)) : gone;
  for (const key of left) {
    if (list) known.get(key)?.remove();
    known.delete(key);
  }
  if (!list) return;
  let next = list.firstElementChild;
  for (const key of order ?? []) {
    const item = known.get(key);
    if (item === next) next = next.nextElementSibling;
    else list.insertBefore(item, next);
  }
  const part = list.closest("section");
  if (part.hasAttribute("data-empty-hides")) part.hidden = !known.size;
  const empty = part.querySelector("[data-when-empty]");
  if (empty) empty.hidden = known.size > 0;
}

// --- times -----------------------------------------------------------------------------------------------------------

function ago(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")}`;
  return `${Math.floor(s / 86400)} d`;
}

function showTimes() {
  const now = Date.now() + clockAhead;
  for (const time of board.querySelectorAll("time[data-since]")) {
    const at = new Date(time.dateTime);
    const text = ago(now - at) + (time.hasAttribute("data-ago") ? " ago" : "");
    if (time.textContent !== text) time.textContent = text;
    if (!time.title) time.title = at.toLocaleString();
  }
}
showTimes();
setInterval(showTimes, 1000);

// --- news for screen readers: a summary at most every five seconds, of what has become of each PC since ---------------

const news = board.querySelector("[data-news]");
const stories = new Map();
let telling = 0;

function tellNews(before) {
  for (const [key, tile] of section("clients")) {
    const { state, title, word } = tile.dataset;
    if (before.get(key) !== state) stories.set(key, `${title} ${word.toLowerCase()}`);
  }
  if (!stories.size || telling) return;
  telling = setTimeout(() => {
    const all = [...stories.values()];
    news.textContent = all.length > 4 ? `${all.slice(0, 3).join(", ")} and ${all.length - 3} more changed.` : `${all.join(", ")}.`;
    stories.clear();
    telling = 0;
  }, 5000);
}

// --- the line --------------------------------------------------------------------------------------------------------

const line = document.querySelector("[data-line]");

function lineIs(state, words) {
  line.dataset.line = state;
  const word = line.querySelector("[data-line-word]");
  if (word.textContent !== words) word.textContent = words;
}

let source;
function connect() {
  source?.close();
  heard = Date.now();
  source = new EventSource(board.dataset.events);
  const on = (kind, handle) =>
    source.addEventListener(kind, (event) => {
      heard = Date.now();
      lineIs("live", "live");
      handle(JSON.parse(event.data));
    });
  on("snapshot", apply);
  on("change", apply);
  on("beat", (now) => (clockAhead = now - Date.now()));
  source.addEventListener("end", () => {
    source.close();
    source = null;
    lineIs("ended", "You may no longer watch this site. Reload the page to log in again.");
  });
  source.addEventListener("error", () => {
    lineIs("broken", "reconnecting …");
    // A refused stream is not tried again by the browser: the server restarts, or the session has ended.
    if (source?.readyState === EventSource.CLOSED) setTimeout(connect, 3000 + 2000 * Math.random());
  });
}
connect();
// A line that died without a word (a phone that slept, a cable) is silent: the server speaks every ten seconds.
setInterval(() => source && Date.now() - heard > 30000 && connect(), 5000);

startFilter(board);
startSelection(board);
startOrdering(board);
