// The page's behaviour. Its state is the address: ?q=…&k=…&where.NAME=VALUE&why=ID; drawing is in drawing.js.
import { drawLegend, make, queryWords, Result } from "./drawing.js";

const TYPING = 150; // milliseconds of silence before a search
const SETTLED = 250; // more, before explanations of what was found are asked for
const OWN_ENTRY = 1500; // a query that stood so long has an entry of its own in the history
const SLOW = 5000;
const MOST = 100; // results

const at = (id) => document.getElementById(id);
const box = at("query");

// ---- State

function read() {
  const given = new URLSearchParams(location.search);
  const where = {};
  for (const [name, value] of given) if (name.startsWith("where.")) where[name.slice(6)] = value;
  const k = Math.min(MOST, Math.max(1, Number.parseInt(given.get("k"), 10) || 10));
  return { q: given.get("q") ?? "", k, where, why: given.get("why") };
}

let state = read();
let changed = 0;

// Changes the state and the address. `push`: the back button returns to what was before.
function go(change, push) {
  state = { ...state, ...change };
  const { q, k, where, why } = state;
  const given = new URLSearchParams();
  if (q) given.set("q", q);
  if (k !== 10) given.set("k", k);
  for (const [name, value] of Object.entries(where)) given.set(`where.${name}`, value);
  if (why !== null) given.set("why", why);
  const address = given.size ? `?${given}` : location.pathname;
  // Some browsers refuse more than a hundred changes in a while; then the address lags behind.
  try { history[push ? "pushState" : "replaceState"](null, "", address); } catch { /* the next change tells all */ }
  document.title = q ? `${q} · ColBERT-Zero` : "ColBERT-Zero";
}

const filterBy = (name, value) => {
  const { [name]: _, ...others } = state.where;
  go({ where: value === "" ? others : { ...others, [name]: value }, why: null }, true);
  drawFilters();
  search();
};

// ---- Asking the server

class Trouble extends Error {
  constructor(status, message, wait) {
    super(message);
    Object.assign(this, { status, wait });
  }
}

const storedKey = {
  get: () => { try { return sessionStorage.getItem("key"); } catch { return storedKey.value; } },
  set: (value) => { storedKey.value = value; try { sessionStorage.setItem("key", value); } catch { /* kept above */ } },
};

// A whole number that JavaScript cannot hold stays the text it came as: a filter by it finds it. null: no JSON.
function parsed(text) {
  const exact = (_, value, context) => (Number.isInteger(value) && !Number.isSafeInteger(value) && context?.source) || value;
  try { return JSON.parse(text, exact); } catch { return null; }
}

async function request(path, body, signal) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  const key = storedKey.get();
  if (key) headers.Authorization = `Bearer ${key}`;
  let response, answer;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
    answer = parsed(await response.text());
  } catch {
    signal?.throwIfAborted();
    throw new Trouble(0, "The server does not answer. It may have been stopped, or the network is gone.", 3);
  }
  signal?.throwIfAborted();
  if (response.ok && answer) return answer;
  const said = answer?.error?.message;
  if (response.status === 401) throw new Trouble(401, key ? "The server refused this key." : "");
  if (response.status === 503) throw new Trouble(503, said || "The server is busy.", Number(response.headers.get("Retry-After")) || 3);
  if (response.status === 504) throw new Trouble(504, said || "The search took longer than the server allows.");
  if (response.ok) throw new Trouble(0, "The answer broke off.", 3);
  throw new Trouble(response.status, said || `The server answered ${response.status} ${response.statusText}.`);
}

const pause = (milliseconds, signal) => new Promise((resolve, reject) => {
  const timer = setTimeout(resolve, milliseconds);
  signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); });
});

let index = null; // what GET index says

async function describe(signal) {
  index = await request("index", null, signal);
  const count = index.documents.toLocaleString("en");
  at("facts").textContent = `${count} documents · ${index.representation} · ${index.dim} × ${index.storage}`;
  at("facts").title = `model: ${index.model}`;
  drawFilters();
  drawNotes(index.notes);
}

// ---- Searching: whatever is asked later ends what was asked before, so a late answer replaces nothing.

let current = new AbortController();

async function search(wait = 0) {
  current.abort();
  const { signal } = (current = new AbortController());
  settled = false;
  const late = [
    setTimeout(() => { document.body.classList.add("busy"); }, 300),
    setTimeout(() => { at("status").textContent = "Still searching: the server, or the way to it, is slow."; }, SLOW),
  ];
  signal.addEventListener("abort", () => late.forEach(clearTimeout));
  const quiet = () => { late.forEach(clearTimeout); document.body.classList.remove("busy"); };
  for (;;) {
    try {
      if (wait) await pause(wait, signal);
      if (!index) await describe(signal);
      await answerTo(state, signal, quiet);
      return;
    } catch (error) {
      if (signal.aborted) return;
      quiet();
      drawTrouble(error);
      if (!(error instanceof Trouble)) throw error;
      if (!error.wait) return;
      wait = 1000 * error.wait;
    }
  }
}

