"""The Metric object and its registry: what evaluate, tune, demo, training looks and all tables measure.

A new metric is one call of :func:`register`; it then has its column in every table and file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import numpy as np

from scorefusion.metrics.image import MARGIN, Spectra, compare_spectra, patch_distance, psnr, ssim

MOST = 200.0  #: dB given for a volume without any error, so that means stay finite
PLACES = frozenset({"intervals", "terminal", "tests", "tested", "demo", "tune"})
"""Where a metric can be shown beside evaluate's tables and files, which hold all of them.

With its ``intervals`` and as a panel of the picture; in the ``terminal``; rows are ``tested`` by it, which
tables of ``tests`` show; ``demo``; ``tune``. Only on request: ``look``, in training's early looks.
"""


@dataclass(frozen=True, eq=False)
class Pair:
    """A volume and its truth, with what metrics need to compare them."""

    volume: np.ndarray  #: float ``[d, h, w]``
    truth: np.ndarray  #: the same shape and units
    data_range: float  #: greatest less least intensity of the whole image that ``truth`` is a part of
    inside: np.ndarray | None = None  #: bool ``[d, h, w]``, the foreground; None where none is told apart
    translated: bool = False  #: whether brightness and contrast of the volume are not determined by its input
    consistency: float | None = None  #: greatest difference from a measurement over the data range

    @cached_property
    def spectra(self) -> Spectra:
        """Radial spectra of both."""
        return compare_spectra(self.volume, self.truth)

    @cached_property
    def fitted(self) -> np.ndarray:
        """``a · volume + b`` that is nearest to the truth in the mean square."""
        x, y = self.volume.astype(np.float64), self.truth.astype(np.float64)
        variance = float(x.var())
        slope = float(((x - x.mean()) * (y - y.mean())).mean()) / variance if variance > 0.0 else 0.0
        return np.asarray(slope * (x - x.mean()) + y.mean())


@dataclass(frozen=True)
class Metric:
    """A figure of one volume against its truth."""

    name: str  #: key in records, CSV and JSON
    title: str  #: head of its column, without the unit
    compute: Callable[[Pair], float | None]  #: from a :class:`Pair`; None where there is nothing to measure
    short: str = ""  #: head of a narrow column, without the unit; the title by default
    unit: str = ""  #: such as ``dB``
    better: Literal["higher", "lower", ""] = ""  #: ``higher`` or ``lower``; empty where neither end is
    digits: int | None = 3  #: after the decimal point; None for three significant ones
    narrow: int | None = None  #: digits after the point in narrow tables; ``digits``, or 5, by default
    table: Literal["closeness", "realism", "cost"] = "closeness"  #: of evaluate's, which it belongs to
    places: frozenset[str] = PLACES  #: where else it is shown, of :data:`PLACES`
    slack: float | None = None  #: how much worse tune's choice may be; None if it does not decide

    @property
    def label(self) -> str:
        """Title and unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    @property
    def head(self) -> str:
        """Short title and unit."""
        return f"{self.short or self.title} {self.unit}".strip()

    def format(self, value: float, *, narrow: bool = False, signed: bool = False) -> str:
        """A figure as a table shows it."""
        sign, digits = "+" * signed, self.digits
        if narrow or signed:
            digits = self.narrow if narrow and self.narrow is not None else 5 if digits is None else digits
        return f"{value:{sign}.3g}" if digits is None else f"{value:{sign}.{digits}f}"

    def no_worse(self, value: float, other: float, slack: float | None = None) -> bool:
        """Whether a value is at least as good as another, but for the slack (its own by default)."""
        slack = self.slack if slack is None else slack
        if slack is None or not self.better:
            return True
        return value >= other - slack if self.better == "higher" else value <= other + slack


METRICS: dict[str, Metric] = {}  #: every metric by name, in the order of columns


def register(metric: Metric) -> Metric:
    """Add a metric, or replace the one of that name."""
    METRICS[metric.name] = metric
    return metric


def shown(place: str) -> list[Metric]:
    """The metrics of one of :data:`PLACES`, in order."""
    return [metric for metric in METRICS.values() if place in metric.places]


def measure(pair: Pair, place: str = "") -> dict[str, float | None]:
    """Compute all metrics, or those of one of :data:`PLACES`; by name, None where there is nothing.

    Raises ScoreFusionError for different or too small shapes, or a range that is not positive.
    """
    return {m.name: m.compute(pair) for m in (shown(place) if place else METRICS.values())}


def _psnr(pair: Pair, inside: np.ndarray | None = None, volume: np.ndarray | None = None) -> float | None:
    if inside is not None and not inside.any():
        return None
    volume = pair.volume if volume is None else volume
    return min(psnr(volume, pair.truth, pair.data_range, inside=inside), MOST)


def _psnr_inside(pair: Pair, outside: bool = False) -> float | None:
    return None if pair.inside is None else _psnr(pair, pair.inside ^ outside)


def _ssim_inside(pair: Pair) -> float | None:
    """Of the windows around foreground voxels; None where no window has a foreground voxel in its middle."""
    deep = (slice(MARGIN, -MARGIN),) * pair.truth.ndim
    if pair.inside is None or not pair.inside[deep].any():
        return None
    return ssim(pair.volume, pair.truth, pair.data_range, inside=pair.inside)


_COMPARED = PLACES - {"intervals", "demo"}

for _metric in (
    Metric("psnr", "PSNR", _psnr, unit="dB", better="higher", digits=2, slack=0.02, places=PLACES | {"look"}),
    Metric("ssim", "SSIM", lambda pair: ssim(pair.volume, pair.truth, pair.data_range), better="higher",
           digits=4, narrow=3),
    Metric("psnr_inside", "PSNR inside", _psnr_inside, unit="dB", better="higher", digits=2,
           places=frozenset({"terminal", "tested"})),
    Metric("ssim_inside", "SSIM inside", _ssim_inside, better="higher", digits=4,
           places=frozenset({"tested"})),
    Metric("psnr_outside", "PSNR outside", partial(_psnr_inside, outside=True), unit="dB", better="higher",
           digits=2, places=frozenset()),
    Metric("psnr_fitted", "PSNR fitted",
           lambda pair: _psnr(pair, volume=pair.fitted) if pair.translated else None, unit="dB",
           better="higher", digits=2, places=frozenset({"terminal"})),
    Metric("spectrum", "spectrum error", lambda pair: pair.spectra.error, short="spectrum", better="lower",
           table="realism", slack=0.01),
    Metric("spectrum_signed", "signed", lambda pair: pair.spectra.bias, table="realism",
           places=frozenset({"tune"})),
    Metric("correlation", "FSC, upper half", lambda pair: pair.spectra.upper_correlation, short="FSC",
           better="higher", slack=0.03, places=_COMPARED),
    Metric("patches", "patch distance", lambda pair: patch_distance(pair.volume, pair.truth), short="patches",
           better="lower", digits=None, table="realism", slack=2e-4, places=_COMPARED),
    Metric("consistency", "consistency", lambda pair: pair.consistency, better="lower", digits=None,
           table="cost", places=frozenset({"terminal"})),
):  # fmt: skip
    register(_metric)
