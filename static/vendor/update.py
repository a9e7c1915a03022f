#!/usr/bin/env python3
"""Fetches the dashboard's libraries, at the versions pinned here, into ``static/vendor/<package>/<version>/``.

Run it after changing a version: it asks ``npm pack`` (with whatever registry npm is configured for), copies only
the files that the page loads, together with their licence, and writes ``manifest.json`` with a hash of each file.
A test checks the hashes; ``static/index.html`` and ``static/js/stream.js`` name the versions and are rewritten.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
LANGUAGES = (
    "bash c cpp css diff go ini java javascript json markdown python rust sql typescript xml yaml".split()
)


@dataclass(frozen=True)
class Package:
    """One package: its folder's name, its npm name, version and licence, and what of it is copied where."""

    folder: str
    name: str
    version: str
    licence: str
    files: dict[str, str] = field(default_factory=dict)  # path in the package -> path in our folder


PACKAGES = (
    Package("preact", "preact", "11.2.0", "MIT", {"dist/preact.mjs": "preact.mjs", "hooks/dist/hooks.mjs": "hooks.mjs"}),
    Package("preact-signals", "@preact/signals", "2.11.4", "MIT", {"dist/signals.mjs": "signals.mjs"}),
    Package("preact-signals-core", "@preact/signals-core", "1.14.5", "MIT", {"dist/signals-core.mjs": "signals-core.mjs"}),
    Package("htm", "htm", "3.1.1", "Apache-2.0", {"dist/htm.mjs": "htm.mjs"}),
    Package("marked", "marked", "18.2.1", "MIT", {"lib/marked.esm.js": "marked.mjs"}),
    Package("lowlight", "lowlight", "3.3.0", "MIT", {"lib/index.js": "lowlight.js"}),
    Package("devlop", "devlop", "1.1.0", "MIT", {"lib/default.js": "devlop.js"}),
    Package(
        "highlight.js", "@highlightjs/cdn-assets", "11.12.0", "BSD-3-Clause",
        {"es/core.min.js": "core.js"} | {f"es/languages/{n}.min.js": f"languages/{n}.js" for n in LANGUAGES},
    ),
    Package("temml", "temml", "0.13.5", "MIT", {"dist/temml.mjs": "temml.mjs"}),
    Package("partial-json", "partial-json", "0.1.7", "MIT", {"dist/index.js": "index.js", "dist/options.js": "options.js"}),
    Package("diff", "diff", "9.0.0", "BSD-3-Clause", {"libesm/**": ""}),
    Package(
        "eventsource-parser", "eventsource-parser", "4.1.3", "MIT",
        {f"dist/{n}.js": f"{n}.js" for n in ("index", "parse", "errors")}
        # TypeScript would check the library's own code otherwise: static/js/stream.js imports it by path.
        | {f"dist/{n}.d.ts": f"{n}.d.ts" for n in ("index", "parse", "errors", "types")},
    ),
)  # fmt: skip


def fetch(package: Package, into: Path) -> Path:
    """Unpack the published package; returns its root."""
    out = subprocess.run(
        ["npm", "pack", "--silent", "--pack-destination", str(into), f"{package.name}@{package.version}"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    archive = into / out.stdout.strip().splitlines()[-1]
    root = into / package.folder
    with tarfile.open(archive) as tar:
        tar.extractall(root, filter="data")
    return next(p for p in root.iterdir() if p.is_dir())


def copy(package: Package, root: Path, target: Path) -> None:
    """Copy the wanted files and the licence; source map links are cut, as the maps are not shipped."""
    for source, name in package.files.items():
        if source.endswith("/**"):
            base = root / source[:-3]
            found = {p: target / p.relative_to(base) for p in base.rglob("*.js")}
        else:
            found = {root / source: target / name}
        for path, to in found.items():
            to.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text(encoding="utf-8")
            to.write_text(re.sub(r"\n?//# sourceMappingURL=\S*\s*$", "\n", text), encoding="utf-8")
    licences = [p for p in root.iterdir() if re.match(r"(?i)licen[cs]e", p.name)]
    if licences:
        shutil.copy(licences[0], target / "LICENSE")
    else:  # a few packages only name it
        (target / "LICENSE").write_text(
            f"{package.name} {package.version}: {package.licence}\n", encoding="utf-8"
        )


def as_module(target: Path) -> None:
    """partial-json is published as CommonJS only: wrap both of its files in one module."""
    parts = {name: (target / f"{name}.js").read_text(encoding="utf-8") for name in ("options", "index")}
    (target / "partial-json.mjs").write_text(
        "// Made by vendor/update.py from dist/options.js and dist/index.js: the same code as a module.\n"
        f"const options = {{}};\n(function (exports) {{\n{parts['options']}\n}})(options);\n"
        f"const index = {{}};\n(function (exports, require) {{\n{parts['index']}\n}})(index, () => options);\n"
        "export const parse = index.parse, Allow = options.Allow;\n",
        encoding="utf-8",
    )
    for name in parts:
        (target / f"{name}.js").unlink()


def rewrite_versions() -> None:
    """The two files that name a vendored path get the pinned versions."""
    for path in (HERE.parent / "index.html", HERE.parent / "js" / "stream.js"):
        if path.exists():
            text = path.read_text(encoding="utf-8")
            for package in PACKAGES:
                text = re.sub(
                    rf"vendor/{re.escape(package.folder)}/[0-9][^/]*/",
                    f"vendor/{package.folder}/{package.version}/",
                    text,
                )
            path.write_text(text, encoding="utf-8")


def main() -> None:
    """Replace everything below ``static/vendor`` by what is pinned here."""
    manifest = []
    with tempfile.TemporaryDirectory() as temporary:
        for package in PACKAGES:
            shutil.rmtree(HERE / package.folder, ignore_errors=True)
            target = HERE / package.folder / package.version
            target.mkdir(parents=True)
            copy(package, fetch(package, Path(temporary)), target)
            if package.folder == "partial-json":
                as_module(target)
            hashes = {
                p.relative_to(HERE).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
                for p in sorted(target.rglob("*"))
                if p.is_file()
            }
            manifest.append(
                {
                    "name": package.name,
                    "version": package.version,
                    "licence": package.licence,
                    "sha256": hashes,
                }
            )
    (HERE / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    rewrite_versions()


if __name__ == "__main__":
    main()
