"""``scorefusion evaluate``: strategies, other models and baselines on subjects of known truth."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from typer import Argument

from scorefusion.cli.options import (
    SHARES,
    Device,
    Levels,
    ModelArgument,
    Only,
    Output,
    Quiet,
    numbers,
    opt,
    parse_box,
)
from scorefusion.pipeline import Options


@dataclass
class Rows:
    """The rows of the table."""

    strategies: str | None = opt("Such as average,fuse; all of the model's by default.")
    baselines: str | None = opt("Such as trilinear,b-spline, or none; all of the task's by default.")
    against: list[str] | None = opt(
        "NAME=MODEL or NAME=MODEL:STRATEGY: another model in the same table; may be repeated."
    )
    without_consistency: str | None = opt(
        "Strategies to sample without projection too, or none; the model's own strategy."
    )


@dataclass
class Place:
    """Where in each volume."""

    box: str = opt("Size of the box, Z,Y,X voxels, in the middle of each head; or whole.", "64,80,80")
    region: str | None = opt("FIRST:END slices along z that the box must lie in, such as 64:128.")
    coarsen: int = opt("Average N x N x N voxels of the data first.", 1)


@dataclass
class Subjects:
    """Which subjects of the data."""

    subjects: int | None = opt("The first so many by name; all by default.")
    split: str = opt("train, validation or test, as a training run splits the same data; or all.", "all")
    fractions: str | None = opt("Of the three splits, such as 0.6,0.1,0.3; 0.8,0.1,0.1 by default.")
    fit: Path | None = opt("Training subjects for the intensity regression (translation).")
    synthetic: bool | None = opt(
        "What the tables call the data; by phantom.json if not said.", None, "--synthetic/--real"
    )


@dataclass
class Measures:
    """What is measured."""

    features: str = opt("Networks of FID and MMD: random, deepbet, or TorchScript files.", "random")
    denoise: bool = opt("Denoising error by noise level.", True, "--denoise/--no-denoise")
    segmenter: bool = opt("Train and score a small 3D U-Net on true and translated.", False)
    segment_train: Path | None = opt("Other subjects with label maps, to train the segmenter on.")
    segment_on: str | None = opt("Rows to train on the translations of; the model's own strategy.")
    segment_subjects: int = opt("Train on the first so many.", 12)
    segment_steps: int = opt("Training steps of a segmenter.", 300)


def evaluate(
    model: ModelArgument,
    data: Annotated[Path, Argument(help="A dataset (folder, CSV), or one NIfTI file of the model's target.")],
    rows: Rows,
    place: Place,
    who: Subjects,
    sampling: Annotated[Options, Only("steps", "solver", "seed", "samples")],
    levels: Levels,
    measures: Measures,
    machine: Device,
    output: Output = Path("evaluate_out"),
    quiet: Quiet = False,
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
    import functools
    import time
    from dataclasses import replace

    from rich.console import Console

    from scorefusion import evaluate as evaluation
    from scorefusion.cli.console import note, progress
    from scorefusion.engine.planning.memory import keep_freed_memory
    from scorefusion.errors import ScoreFusionError
    from scorefusion.evaluate import find_cases, report
    from scorefusion.evaluate import methods as models
    from scorefusion.evaluate.output import check_folder
    from scorefusion.evaluate.segment import SegmenterSettings, dice_table, segment

    began = time.perf_counter()
    if sampling["samples"] < 1:
        raise ScoreFusionError(f"samples must be at least 1, got {sampling['samples']}")
    if measures.segmenter and measures.segment_train is None:
        raise ScoreFusionError("--segmenter needs --segment-train DATA: other subjects with label maps")
    size, slab = None, None
    if place.box != "whole":
        size, start = parse_box(place.box)
        if start is not None:
            raise ScoreFusionError("--box is a size here, such as 64,80,80, or whole; --region limits where")
    if place.region is not None:
        ends = place.region.split(":")
        if len(ends) != 2 or not all(end.strip().isdigit() for end in ends):
            raise ScoreFusionError(f"--region needs FIRST:END slices, such as 64:128; got '{place.region}'")
        slab = (int(ends[0]), int(ends[1]))
    where = evaluation.Where(size, slab, place.coarsen)
    networks = [evaluation.feature_network(name.strip()) for name in measures.features.split(",")]
    keep_freed_memory()
    on: dict[str, Any] = {**machine}
    how: dict[str, Any] = {"solver": sampling["solver"], "steps": sampling["steps"], "levels": vars(levels)}
    how["samples"] = sampling["samples"]
    main = models.load_main(model, rows.strategies, **how, **on)
    others = [models.load_other(text, main, **on) for text in rows.against or ()]
    own = models.own_strategy(main.config)
    methods = models.choose_baselines(rows.baselines, main.config, fitted=who.fit is not None)
    methods += models.rows_of(main, others, rows.without_consistency)
    models.check_names(methods)
    learnt = models.choose_rows(measures.segment_on, methods, own) if measures.segmenter else []
    found = find_cases(
        data,
        main.config,
        count=who.subjects,
        labels=measures.segmenter,
        split=who.split,
        fractions=numbers("--fractions", who.fractions, signed=True, kind=SHARES),
    )
    folder = check_folder(output, report.FILES, report.NEEDED, "an evaluation")
    store = evaluation.Store(folder / report.CACHE)
    settings = evaluation.Settings(sampling["seed"], sampling["samples"], measures.denoise)
    regression = None
    if who.fit is not None:
        training = (
            evaluation.read_case(subject, main.config, where) for subject in find_cases(who.fit, main.config)
        )
        regression = models.Regression.fit(training)
    run = functools.partial(evaluation.evaluate, store=store, where=where)
    with progress("evaluating", quiet=quiet) as tell:
        results = run(main, others, methods, found, settings=settings, regression=regression, callback=tell)
    summary = evaluation.summarise(results, methods, store, networks, main=own)
    made_up = evaluation.is_synthetic(data) if who.synthetic is None else who.synthetic
    about = report.About(main, others, networks, data, made_up, len(found), settings, where)
    dice = None
    if measures.segmenter and measures.segment_train is not None:
        found = find_cases(measures.segment_train, main.config, count=measures.segment_subjects, labels=True)
        plain = replace(settings, denoise=False)
        with progress("translating for the segmenter", quiet=quiet) as tell:
            translated = run(main, [], learnt, found, settings=plain, callback=tell)
        names = {"rows": [row.name for row in methods], "trained_on": [row.name for row in learnt]}
        unet = SegmenterSettings(steps=measures.segment_steps)
        with progress("segmenting", quiet=quiet) as tell:
            scores = segment(translated, results, store, **names, settings=unet, callback=tell)
        dice = dice_table(scores, about.head, evaluation.label_names(measures.segment_train))
    console = Console()
    wide = console if console.is_terminal else Console(width=240)
    wide.print(report.rich_table(summary, about.head, f"{main.config.name} on {data}"))
    if dice is not None:
        wide.print("\n".join("  ".join(row) for row in (dice.titles, *dice.rows)), markup=False)
    note(report.write_report(folder, about, summary, results, store, dice))
    if not quiet:
        print(f"{time.perf_counter() - began:.0f} s in all; see {folder / 'report.html'}")
