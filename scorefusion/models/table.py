"""The solver table that a model is sampled with."""

from scorefusion.diffusion.schedule import Spacing, make_schedule
from scorefusion.diffusion.solvers import SOLVERS, Table, make_table
from scorefusion.errors import ScoreFusionError, unknown_name
from scorefusion.models.config import ModelConfig, SamplingConfig


def table_for(
    config: ModelConfig,
    *,
    solver: str | None = None,
    steps: int | None = None,
    eta: float | None = None,
    start_abar: float | None = None,
) -> Table:
    """The table of ``solver`` with ``steps`` noise levels; the model's own defaults where None.

    The model's ``eta`` and ``spread`` go with its own solver only.

    Raises:
        ScoreFusionError: for an unknown solver, with the nearest, or numbers it cannot take.
    """
    name = config.sampling.solver if solver is None else solver
    count = config.sampling.steps if steps is None else steps
    own = config.sampling if name == config.sampling.solver else SamplingConfig()
    if name not in SOLVERS:
        raise unknown_name("solver", name, SOLVERS)
    if count < 1:
        raise ScoreFusionError(f"sampling needs at least 1 step, got {count}")
    return make_table(
        name,
        count,
        schedule=None if name == "official" else _spacing(config.sampling),
        start_abar=start_abar,
        prediction=config.prediction,
        sigma_data=config.sigma_data,
        eta=own.eta if eta is None else eta,
        spread=own.spread,
    )


def _spacing(sampling: SamplingConfig) -> Spacing:
    if sampling.schedule == "karras":
        return make_schedule(
            "karras", sigma_min=sampling.sigma_min, sigma_max=sampling.sigma_max, rho=sampling.rho
        )
    return make_schedule("paper_sampling" if sampling.schedule == "paper" else sampling.schedule)
