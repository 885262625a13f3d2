// SPDX-License-Identifier: Apache-2.0
// The charts above the table: of all exports, or of the chosen one.

import { draw } from "./chart.js";
import { amount, count, duration } from "./format.js";
import { ROOM } from "./history.js";

const bandwidth = (value) => (value === null ? amount(value) : `${amount(value)}B/s`);

const CARDS = [
  { title: "requests a second", values: [{ key: "iops", colour: "first", show: count }] },
  {
    title: "bandwidth",
    values: [
      { key: "read_bytes", colour: "first", show: bandwidth, word: "read" },
      { key: "write_bytes", colour: "second", show: bandwidth, word: "written" },
    ],
  },
  { title: "latency, P99", of: "worst", values: [{ key: "p99", colour: "first", show: duration }] },
  { title: "requests in flight", values: [{ key: "in_flight", colour: "first", show: count }] },
];

export class Cards {
  #cards;

  constructor(place) {
    this.#cards = CARDS.map((card) => make(card));
    place.append(...this.#cards.map(({ element }) => element));
  }

  // Draw what `history` has of the export `name`, or of all where that is null.
  show(history, name) {
    for (const { card, heading, numbers, canvas } of this.#cards) {
      heading.textContent = name === null && card.of ? `${card.title}, ${card.of} export` : card.title;
      card.values.forEach((value, at) => {
        numbers[at].textContent = value.show(history.last(name, value.key));
      });
      const lines = card.values.map(({ key, colour }) => ({ colour, values: history.values(name, key) }));
      draw(canvas, lines, ROOM);
    }
  }
}

function make(card) {
  const element = document.createElement("article");
  element.className = "card";
  const heading = document.createElement("h2");
  const line = document.createElement("p");
  const canvas = document.createElement("canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${card.title} over the last two minutes`);
  const numbers = card.values.map(({ key, colour, word }) => {
    const number = document.createElement("span");
    number.dataset.key = key;
    if (card.values.length > 1) number.className = colour;
    line.append(number);
    if (word) {
      const key = document.createElement("span");
      key.className = "key";
      key.textContent = word;
      line.append(key);
    }
    return number;
  });
  element.append(heading, line, canvas);
  return { card, element, heading, numbers, canvas };
}
