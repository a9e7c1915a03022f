"""The comparison of two results, and the load generator's counting."""

from __future__ import annotations

from typing import Any

from tests.bench.compare import rows


def _result(ratio: float, *, met: bool) -> dict[str, Any]:
    figure = {"case": "encode", "side": "mux", "ratio": ratio, "value": None, "cpu_us": 1.0}
    target = {"target": 4, "what": "encode", "measured": ratio, "bound": 0.35, "met": met}
    return {"figures": [figure], "targets": [target]}


def test_a_ratio_beyond_noise_is_marked_and_a_target_newly_met_is_named() -> None:
    figure, target = rows(_result(0.5, met=False), _result(0.3, met=True))
    assert "-40.0%  *" in figure
    assert target.endswith("NOW MET")


def test_what_moved_within_noise_is_not_marked() -> None:
    figure, target = rows(_result(0.30, met=True), _result(0.31, met=True))
    assert "*" not in figure + target
    assert "NOW" not in target
