"""The batch's script on a few tiny scans: it runs, and counts what it says.

Figures take minutes: `python -m benchmarks.batch`.
"""

from __future__ import annotations

from benchmarks import batch


def test_figures() -> None:
    row = batch.throughput("t1-sr4", 2, (6, 6, 6), 1, 1)
    for clock in ("wall", "processor"):
        assert 0 < row[f"draw, {clock}"] and row[f"ratio, {clock}"] == row[f"ratios, {clock}"][0] > 0
    assert batch.at_once("t1-sr4", (6, 6, 6), 1, 1)["same bits"] in (True, False)