async function answerTo({ q, k, where }, signal, quiet) {
  if (!q.trim()) {
    quiet();
    drawTrouble(null);
    draw({ query: "", hits: [], notes: index.notes });
    return;
  }
  const answer = await request("search", { query: q, ...(k !== 10 && { k }), ...(Object.keys(where).length && { where }) }, signal);
  quiet();
  drawTrouble(null);
  draw(answer);
  // The server counts the values of metadata after it starts.
  if (!Object.values(index.metadata).some(Boolean)) await describe(signal);
  if (index.representation === "dense") return;
  await pause(SETTLED, signal);
  settled = true;
  await explain(signal);
}

let settled = false; // what was found stands still, and may be explained
let explaining = false;

// Explains, one by one, the results that are opened or in view; opened ones first.
async function explain(signal) {
  if (!settled || explaining) return;
  explaining = true;
  try {
    for (;;) {
      const waiting = results.filter((result) => !result.told && (result.open || result.inView));
      const next = waiting.find((result) => result.open) ?? waiting[0];
      if (!next) return;
      const answer = await request("explain", { query: state.q, id: next.id }, signal).catch((error) => {
        if (signal.aborted || error.status === 401) throw error;
        return { failed: error.message };
      });
      if (!words && answer.explanation) {
        words = queryWords(state.q, answer.explanation.parts);
        drawLegend(at("legend"), words, pin);
      }
      next.tell(answer.explanation ?? null, words, answer.failed);
      highlight(null);
    }
  } finally {
    explaining = false;
  }
}

const view = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const result = results.find(({ element }) => element === target);
    if (result) result.inView = isIntersecting;
  }
  explainInBackground();
});

function explainInBackground() {
  const { signal } = current;
  explain(signal).catch((error) => {
    if (!signal.aborted) drawTrouble(error);
  });
}

// ---- Drawing

let results = [];
let drawn = ""; // their query
let words = null;
let pinned = null; // the query's word whose matches are shown alone

function draw(answer) {
  const same = answer.query === drawn && answer.hits.length >= results.length && results.every(({ id }, n) => id === answer.hits[n].id);
  if (!same) {
    view.disconnect();
    at("hits").replaceChildren();
    results = [];
    words = pinned = null;
    drawLegend(at("legend"), null, pin);
  }
  drawn = answer.query;
  for (const hit of answer.hits.slice(results.length)) {
    const result = new Result(hit, answer.hits[0].score, index.representation === "dense", filterBy);
    results.push(result);
    at("hits").append(result.element);
    view.observe(result.element);
  }
  drawOpen();
  drawNotes(answer.notes);
  const asked = answer.query.trim() !== "";
  at("start").hidden = asked || results.length > 0;
  at("more").hidden = results.length < state.k || state.k >= MOST;
  at("status").textContent = asked ? count(results.length, answer.seconds) : "";
  if (asked && !results.length && Object.keys(state.where).length) {
    const all = make("button", { type: "button" }, "Search without filters");
    all.addEventListener("click", () => { go({ where: {} }, true); drawFilters(); search(); });
    at("status").append(" ", all);
  }
}

function count(found, seconds) {
  const time = seconds < 1 ? `${Math.max(1, Math.round(1000 * seconds))} ms` : `${seconds.toFixed(1)} s`;
  if (found) return `${found} ${found === 1 ? "result" : "results"} in ${time}`;
  const filters = Object.entries(state.where).map(([name, value]) => `${name}: ${value}`).join(", ");
  if (filters) return `No document has ${filters}.`;
  return index.documents ? "Nothing found." : "Nothing found: the index is empty.";
}

function drawOpen() {
  for (const result of results) result.opened = result.id === state.why;
}

function drawNotes(notes) {
  at("notes").hidden = !notes.length;
  at("notes").replaceChildren(...notes.map((note) => make("li", {}, note)));
}

function drawTrouble(error) {
  const asksKey = error?.status === 401;
  at("ask-key").hidden = !asksKey;
  const trouble = at("trouble");
  trouble.replaceChildren();
  if (!error) return;
  results = [];
  drawn = "";
  words = pinned = null;
  drawLegend(at("legend"), null, pin);
  at("hits").replaceChildren();
  for (const id of [ "more", "start"]) at(id).hidden = true;
  at("status").textContent = "";
  if (error.message) trouble.append(make("p", {}, error.message));
  if (asksKey) {
    at("key").focus();
    return;
  }
  const again = make("button", { type: "button" }, "Try again");
  again.addEventListener("click", () => search());
  trouble.append(make("p", { class: "small" }, error.wait ? `It is asked again every ${error.wait} seconds. ` : "", again));
}

