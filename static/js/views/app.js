/** The page's frame. */
import { html } from "../html.js";
import { useEffect, useState } from "preact/hooks";
import { dialog, dismiss, fatal, layout, loading, maximised, offlineSince, railOpen, shown, toast, toasts } from "../state.js";
import { LINK } from "../api.js";
import { who } from "../access.js";
import { lazy } from "../lazy.js";
import { preloadLanes } from "../early.js";
import { t } from "../i18n.js";
import { newRun } from "../actions.js";
import { TopBar } from "./topbar.js";
import { Rail } from "./rail.js";
import { Composer } from "./composer.js";
import { Welcome } from "./welcome.js";

export function App() {
  const running = shown.value.length > 0;
  const guest = Boolean(LINK);
  return html`
    <div class=${`frame${railOpen.value ? "" : " no-rail"}${guest ? " is-guest" : ""}`} data-layout=${layout.value} data-max=${maximised.value ? "1" : undefined}>
      ${guest ? null : html`<a class="skip" href="#composer-text">${t("skip")}</a>`}
      <${TopBar} />
      ${guest ? null : html`<${Rail} />`}
      <main class="stage" aria-label=${t("region.lanes")} tabindex="-1" data-region>
        ${fatal.value ? html`<${Fatal} />` : running ? html`<${Stage} />` : loading.value || guest ? html`<p class="empty muted">${t("loading")}</p>` : html`<${Welcome} />`}
      </main>
      ${guest ? null : html`<${Composer} />`}
      <${Banner} />
      <${Toasts} />
      ${dialog.value ? html`<${Layer} ...${dialog.value} />` : null}
    </div>
  `;
}

/** Called early, where the address names a run or at the first sign of a person. */
export const loadLanes = lazy(() => {
  preloadLanes();
  return import("./lanes.js");
});

/** The panes, once their modules are there. */
function Stage() {
  const view = useLazy(loadLanes, (error) => (fatal.value = { title: t("error.unreachable"), detail: error.message, action: "reload" }));
  return view ? html`<${view.Lanes} />` : html`<p class="empty muted">${t("loading")}</p>`;
}

/** Only after three seconds: a short gap mends itself and is nobody's concern. */
function Banner() {
  const since = offlineSince.value;
  const [late, setLate] = useState(false);
  useEffect(() => {
    setLate(false);
    if (!since) return undefined;
    const timer = setTimeout(() => setLate(true), 3000);
    return () => clearTimeout(timer);
  }, [since]);
  if (who.value?.access === "insecure") return html`<div class="banner" role="status" data-insecure>${t("banner.insecure")}</div>`;
  return since && late ? html`<div class="banner" role="status">${t("banner.offline")}</div>` : null;
}

/** Called early, at the first sign of a person, so that no key press has to wait for it. */
export const loadDialogs = lazy(() => import("./dialogs.js"));

/** The dialogs are loaded with the first of them: the first screen needs none. @param {{kind: string}} props */
function Layer(props) {
  const view = useLazy(loadDialogs, (error) => {
    dialog.value = null;
    toast(error.message, { bad: true });
  });
  return view ? html`<${view.Dialogs} ...${props} />` : null;
}

/** @template T @param {() => Promise<T>} load @param {(error: Error) => void} failed @returns {T|null} */
function useLazy(load, failed) {
  const [part, setPart] = useState(/** @type {{there: T}|null} */ (null));
  useEffect(() => void load().then((there) => setPart({ there }), failed), []);
  return part?.there ?? null;
}

function Fatal() {
  const problem = fatal.value;
  if (!problem) return null;
  const act = () => (problem.action === "new" ? newRun() : location.reload());
  return html`
    <div class="empty" role="alert">
      <h2>${problem.title}</h2>
      <p class="muted">${problem.detail}</p>
      <button class="btn primary" onClick=${act}>${t(`fatal.${problem.action ?? "reload"}`)}</button>
    </div>
  `;
}

function Toasts() {
  return html`
    <div class="toasts">
      ${toasts.value.map(
        (item) => html`
          <div key=${item.id} class=${`toast${item.bad ? " is-bad" : ""}`} role=${item.bad ? "alert" : "status"}>
            <span>${item.text}</span>
            ${item.action ? html`<button class="btn quiet" onClick=${() => { item.action?.run(); dismiss(item.id); }}>${item.action.label}</button>` : null}
            <button class="btn icon-only quiet" aria-label=${t("close")} onClick=${() => dismiss(item.id)}>×</button>
          </div>
        `,
      )}
    </div>
  `;
}
