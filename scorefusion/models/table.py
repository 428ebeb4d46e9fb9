"""The solver table that a model is sampled with."""

from __future__ import annotations

from ..diffusion.schedule import Spacing, make_schedule
from ..diffusion.solvers import Table, make_table
from .config import ModelConfig


def table_for(
    config: ModelConfig, *, solver: str | None = None, steps: int | None = None, eta: float | None = None
) -> Table:
    """The table of ``solver`` with ``steps`` evaluations; the model's own defaults where None.

    Raises:
        ScoreFusionError: for an unknown solver, with the nearest, or settings it does not take.
    """
    sampling = config.sampling
    spacing: Spacing | None = None
    if sampling.schedule == "karras":
        spacing = make_schedule(
            "karras", sigma_min=sampling.sigma_min, sigma_max=sampling.sigma_max, rho=sampling.rho
        )
    name = solver or sampling.solver
    return make_table(
        name,
        sampling.steps if steps is None else steps,
        schedule=None if name == "official" else spacing,
        prediction=config.prediction,
        sigma_data=config.sigma_data,
        eta=eta,
    )
