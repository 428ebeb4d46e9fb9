"""The command line of :mod:`benchmarks.thick_slices`."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.thick_slices.heads import AXES, Case, Head, Sliced, interpolations, read_head, sliced
from benchmarks.thick_slices.rulers import (
    FOUND,
    Lesion,
    calibration,
    contrast_and_volume,
    dots,
    figures,
    paint,
    unmatched,
)
from scorefusion.io import panels, save_figure
from scorefusion.pipeline import Pipeline, Translation

program = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)
Heads = Annotated[list[Path], typer.Argument(help="Isotropic volumes, one for each person.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="JSON lines, appended to.")]
Model = Annotated[str, typer.Option(help="The model that is judged.")]
DIAMETERS = (2.0, 3.0, 4.0, 6.0)  #: of painted lesions in mm


@program.command("cases")
def cases(
    heads: Heads,
    out: Out,
    model: Model = "brain-iso",
    strategy: Annotated[str, typer.Option(help="Strategies, with commas; single:coronal names a plane.")] = (
        "single:coronal,average,fuse,fuse+features"
    ),
    steps: Annotated[str, typer.Option(help="Steps in voxels, with commas.")] = "3,4,5,6",
    widths: Annotated[str, typer.Option(help="Thickness in steps, with commas.")] = "1,0.8",
    axes: Annotated[str, typer.Option(help="Axes that slices are stacked along.")] = AXES,
    trim: Annotated[int, typer.Option(help="Only the middle so many voxels along each axis; 0 for all.")] = 0,
) -> None:
    """Fidelity in the head beside interpolation: every head, step, thickness and axis."""
    pipeline, done = Pipeline(model), _rows(out, "cases")
    for path in heads:
        head = _middle(read_head(path), trim)
        for step in map(int, steps.split(",")):
            for width in map(float, widths.split(",")):
                for axis in axes:
                    case = Case(step, width, AXES.index(axis))
                    wanted = [m for m in strategy.split(",") if (head.name, str(case), m) not in done]
                    if not wanted:
                        continue
                    given = sliced(head, case)
                    if (head.name, str(case), "cubic") not in done:
                        for name, volume in interpolations(given).items():
                            _add(out, "cases", head, case, name, figures(volume, given, head.peak))
                    for name in wanted:
                        volume, seconds = _restored(pipeline, given, case, head, name)
                        found = figures(volume, given, head.peak) | {"seconds": seconds}
                        _add(out, "cases", head, case, name, found)


@program.command("lesions")
def lesions(
    heads: Heads,
    out: Out,
    model: Model = "brain-iso",
    strategy: str = "fuse+features",
    thickness: Annotated[float, typer.Option(help="Step and thickness of the slices in mm.")] = 5.0,
    count: Annotated[int, typer.Option(help="Lesions of each diameter.")] = 12,
) -> None:
    """Painted lesions: how much of their contrast and volume is kept, which are erased, what is invented."""
    pipeline, done = Pipeline(model), _rows(out, "lesions")
    for path in heads:
        head = read_head(path)
        case = Case(round(thickness / head.voxel), 1.0, 0)
        if (head.name, str(case), strategy) in done:
            continue
        plain = sliced(head, case)
        painted = _lesions(head, plain, count)
        truth = paint(plain.truth, painted)
        with_lesions = sliced(Head(head.name, truth, head.voxel), Case(case.step, case.width, 0))
        for name in ("cubic", strategy):
            pair = []
            for given in (plain, with_lesions):
                if name == "cubic":
                    pair.append(interpolations(given)["cubic"])
                else:
                    pair.append(_restored(pipeline, given, case, head, name)[0])
            without, volume = pair
            found: dict[str, Any] = {"lesions": []}
            for each in painted:
                contrast, voxels = contrast_and_volume(volume - without, each)
                true, size = contrast_and_volume(truth - plain.truth, each)
                row = {"diameter_mm": each.diameter * head.voxel, "contrast": contrast / true}
                found["lesions"].append(row | {"volume": voxels / size, "erased": contrast < FOUND * true})
            least = 0.15 * head.peak
            known = dots(plain.truth, plain.inside, 0.5 * least)
            found["invented"] = unmatched(dots(without, plain.inside, least), known, 3.0)
            found["dots"] = len(dots(plain.truth, plain.inside, least))
            _add(out, "lesions", head, case, name, found)


@program.command("spread")
def spread(
    heads: Heads,
    out: Out,
    model: Model = "brain-iso",
    strategy: str = "fuse+features",
    samples: int = 8,
    steps: Annotated[str, typer.Option(help="Steps in voxels, with commas.")] = "4",
    axes: Annotated[str, typer.Option(help="Axes that slices are stacked along.")] = AXES,
    trim: Annotated[
        int, typer.Option(help="Only the middle so many voxels along each axis; 0 for all.")
    ] = 144,
) -> None:
    """What the deviation over samples says about the error: factor of an 80% band, coverage, rank."""
    pipeline, done = Pipeline(model), _rows(out, "spread")
    name = f"{strategy}, {samples} samples"
    for path in heads:
        head = _middle(read_head(path), trim)
        for step in map(int, steps.split(",")):
            for axis in axes:
                case = Case(step, 1.0, AXES.index(axis))
                if (head.name, str(case), name) in done:
                    continue
                given = sliced(head, case)
                result = _translated(pipeline, given, case, head, strategy, samples=samples)
                assert result.spread is not None
                error = (given.turned(result.volume) - given.truth)[given.inside]
                found: dict[str, Any] = calibration(error, given.turned(result.spread)[given.inside])
                found |= {"evaluations": result.evaluations}
                found |= {"psnr": figures(given.turned(result.volume), given, head.peak)["psnr"]}
                bar = pipeline.config.sampling.error_bar
                if bar is not None:
                    held = np.abs(error) <= given.turned(result.error_bar)[given.inside]
                    found["held"] = float(held.mean())
                _add(out, "spread", head, case, name, found)


@program.command("figure")
def figure(
    head: Annotated[Path, typer.Argument(help="An isotropic volume.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture.")],
    model: Model = "brain-iso",
    strategy: str = "fuse+features",
    thickness: Annotated[float, typer.Option(help="Step and thickness of the slices in mm.")] = 5.0,
) -> None:
    """Draw a coronal slice and a part of it: slices, cubic, the model, truth."""
    known = read_head(head)
    case = Case(round(thickness / known.voxel), 1.0, 0)
    given = sliced(known, case)
    restored, _ = _restored(Pipeline(model), given, case, known, strategy)
    shown = {
        f"slices of {case.step * known.voxel:.1f} mm": np.repeat(given.slices, case.step, axis=0),
        "cubic spline": interpolations(given)["cubic"],
        model: restored,
        "truth": given.truth,
    }
    middle = [int(np.mean(np.flatnonzero(given.inside.any(axis=axes)))) for axes in ((1, 2), (0, 2), (0, 1))]
    edge = len(given.truth) // 5
    titles = [
        name if name == "truth" else f"{name}, {figures(volume, given, known.peak)['psnr']:.2f} dB"
        for name, volume in shown.items()
    ]
    picture, axes = panels((11, 6.2), {"head": len(given.truth), "part": len(given.truth)}, titles)
    part_of = slice(middle[0], middle[0] + 2 * edge), slice(middle[2], middle[2] + 2 * edge)
    for column, volume in zip(axes.T, shown.values(), strict=True):
        plane = volume[:, middle[1]]
        for axis, image in zip(column, (plane, plane[part_of]), strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=known.peak, origin="lower", interpolation="nearest")
    save_figure(picture, out)


@program.command("table")
def table(files: Annotated[list[Path], typer.Argument(help="What the other commands wrote.")]) -> None:
    """Print the tables of docs/thick-slices.md."""
    rows = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    fidelity: dict[tuple[str, str], dict[str, dict[str, float]]] = defaultdict(dict)
    for row in rows:
        if row["kind"] == "cases":
            fidelity[row["head"], row["case"]][row["method"]] = row["figures"]
    for head in dict.fromkeys(name for name, _ in fidelity):
        methods = list(dict.fromkeys(m for (name, _), each in fidelity.items() if name == head for m in each))
        print(f"\n{head}\n\n| case | {' | '.join(methods)} |\n| --- |{' --- |' * len(methods)}")
        for (name, case), each in fidelity.items():
            if name == head:
                cells = (
                    f"{each[m]['psnr']:.2f} / {each[m]['ssim']:.3f} / {each[m]['cone']:.3f}"
                    if m in each
                    else ""
                    for m in methods
                )
                print(f"| {case} | {' | '.join(cells)} |")
        _print_margins({case: each for (name, case), each in fidelity.items() if name == head})
    for row in rows:
        if row["kind"] == "spread":
            shown = ", ".join(f"{name} {value:.3g}" for name, value in row["figures"].items())
            print(f"\n{row['head']}, {row['case']}, {row['method']}: {shown}")
        if row["kind"] == "lesions":
            print(
                f"\n{row['head']}, {row['case']}, {row['method']}: {row['figures']['invented']} dots invented"
            )
            sizes = defaultdict(list)
            for each in row["figures"]["lesions"]:
                sizes[round(each["diameter_mm"], 1)].append(each)
            for size, found in sorted(sizes.items()):
                contrast, volume = (np.median([each[n] for each in found]) for n in ("contrast", "volume"))
                kept = f"contrast {contrast:.2f}, volume {volume:.2f}"
                print(f"  {size:g} mm: {kept}, {sum(each['erased'] for each in found)} of {len(found)} gone")


def _print_margins(cases: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print how far each method is above the better of spline and consistent linear interpolation."""
    plain = ("cubic", "linear+consistency")
    for method in dict.fromkeys(m for each in cases.values() for m in each if m not in (*plain, "linear")):
        apart = {
            name: [
                each[method][name] - max(each[base][name] for base in plain)
                for each in cases.values()
                if method in each and name in each[method]
            ]
            for name in ("psnr", "ssim", "cone", "psnr_brain", "ssim_brain")
        }
        shown = ", ".join(
            f"{name} {min(found):+.3f} to {max(found):+.3f}, mean {np.mean(found):+.3f}, "
            f"above in {sum(each > 0 for each in found)} of {len(found)}"
            for name, found in apart.items()
            if found
        )
        print(f"\n{method} less the better interpolation: {shown}")


