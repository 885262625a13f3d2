// SPDX-License-Identifier: Apache-2.0
// The page: what is shown, and what keys and clicks change of that.

import { Cards } from "./cards.js";
import { History } from "./history.js";
import { follow, logIn, logOut } from "./live.js";
import { Table, kindOf } from "./table.js";
import * as theme from "./theme.js";

const find = (id) => document.getElementById(id);

const history = new History();
let look = { rows: [], summary: { states: {} } };
let chosen = null; // the name of an export; null for all
let isPaused = false;

const cards = new Cards(find("cards"));
const table = new Table(find("heads"), find("rows"), { onOrder: show, onChoose: choose });

function choose(name) {
  chosen = chosen === name ? null : name;
  show();
}

function show() {
  if (chosen !== null && !history.has(chosen)) chosen = null;
  find("whose").textContent = chosen === null ? "all exports" : `above: ${chosen}; click it again for all`;
  cards.show(history, chosen);
  table.show(look.rows, history, find("words").value, chosen);
  find("states").replaceChildren(...Object.entries(look.summary.states).map(stateCount));
}

function stateCount([state, number]) {
  const made = document.createElement("span");
  made.className = `state ${kindOf(state)}`;
  made.textContent = `${number} ${state}`;
  return made;
}

function say(words, kind) {
  find("link").textContent = words;
  find("link").className = kind;
}

function watch() {
  find("login").hidden = true;
  find("watch").hidden = false;
  say("connecting", "waiting");
  follow({
    onLook: take,
    onLost: () => say("the daemon does not answer", "bad"),
    onRefused: ask,
  });
}

function take(came) {
  say("live", "good");
  history.add(came);
  look = isPaused ? look : came;
  if (!isPaused) show();
}

function ask() {
  find("watch").hidden = true;
  find("login").hidden = false;
  say("not logged in", "waiting");
  find("token").focus();
}

async function enter(token) {
  if (await logIn(token)) {
    find("wrong").textContent = "";
    watch();
  } else {
    find("wrong").textContent = "this is not the token";
    ask();
  }
}

find("login").addEventListener("submit", (event) => {
  event.preventDefault();
  enter(find("token").value.trim());
  find("token").value = "";
});
find("words").addEventListener("input", show);
find("pause").addEventListener("click", () => {
  isPaused = !isPaused;
  find("pause").setAttribute("aria-pressed", String(isPaused));
});
find("theme").addEventListener("click", () => {
  theme.toggle();
  show();
});
find("leave").addEventListener("click", async () => {
  await logOut();
  location.reload();
});
window.addEventListener("resize", show);

theme.restore();
const token = location.hash.slice(1);
if (token) {
  // It came behind the #, which no browser sends and no log has; nor does it stay in the address.
  window.history.replaceState(null, "", location.pathname);
  enter(token);
} else {
  watch();
}
