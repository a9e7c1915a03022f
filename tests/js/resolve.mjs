import { readFileSync } from "node:fs";

const root = new URL("../../static/", import.meta.url);
const page = readFileSync(new URL("index.html", root), "utf-8");
const map = JSON.parse(/<script type="importmap">([\s\S]*?)<\/script>/.exec(page)[1]).imports;

export async function resolve(specifier, context, next) {
  if (specifier in map) return { url: new URL(map[specifier], root).href, shortCircuit: true };
  const folder = Object.keys(map).find((key) => key.endsWith("/") && specifier.startsWith(key));
  if (folder) return { url: new URL(map[folder] + specifier.slice(folder.length), root).href, shortCircuit: true };
  return next(specifier, context);
}

// static/ has no package.json: its .js files are modules all the same.
export async function load(url, context, next) {
  return next(url, url.startsWith(root.href) ? { ...context, format: "module" } : context);
}
