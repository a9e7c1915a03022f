/** Light, dark or what the system says; the tokens follow `color-scheme`. */
import { theme } from "./state.js";

export function applyTheme() {
  const root = document.documentElement;
  if (theme.value === "auto") delete root.dataset.theme;
  else root.dataset.theme = theme.value;
}
