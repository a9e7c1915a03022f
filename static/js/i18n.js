/**
 * Strings by key, from `static/i18n/<language>.js`. `{name}` is replaced; a value that is an object of plural forms
 * (`one`, `other`, …) is chosen by `n` with `Intl.PluralRules`. English is complete and the fallback.
 */
import en from "../i18n/en.js";

/** @type {Record<string, string|Record<string, string>>} */
let strings = en;
let plural = new Intl.PluralRules("en");

/** @param {string} language */
export async function loadLanguage(language) {
  if (!/^[a-z]{2}$/.test(language) || language === "en") return;
  try {
    const module = await import(`../i18n/${language}.js`);
    strings = { ...en, ...module.default };
    plural = new Intl.PluralRules(language);
    document.documentElement.lang = language;
  } catch {
    return; // there is no such file: English stays
  }
}

/** @param {string} key @param {Record<string, string|number>} [values] */
export function t(key, values = {}) {
  const entry = strings[key];
  const text = typeof entry === "object" ? (entry[plural.select(Number(values.n))] ?? entry.other) : (entry ?? key);
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}
