"""Evaluation: models and baselines on volumes of known truth, subject by subject, with statistics."""

# ruff: noqa: F401, F403
from typing import TYPE_CHECKING

from scorefusion.optional import lazily

if TYPE_CHECKING:
    from scorefusion.evaluate.cases import *
    from scorefusion.evaluate.demo import *
    from scorefusion.evaluate.denoise_error import *
    from scorefusion.evaluate.methods import *
    from scorefusion.evaluate.output import *
    from scorefusion.evaluate.run import Results, Settings, evaluate
    from scorefusion.evaluate.sets import *
    from scorefusion.evaluate.summary import *

__all__, __getattr__ = lazily(
    __name__,
    {
        "cases": "Case Where find_cases is_synthetic label_names make_cases read_case",
        "demo": "pooled_case run_demo",
        "denoise_error": "denoising_errors",
        "methods": "Contender Method Regression load_main load_other rows_of",
        "output": "Store",
        "run": "Results Settings evaluate",
        "sets": "feature_network",
        "summary": "Summary summarise",
    },
)
