"""``make bench-compare A=old.json B=new.json``: the difference of two results, side by side."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["main", "rows"]

NOISE = 0.1  # ratios move by this much between two runs of the same code on a shared machine


def _keyed(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"{f['case']} · {f['side']}": f for f in result["figures"]}


def rows(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line for each figure and target that both have. Ratios are compared where there are any."""
    before, after = _keyed(old), _keyed(new)
    lines = []
    for name in (n for n in before if n in after):
        a, b = before[name], after[name]
        kind = "ratio" if a["ratio"] is not None and b["ratio"] is not None else "value"
        if kind == "value" and a["value"] is None:
            kind = "cpu_us"
        lines.append(_row(name, kind, a[kind], b[kind]))
    met = {(t["target"], t["what"]): t for t in old["targets"]}
    for target in new["targets"]:
        known = met.get((target["target"], target["what"]))
        if known is not None:
            name = f"target {target['target']}: {target['what']}"
            verdict = "met" if target["met"] else "missed"
            changed = "" if known["met"] == target["met"] else f"  NOW {verdict.upper()}"
            lines.append(_row(name, verdict, known["measured"], target["measured"]) + changed)
    return lines


def _row(name: str, kind: str, a: float | None, b: float | None) -> str:
    if not a or b is None:
        return f"{name[:76]:<76} {kind:>7} {a or 0:12.3f} {b or 0:12.3f}"
    change = b / a - 1
    mark = "" if abs(change) < NOISE else "  *"
    return f"{name[:76]:<76} {kind:>7} {a:12.3f} {b:12.3f} {change:+8.1%}{mark}"


def main() -> None:
    """Compare the two files named on the command line."""
    if len(sys.argv) != 3:
        sys.exit("usage: make bench-compare A=old.json B=new.json")
    old, new = (json.loads(Path(path).read_text()) for path in sys.argv[1:])
    if old["machine"]["versions"] != new["machine"]["versions"]:
        print("the two were taken with different versions")
    print(f"{'':<76} {'':>7} {'A':>12} {'B':>12}   change (* = beyond noise)")
    print("\n".join(rows(old, new)))


if __name__ == "__main__":
    main()
