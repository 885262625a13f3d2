// SPDX-License-Identifier: Apache-2.0
// The table of all exports.  What comes from there is text, and never markup: names, states and
// reasons may be in the hands of a guest.

import { draw } from "./chart.js";
import { amount, count, decimal, duration, share, text } from "./format.js";
import { ROOM } from "./history.js";

const COLUMNS = [
  { key: "name", head: "export", show: text, words: true },
  { key: "state", head: "state", show: text, words: true },
  { key: "iops", head: "IOPS", show: count },
  { key: "trend", head: "two minutes", words: true },
  { key: "read_bytes", head: "read/s", show: amount },
  { key: "write_bytes", head: "written/s", show: amount },
  { key: "p50", head: "P50", show: duration },
  { key: "p99", head: "P99", show: duration },
  { key: "longest", head: "max", show: duration },
  { key: "queue_depth", head: "QD", show: decimal },
  { key: "oldest", head: "oldest", show: duration },
  { key: "throttled", head: "throttled", show: share },
  { key: "cpu_us", head: "CPU µs", show: decimal },
  { key: "errors", head: "errors/s", show: count },
];

const BAD = new Set(["failed", "stopped", "restarting", "held"]);
const WAITING = new Set(["paused", "starting", "stopping"]);
const LONG_AGO = 1; // seconds: a request that old is one to look at
const MUCH_THROTTLED = 0.01;

export function kindOf(state) {
  if (BAD.has(state)) return "bad";
  return WAITING.has(state) ? "waiting" : "good";
}

export class Table {
  #heads;
  #body;
  #rows = new Map();
  #order = { key: "iops", descending: true };
  #onOrder;
  #onChoose;

  // `onOrder` is called after a click on a column, `onChoose` with the name of an export after a
  // click on it.
  constructor(heads, body, { onOrder, onChoose }) {
    this.#heads = heads;
    this.#body = body;
    this.#onOrder = onOrder;
    this.#onChoose = onChoose;
    heads.append(...COLUMNS.map((column) => this.#head(column)));
    this.#mark();
  }

  // Show those of `rows` with `words` in their names, with the export `chosen` marked.
  show(rows, history, words, chosen) {
    const seen = ordered(rows.filter((row) => matches(row, words)), this.#order);
    const names = new Set(seen.map((row) => row.name));
    for (const [name, row] of this.#rows) {
      if (!names.has(name)) {
        row.element.remove();
        this.#rows.delete(name);
      }
    }
    seen.forEach((row, at) => {
      const made = this.#rows.get(row.name) ?? this.#make(row.name);
      if (this.#body.children[at] !== made.element) {
        this.#body.insertBefore(made.element, this.#body.children[at] ?? null);
      }
      fill(made, row, history, row.name === chosen);
    });
  }

  #head(column) {
    const head = document.createElement("th");
    head.scope = "col";
    head.dataset.key = column.key;
    if (column.words) head.className = "words";
    if (!column.show) {
      head.textContent = column.head;
      return head;
    }
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = column.head;
    button.addEventListener("click", () => this.#orderBy(column));
    head.append(button);
    return head;
  }

  #orderBy({ key, words }) {
    const again = this.#order.key === key;
    this.#order = { key, descending: again ? !this.#order.descending : !words };
    this.#mark();
    this.#onOrder();
  }

  #mark() {
    for (const head of this.#heads.children) {
      if (head.dataset.key === this.#order.key) {
        head.setAttribute("aria-sort", this.#order.descending ? "descending" : "ascending");
      } else {
        head.removeAttribute("aria-sort");
      }
    }
  }

  #make(name) {
    const element = document.createElement("tr");
    element.dataset.name = name;
    element.tabIndex = 0;
    element.addEventListener("click", () => this.#onChoose(name));
    element.addEventListener("keydown", (event) => {
      if (event.key === "Enter") this.#onChoose(name);
    });
    const cells = new Map(COLUMNS.map((column) => [column.key, cell(column)]));
    element.append(...cells.values());
    const made = { element, cells, canvas: cells.get("trend").firstChild };
    this.#rows.set(name, made);
    return made;
  }
}

function cell({ key, words }) {
  const made = document.createElement("td");
  made.dataset.key = key;
  if (words) made.classList.add("words");
  if (key === "name") made.classList.add("name");
  if (key === "trend") made.append(document.createElement("canvas"));
  if (key === "state") {
    const reason = document.createElement("span");
    reason.className = "reason";
    made.append(document.createElement("span"), reason);
  }
  return made;
}

function fill({ element, cells, canvas }, row, history, isChosen) {
  element.className = rowClass(row);
  element.setAttribute("aria-selected", String(isChosen));
  for (const { key, show } of COLUMNS) {
    if (key === "state") {
      const state = cells.get(key).firstChild;
      state.textContent = row.state;
      state.className = `state ${kindOf(row.state)}`;
      state.nextSibling.textContent = row.reason ?? "";
      cells.get(key).title = row.reason ?? "";
    } else if (show) {
      cells.get(key).textContent = show(row[key]);
    }
  }
  cells.get("name").title = row.name;
  cells.get("errors").classList.toggle("bad", row.errors > 0);
  cells.get("oldest").classList.toggle("bad", row.oldest >= LONG_AGO);
  cells.get("throttled").classList.toggle("waiting", row.throttled >= MUCH_THROTTLED);
  draw(canvas, [{ colour: "first", values: history.values(row.name, "iops") }], ROOM);
}

function rowClass(row) {
  if (kindOf(row.state) === "bad") return "broken";
  return row.iops || row.in_flight ? "" : "idle";
}

function matches(row, words) {
  const wanted = words.trim().toLowerCase();
  return row.name.toLowerCase().includes(wanted) || row.state.startsWith(wanted);
}

// By a value; what is not known comes last, and equal ones stand by name.
function ordered(rows, { key, descending }) {
  const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
  return rows.toSorted((a, b) => {
    const left = a[key] ?? null;
    const right = b[key] ?? null;
    if (left === null || right === null) {
      if (left !== right) return left === null ? 1 : -1;
    } else if (left !== right) {
      return descending ? compare(right, left) : compare(left, right);
    }
    return compare(a.name, b.name);
  });
}