def _restored(
    pipeline: Pipeline, given: Sliced, case: Case, head: Head, name: str
) -> tuple[np.ndarray, float]:
    """The model's volume with the slices' axis first, and its seconds."""
    began = time.perf_counter()
    result = _translated(pipeline, given, case, head, name)
    return given.turned(result.volume), time.perf_counter() - began


def _translated(
    pipeline: Pipeline, given: Sliced, case: Case, head: Head, name: str, samples: int = 1
) -> Translation:
    strategy, _, plane = name.partition(":")
    return pipeline(
        given.image,
        strategy=strategy,
        planes=[plane] if plane else None,
        thickness=case.width * case.step * head.voxel,
        profile="box",
        samples=samples,
        crop=False,
    )


def _middle(head: Head, edge: int) -> Head:
    if not edge:
        return head
    box = tuple(slice(max(0, (n - edge) // 2), (n + edge) // 2) for n in head.values.shape)
    return Head(head.name, np.ascontiguousarray(head.values[box]), head.voxel)


def _lesions(head: Head, given: Sliced, count: int) -> list[Lesion]:
    """Lesions of every diameter deep in the head, far apart, half of them dark."""
    random = np.random.default_rng(0)
    depth = given.inside.copy()
    places: list[np.ndarray] = []
    found = []
    for diameter in DIAMETERS:
        for number in range(count):
            while True:
                centre = random.uniform(0.25, 0.75, 3) * given.truth.shape
                apart = min((np.linalg.norm(centre - other) for other in places), default=np.inf)
                value = given.truth[tuple(centre.astype(int))]
                if apart > 16 and depth[tuple(centre.astype(int))] and value > 0.3 * head.peak:
                    break
            places.append(centre)
            sign = 1.0 if number % 2 else -1.0
            z, y, x = (float(at) for at in centre)
            found.append(Lesion((z, y, x), diameter / head.voxel, sign * 0.3 * head.peak))
    return found


def _rows(out: Path, kind: str) -> set[tuple[str, str, str]]:
    return {(row["head"], row["case"], row["method"]) for row in _read(out) if row["kind"] == kind}


def _read(out: Path) -> Iterator[dict[str, Any]]:
    if out.exists():
        yield from (json.loads(line) for line in out.read_text(encoding="utf-8").splitlines())


def _add(out: Path, kind: str, head: Head, case: Case, method: str, found: dict[str, Any]) -> None:
    row = {"kind": kind, "head": head.name, "case": str(case), "method": method, "figures": found}
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    shown = ", ".join(
        f"{name} {value:.4g}" for name, value in found.items() if isinstance(value, float | int)
    )
    print(f"{head.name}, {case}, {method}: {shown}", flush=True)


if __name__ == "__main__":
    program()
