// What an answer looks like. Texts come in as text (textContent): nothing in a document or a query is ever markup.

const COLOURS = 7; // .c1 … .c7 in page.css; .c0 is grey, of tokens that the model itself adds
const SNIPPET = 260; // characters
const LONGEST_VALUE = 40; // of metadata beside a result

// An element with attributes, and children that are elements or text.
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Offsets count characters; JavaScript's strings count UTF-16 units, of which an emoji has two.
function cutter(text) {
  if (!/[\ud800-\udfff]/.test(text)) return { length: text.length, cut: (begin, end) => text.slice(begin, end) };
  const characters = Array.from(text);
  return { length: characters.length, cut: (begin, end) => characters.slice(begin, end).join("") };
}

export const written = (score) => score.toFixed(score >= 100 ? 1 : score >= 10 ? 2 : 3);

// The words of the query, each with its tokens' places in `parts` and a colour.
// Tokens that stand nowhere in the query (markers, expansion) are grey, those of one name together.
export function queryWords(query, parts) {
  const { cut } = cutter(query);
  const placed = parts.some((part) => part.query);
  const words = new Map();
  parts.forEach((part, n) => {
    const own = placed ? !part.query : /^\[.*\]$|^<.*>$/.test(part.token);
    const key = part.query ? part.query.join("-") : own ? part.token : n;
    if (!words.has(key)) words.set(key, { own, label: part.query ? cut(...part.query) : part.token, tokens: [] });
    words.get(key).tokens.push(n);
  });
  let coloured = 0;
  const all = [...words.values()].sort((one, other) => one.own - other.own);
  all.forEach((word, n) => {
    word.number = n + 1;
    word.colour = word.own ? 0 : (coloured++ % COLOURS) + 1;
    if (word.own && word.tokens.length > 1) word.label += ` × ${word.tokens.length}`;
  });
  return all;
}

// Contributions of a document's score, one a word of the query.
const contributions = (words, parts) => words.map((word) => word.tokens.reduce((sum, n) => sum + parts[n].score, 0));

// Words of a document, in order, none over another: [{begin, end, word, score, by}].
// by: the words of the query that chose it, if any, the one it gave most to first: that is its colour.
function shades(explanation, words) {
  const wordOf = [];
  words.forEach((word, n) => word.tokens.forEach((token) => (wordOf[token] = n)));
  const found = new Map();
  for (const { begin, end, token, score } of explanation.words) {
    found.set(`${begin}-${end}`, { begin, end, word: wordOf[token], score, by: [] });
  }
  const strongest = explanation.parts.map((part, n) => ({ ...part, word: wordOf[n] }))
    .sort((one, other) => words[one.word].own - words[other.word].own || other.score - one.score);
  for (const { begin, end, score, word } of strongest) {
    if (begin === null) continue;
    const key = `${begin}-${end}`;
    const by = found.get(key)?.by ?? [];
    if (!by.length) found.set(key, { begin, end, word, score, by: [word] });
    else if (!by.includes(word)) by.push(word);
  }
  let place = 0;
  return [...found.values()]
    .sort((one, other) => one.begin - other.begin || other.end - one.end)
    .filter((shade) => shade.begin >= place && (place = shade.end));
}

// A stretch of a document, its words shaded. What the query chose is underlined and has the number of the query's word.
function shaded(text, begin, end, shadesOfHit, words, scale) {
  const { cut } = cutter(text);
  const pieces = [];
  let place = begin;
  for (const { begin: from, end: to, word, score, by } of shadesOfHit) {
    if (from < place || to > end) continue;
    const names = by.length ? `chosen by ${by.map((n) => words[n].label).join(", ")}` : `nearest to ${words[word].label}`;
    const mark = make(by.length ? "mark" : "span", {
      class: `shade c${words[word].colour}`,
      title: `${names}: ${written(score)}`,
      "data-word": by.length ? by.join(" ") : word,
    }, cut(from, to));
    if (by.length) mark.dataset.number = words[word].number;
    mark.style.setProperty("--strength", scale(score).toFixed(3));
    pieces.push(cut(place, from), mark);
    place = to;
  }
  pieces.push(cut(place, end));
  return pieces;
}