function drawFilters() {
  const names = Object.entries(index?.metadata ?? {}).filter(([name, values]) => name !== "title" && values?.length > 1);
  const selects = names.map(([name, values]) => {
    const chosen = state.where[name];
    const options = ["", ...values.map(String)];
    if (chosen !== undefined && !options.includes(chosen)) options.push(chosen);
    const select = make("select", {}, ...options.map((value) => make("option", { value }, value || "any")));
    select.value = chosen ?? "";
    select.addEventListener("change", () => filterBy(name, select.value));
    return make("label", chosen === undefined ? {} : { class: "on" }, `${name} `, select);
  });
  const chosen = Object.entries(state.where).filter(([name]) => !names.some(([other]) => other === name));
  const chips = chosen.map(([name, value]) => {
    const chip = make("button", { type: "button", class: "chip on", "aria-label": `Remove the filter ${name}: ${value}` },
      make("span", { class: "name" }, `${name} `), `${value} ×`);
    chip.addEventListener("click", () => { filterBy(name, ""); box.focus(); });
    return chip;
  });
  at("filters").replaceChildren(...selects, ...chips);
}

// Shows the matches of one word of the query alone; null: of all.
function highlight(word) {
  const one = word ?? pinned;
  for (const element of document.querySelectorAll("[data-word]")) {
    element.classList.toggle("away", one !== null && !element.dataset.word.split(" ").includes(String(one)));
  }
}

function pin(word) {
  pinned = pinned === word ? null : word;
  for (const button of at("legend").children) button.setAttribute("aria-pressed", String(button.dataset.word === String(word) && pinned !== null));
  highlight(null);
}

// ---- What the user does

box.addEventListener("input", (event) => {
  if (event.isComposing) return;
  typed();
});
box.addEventListener("compositionend", typed);

function typed() {
  if (box.value === state.q) return;
  const now = Date.now();
  go({ q: box.value, k: 10, why: null }, now - changed > OWN_ENTRY && state.q.trim() !== "");
  changed = now;
  search(TYPING);
}

at("search").addEventListener("submit", (event) => {
  event.preventDefault();
  changed = 0;
  search();
});

at("ask-key").addEventListener("submit", (event) => {
  event.preventDefault();
  storedKey.set(at("key").value);
  at("key").value = "";
  box.focus();
  search();
});

at("more").addEventListener("click", () => {
  go({ k: Math.min(MOST, state.k + 10) }, false);
  search();
});

at("hits").addEventListener("click", (event) => {
  const result = results.find(({ button }) => button.contains(event.target));
  if (result) toggle(result);
});

function toggle(result) {
  const open = result.id !== state.why;
  go({ why: open ? result.id : null }, open);
  drawOpen();
  highlight(null);
  explainInBackground();
}

document.addEventListener("pointerover", (event) => {
  if (event.pointerType !== "mouse") return;
  const word = event.target.closest?.("[data-word]")?.dataset.word;
  highlight(word === undefined ? null : Number(word.split(" ")[0]));
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const place = results.findIndex(({ element }) => element.contains(document.activeElement));
  const inBox = document.activeElement === box;
  const inField = /INPUT|SELECT|TEXTAREA/.test(document.activeElement?.tagName);
  const inText = document.activeElement?.classList.contains("text");
  if (event.key === "/" && !inField) {
    box.focus();
    box.select();
  } else if (event.key === "ArrowDown" && (inBox || place >= 0) && !inText && results.length) {
    results[Math.min(place + 1, results.length - 1)].button.focus();
  } else if (event.key === "ArrowUp" && place >= 0 && !inText) {
    (place ? results[place - 1].button : box).focus();
  } else if (event.key === "Escape" && !inBox) {
    if (pinned !== null) pin(pinned);
    else if (state.why !== null) toggle(results.find(({ id }) => id === state.why) ?? { id: state.why });
    else box.focus();
  } else {
    return;
  }
  event.preventDefault();
});

addEventListener("popstate", () => {
  const before = JSON.stringify({ ...state, why: null });
  state = read();
  if (JSON.stringify({ ...state, why: null }) === before) drawOpen();
  else begin();
});

// ---- Light and dark: the system's, or what was chosen here.

function theme(chosen) {
  if (chosen) document.documentElement.dataset.theme = chosen;
  const dark = (chosen ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  at("theme").textContent = dark ? "Light" : "Dark";
  return dark;
}

at("theme").addEventListener("click", () => {
  const next = theme(document.documentElement.dataset.theme) ? "light" : "dark";
  theme(next);
  try { localStorage.setItem("theme", next); } catch { /* then it holds for this page alone */ }
});

function begin() {
  box.value = state.q;
  go({}, false);
  drawFilters();
  search();
}

try { theme(localStorage.getItem("theme")); } catch { theme(null); }
begin();
