"""What no network made: interpolation, pseudo-inverse, the input as it is, a regression of intensities."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from scorefusion.data import BASELINES, Subject, interpolate
from scorefusion.errors import ScoreFusionError
from scorefusion.evaluate.case import Case, Where, read_case
from scorefusion.evaluate.known_truth import as_array
from scorefusion.models.config import ModelConfig

DEGREE = 3


@dataclass(frozen=True, eq=False)
class Regression:
    """The target's intensity as a polynomial of the conditions', the same everywhere.

    Attributes:
        weights: float64 ``[1 + DEGREE · C]``: a constant, then for each condition its powers 1, 2, 3.
    """

    weights: np.ndarray

    @property
    def digest(self) -> str:
        """Of the weights."""
        return hashlib.sha256(self.weights.tobytes()).hexdigest()

    def __call__(self, conditions: np.ndarray) -> np.ndarray:
        """Predict a normalised volume ``[d, h, w]`` from conditions ``[C, d, h, w]``."""
        terms = _terms(conditions.reshape(len(conditions), -1))
        return (terms @ self.weights).reshape(conditions.shape[1:]).astype(np.float32)


def fit_regression(subjects: Sequence[Subject], config: ModelConfig, where: Where) -> Regression:
    """Fit by least squares over all voxels of the subjects' boxes.

    Args:
        subjects: of a training set, from :func:`~scorefusion.evaluate.case.find_cases`.
        config: the model whose baseline it is.
        where: which part of each.

    Raises:
        ScoreFusionError: for no subject.
        BadInput: for a file that cannot be used.
    """
    if not subjects:
        raise ScoreFusionError("a regression of intensities needs at least one subject")
    square, product = 0.0, 0.0
    for subject in subjects:
        case = read_case(subject, config, where)
        conditions = _conditions(case)
        terms = _terms(conditions.reshape(len(conditions), -1))
        square = square + terms.T @ terms
        product = product + terms.T @ case.truth.ravel().astype(np.float64)
    weights, *_ = np.linalg.lstsq(np.asarray(square), np.asarray(product), rcond=None)
    return Regression(weights)


def baseline_volume(name: str, case: Case, regression: Regression | None = None) -> np.ndarray:
    """A baseline's result.

    Args:
        name: one of :func:`~scorefusion.evaluate.methods.baseline_names`.
        case: the subject.
        regression: for the baseline of that name.

    Returns:
        float32 ``[d, h, w]`` of the box, normalised.
    """
    known, config = case.known, case.config
    degradation = config.degradation
    if name in (*BASELINES, "pseudo-inverse") and degradation.coarse:
        given = known.given[config.conditions[0]].float()
        fine = interpolate(given, name, degradation.factors, known.prepared.operator)
        return as_array(known.intensity.normalise(fine)[known.box.index])
    if name == "intensity regression":
        assert regression is not None
        return regression(_conditions(case))
    # What the pseudo-inverse makes of a measurement, or an input that is not degraded.
    first: Tensor = known.prepared.condition[:, :1]
    return as_array(first[known.box.index])


def _conditions(case: Case) -> np.ndarray:
    """The conditions ``[C, d, h, w]`` of the box, normalised."""
    inside: Tensor = case.known.prepared.condition[case.known.box.index]
    return inside[0].float().cpu().numpy()


def _terms(conditions: np.ndarray) -> np.ndarray:
    """``[N, 1 + DEGREE · C]`` of values ``[C, N]``."""
    powers = [values.astype(np.float64) ** n for values in conditions for n in range(1, DEGREE + 1)]
    return np.stack([np.ones(conditions.shape[1]), *powers], axis=1)
