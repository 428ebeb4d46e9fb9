"""What tuning leaves behind: every setting's figures as JSON and CSV, a table, and a picture."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scorefusion.errors import BadInput
from scorefusion.evaluate.known_truth import KnownTruth
from scorefusion.evaluate.tune import Curve, Point, noise_range, solver_name
from scorefusion.evaluate.tune_figure import curve_figure
from scorefusion.io.atomic import check_output, written_beside
from scorefusion.optional import need
from scorefusion.pipeline.figures import save_figure, try_to_write

FILES = ("tune.json", "tune.csv", "tune.png")
FIGURES = ("psnr", "ssim", "spectrum", "bias", "patches", "correlation")


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """Make the folder, and find out before any work is done that the files can be written.

    Raises:
        BadInput: if the folder cannot be made or written.
        ScoreFusionError: without the packages that measure and draw.
    """
    for module in ("matplotlib", "skimage.metrics"):
        need(module, "tuning")
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(target, f"cannot be made ({error.strerror})", "Choose another folder.") from None
    for name in FILES:
        check_output(target / name, (Path(name).suffix,))
    return target


def table_text(curve: Curve) -> str:
    """Every setting as aligned columns, cheapest first; the chosen one is marked."""
    head = (
        f"{'':2}{'solver':<14}{'eval.':>6}{'sigma':>20}{'seconds':>9}"
        f"{'PSNR dB':>9}{'SSIM':>7}{'spectrum':>10}{'signed':>8}{'patches':>9}{'FSC':>7}"
    )
    lines = [head]
    for label, point in _labelled(curve):
        mark = "*" if point is curve.chosen else ""
        quality = (
            f"{point.psnr:9.2f}{point.ssim:7.3f}{point.spectrum:10.3f}{point.bias:8.3f}"
            f"{point.patches:9.5f}{point.correlation:7.3f}"
        )
        lines.append(
            f"{mark:2}{label:<14}{point.evaluations:6d}{noise_range(point.sampling):>20}{point.seconds:9.2f}{quality}"
        )
    return "\n".join(lines)


def verdict(curve: Curve) -> str:
    """The choice in one sentence."""
    reference = curve.reference
    beside = f"{reference.evaluations} {reference.sampling.solver} steps ({_quality(reference)})"
    if curve.chosen is None:
        return f"no setting tried is as good as {beside}"
    point = curve.chosen
    evaluations = f"{point.evaluations} evaluation{'s' * (point.evaluations != 1)}"
    return (
        f"chosen: {solver_name(point.sampling)}, {evaluations}, sigma "
        f"{noise_range(point.sampling)} ({_quality(point)}): no worse than {beside}"
    )


def _quality(point: Point) -> str:
    return (
        f"{point.psnr:.2f} dB, spectrum {point.spectrum:.3f}, patches {point.patches:.5f}, "
        f"FSC {point.correlation:.3f}"
    )


def write_results(
    folder: Path,
    curve: Curve,
    subjects: Sequence[KnownTruth],
    *,
    model: str,
    strategy: str,
    seeds: int,
    computed: str,
) -> str | None:
    """Write the figures as JSON (with the bands) and CSV, and the picture.

    Args:
        folder: from :func:`check_folder`.
        curve: what was found.
        subjects: what it was found on.
        model: its name.
        strategy: how scores were fused.
        seeds: samples of each setting.
        computed: dtype and device.

    Returns:
        Why the picture could not be drawn, which is last; None if it was.

    Raises:
        BadInput: if another file cannot be written.
    """
    content = {
        "model": model,
        "strategy": strategy,
        "seeds": seeds,
        "computed": computed,
        "subjects": [
            {"name": subject.name, "start": subject.box.start, "stop": subject.box.stop}
            for subject in subjects
        ],
        "chosen": None if curve.chosen is None else _record(curve.chosen),
        "reference": _record(curve.reference),
        "own": _record(curve.own),
        "points": [_record(point) for point in curve.points],
    }
    with written_beside(folder / "tune.json") as beside:
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    with (
        written_beside(folder / "tune.csv") as beside,
        beside.open("w", newline="", encoding="utf-8") as file,
    ):
        names = ("label", "evaluations", "sigma_max", "sigma_min", "rho", "seconds", *FIGURES)
        writer = csv.writer(file)
        writer.writerow(names)
        for label, point in _labelled(curve):
            way = point.sampling
            values = (label, point.evaluations, way.sigma_max, way.sigma_min, way.rho, point.seconds)
            writer.writerow([*values, *(getattr(point, name) for name in FIGURES)])
    title = f"{model}, {strategy}: {', '.join(Path(subject.name).name for subject in subjects)}"
    picture = folder / "tune.png"
    return try_to_write(picture, lambda: save_figure(curve_figure(curve, title), picture))


def _labelled(curve: Curve) -> Iterable[tuple[str, Point]]:
    """Every setting with its name, cheapest first, then the model's own and the reference."""
    for point in sorted(curve.points, key=lambda point: point.evaluations):
        yield solver_name(point.sampling), point
    yield "as it was", curve.own
    yield "reference", curve.reference


def _record(point: Point) -> dict[str, Any]:
    return {
        "sampling": point.sampling.model_dump(mode="json"),
        "evaluations": point.evaluations,
        "seconds": round(point.seconds, 4),
        **{name: round(getattr(point, name), 5) for name in FIGURES},
        "frequency": point.frequency.round(5).tolist(),
        "log10_power_ratio": point.log_ratio.round(4).tolist(),
        "fourier_shell_correlation": point.shells.round(4).tolist(),
    }
