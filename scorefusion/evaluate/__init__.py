"""Evaluation: models and baselines on volumes of known truth, subject by subject, with statistics."""

from scorefusion.evaluate.cases import (
    Case,
    Where,
    find_cases,
    is_synthetic,
    label_names,
    make_cases,
    read_case,
)
from scorefusion.evaluate.demo import pooled_case, run_demo
from scorefusion.evaluate.denoise_error import denoising_errors
from scorefusion.evaluate.methods import Contender, Method, Regression, load_main, load_other, rows_of
from scorefusion.evaluate.run import Results, Settings, evaluate
from scorefusion.evaluate.sets import feature_network
from scorefusion.evaluate.store import Store
from scorefusion.evaluate.summary import Summary, summarise

__all__ = [
    "Case",
    "Contender",
    "Method",
    "Regression",
    "Results",
    "Settings",
    "Store",
    "Summary",
    "Where",
    "denoising_errors",
    "evaluate",
    "feature_network",
    "find_cases",
    "is_synthetic",
    "label_names",
    "load_main",
    "load_other",
    "make_cases",
    "pooled_case",
    "read_case",
    "rows_of",
    "run_demo",
    "summarise",
]
