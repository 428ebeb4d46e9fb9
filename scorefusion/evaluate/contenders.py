"""The models of an evaluation: loaded, put on equal terms, and described."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scorefusion._version import __version__
from scorefusion.errors import ScoreFusionError
from scorefusion.evaluate.case import Where
from scorefusion.evaluate.features import CUBE, STEP, FeatureNetwork
from scorefusion.evaluate.methods import (
    Contender,
    Method,
    check_contender,
    choose_strategies,
    model_methods,
    own_strategy,
)
from scorefusion.evaluate.run import Results, Settings, model_digest
from scorefusion.models.config import SamplingConfig
from scorefusion.models.strategies import STRATEGIES, require_strategy
from scorefusion.pipeline import Pipeline


def load_main(
    model: str,
    strategies: str | None,
    *,
    solver: str | None = None,
    steps: int | None = None,
    levels: Mapping[str, float] | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> Contender:
    """Load the model that is evaluated.

    Args:
        model: a bundled model's name, or a folder.
        strategies: names with commas between them; all of the model's when None.
        solver: in place of the model's own; without eta and spread.
        steps: in place of the model's own.
        levels: ``sigma_min``, ``sigma_max`` and ``rho`` in place of the model's own.
        device: as :class:`~scorefusion.pipeline.pipeline.Pipeline` takes it.
        dtype: likewise.

    Raises:
        ScoreFusionError: for unknown names or numbers out of range.
    """
    pipeline = Pipeline(model, device=device, dtype=dtype)
    config = pipeline.config
    if levels and config.sampling.schedule != "karras":
        raise ScoreFusionError(
            f"--{next(iter(levels)).replace('_', '-')} is for the karras schedule; model '{config.name}' has "
            f"'{config.sampling.schedule}'"
        )
    change: dict[str, Any] = dict(levels or {})
    if solver is not None:
        change |= {"solver": solver, "eta": None, "spread": None}
    if steps is not None:
        change["steps"] = steps
    found = Contender(
        "",
        pipeline.model,
        choose_strategies(strategies, config),
        config.sampling.model_copy(update=change),
        model_digest(pipeline.model, config),
    )
    found.table()
    return found


def load_other(text: str, main: Contender, *, device: str = "auto", dtype: str = "auto") -> Contender:
    """Load a model that is compared, from ``NAME=MODEL`` or ``NAME=MODEL:STRATEGY``.

    It is sampled as the main model is (solver, steps and noise levels), if both have the same kind of
    schedule; else as it says itself. Without a strategy it is its own.

    Raises:
        ScoreFusionError: for another form, an unknown name, or a model of another task.
    """
    name, equals, place = text.partition("=")
    if not (name.strip() and equals and place):
        raise ScoreFusionError(f"--against needs NAME=MODEL or NAME=MODEL:STRATEGY, got '{text}'")
    folder, colon, strategy = place.rpartition(":")
    if not colon or strategy not in STRATEGIES:
        folder, strategy = place, ""
    pipeline = Pipeline(folder, device=device, dtype=dtype)
    config = pipeline.config
    chosen = require_strategy(strategy or own_strategy(config), config).name
    found = Contender(
        name.strip(),
        pipeline.model,
        (chosen,),
        _equal_terms(config.sampling, main.sampling),
        model_digest(pipeline.model, config),
    )
    check_contender(found, main.config)
    found.table()
    return found


def rows_of(main: Contender, others: Sequence[Contender], without_consistency: str | None) -> list[Method]:
    """The rows of all models.

    Args:
        main: the model that is evaluated.
        others: those beside it.
        without_consistency: strategies that are also sampled without projection, with commas between them;
            the model's own when None, no one for ``none``.

    Raises:
        ScoreFusionError: for a strategy without a row.
    """
    if without_consistency is None:
        ablated: tuple[str, ...] = (own_strategy(main.config),)
    elif without_consistency == "none":
        ablated = ()
    else:
        ablated = choose_strategies(without_consistency, main.config)
    methods = model_methods(main, without_consistency=ablated)
    for other in others:
        methods += model_methods(other)
    return methods


def notes(
    main: Contender,
    others: Sequence[Contender],
    results: Results,
    networks: Sequence[FeatureNetwork],
    *,
    data: str,
    settings: Settings,
    where: Where,
) -> list[str]:
    """What the figures were measured on, and how, in sentences."""
    sizes = dict.fromkeys("×".join(str(n) for n in case["size"]) for case in results.cases)
    coarser = f", averaged over {where.coarsen}³ voxels first" if where.coarsen > 1 else ""
    slab = f" within slices {where.slab[0]}:{where.slab[1]}" if where.slab else ""
    found = [
        f"Data: {data}{coarser}; boxes of {', '.join(sizes)} voxels (z, y, x){slab}.",
        f"Task: {', '.join(main.config.conditions)} to {main.config.target}, degradation "
        f"{main.config.degradation.kind}. Intensities are normalised as the model's configuration says "
        f"({main.config.intensity}), truth and results alike; PSNR and SSIM take white less black from the "
        "whole true volume.",
        f"{main.config.name}: {_sampler(main)}, seed {settings.seed}, {settings.samples} "
        f"sample{'s' * (settings.samples != 1)}; one-step is one evaluation from pure noise, the posterior "
        "mean; single is the mean of its planes.",
    ]
    found += [
        f"{other.name}: {other.config.name}, {other.strategies[0]}, {_sampler(other)}." for other in others
    ]
    found += [
        f"FID and MMD, {network.name}: {network.description} Means over cubes of {CUBE} voxels, {STEP} apart."
        for network in networks
    ]
    found.append(
        "Intervals are 95%: bootstrap over subjects, for FID and MMD the jackknife; p is Wilcoxon's, with "
        f"Holm's correction. scorefusion {__version__}; docs/evaluation.md defines every figure."
    )
    return found


def facts(
    main: Contender,
    others: Sequence[Contender],
    networks: Sequence[FeatureNetwork],
    *,
    data: str,
    synthetic: bool,
    settings: Settings,
) -> dict[str, Any]:
    """The same for programs."""
    return {
        "scorefusion": __version__,
        "data": data,
        "synthetic": synthetic,
        "model": main.config.name,
        "models": {
            each.name or each.config.name: {
                "sha256": each.digest,
                "strategies": each.strategies,
                "sampling": each.sampling.model_dump(mode="json"),
            }
            for each in (main, *others)
        },
        "seed": settings.seed,
        "samples": settings.samples,
        "features": {network.name: network.description for network in networks},
    }


def _equal_terms(own: SamplingConfig, main: SamplingConfig) -> SamplingConfig:
    if own.schedule != main.schedule:
        return own
    shared = ("solver", "steps", "sigma_max", "sigma_min", "rho", "eta", "spread")
    return own.model_copy(update={name: getattr(main, name) for name in shared})


def _sampler(contender: Contender) -> str:
    sampling = contender.sampling
    levels = ""
    if sampling.schedule == "karras":
        levels = f", sigma {sampling.sigma_max:g} to {sampling.sigma_min:g}"
    return f"{sampling.solver}, {len(contender.table())} evaluations{levels}"
