/** Whether the server was replaced by another version under this page: then its modules no longer fit together. */
import { api } from "./api.js";
import { toast } from "./state.js";
import { t } from "./i18n.js";

/** @type {string|undefined} */
let known;

/** Asked with each new connection; the first answer is what the page was made for. */
export async function checkVersion() {
  const version = await api.version().catch(() => undefined);
  if (known && version && version !== known) {
    toast(t("version.changed", { version }), { ms: 3_600_000, action: { label: t("version.reload"), run: () => location.reload() } });
  }
  known = version ?? known;
}
