/** Starts the page. */
import { render } from "preact";
import { html } from "./html.js";
import { api, LINK } from "./api.js";
import { look, who } from "./access.js";
import { agents, apart, fatal, folded, layout, models, order, railOpen, saved, scheduler, shown, theme } from "./state.js";
import { loadLanguage, t } from "./i18n.js";
import { applyTheme } from "./theme.js";
import { route, watchAddress } from "./actions.js";
import { connect, open } from "./session.js";
import { listenKeys } from "./keys.js";
import { App, loadDialogs, loadLanes } from "./views/app.js";
import { watchTitle } from "./title.js";

async function roster() {
  try {
    agents.value = await api.agents();
    models.value = await api.models().catch(() => []);
  } catch (error) {
    if (/** @type {any} */ (error).status === 401) return; // the login is open, and comes back here
    agents.value = [];
    fatal.value = { title: t("error.unreachable"), detail: /** @type {Error} */ (error).message, action: "reload" };
  }
}

async function start() {
  if (location.hash.startsWith("#/run/")) void loadLanes().catch(() => undefined);
  theme.value = saved.get("theme", "auto");
  layout.value = saved.get("layout", "grid");
  order.value = saved.get("order", []);
  apart.value = saved.get("apart", []);
  folded.value = saved.get("folded", []);
  railOpen.value = saved.get("rail", true) && !matchMedia("(max-width: 800px)").matches;
  applyTheme();
  await loadLanguage(saved.get("language", navigator.language.slice(0, 2)));
  render(html`<${App} />`, /** @type {Element} */ (document.getElementById("app")));
  listenKeys();
  const early = () => void Promise.all([loadLanes(), loadDialogs()]).catch(() => undefined); // said when they are needed
  for (const type of ["pointermove", "keydown", "mux:started"]) document.addEventListener(type, early, { once: true, capture: true });
  for (const type of ["keydown", "pointerdown"]) document.addEventListener(type, () => scheduler.input(), { passive: true, capture: true });
  watchTitle();
  watchAddress();
  window.addEventListener("popstate", () => void route());
  window.addEventListener("hashchange", () => void route());
  document.addEventListener("mux:loggedin", () => void Promise.all([roster(), shown.value.length ? connect() : route()]));
  await Promise.all([look(), roster(), route()]);
}

/** The page of somebody who has a link to one run. */
async function startShared() {
  theme.value = saved.get("theme", "auto");
  railOpen.value = false;
  applyTheme();
  await loadLanguage(saved.get("language", navigator.language.slice(0, 2)));
  render(html`<${App} />`, /** @type {Element} */ (document.getElementById("app")));
  watchTitle();
  agents.value = [];
  await look();
  if (who.value?.run) await open(who.value.run);
  else fatal.value = { title: t("error.gone"), detail: t("links.over"), action: "reload" };
}

void (LINK ? startShared() : start());