// From a score to a shade's strength, 0 … 1: the half of the words that is farther from the query stays nearly plain.
function scaleOf(shadesOfHit) {
  const scores = shadesOfHit.map(({ score }) => score).sort((one, other) => one - other);
  const middle = scores[scores.length >> 1] ?? 0;
  const span = (scores.at(-1) ?? 1) - middle || 1;
  return (score) => 0.12 + 0.88 * Math.min(1, Math.max(0, (score - middle) / span)) ** 1.5;
}

// Where the snippet begins: at the text's beginning, unless another place holds much more of the score.
function bestWindow(first, begins, parts) {
  const inside = (from) => parts.reduce(
    (sum, { begin, end, score }) => (begin !== null && begin >= from && end <= from + SNIPPET ? sum + Math.max(0, score) : sum), 0);
  let [best, most] = [first, inside(first) * 1.25];
  for (const from of begins) if (inside(from) > most) [best, most] = [from, inside(from)];
  return best;
}

// The beginning of a word at most so many characters before a place; else the place.
function wordBefore(text, place, before) {
  const { cut } = cutter(text);
  const ahead = cut(Math.max(0, place - before), place);
  const space = ahead.search(/\s\S/);
  return space < 0 ? place : place - Array.from(ahead.slice(space + 1)).length;
}

// One result: first its text, then, told by `tell`, why it was found. What is focused or open stays so.
export class Result {
  // best: the first result's score, which a whole strip stands for.
  constructor(hit, best, dense, filterBy) {
    Object.assign(this, { hit, best, dense, filterBy, id: hit.id, told: dense, open: false, inView: false });
    const { text, metadata, rank } = hit;
    const title = typeof metadata.title === "string" && text.startsWith(metadata.title) ? metadata.title : "";
    this.titleEnd = Array.from(title).length;
    this.body = this.titleEnd + Array.from(text.slice(title.length).match(/^\s*/)[0]).length;
    const why = `why-${rank}`;
    this.title = make("span", { class: "title", dir: "auto" }, title || hit.id);
    const score = make("span", { class: "score" }, make("span", { class: "unseen" }, "score "), written(hit.score));
    this.button = make("button", { type: "button", "aria-expanded": "false", "aria-controls": why },
      make("span", { class: "rank", "aria-hidden": "true" }, String(rank)), this.title, score);
    this.strip = make("div", { class: "strip", "aria-hidden": "true" });
    const id = title && title !== hit.id ? [make("span", { class: "id" }, hit.id)] : [];
    this.facts = make("p", { class: "facts" }, ...id, ...this.#chips());
    this.facts.hidden = !this.facts.childNodes.length;
    this.snippet = make("p", { class: "snippet", dir: "auto" });
    this.why = make("section", { id: why, class: "why", "aria-label": `Why result ${rank}`, hidden: "" });
    this.element = make("li", { class: "hit" }, make("h2", {}, this.button), this.facts, this.strip, this.snippet, this.why);
    this.#snip(this.body);
  }

  // explanation: null where there is none, and `failed` says why. words: the query's.
  tell(explanation, words, failed) {
    Object.assign(this, { told: true, explanation, words, failed });
    if (explanation) {
      this.shades = shades(explanation, words);
      this.scale = scaleOf(this.shades);
      if (this.titleEnd) this.title.replaceChildren(...this.#marked(0, this.titleEnd));
      this.strip.replaceChildren(...this.#segments());
      const chosen = this.shades.filter(({ by, begin }) => by.length && begin > this.body);
      this.#snip(bestWindow(this.body, chosen.map(({ begin }) => Math.max(this.body, wordBefore(this.hit.text, begin, 40))), explanation.parts));
    }
    if (this.open) this.#drawWhy();
  }

  set opened(open) {
    if (open === this.open) return;
    this.open = open;
    this.button.setAttribute("aria-expanded", String(open));
    this.why.hidden = !open;
    this.snippet.hidden = open;
    if (open) this.#drawWhy();
    else this.why.replaceChildren();
  }

  #marked(begin, end) {
    return shaded(this.hit.text, begin, end, this.shades ?? [], this.words, this.scale);
  }

  #snip(from) {
    const { length } = cutter(this.hit.text);
    const end = from + SNIPPET >= length ? length : wordBefore(this.hit.text, from + SNIPPET, 30);
    this.snippet.replaceChildren(...(from > this.body ? ["… "] : []), ...this.#marked(from, end), ...(end < length ? [" …"] : []));
  }

  #chips() {
    const short = (value) => /string|boolean|number/.test(typeof value);
    return Object.entries(this.hit.metadata)
      .filter(([name, value]) => name !== "title" && short(value) && String(value).length <= LONGEST_VALUE && value !== "")
      .map(([name, value]) => {
        const chip = make("button", { type: "button", class: "chip", title: `Only ${name}: ${value}` },
          make("span", { class: "name" }, `${name} `), String(value));
        chip.addEventListener("click", () => this.filterBy(name, String(value)));
        return chip;
      });
  }

  #segments(best) {
    return contributions(this.words, this.explanation.parts).map((part, n) => {
      const segment = make("span", { class: `bar c${this.words[n].colour}`, "data-word": n });
      segment.style.width = `${(100 * Math.max(0, part)) / Math.max(this.best, Number.MIN_VALUE)}%`;
      return segment;
    });
  }

