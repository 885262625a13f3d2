// SPDX-License-Identifier: Apache-2.0
// The last rows of each export, and of all together.

export const ROOM = 120; // looks: two minutes

export class History {
  #rows = new Map();
  #sums = [];

  // Remember a look; an export that is not in it any more is forgotten.
  add({ rows, summary }) {
    const kept = new Map();
    for (const row of rows) {
      kept.set(row.name, [...(this.#rows.get(row.name) ?? []), row].slice(-ROOM));
    }
    this.#rows = kept;
    this.#sums = [...this.#sums, summary].slice(-ROOM);
  }

  has(name) {
    return this.#rows.has(name);
  }

  // One value over time, of an export or, where `name` is null, of all.
  values(name, key) {
    const looks = name === null ? this.#sums : (this.#rows.get(name) ?? []);
    return looks.map((look) => look[key] ?? null);
  }

  last(name, key) {
    return this.values(name, key).at(-1) ?? null;
  }
}
