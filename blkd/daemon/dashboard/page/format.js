// SPDX-License-Identifier: Apache-2.0
// Numbers in few characters: as `blkd top` shows them (blkd/cli/quantities.py).

const NOTHING = "-";
const UNITS = ["", "K", "M", "G", "T", "P"];
const TIMES = [[1e9, "ns"], [1e6, "µs"], [1e3, "ms"]]; // parts of a second
const FOUR_DIGITS = 999.5; // from there on a number has four
const THREE_DIGITS = 99.5;

function number(value) {
  if (value >= 0.005 && value < 0.095) return value.toFixed(2);
  return value >= 0.095 && value < 9.95 ? value.toFixed(1) : value.toFixed(0);
}

function known(show) {
  return (value) => (value === null || value === undefined ? NOTHING : show(value));
}

export const count = known((value) => {
  if (value < 100000) return number(value);
  const thousands = value / 1000;
  return thousands < FOUR_DIGITS ? `${thousands.toFixed(0)}k` : `${number(thousands / 1000)}M`;
});

export const amount = known((value) => {
  let exponent = 0;
  while (value >= FOUR_DIGITS && exponent < UNITS.length - 1) {
    value /= 1024;
    exponent += 1;
  }
  return `${number(value)}${UNITS[exponent]}`;
});

export const duration = known((seconds) => {
  if (seconds === 0) return "0";
  for (const [parts, unit] of TIMES) {
    if (seconds * parts < FOUR_DIGITS) return `${number(seconds * parts)}${unit}`;
  }
  if (seconds < THREE_DIGITS) return `${number(seconds)}s`;
  const whole = Math.round(seconds);
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes}m${String(whole % 60).padStart(2, "0")}s`;
  return `${Math.floor(minutes / 60)}h${String(minutes % 60).padStart(2, "0")}m`;
});

export const share = known((value) => `${(100 * value).toFixed(0)}%`);
export const decimal = known(number);
export const text = known(String);
