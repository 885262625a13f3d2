// SPDX-License-Identifier: Apache-2.0
// Light or dark: as the system has it, until somebody chooses.

const KEY = "blkd-theme";

export function restore() {
  const chosen = localStorage.getItem(KEY);
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
}

export function toggle() {
  const isDark = getComputedStyle(document.documentElement).colorScheme === "dark";
  const chosen = isDark ? "light" : "dark";
  document.documentElement.dataset.theme = chosen;
  localStorage.setItem(KEY, chosen);
}
