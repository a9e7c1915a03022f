"""Rankings against published numbers."""

from __future__ import annotations

import pytest

from mux.judge.ranking import rank

# Stigler (1994), citations between statistics journals; estimates as in the manual of R's BradleyTerry2.
WINS = {
    ("Biometrika", "Comm"): (730, 33), ("Biometrika", "JASA"): (498, 320),
    ("Biometrika", "JRSS-B"): (221, 284),
    ("Comm", "JASA"): (68, 813), ("Comm", "JRSS-B"): (17, 276), ("JASA", "JRSS-B"): (142, 325),
}  # fmt: skip


def test_strengths_are_those_of_a_published_example() -> None:
    pairs = [
        (a, b, s) for (a, b), (w, lost) in WINS.items() for s, n in ((1.0, w), (0.0, lost)) for _ in range(n)
    ]
    found = {r["lane"]: r for r in rank(["Biometrika", "Comm", "JASA", "JRSS-B"], pairs)["lanes"]}
    zero = found["Biometrika"]["strength"]
    assert found["Comm"]["strength"] - zero == pytest.approx(-2.94907, abs=2e-4)
    assert found["JASA"]["strength"] - zero == pytest.approx(-0.47957, abs=2e-4)
    assert found["JRSS-B"]["strength"] - zero == pytest.approx(0.26895, abs=2e-4)
    assert all(r["low"] < r["strength"] < r["high"] for r in found.values())


def test_one_that_always_wins_is_first_with_a_finite_strength() -> None:
    found = rank(["a", "b"], [("b", "a", 1.0)] * 5)
    assert found["regularized"]
    assert found["lanes"][0]["lane"] == "b"
    assert found["lanes"][0]["strength"] < 5