  #drawWhy() {
    const { text, rank } = this.hit;
    const whole = make("div", { class: "text", tabindex: "0", role: "region", "aria-label": `Text of result ${rank}`, dir: "auto" });
    if (!this.explanation) {
      whole.append(text);
      const said = this.dense
        ? "This index has one vector a text, so the score is of the text as a whole: no word has a part of its own."
        : this.failed ?? "Asking which words were chosen …";
      this.why.replaceChildren(make("p", { class: "small" }, said), whole);
      return;
    }
    const { cut, length } = cutter(text);
    // What lies beyond the last word that has a vector was cut off, unless it is a full stop that the model skips.
    const [begin, last] = this.explanation.passage;
    const read = this.shades.at(-1)?.end ?? begin;
    const end = /[\p{L}\p{N}]/u.test(cut(read, last)) ? read : last;
    const unread = (from, to) => (from < to ? [make("span", { class: "unread" }, cut(from, to))] : []);
    const from = Math.max(begin, this.body);
    whole.append(...unread(this.body, begin), ...this.#marked(from, end), ...unread(end, length));
    this.why.replaceChildren(this.#table(), whole);
  }

  // A row a word of the query: its bar, what it adds, and the words of the document that it chose.
  #table() {
    const { parts } = this.explanation;
    const added = contributions(this.words, parts);
    const most = Math.max(...added, Number.MIN_VALUE);
    const rows = added.map((part, n) => {
      const word = this.words[n];
      const chosen = [...new Set(word.tokens.map((token) => parts[token].word))];
      const bar = make("span", { class: `bar c${word.colour}`, "data-part": part });
      bar.style.width = `${(100 * Math.max(0, part)) / most}%`;
      return make("tr", { "data-word": n },
        make("th", { scope: "row" }, numbered(word)),
        make("td", { class: "bars", "aria-hidden": "true" }, bar),
        make("td", { class: "amount" }, part.toFixed(3)),
        make("td", { class: "chosen", dir: "auto" }, chosen.slice(0, 4).join(", ") + (chosen.length > 4 ? " …" : "")));
    });
    const sum = parts.reduce((total, part) => total + part.score, 0);
    const head = make("tr", {}, ...["query", "", "adds", "chose"].map((name) => make(name ? "th" : "td", name ? { scope: "col" } : {}, name)));
    const foot = make("tr", {}, make("th", { scope: "row" }, "score"), make("td"), make("td", { class: "amount" }, sum.toFixed(3)), make("td"));
    return make("table", {},
      make("caption", { class: "unseen" }, "What each word of the query adds to the score, and the word of the document that it chose"),
      make("thead", {}, head), make("tbody", {}, ...rows), make("tfoot", {}, foot));
  }
}

// A word of the query in its colour, with its number.
function numbered(word) {
  return make("span", { class: `word c${word.colour}` }, make("span", { class: "number", "aria-hidden": "true" }, String(word.number)), make("span", { class: "label", dir: "auto" }, word.label));
}

// The query in colours, above the results: each word a switch that shows its matches alone.
export function drawLegend(legend, words, press) {
  legend.hidden = !words;
  legend.replaceChildren(...(words ?? []).map((word, n) => {
    const button = make("button", { type: "button", "aria-pressed": "false", "data-word": n }, numbered(word));
    button.addEventListener("click", () => press(n));
    return button;
  }));
}
