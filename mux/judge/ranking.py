"""Bradley–Terry ranking of lanes from comparisons, with intervals (by choix, extra ``judge``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mux.errors import ConfigError

__all__ = ["rank"]

SEED = 20_000
ROUNDS = 500


def rank(lanes: Sequence[str], comparisons: Sequence[tuple[str, str, float]]) -> dict[str, Any]:
    """Strengths of the lanes as log-odds around a mean of zero, best first.

    Args:
        comparisons: ``(a, b, share)``: 1 = a won, 0 = b won, 0.5 = a tie (half a win each).

    Returns:
        ``lanes`` (strength, the 95 % interval by bootstrap, wins, count), ``matrix`` (wins of row over
        column) and ``regularized``: half a win was added each way between lanes that met, because somebody
        never won or never lost, and there is no finite estimate then.

    Raises:
        ConfigError: ``extra_missing``.
    """
    try:
        import choix  # type: ignore[import-untyped,unused-ignore]
        import numpy as np
    except ImportError:
        raise ConfigError("extra_missing", "Ranking needs: pip install 'mux-agents[judge]'") from None
    index = {lane: n for n, lane in enumerate(lanes)}
    size = len(lanes)
    rows = np.array([(index[a], index[b], share) for a, b, share in comparisons], dtype=float).reshape(-1, 3)

    def matrix(some: Any) -> Any:
        wins = np.zeros((size, size))
        np.add.at(wins, (some[:, 0].astype(int), some[:, 1].astype(int)), some[:, 2])
        np.add.at(wins, (some[:, 1].astype(int), some[:, 0].astype(int)), 1 - some[:, 2])
        return wins

    def fit(wins: Any) -> tuple[Any, bool]:
        reach = np.linalg.matrix_power((wins > 0).astype(float) + np.eye(size), size) > 0
        regular = not reach.all()
        if regular:
            met = (wins + wins.T) > 0
            wins = wins + 0.5 * met + 0.001 * (1 - np.eye(size))
        return choix.ilsr_pairwise_dense(wins, max_iter=10_000), regular

    wins = matrix(rows)
    strengths, regularized = fit(wins)
    random = np.random.default_rng(SEED)
    samples = [fit(matrix(rows[random.integers(0, len(rows), len(rows))]))[0] for _ in range(ROUNDS)]
    low, high = np.percentile(samples, [2.5, 97.5], axis=0)
    ranked = [
        {
            "lane": lane, "strength": round(float(strengths[n]), 4),
            "low": round(float(low[n]), 4), "high": round(float(high[n]), 4),
            "wins": float(wins[n].sum()), "count": float(wins[n].sum() + wins[:, n].sum()),
        }
        for lane, n in index.items()
    ]  # fmt: skip
    ranked.sort(key=lambda row: -float(str(row["strength"])))
    return {"lanes": ranked, "matrix": wins.tolist(), "regularized": regularized}
