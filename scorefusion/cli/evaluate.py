"""``scorefusion evaluate``: strategies, other models and baselines on subjects of known truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from scorefusion.evaluate.case import Where
    from scorefusion.evaluate.methods import Contender, Method
    from scorefusion.evaluate.run import Results, Settings
    from scorefusion.evaluate.store import Store

_SAMPLED = "The model's own choice."


def evaluate(
    model: Annotated[str, typer.Argument(help="A bundled model's name, or a model folder.")],
    data: Annotated[
        Path, typer.Argument(help="A dataset (folder, CSV), or one NIfTI file of the model's target.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path(
        "evaluate_out"
    ),
    strategies: Annotated[
        str | None, typer.Option(help="Such as average,fuse; all of the model's by default.")
    ] = None,
    baselines: Annotated[
        str | None, typer.Option(help="Such as trilinear,b-spline, or none; all of the task's by default.")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=MODEL or NAME=MODEL:STRATEGY: another model in the same table; may be repeated."
        ),
    ] = None,
    without_consistency: Annotated[
        str | None,
        typer.Option(help="Strategies to sample without projection too, or none; the model's own strategy."),
    ] = None,
    box: Annotated[
        str, typer.Option(help="Size of the box, Z,Y,X voxels, in the middle of each head; or whole.")
    ] = "64,80,80",
    region: Annotated[
        str | None, typer.Option(help="FIRST:END slices along z that the box must lie in, such as 64:128.")
    ] = None,
    coarsen: Annotated[int, typer.Option(help="Average N x N x N voxels of the data first.")] = 1,
    subjects: Annotated[int | None, typer.Option(help="The first so many by name; all by default.")] = None,
    split: Annotated[
        str, typer.Option(help="train, validation or test, as a training run splits the same data; or all.")
    ] = "all",
    fractions: Annotated[
        str | None, typer.Option(help="Of the three splits, such as 0.6,0.1,0.3; 0.8,0.1,0.1 by default.")
    ] = None,
    fit: Annotated[
        Path | None, typer.Option(help="Training subjects for the intensity regression (translation).")
    ] = None,
    features: Annotated[
        str, typer.Option(help="Networks of FID and MMD: random, deepbet, or TorchScript files.")
    ] = "random",
    steps: Annotated[int | None, typer.Option(help=f"Noise levels. {_SAMPLED}")] = None,
    solver: Annotated[str | None, typer.Option(help=f"The solver. {_SAMPLED}")] = None,
    sigma_min: Annotated[float | None, typer.Option(help=f"Where the noise ends. {_SAMPLED}")] = None,
    sigma_max: Annotated[float | None, typer.Option(help=f"Where it begins. {_SAMPLED}")] = None,
    rho: Annotated[float | None, typer.Option(help=f"How levels crowd at the clean end. {_SAMPLED}")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise, the same for every row.")] = 0,
    samples: Annotated[int, typer.Option(help="Draw several and average them.")] = 1,
    denoise: Annotated[
        bool, typer.Option("--denoise/--no-denoise", help="Denoising error by noise level.")
    ] = True,
    synthetic: Annotated[
        bool | None,
        typer.Option(
            "--synthetic/--real", help="What the tables call the data; by phantom.json if not said."
        ),
    ] = None,
    segmenter: Annotated[
        bool, typer.Option("--segmenter", help="Train and score a small 3D U-Net on true and translated.")
    ] = False,
    segment_train: Annotated[
        Path | None, typer.Option(help="Other subjects with label maps, to train the segmenter on.")
    ] = None,
    segment_on: Annotated[
        str | None, typer.Option(help="Rows to train on the translations of; the model's own strategy.")
    ] = None,
    segment_subjects: Annotated[int, typer.Option(help="Train on the first so many.")] = 12,
    segment_steps: Annotated[int, typer.Option(help="Training steps of a segmenter.")] = 300,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto (what is fast here), float32, bfloat16, float16.")
    ] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress; print the table only.")] = False,
) -> None:
    """Measure a model's strategies on subjects of known truth, beside baselines and other models.

    Leaves subjects.csv, summary.json, table.md and report.html in the output folder, and finished results in
    OUT/cache: the same command goes on where it was stopped. docs/evaluation.md defines every figure.

    \b
    Examples:
      scorefusion evaluate t1-sr4 data/oasis_t1.nii.gz
      scorefusion evaluate t1-sr4 data/phantoms/test --subjects 12 -o results
      scorefusion evaluate t1-t2 pairs.csv --region 64:128 --fit data/phantoms/train
      scorefusion evaluate my_model test --against tosm=runs/tosm/model:average --features deepbet
      scorefusion evaluate t1-sr4 data/phantoms/test --segmenter --segment-train data/phantoms/train
    """
    import time

    from rich.console import Console

    from scorefusion.cli.bars import progress
    from scorefusion.cli.streams import note
    from scorefusion.engine.planning.memory import keep_freed_memory
    from scorefusion.errors import ScoreFusionError
    from scorefusion.evaluate import contenders, report
    from scorefusion.evaluate.baselines import fit_regression
    from scorefusion.evaluate.case import find_cases, is_synthetic
    from scorefusion.evaluate.features import feature_network
    from scorefusion.evaluate.methods import check_names, choose_baselines, choose_rows, own_strategy
    from scorefusion.evaluate.run import Settings
    from scorefusion.evaluate.run import evaluate as run_all
    from scorefusion.evaluate.store import Store
    from scorefusion.evaluate.summary import summarise
    from scorefusion.evaluate.table import rich_table

    began = time.perf_counter()
    if samples < 1:
        raise ScoreFusionError(f"samples must be at least 1, got {samples}")
    if segmenter and segment_train is None:
        raise ScoreFusionError("--segmenter needs --segment-train DATA: other subjects with label maps")
    where = _where(box, region, coarsen)
    networks = [feature_network(name.strip()) for name in features.split(",")]
    keep_freed_memory()
    change = {
        key: value
        for key, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max), ("rho", rho))
        if value is not None
    }
    main = contenders.load_main(
        model, strategies, solver=solver, steps=steps, levels=change, device=device, dtype=dtype
    )
    others = [contenders.load_other(text, main, device=device, dtype=dtype) for text in against or ()]
    own = own_strategy(main.config)
    methods = choose_baselines(baselines, main.config, fitted=fit is not None)
    methods += contenders.rows_of(main, others, without_consistency)
    check_names(methods)
    learnt = choose_rows(segment_on, methods, own) if segmenter else []
    found = find_cases(
        data, main.config, count=subjects, labels=segmenter, split=split, fractions=_shares(fractions)
    )
    folder = report.check_folder(output)
    store, settings = Store(folder / report.CACHE), Settings(seed, samples, denoise)
    regression = None if fit is None else fit_regression(find_cases(fit, main.config), main.config, where)
    with progress("evaluating", quiet=quiet) as tell:
        results = run_all(
            main, others, methods, found, store, where=where, settings=settings, regression=regression,
            callback=tell,
        )  # fmt: skip
    summary = summarise(results, methods, store, networks, main=own)
    made_up = is_synthetic(data) if synthetic is None else synthetic
    count = f"{len(found)} subject{'s' * (len(found) != 1)}"
    head = f"{'synthetic' if made_up else 'real'}, {count}"
    dice = None
    if segmenter and segment_train is not None:
        dice = _segment(
            main, methods, results, store, where, settings, segment_train, learnt,
            segment_subjects, segment_steps, head, quiet,
        )  # fmt: skip
    notes = contenders.notes(main, others, results, networks, data=str(data), settings=settings, where=where)
    console = Console()
    wide = console if console.is_terminal else Console(width=240)
    wide.print(rich_table(summary, head, f"{main.config.name} on {data}"))
    if dice is not None:
        wide.print("\n".join("  ".join(cell for cell in row) for row in (dice[0], *dice[1])), markup=False)
    problem = report.write_report(
        folder, summary, results, store, head=head, title=f"{main.config.name} on {data.name}", notes=notes,
        facts=contenders.facts(main, others, networks, data=str(data), synthetic=made_up, settings=settings),
        segmentation=dice,
    )  # fmt: skip
    note(problem)
    if not quiet:
        print(f"{time.perf_counter() - began:.0f} s in all; see {folder / 'report.html'}")


def _shares(fractions: str | None) -> list[float] | None:
    """Read --fractions."""
    from scorefusion.errors import ScoreFusionError

    try:
        return None if fractions is None else [float(share) for share in fractions.split(",")]
    except ValueError:
        raise ScoreFusionError(
            f"--fractions are three shares such as 0.6,0.1,0.3; got {fractions!r}"
        ) from None


def _where(box: str, region: str | None, coarsen: int) -> Where:
    """Read --box, --region and --coarsen."""
    from scorefusion.cli.demo import parse_box
    from scorefusion.errors import ScoreFusionError
    from scorefusion.evaluate.case import Where

    size = None
    if box != "whole":
        numbers, start = parse_box(box)
        if start is not None:
            raise ScoreFusionError("--box is a size here, such as 64,80,80, or whole; --region limits where")
        size = (numbers[0], numbers[1], numbers[2])
    slab = None
    if region is not None:
        ends = region.split(":")
        if len(ends) != 2 or not all(end.strip().isdigit() for end in ends):
            raise ScoreFusionError(f"--region needs FIRST:END slices, such as 64:128; got '{region}'")
        slab = (int(ends[0]), int(ends[1]))
    return Where(size, slab, coarsen)


def _segment(
    main: Contender,
    methods: list[Method],
    results: Results,
    store: Store,
    where: Where,
    settings: Settings,
    data: Path,
    learnt: list[Method],
    subjects: int,
    steps: int,
    head: str,
    quiet: bool,
) -> tuple[list[str], list[list[str]]]:
    """Translate the segmenter's training subjects, train and score."""
    from dataclasses import replace

    from scorefusion.cli.bars import progress
    from scorefusion.evaluate.case import find_cases, label_names
    from scorefusion.evaluate.run import evaluate as run_all
    from scorefusion.evaluate.segment import SegmenterSettings, dice_table, segment

    found = find_cases(data, main.config, count=subjects, labels=True)
    with progress("translating for the segmenter", quiet=quiet) as tell:
        training = run_all(
            main, [], learnt, found, store, where=where, settings=replace(settings, denoise=False),
            callback=tell,
        )  # fmt: skip
    with progress("segmenting", quiet=quiet) as tell:
        scores = segment(
            training, results, store, rows=[method.name for method in methods],
            trained_on=[method.name for method in learnt],
            settings=SegmenterSettings(steps=steps), callback=tell,
        )  # fmt: skip
    return dice_table(scores, head, label_names(data))
