/** Light, dark or what the system says; the tokens follow `color-scheme`. And how close things stand. */
import { saved, theme } from "./state.js";

export function applyTheme() {
  const root = document.documentElement;
  if (theme.value === "auto") delete root.dataset.theme;
  else root.dataset.theme = theme.value;
  root.toggleAttribute("data-compact", saved.get("compact", false));
}

export function toggleDensity() {
  saved.set("compact", !saved.get("compact", false));
  applyTheme();
}
