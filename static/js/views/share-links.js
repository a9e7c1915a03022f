/** Links to one run for people without a key: made, listed, and ended. */
import { useEffect, useState } from "preact/hooks";
import { html } from "../html.js";
import { api } from "../api.js";
import { attempt } from "../actions.js";
import { copyText } from "../files.js";
import { t } from "../i18n.js";

/** @param {{run: string}} props */
export function ShareLinks({ run }) {
  const [links, setLinks] = useState(/** @type {any[]} */ ([]));
  const [url, setUrl] = useState("");
  const [plan, setPlan] = useState(false);
  const look = () => api.shares(run).then(setLinks, () => undefined);
  useEffect(() => void look(), [run]);
  const make = async () => {
    const made = await attempt(api.share(run, { plan }));
    if (made) setUrl(made.url);
    await look();
  };
  const end = async (/** @type {string} */ id) => {
    await attempt(api.unshare(run, id));
    setUrl("");
    await look();
  };
  return html`
    <h3 class="label">${t("links.title")}</h3>
    <p class="muted">${t("links.help")}</p>
    ${url ? html`<div class="row"><input class="field grow" readonly value=${url} aria-label=${t("links.title")} /><button class="btn" onClick=${() => copyText(url)}>${t("share.copy")}</button></div>` : null}
    <div class="row"><label class="check"><input type="checkbox" checked=${plan} onChange=${(/** @type {any} */ e) => setPlan(e.target.checked)} />${t("links.plan")}</label>
      <span class="grow"></span><button class="btn" data-make-link onClick=${make}>${t("links.make")}</button></div>
    ${links.length ? html`<ul class="pick">${links.map((link) => html`<li key=${link.id} class="row"><span class="grow">${t("links.until", { id: link.id, day: new Date(link.expires).toLocaleDateString() })}</span>
      <button class="btn quiet" aria-label=${t("links.endOf", { id: link.id })} onClick=${() => end(link.id)}>${t("links.end")}</button></li>`)}</ul>` : null}
  `;
}
