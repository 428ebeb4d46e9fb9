"""Draw the loss curves of several training runs, stage by stage, in one picture.

    python tools/compare_curves.py "mean=runs/t1-t2" "random=runs/t1-t2-random" -o curves.png
    python tools/compare_curves.py "zero=runs/t1-t2" "random=runs/other" --stages features -o features.png

Each run is a folder that `scorefusion train` left; only stages that all runs have in common are drawn.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

Curve = tuple[list[int], list[float]]


def read_curves(folder: Path) -> dict[str, Curve]:
    """Steps and losses of each stage that a run has logged."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    kinds = dict.fromkeys(row["stage"] for row in rows if "loss" in row)
    found = {}
    for kind in kinds:
        mine = [row for row in rows if row["stage"] == kind and "loss" in row]
        found[kind] = ([row["step"] for row in mine], [row["loss"] for row in mine])
    return found


def draw(runs: dict[str, dict[str, Curve]], stages: list[str]) -> Figure:
    """One panel a stage, one line a run."""
    figure = Figure(figsize=(4.5 * len(stages), 3.2), layout="constrained")
    for axis, stage in zip(figure.subplots(1, len(stages), squeeze=False)[0], stages, strict=True):
        for name, curves in runs.items():
            axis.plot(*curves[stage], label=name, lw=1.2)
        axis.set(title=stage, xlabel="step", ylabel="loss", yscale="log")
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=8)
    return figure


def main() -> int:
    """Draw what the command line names; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="NAME=FOLDER")
    parser.add_argument("--stages", nargs="*", help="such as patches features; all in common by default")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    runs = {name: read_curves(Path(folder)) for name, _, folder in (run.partition("=") for run in given.runs)}
    common = [
        stage for stage in next(iter(runs.values())) if all(stage in curves for curves in runs.values())
    ]
    stages = [stage for stage in common if not given.stages or stage in given.stages]
    if not stages:
        print("the runs have no such stage in common", file=sys.stderr)
        return 2
    draw(runs, stages).savefig(given.output, dpi=110)
    return 0


if __name__ == "__main__":
    sys.exit(main())
