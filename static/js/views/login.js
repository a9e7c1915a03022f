/** The login: one field. The key is exchanged for a cookie that no script can read, and is kept nowhere here. */
import { useState } from "preact/hooks";
import { html } from "../html.js";
import { logIn } from "../access.js";
import { t } from "../i18n.js";

export function Login() {
  const [problem, setProblem] = useState("");
  const [busy, setBusy] = useState(false);
  const send = async (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    const field = /** @type {HTMLInputElement} */ (/** @type {HTMLFormElement} */ (event.target).elements.namedItem("key"));
    setBusy(true);
    try {
      await logIn(field.value);
    } catch (error) {
      setProblem(/** @type {Error} */ (error).message);
      field.select();
    } finally {
      setBusy(false);
    }
  };
  return html`<form class="form" onSubmit=${send}>
    <p class="muted">${t("login.help")}</p>
    <label class="stack"><span class="label">${t("login.key")}</span>
      <input class="field" name="key" type="password" autocomplete="current-password" spellcheck=${false} required autofocus
        aria-invalid=${Boolean(problem)} aria-describedby="login-problem" /></label>
    <p id="login-problem" class="is-bad" role="alert">${problem}</p>
    <div class="row end-row"><button class="btn primary" disabled=${busy}>${t("login.send")}</button></div>
  </form>`;
}
